// SPDX-License-Identifier: Apache-2.0
#include "sparse3d/sparse_pool.h"

#include <pybind11/pybind11.h>

#include <string>

#include "core/checks.h"
#include "core/tensor_view.h"
#include "sparse3d/read_map.h"
#include "sparse3d/sparse_index.h"

namespace py = pybind11;

namespace flexor {
namespace {

constexpr Checks checks{"sparse_pool"};

// The number of taps is what the offsets say: pooling treats all alike.
MapView read(py::handle map) {
  checks.require(py::isinstance<py::sequence>(map) && py::len(map) == 5, "a map has five tensors");
  const py::sequence list = py::reinterpret_borrow<py::sequence>(map);
  const py::object order = list[0], offsets = list[4];
  const TensorView o = view_tensor(order, "map[0]"), f = view_tensor(offsets, "map[4]");
  checks.require(o.ndim == 1 && f.ndim == 1, "a map's tensors must be vectors");
  const int64_t tiles = (o.size[0] + kTileRows - 1) / kTileRows;
  checks.require(tiles == 0 || (f.size[0] > tiles && (f.size[0] - 1) % tiles == 0),
                 "a map's tensors must fit together");
  return read_map(map, tiles == 0 ? 1 : (f.size[0] - 1) / tiles, checks);
}

SparsePoolParams read_params(py::handle output, py::handle features, py::handle map, const std::string& mode) {
  SparsePoolParams p{};
  checks.require(mode == "max" || mode == "max0" || mode == "avg", "mode must be max, max0 or avg");
  p.mode = mode == "max" ? p.max : mode == "avg" ? p.average : p.max_from_zero;
  p.output = view_tensor(output, "output");
  p.features = view_tensor(features, "features");
  p.map = read(map);
  checks.require(p.features.ndim == 2 && is_float(p.features.dtype), "features must be (N, C), floating-point");
  checks.require(p.features.size[0] == p.map.n_in, "features must have as many rows as the map's input");
  checks.shape(p.output, {p.map.n_out, p.features.size[1]}, "output must be (N_out, C)");
  checks.require(p.output.dtype == p.features.dtype, "features and output must share one dtype");
  return p;
}

void forward(py::handle output, py::handle features, py::handle map, const std::string& mode) {
  const SparsePoolParams p = read_params(output, features, map, mode);
  py::gil_scoped_release nogil;
  FLEXOR_KERNELS(sparse_pool_kernels).forward(p);
}

void backward(py::handle grad_output, py::handle output, py::handle features, py::handle map, py::handle transposed,
              py::handle grad_features, const std::string& mode) {
  SparsePoolParams p = read_params(output, features, map, mode);
  if (py::len(transposed) > 0) p.transposed = read(transposed);
  p.grad_output = view_tensor(grad_output, "grad_output");
  p.grad_features = view_tensor(grad_features, "grad_features");
  checks.require(p.grad_output && p.grad_features, "grad_output and grad_features must be tensors");
  checks.gradient(p.grad_output, p.output);
  checks.gradient(p.grad_features, p.features);
  checks.require(
      p.transposed ? p.transposed.n_out == p.map.n_in && p.transposed.n_in == p.map.n_out : p.map.n_out == p.map.n_in,
      "transposed_map must be the map's other way");
  py::gil_scoped_release nogil;
  FLEXOR_KERNELS(sparse_pool_kernels).backward(p);
}

}  // namespace

void register_sparse_pool(py::module_& m) {
  m.def("sparse_pool_forward", &forward);
  m.def("sparse_pool_backward", &backward);
}

}  // namespace flexor
