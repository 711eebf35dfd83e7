// SPDX-License-Identifier: Apache-2.0
#include "deform/warp2d.h"

#include <pybind11/pybind11.h>

#include "core/checks.h"
#include "core/tensor_view.h"

namespace py = pybind11;

namespace flexor {
namespace {

constexpr Checks checks{"warp2d"};

void check(const WarpParams& p) {
  const TensorView &input = p.input, &where = p.where, &output = p.output;
  checks.require(input.ndim == 4 && output.ndim == 4, "input and output must have 4 dimensions");
  checks.require(output.size[0] == input.size[0] && output.size[1] == input.size[1],
                 "output must have input's N and C");
  if (p.affine) {
    checks.require(where.ndim == 3 && where.size[0] == input.size[0] && where.size[1] == 2 && where.size[2] == 3,
                   "matrix must be (N, 2, 3)");
  } else {
    checks.require(where.ndim == 4 && where.size[0] == input.size[0] && where.size[1] == 2 &&
                       where.size[2] == output.size[2] && where.size[3] == output.size[3],
                   "flow must be (N, 2, out_h, out_w)");
  }
  const DType t = input.dtype;
  const DType compute = t == DType::f64 ? DType::f64 : DType::f32;
  checks.require(is_float(t) && output.dtype == t, "input and output must share one floating-point dtype");
  checks.require(where.dtype == compute || where.dtype == t, "flow or matrix must have input's dtype or float32");
  checks.gradient(p.grad_input, input);
  checks.gradient(p.grad_where, where);
}

template <bool kAffine>
void forward(py::handle output, py::handle input, py::handle where, int mode, bool border) {
  WarpParams p{kAffine, mode == 1, border, {}, {}, {}, {}, {}};
  p.input = view_tensor(input, "input");
  p.where = view_tensor(where, kAffine ? "inverse_matrix" : "flow");
  p.output = view_tensor(output, "output");
  check(p);
  py::gil_scoped_release nogil;
  FLEXOR_KERNELS(warp2d_kernels).forward(p);
}

template <bool kAffine>
void backward(py::handle grad_output, py::handle input, py::handle where, py::handle grad_input, py::handle grad_where,
              int mode, bool border) {
  WarpParams p{kAffine, mode == 1, border, {}, {}, {}, {}, {}};
  p.input = view_tensor(input, "input");
  p.where = view_tensor(where, kAffine ? "inverse_matrix" : "flow");
  p.output = view_tensor(grad_output, "grad_output");
  p.grad_input = view_tensor(grad_input, "grad_input");
  p.grad_where = view_tensor(grad_where, "grad_where");
  check(p);
  py::gil_scoped_release nogil;
  FLEXOR_KERNELS(warp2d_kernels).backward(p);
}

}  // namespace

void register_warp(py::module_& m) {
  m.def("warp2d_forward", &forward<false>);
  m.def("warp2d_backward", &backward<false>);
  m.def("affine_warp2d_forward", &forward<true>);
  m.def("affine_warp2d_backward", &backward<true>);
}

}  // namespace flexor
