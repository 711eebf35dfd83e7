// SPDX-License-Identifier: Apache-2.0
// Depth-wise correlation with kernels of every sample's own. More general than the op of that name:
// depth-wise dynamic convolution mixes its kernels and comes here with its strides and dilations.
#pragma once
#include "core/cpu.h"
#include "core/tensor.h"

namespace flexor {

struct XcorrDepthwiseParams {
  TensorView input;                    // [B, C, H, W]
  TensorView kernel;                   // [B, C, kh, kw], of any floating dtype and strides
  TensorView output;                   // [B, C, oh, ow]; the backward reads the gradient of the output here
  TensorView grad_input, grad_kernel;  // each may be empty
  int64_t stride[2] = {1, 1}, padding[2] = {0, 0}, dilation[2] = {1, 1};  // y, x
};

struct XcorrDepthwiseKernels {
  void (*forward)(const XcorrDepthwiseParams&);
  void (*backward)(const XcorrDepthwiseParams&);
};

FLEXOR_DECLARE_KERNELS(XcorrDepthwiseKernels, xcorr2d_depthwise_kernels)

}  // namespace flexor
