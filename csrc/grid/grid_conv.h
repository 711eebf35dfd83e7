// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "core/cpu.h"
#include "core/tensor.h"

namespace flexor {

// Sizes are checked in grid_conv.cpp; the kernels trust them. Views that are absent are empty.
struct GridConvParams {
  char border1, border2;    // c circular, r replicate, z zeros; border2 is 0 without a second branch
  TensorView input;         // [B, Ci, h, w]
  TensorView weight1;       // [Co, Ci, kh, kw], odd kh and kw
  TensorView weight2;       // the same or empty
  TensorView bias1, bias2;  // [Co] or empty
  TensorView attention;     // [B, kh*kw, h, w] or empty
  TensorView output;        // [B, Co, h, w]; the backward reads the gradient of the output here
  TensorView grad_input, grad_weight1, grad_weight2, grad_bias1, grad_bias2, grad_attention;  // each may be empty
};

struct GridConvKernels {
  void (*forward)(const GridConvParams&);
  void (*backward)(const GridConvParams&);
};

FLEXOR_DECLARE_KERNELS(GridConvKernels, grid_conv_kernels)

}  // namespace flexor
