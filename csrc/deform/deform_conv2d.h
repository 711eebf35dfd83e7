// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "core/cpu.h"
#include "core/tensor.h"

namespace flexor {

// Sizes are checked in deform_conv2d.cpp; the kernels trust them. Views that are absent are empty.
struct DeformConv2dParams {
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t groups, offset_groups;
  TensorView input;   // [N, C, H, W]
  TensorView offset;  // [N, 2*dg*kh*kw, oh, ow], (y, x) a tap
  TensorView mask;    // [N, dg*kh*kw, oh, ow] or empty
  TensorView weight;  // [O, C/groups, kh, kw]
  TensorView bias;    // [O] or empty
  TensorView output;  // [N, O, oh, ow]; the backward reads the gradient of the output here
  TensorView grad_input, grad_offset, grad_mask, grad_weight, grad_bias;  // each may be empty
};

struct DeformConv2dKernels {
  void (*forward)(const DeformConv2dParams&);
  void (*backward)(const DeformConv2dParams&);
};

FLEXOR_DECLARE_KERNELS(DeformConv2dKernels, deform_conv2d_kernels)

}  // namespace flexor
