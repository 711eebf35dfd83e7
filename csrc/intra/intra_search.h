// SPDX-License-Identifier: Apache-2.0
// Open-loop search of intra modes: the cost of every candidate for every block, from the picture's own samples.
#pragma once
#include "core/cpu.h"
#include "core/tensor.h"
#include "intra/intra_angles.h"

namespace flexor {

constexpr int kIntraCandidates = kIntraModes + 28;  // all modes bilinear, then the fractional angles nearest

struct IntraSearchParams {
  TensorView pictures;    // (B, H, W), 8- to 32-bit integers
  TensorView costs;       // (B, rows, columns, K), int32, contiguous
  TensorView candidates;  // as costs, uint8: the K best; none: K is 35 or 63, all of them in order
  int64_t blocks, rows, columns;
  int log2_size, bit_depth, ctb_log2;  // ctb_log2 0: neighbours count as coded wherever the picture has them
  int considered;                      // 35 or 63
  bool satd, strong_smoothing;
};

struct IntraSearchKernels {
  // False where a sample does not fit the bit depth.
  bool (*search)(const IntraSearchParams&);
};

FLEXOR_DECLARE_KERNELS(IntraSearchKernels, intra_search_kernels)
FLEXOR_DECLARE_KERNELS(IntraSearchKernels, intra_search_reference)

}  // namespace flexor
