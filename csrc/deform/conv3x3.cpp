// SPDX-License-Identifier: Apache-2.0
#include "deform/conv3x3.h"

#include <pybind11/pybind11.h>

#include "core/checks.h"
#include "core/tensor_view.h"

namespace py = pybind11;

namespace flexor {
namespace {

constexpr Checks checks{"conv3x3"};

void check(const Conv3x3Params& p) {
  checks.require(p.input.ndim == 4 && p.weight.ndim == 4 && p.output.ndim == 4,
                 "input, weight and output must have 4 dimensions");
  const int64_t b = p.input.size[0], c = p.input.size[1], o = p.weight.size[0];
  constexpr int64_t kMost = int64_t{1} << 24;  // so that no product of sizes overflows
  checks.require(p.dilation >= 1 && p.dilation < kMost && p.input.size[2] < kMost && p.input.size[3] < kMost,
                 "dilation must be positive, it and the sizes below 2^24");
  checks.require(c >= 1 && o >= 1 && p.input.size[2] >= 1 && p.input.size[3] >= 1,
                 "input and weight must have no empty dimension but the batch");
  checks.shape(p.weight, {o, c, 3, 3}, "weight must be (O, C, 3, 3)");
  checks.shape(p.output, {b, o, p.input.size[2], p.input.size[3]}, "output must be (B, O, H, W)");
  if (p.bias) checks.shape(p.bias, {o}, "bias must be (O,)");
  if (p.grad_bias) checks.shape(p.grad_bias, {o}, "grad_bias must be (O,)");
  checks.gradient(p.grad_input, p.input);
  checks.gradient(p.grad_weight, p.weight);
  const DType t = p.input.dtype;
  checks.require(is_float(t) && p.weight.dtype == t && p.output.dtype == t && (!p.bias || p.bias.dtype == t) &&
                     (!p.grad_bias || p.grad_bias.dtype == t),
                 "all tensors must share one floating-point dtype");
}

Conv3x3Params params(py::handle output, const char* name, py::handle input, py::handle weight, int64_t dilation) {
  Conv3x3Params p{};
  p.dilation = dilation;
  p.input = view_tensor(input, "input");
  p.weight = view_tensor(weight, "weight");
  p.output = view_tensor(output, name);
  return p;
}

void forward(py::handle output, py::handle input, py::handle weight, py::handle bias, int64_t dilation) {
  Conv3x3Params p = params(output, "output", input, weight, dilation);
  p.bias = view_tensor(bias, "bias");
  check(p);
  py::gil_scoped_release nogil;
  FLEXOR_KERNELS(conv3x3_kernels).forward(p);
}

void backward(py::handle grad_output, py::handle input, py::handle weight, py::handle grad_input,
              py::handle grad_weight, py::handle grad_bias, int64_t dilation) {
  Conv3x3Params p = params(grad_output, "grad_output", input, weight, dilation);
  p.grad_input = view_tensor(grad_input, "grad_input");
  p.grad_weight = view_tensor(grad_weight, "grad_weight");
  p.grad_bias = view_tensor(grad_bias, "grad_bias");
  check(p);
  py::gil_scoped_release nogil;
  FLEXOR_KERNELS(conv3x3_kernels).backward(p);
}

}  // namespace

void register_conv3x3(py::module_& m) {
  m.def("conv3x3_forward", &forward);
  m.def("conv3x3_backward", &backward);
}

}  // namespace flexor
