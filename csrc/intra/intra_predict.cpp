// SPDX-License-Identifier: Apache-2.0
#include "intra/intra_predict.h"

#include <pybind11/pybind11.h>

#include "core/checks.h"
#include "core/tensor_view.h"
#include "intra/intra_kernels.h"
#include "intra/intra_sizes.h"

namespace py = pybind11;

namespace flexor {
namespace {

constexpr Checks checks{"intra_predict"};

bool predict(py::handle output, py::handle border, py::handle mode, py::handle available, int bit_depth, bool nearest,
             bool smoothing, bool strong_smoothing, bool edge_filter, bool reference) {
  IntraPredictParams p{};
  p.output = view_tensor(output, "output");
  p.border = view_tensor(border, "border");
  p.mode = view_tensor(mode, "mode");
  p.available = view_tensor(available, "available");
  checks.require(p.border.ndim == 2 && is_sample(p.border.dtype),
                 "border must be (N, 4 * n + 1) of uint8, int16, uint16 or int32");
  p.log2_size = intra_log2_size(p.border.size[1] / 4);
  checks.require(p.log2_size > 0 && p.border.size[1] % 4 == 1, "border must have 4 * n + 1 samples, n from 4 to 64");
  const int64_t blocks = p.border.size[0], n = int64_t{1} << p.log2_size;
  checks.shape(p.output, {blocks, n, n}, "output must be (N, n, n)");
  checks.require(p.output.dtype == p.border.dtype && is_contiguous(p.output), "output must be contiguous, as border");
  checks.shape(p.mode, {blocks}, "mode must be (N)");
  checks.require(p.mode.dtype == DType::i64, "mode must be int64");
  if (p.available) {
    checks.shape(p.available, {blocks, 4 * n + 1}, "available must be (N, 4 * n + 1)");
    checks.require(p.available.dtype == DType::b8, "available must be bool");
  }
  checks.require(bit_depth >= 8 && bit_depth <= kMaxIntraDepth, "bit_depth must be 8 to 12");
  p.bit_depth = bit_depth;
  p.nearest = nearest, p.smoothing = smoothing, p.strong_smoothing = strong_smoothing, p.edge_filter = edge_filter;
  py::gil_scoped_release nogil;
  return (reference ? FLEXOR_KERNELS(intra_predict_reference) : FLEXOR_KERNELS(intra_predict_kernels)).predict(p);
}

}  // namespace

void register_intra_predict(py::module_& m) {
  m.def("intra_predict", &predict, py::arg("output"), py::arg("border"), py::arg("mode"), py::arg("available"),
        py::arg("bit_depth"), py::arg("nearest"), py::arg("smoothing"), py::arg("strong_smoothing"),
        py::arg("edge_filter"), py::arg("reference") = false);
}

}  // namespace flexor
