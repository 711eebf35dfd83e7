// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "core/cpu.h"
#include "core/tensor.h"

namespace flexor {

// Sizes are checked in odconv2d.cpp; the kernels trust them. Views that are absent are empty.
struct ODConv2dParams {
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups;
  TensorView input;                             // [B, Ci, H, W]
  TensorView weight;                            // [n, Co, Ci/groups, kh, kw]
  TensorView channel, filter, spatial, kernel;  // [B, Ci], [B, Co], [B, kh*kw], [B, n], each may be empty
  TensorView output;                            // [B, Co, oh, ow]; the backward reads the gradient of the output here
  TensorView grad_input, grad_weight, grad_channel, grad_filter, grad_spatial, grad_kernel;  // each may be empty
};

struct ODConv2dKernels {
  void (*forward)(const ODConv2dParams&);
  void (*backward)(const ODConv2dParams&);
};

FLEXOR_DECLARE_KERNELS(ODConv2dKernels, odconv2d_kernels)

}  // namespace flexor
