// SPDX-License-Identifier: Apache-2.0
#include "sparse3d/sparse_index.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "core/checks.h"
#include "core/parallel.h"
#include "core/tensor_view.h"
#include "sparse3d/parts.h"

namespace py = pybind11;

namespace flexor {
namespace {

constexpr Checks checks{"sparse_index"};
constexpr int64_t kMostTaps = 1 << 16;
constexpr int64_t kMostStep = int64_t{1} << 30;  // of a stride, a dilation, a padding
using Ints = std::vector<int64_t>;

struct ReleaseResult {
  IndexResult* r;
  ~ReleaseResult() {
    for (void* data : {static_cast<void*>(r->order), static_cast<void*>(r->keys), static_cast<void*>(r->masks),
                       static_cast<void*>(r->bases), static_cast<void*>(r->slots), r->indices})
      release(data);
  }
};

// Takes the memory over.
template <class T>
py::array array_of(T*& data, std::vector<py::ssize_t> shape) {
  if (data == nullptr) return py::array_t<T>(shape);
  py::capsule owner(data, [](void* memory) { release(memory); });
  py::array_t<T> array(shape, data, owner);
  data = nullptr;
  return array;
}

py::tuple parts_of(IndexResult& r) {
  py::array_t<int64_t> frame(12);
  int64_t* f = frame.mutable_data();
  for (int a = 0; a < 4; ++a) {
    f[a] = r.frame.first[a];
    f[4 + a] = r.frame.bits[a];
    f[8 + a] = 0;
  }
  f[8] = r.frame.batches;
  return py::make_tuple(array_of(r.order, {r.rows}), array_of(r.keys, {r.blocks}), array_of(r.masks, {r.blocks}),
                        array_of(r.bases, {r.blocks + 1}), array_of(r.slots, {r.n_slots}), frame);
}

VoxelBounds read_bounds(const std::optional<Ints>& lower, const std::optional<Ints>& upper, int dims) {
  VoxelBounds bounds{};
  bounds.given = lower && upper;
  if (!bounds.given) return bounds;
  checks.require(static_cast<int>(lower->size()) == dims && static_cast<int>(upper->size()) == dims,
                 "bounds must have one number an axis");
  for (int a = 0; a < 4; ++a) {
    const int d = a - (4 - dims);
    bounds.lower[a] = d < 0 ? 0 : (*lower)[static_cast<size_t>(d)];
    bounds.upper[a] = d < 0 ? 1 : (*upper)[static_cast<size_t>(d)];
  }
  return bounds;
}

std::string row_text(const TensorView& v, int64_t row) {
  std::string text = "(";
  for (int64_t d = 0; d < v.size[1]; ++d) {
    const int64_t at = row * v.stride[0] + d * v.stride[1];
    const int64_t value =
        v.dtype == DType::i64 ? static_cast<const int64_t*>(v.data)[at] : static_cast<const int32_t*>(v.data)[at];
    text += (d ? ", " : "") + std::to_string(value);
  }
  return text + ")";
}

[[noreturn]] void refuse(const IndexResult& r, const TensorView* v, int64_t batches) {
  std::string text = "sparse_index: ";
  const std::string at = v != nullptr ? row_text(*v, r.row) : "";
  if (r.status == IndexResult::duplicate)
    text += "indices must be unique, but rows " + std::to_string(r.row) + " and " + std::to_string(r.other_row) +
            " are both " + at + "; merge them first";
  else if (r.status == IndexResult::negative_batch)
    text += "indices[:, 0] is the batch and must not be negative, got " + at + " in row " + std::to_string(r.row);
  else if (r.status == IndexResult::out_of_range)
    text += "indices must lie in the batch size" + (batches < 0 ? std::string() : " " + std::to_string(batches)) +
            " and the spatial shape, got " + at + " in row " + std::to_string(r.row);
  else text += "the coordinates span too much: block numbers along all axes and the batch must fit 63 bits together";
  throw py::value_error(text);
}

py::tuple index(py::handle indices, int64_t batch_size, const std::optional<Ints>& lower,
                const std::optional<Ints>& upper) {
  IndexParams p{};
  p.indices = view_tensor(indices, "indices");
  checks.require(p.indices.ndim == 2 && p.indices.size[1] >= 2 && p.indices.size[1] <= 5,
                 "indices must be (N, 1 + D) with D from 1 to 4");
  checks.require(p.indices.dtype == DType::i32 || p.indices.dtype == DType::i64, "indices must be int32 or int64");
  checks.require(p.indices.size[0] < int64_t{1} << 31, "there must be fewer than 2^31 voxels");
  p.batches = batch_size;
  p.bounds = read_bounds(lower, upper, static_cast<int>(p.indices.size[1]) - 1);
  IndexResult result;
  const ReleaseResult guard{&result};
  {
    py::gil_scoped_release nogil;
    FLEXOR_KERNELS(sparse_index_kernels).index(p, result);
  }
  if (result.status != IndexResult::ok) refuse(result, &p.indices, batch_size);
  return parts_of(result);
}

VoxelRelation read_relation(int dims, const Ints& kernel, const Ints& stride, const Ints& padding, const Ints& dilation,
                            bool transposed) {
  VoxelRelation r{};
  r.transposed = transposed;
  for (const Ints* values : {&kernel, &stride, &padding, &dilation})
    checks.require(static_cast<int>(values->size()) == dims,
                   "kernel, stride, padding and dilation must have one number an axis");
  int64_t taps = 1;
  for (int a = 0; a < 4; ++a) {
    const int d = a - (4 - dims);
    const size_t i = static_cast<size_t>(d);
    r.kernel[a] = d < 0 ? 1 : kernel[i];
    r.stride[a] = d < 0 ? 1 : stride[i];
    r.padding[a] = d < 0 ? 0 : padding[i];
    r.dilation[a] = d < 0 ? 1 : dilation[i];
    checks.require(r.kernel[a] >= 1 && r.kernel[a] <= kMostTaps && (taps *= r.kernel[a]) <= kMostTaps,
                   "the kernel must have 1 to 65536 taps");
    checks.require(r.stride[a] >= 1 && r.stride[a] < kMostStep, "stride must be positive and below 2^30");
    checks.require(r.dilation[a] >= 1 && r.dilation[a] < kMostStep, "dilation must be positive and below 2^30");
    checks.require(r.padding[a] > -kMostStep && r.padding[a] < kMostStep, "padding must be below 2^30");
  }
  return r;
}

py::tuple output_index(py::handle parts, int dims, const Ints& kernel, const Ints& stride, const Ints& padding,
                       const Ints& dilation, bool transposed, const std::optional<Ints>& lower,
                       const std::optional<Ints>& upper, bool wide) {
  OutputIndexParams p{};
  p.input = read_parts(parts, dims, checks);
  p.relation = read_relation(dims, kernel, stride, padding, dilation, transposed);
  p.bounds = read_bounds(lower, upper, dims);
  p.wide = wide;
  IndexResult result;
  const ReleaseResult guard{&result};
  {
    py::gil_scoped_release nogil;
    FLEXOR_KERNELS(sparse_index_kernels).output_index(p, result);
  }
  if (result.status != IndexResult::ok) refuse(result, nullptr, -1);
  py::array indices;
  if (wide) {
    auto* data = static_cast<int64_t*>(result.indices);
    result.indices = nullptr;
    indices = array_of(data, {result.rows, 1 + dims});
  } else {
    auto* data = static_cast<int32_t*>(result.indices);
    result.indices = nullptr;
    indices = array_of(data, {result.rows, 1 + dims});
  }
  return py::make_tuple(indices) + parts_of(result);
}

py::tuple map(py::handle out_parts, py::handle in_parts, int dims, const Ints& kernel, const Ints& stride,
              const Ints& padding, const Ints& dilation, bool transposed) {
  MapParams p{};
  p.output = read_parts(out_parts, dims, checks);
  p.input = read_parts(in_parts, dims, checks);
  p.relation = read_relation(dims, kernel, stride, padding, dilation, transposed);
  MapResult result;
  struct Guard {
    MapResult& r;
    ~Guard() {
      release(r.in_rows);
      release(r.places);
      release(r.offsets);
    }
  } guard{result};
  {
    py::gil_scoped_release nogil;
    FLEXOR_KERNELS(sparse_index_kernels).map(p, result);
  }
  int64_t taps = 1;
  for (int64_t k : kernel) taps *= k;
  const int64_t tiles = (p.output.rows + kTileRows - 1) / kTileRows;
  return py::make_tuple(array_of(result.in_rows, {result.pairs}), array_of(result.places, {result.pairs}),
                        array_of(result.offsets, {tiles * taps + 1}));
}

}  // namespace

IndexView read_parts(py::handle parts, int dims, const Checks& check) {
  check.require(dims >= 1 && dims <= 4, "there must be 1 to 4 axes");
  py::sequence list = py::reinterpret_borrow<py::sequence>(parts);
  check.require(py::isinstance<py::sequence>(parts) && py::len(list) == 6, "an index has six parts");
  const char* names[6] = {"order", "keys", "masks", "bases", "slots", "frame"};
  const DType dtypes[6] = {DType::i32, DType::i64, DType::i64, DType::i32, DType::i32, DType::i64};
  TensorView v[6];
  for (int i = 0; i < 6; ++i) {
    const py::object part = list[static_cast<size_t>(i)];
    v[i] = view_tensor(part, names[i]);
    check.require(v[i].ndim == 1 && v[i].dtype == dtypes[i] && (v[i].size[0] < 2 || v[i].stride[0] == 1),
                  "an index's parts must be contiguous int32 or int64 vectors");
  }
  IndexView view{};
  view.dims = dims;
  view.rows = v[0].size[0];
  view.blocks = v[1].size[0];
  view.n_slots = v[4].size[0];
  view.keys = static_cast<const int64_t*>(v[1].data);
  view.masks = static_cast<const int64_t*>(v[2].data);
  view.bases = static_cast<const int32_t*>(v[3].data);
  view.slots = static_cast<const int32_t*>(v[4].data);
  check.require(v[2].size[0] == view.blocks && v[3].size[0] == view.blocks + 1 && v[5].size[0] == 12,
                "an index's parts must fit together");
  check.require(view.n_slots >= 2 && (view.n_slots & (view.n_slots - 1)) == 0 && view.n_slots >= 2 * view.blocks,
                "an index's slots must be a power of two");
  check.require(view.bases[0] == 0 && view.bases[view.blocks] == view.rows, "an index's parts must fit together");
  for (int64_t b = 0; b < view.blocks; ++b)
    check.require(view.bases[b + 1] - view.bases[b] == __builtin_popcountll(static_cast<uint64_t>(view.masks[b])),
                  "an index's bases must count its masks");
  int64_t taken = 0;
  for (int64_t s = 0; s < view.n_slots; ++s) {
    check.require(view.slots[s] < view.blocks, "an index's slots must point to its blocks");
    taken += view.slots[s] >= 0;
  }
  check.require(taken <= view.blocks, "an index's slots must hold each block once");
  const int64_t* f = static_cast<const int64_t*>(v[5].data);
  int64_t total = 0;
  for (int a = 0; a < 4; ++a) {
    view.frame.first[a] = f[a];
    view.frame.bits[a] = f[4 + a];
    check.require(f[4 + a] >= 0 && (total += f[4 + a]) <= kKeyBits, "an index's frame is not one");
  }
  view.frame.batches = f[8];
  return view;
}

void register_sparse_index(py::module_& m) {
  m.def("sparse_index", &index);
  m.def("sparse_output_index", &output_index);
  m.def("sparse_map", &map);
}

}  // namespace flexor
