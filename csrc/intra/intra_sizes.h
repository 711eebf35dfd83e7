// SPDX-License-Identifier: Apache-2.0
// What the bindings of the intra family check alike.
#pragma once
#include "core/tensor.h"

namespace flexor {

constexpr int kMaxIntraDepth = 12;

inline bool is_sample(DType t) { return t == DType::u8 || t == DType::i16 || t == DType::u16 || t == DType::i32; }

// 2 to 6 for 4 to 64, else 0.
inline int intra_log2_size(int64_t n) {
  for (int log2_size = 2; log2_size <= 6; ++log2_size)
    if (n == int64_t{1} << log2_size) return log2_size;
  return 0;
}

inline bool is_contiguous(const TensorView& view) {
  int64_t stride = 1;
  for (int d = view.ndim - 1; d >= 0; --d) {
    if (view.size[d] != 1 && view.stride[d] != stride) return view.numel() == 0;
    stride *= view.size[d];
  }
  return true;
}

}  // namespace flexor
