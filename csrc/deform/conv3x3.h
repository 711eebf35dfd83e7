// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "core/cpu.h"
#include "core/tensor.h"

namespace flexor {

// Sizes are checked in conv3x3.cpp; the kernels trust them. Views that are absent are empty.
struct Conv3x3Params {
  int64_t dilation;                               // also the padding: the output has the input's size
  TensorView input;                               // [B, C, H, W]
  TensorView weight;                              // [O, C, 3, 3]
  TensorView bias;                                // [O]
  TensorView output;                              // [B, O, H, W]; the backward reads the gradient of the output here
  TensorView grad_input, grad_weight, grad_bias;  // each may be empty
};

struct Conv3x3Kernels {
  void (*forward)(const Conv3x3Params&);
  void (*backward)(const Conv3x3Params&);
};

FLEXOR_DECLARE_KERNELS(Conv3x3Kernels, conv3x3_kernels)

}  // namespace flexor
