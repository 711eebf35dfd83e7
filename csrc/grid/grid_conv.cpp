// SPDX-License-Identifier: Apache-2.0
#include "grid/grid_conv.h"

#include <pybind11/pybind11.h>

#include <string>

#include "core/checks.h"
#include "core/tensor_view.h"

namespace py = pybind11;

namespace flexor {
namespace {

constexpr Checks checks{"grid_conv"};

bool is_border(char c) { return c == 'c' || c == 'r' || c == 'z'; }

void check(const GridConvParams& p) {
  checks.require(p.input.ndim == 4 && p.weight1.ndim == 4, "input and weight1 must have 4 dimensions");
  checks.require(is_border(p.border1) && (p.weight2 ? is_border(p.border2) : p.border2 == 0),
                 "borders must be one letter of c, r, z for each weight");
  const int64_t b = p.input.size[0], h = p.input.size[2], w = p.input.size[3];
  const int64_t o = p.weight1.size[0], c = p.input.size[1], kh = p.weight1.size[2], kw = p.weight1.size[3];
  constexpr int64_t kMost = int64_t{1} << 24;
  checks.require(h > 0 && w > 0 && h < kMost && w < kMost && h * w < kMost, "the grid must have 1 to 2^24 cells");
  checks.require(kh % 2 == 1 && kw % 2 == 1 && kh < kMost && kw < kMost && kh * kw < kMost,
                 "the kernel's sides must be odd");
  checks.require(p.weight1.size[1] == c, "weight1.shape[1] must be input.shape[1]");
  checks.shape(p.output, {b, o, h, w}, "output must be (B, Co, h, w)");
  if (p.weight2) checks.shape(p.weight2, {o, c, kh, kw}, "weight2 must have weight1's shape");
  if (p.attention) checks.shape(p.attention, {b, kh * kw, h, w}, "attention must be (B, kh*kw, h, w)");
  for (const TensorView* bias : {&p.bias1, &p.bias2, &p.grad_bias1, &p.grad_bias2})
    if (*bias) checks.shape(*bias, {o}, "a bias must be (Co,)");
  checks.gradient(p.grad_input, p.input);
  checks.gradient(p.grad_weight1, p.weight1);
  checks.gradient(p.grad_weight2, p.weight2);
  checks.gradient(p.grad_attention, p.attention);
  const DType t = p.input.dtype;
  checks.require(is_float(t), "input must be floating-point");
  for (const TensorView* view : {&p.weight1, &p.weight2, &p.bias1, &p.bias2, &p.output, &p.grad_bias1, &p.grad_bias2})
    checks.require(!*view || view->dtype == t, "input, weights, biases and output must share one dtype");
  checks.require(!p.attention || p.attention.dtype == t || (t != DType::f64 && p.attention.dtype == DType::f32),
                 "attention must have input's dtype or float32");
}

GridConvParams read(py::handle output, py::handle input, py::handle weight1, py::handle weight2, py::handle attention,
                    const std::string& borders) {
  checks.require(borders.size() == (weight2.is_none() ? 1 : 2), "borders must be one letter for each weight");
  GridConvParams p{};
  p.border1 = borders[0];
  p.border2 = weight2.is_none() ? '\0' : borders[1];
  p.output = view_tensor(output, "output");
  p.input = view_tensor(input, "input");
  p.weight1 = view_tensor(weight1, "weight1");
  p.weight2 = view_tensor(weight2, "weight2");
  p.attention = view_tensor(attention, "attention");
  return p;
}

void forward(py::handle output, py::handle input, py::handle weight1, py::handle weight2, py::handle bias1,
             py::handle bias2, py::handle attention, const std::string& borders) {
  GridConvParams p = read(output, input, weight1, weight2, attention, borders);
  p.bias1 = view_tensor(bias1, "bias1");
  p.bias2 = view_tensor(bias2, "bias2");
  check(p);
  py::gil_scoped_release nogil;
  FLEXOR_KERNELS(grid_conv_kernels).forward(p);
}

void backward(py::handle grad_output, py::handle input, py::handle weight1, py::handle weight2, py::handle attention,
              py::handle grad_input, py::handle grad_weight1, py::handle grad_weight2, py::handle grad_bias1,
              py::handle grad_bias2, py::handle grad_attention, const std::string& borders) {
  GridConvParams p = read(grad_output, input, weight1, weight2, attention, borders);
  p.grad_input = view_tensor(grad_input, "grad_input");
  p.grad_weight1 = view_tensor(grad_weight1, "grad_weight1");
  p.grad_weight2 = view_tensor(grad_weight2, "grad_weight2");
  p.grad_bias1 = view_tensor(grad_bias1, "grad_bias1");
  p.grad_bias2 = view_tensor(grad_bias2, "grad_bias2");
  p.grad_attention = view_tensor(grad_attention, "grad_attention");
  check(p);
  py::gil_scoped_release nogil;
  FLEXOR_KERNELS(grid_conv_kernels).backward(p);
}

}  // namespace

void register_grid(py::module_& m) {
  m.def("grid_conv_forward", &forward);
  m.def("grid_conv_backward", &backward);
}

}  // namespace flexor
