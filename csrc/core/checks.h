// SPDX-License-Identifier: Apache-2.0
// What every binding checks before a kernel reads memory. Memory safety only: the messages that users meet are
// raised in flexor.ops.
#pragma once
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <string>

#include "core/tensor.h"

namespace flexor {

inline bool is_float(DType t) { return t == DType::f32 || t == DType::f64 || t == DType::f16 || t == DType::bf16; }

// Of a convolution along one axis.
inline int64_t output_size(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  return (size + 2 * pad - (dilation * (kernel - 1) + 1)) / stride + 1;
}

// Raises ValueError with the op's name before what is wrong.
struct Checks {
  const char* op;

  void require(bool condition, const char* what) const {
    if (!condition) throw pybind11::value_error(std::string(op) + ": " + what);
  }

  void shape(const TensorView& view, std::initializer_list<int64_t> shape, const char* what) const {
    require(view.ndim == static_cast<int>(shape.size()), what);
    int d = 0;
    for (int64_t size : shape) require(view.size[d++] == size, what);
  }

  void gradient(const TensorView& grad, const TensorView& of) const {
    if (!grad) return;
    require(grad.ndim == of.ndim && grad.dtype == of.dtype, "a gradient must have its tensor's dtype and shape");
    for (int d = 0; d < of.ndim; ++d) require(grad.size[d] == of.size[d], "a gradient must have its tensor's shape");
  }
};

}  // namespace flexor
