// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "sparse3d/map_view.h"

namespace flexor {

// Sizes are checked in sparse_pool.cpp; the kernels trust them.
struct SparsePoolParams {
  enum Mode { max, max_from_zero, average };
  Mode mode;
  MapView map;
  MapView transposed;        // absent where the map is its own mirror image
  TensorView features;       // [N_in, C]
  TensorView output;         // [N_out, C]
  TensorView grad_output;    // of the backward
  TensorView grad_features;  // [N_in, C]
};

struct SparsePoolKernels {
  void (*forward)(const SparsePoolParams&);
  void (*backward)(const SparsePoolParams&);
};

FLEXOR_DECLARE_KERNELS(SparsePoolKernels, sparse_pool_kernels)

}  // namespace flexor
