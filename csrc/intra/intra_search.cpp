// SPDX-License-Identifier: Apache-2.0
#include "intra/intra_search.h"

#include <pybind11/pybind11.h>

#include "core/checks.h"
#include "core/tensor_view.h"
#include "intra/intra_sizes.h"

namespace py = pybind11;

namespace flexor {
namespace {

constexpr Checks checks{"intra_search"};
constexpr int64_t kMostSide = int64_t{1} << 30;

void check_outputs(const IntraSearchParams& p) {
  const int64_t kept = p.costs.ndim == 4 ? p.costs.size[3] : 0;
  checks.shape(p.costs, {p.pictures.size[0], p.rows, p.columns, kept}, "costs must be (B, rows, columns, K)");
  checks.require(p.costs.dtype == DType::i32 && is_contiguous(p.costs), "costs must be contiguous int32");
  if (!p.candidates) {
    checks.require(kept == p.considered, "there must be a cost for every candidate");
    return;
  }
  checks.shape(p.candidates, {p.pictures.size[0], p.rows, p.columns, kept}, "candidates must be shaped like costs");
  checks.require(p.candidates.dtype == DType::u8 && is_contiguous(p.candidates), "candidates must be contiguous uint8");
  checks.require(kept >= 1 && kept <= p.considered, "the best must be 1 to all of the candidates");
}

bool search(py::handle costs, py::handle candidates, py::handle pictures, int64_t size, bool satd, bool nearest,
            int bit_depth, bool strong_smoothing, int64_t ctb_size, bool reference) {
  IntraSearchParams p{};
  p.pictures = view_tensor(pictures, "pictures");
  p.costs = view_tensor(costs, "costs");
  p.candidates = view_tensor(candidates, "candidates");
  checks.require(p.pictures.ndim == 3 && is_sample(p.pictures.dtype),
                 "pictures must be (B, H, W) of uint8, int16, uint16 or int32");
  p.log2_size = intra_log2_size(size);
  p.ctb_log2 = intra_log2_size(ctb_size);
  checks.require(p.log2_size > 0, "size must be 4, 8, 16, 32 or 64");
  checks.require(ctb_size == 0 || p.ctb_log2 >= p.log2_size, "ctb_size must be 0 or from size to 64");
  for (int d = 1; d < 3; ++d)
    checks.require(p.pictures.size[d] >= 1 && p.pictures.size[d] < kMostSide, "H and W must be 1 to 2^30");
  p.rows = (p.pictures.size[1] + size - 1) / size;
  p.columns = (p.pictures.size[2] + size - 1) / size;
  p.considered = nearest ? kIntraCandidates : kIntraModes;
  check_outputs(p);
  p.blocks = p.pictures.size[0] * p.rows * p.columns;
  checks.require(bit_depth >= 8 && bit_depth <= kMaxIntraDepth, "bit_depth must be 8 to 12");
  p.bit_depth = bit_depth;
  p.satd = satd, p.strong_smoothing = strong_smoothing;
  py::gil_scoped_release nogil;
  return (reference ? FLEXOR_KERNELS(intra_search_reference) : FLEXOR_KERNELS(intra_search_kernels)).search(p);
}

}  // namespace

void register_intra_search(py::module_& m) {
  m.def("intra_search", &search, py::arg("costs"), py::arg("candidates"), py::arg("pictures"), py::arg("size"),
        py::arg("satd"), py::arg("nearest"), py::arg("bit_depth"), py::arg("strong_smoothing"), py::arg("ctb_size"),
        py::arg("reference") = false);
}

}  // namespace flexor
