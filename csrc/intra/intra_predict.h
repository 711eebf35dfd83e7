// SPDX-License-Identifier: Apache-2.0
// Prediction of many blocks from their borders, each with substitution and smoothing of its own.
#pragma once
#include "core/cpu.h"
#include "core/tensor.h"

namespace flexor {

struct IntraPredictParams {
  TensorView output;     // (N, n, n), 8- to 32-bit integers, contiguous
  TensorView border;     // (N, 4n + 1), output's dtype
  TensorView mode;       // (N), int64
  TensorView available;  // (N, 4n + 1), bool; none: everything
  int log2_size, bit_depth;
  bool nearest, smoothing, strong_smoothing, edge_filter;  // each where size and mode ask for it
};

struct IntraPredictKernels {
  // False where a mode is none or a sample does not fit the bit depth; the output is then of no use.
  bool (*predict)(const IntraPredictParams&);
};

FLEXOR_DECLARE_KERNELS(IntraPredictKernels, intra_predict_kernels)
FLEXOR_DECLARE_KERNELS(IntraPredictKernels, intra_predict_reference)

}  // namespace flexor
