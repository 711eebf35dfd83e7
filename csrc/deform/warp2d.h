// SPDX-License-Identifier: Apache-2.0
// What warp2d and affine_warp2d share: an input, read where a flow or a matrix says.
#pragma once
#include "core/cpu.h"
#include "core/tensor.h"

namespace flexor {

struct WarpParams {
  bool affine, nearest, border;
  TensorView input;                   // [N, C, H, W]
  TensorView where;                   // flow [N, 2, oh, ow], (x, y); or matrix [N, 2, 3] from output to input pixels
  TensorView output;                  // [N, C, oh, ow]; the backward reads the gradient of the output here
  TensorView grad_input, grad_where;  // each may be empty
};

struct WarpKernels {
  void (*forward)(const WarpParams&);
  void (*backward)(const WarpParams&);
};

FLEXOR_DECLARE_KERNELS(WarpKernels, warp2d_kernels)

}  // namespace flexor
