// SPDX-License-Identifier: Apache-2.0
// A tensor as the kernels see it: address, dtype, sizes, strides in elements. No libtorch, no Python.
#pragma once
#include <cstdint>

namespace flexor {

enum class DType : int32_t { f32, f64, f16, bf16, u8, i16, u16, i32, i64, b8 };

inline int64_t item_size(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64: return 8;
    case DType::f32:
    case DType::i32: return 4;
    case DType::f16:
    case DType::bf16:
    case DType::i16:
    case DType::u16: return 2;
    case DType::u8:
    case DType::b8: return 1;
  }
  return 0;
}

struct TensorView {
  static constexpr int kMaxDims = 6;
  void* data = nullptr;
  DType dtype = DType::f32;
  int ndim = 0;
  int64_t size[kMaxDims] = {};
  int64_t stride[kMaxDims] = {};

  explicit operator bool() const { return ndim != 0; }
  int64_t numel() const {
    int64_t n = 1;
    for (int d = 0; d < ndim; ++d) n *= size[d];
    return n;
  }
};

}  // namespace flexor
