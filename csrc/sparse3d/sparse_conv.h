// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "sparse3d/map_view.h"

namespace flexor {

// Sizes are checked in sparse_conv.cpp; the kernels trust them. Views that are absent are empty.
struct SparseConvParams {
  MapView map;
  MapView transposed;                                // absent where the map is its own mirror image
  TensorView features;                               // [N_in, Ci]
  TensorView weight;                                 // [Co, K, Ci/groups]
  TensorView bias;                                   // [Co] or empty
  TensorView residual;                               // [N_out, Co] or empty
  TensorView output;                                 // [N_out, Co]; the backward reads the gradient of the output here
  TensorView grad_features, grad_weight, grad_bias;  // each may be empty
  int64_t groups;
  bool activate;  // v > 0 ? v : slope * v
  double slope;
};

struct SparseConvKernels {
  void (*forward)(const SparseConvParams&);
  void (*backward)(const SparseConvParams&);
};

FLEXOR_DECLARE_KERNELS(SparseConvKernels, sparse_conv_kernels)

// Of bfloat16 without groups, where active_bf16_dot() says so.
struct SparseConvBf16Kernels {
  void (*forward)(const SparseConvParams&);
  void (*input_gradient)(const SparseConvParams&);
};

#if FLEXOR_HAVE_avx512
namespace avx512_bf16 { extern const SparseConvBf16Kernels sparse_conv_bf16_kernels; }
#endif

}  // namespace flexor
