// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "core/cpu.h"
#include "core/tensor.h"

namespace flexor {

// Sizes are checked in xcorr2d.cpp; the kernels trust them. Views that are absent are empty.
struct Xcorr2dParams {
  int64_t pad_h, pad_w;
  TensorView input;                    // [B, C, H, W]
  TensorView kernel;                   // [B, K, C, kh, kw]
  TensorView output;                   // [B, K, oh, ow]; the backward reads the gradient of the output here
  TensorView grad_input, grad_kernel;  // each may be empty
};

struct Xcorr2dKernels {
  void (*forward)(const Xcorr2dParams&);
  void (*backward)(const Xcorr2dParams&);
};

FLEXOR_DECLARE_KERNELS(Xcorr2dKernels, xcorr2d_kernels)

}  // namespace flexor
