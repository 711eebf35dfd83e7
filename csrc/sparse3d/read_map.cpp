// SPDX-License-Identifier: Apache-2.0
#include "sparse3d/read_map.h"

#include "core/tensor_view.h"
#include "sparse3d/sparse_index.h"

namespace py = pybind11;

namespace flexor {

MapView read_map(py::handle map, int64_t taps, const Checks& checks) {
  checks.require(py::isinstance<py::sequence>(map) && py::len(map) == 5, "a map has five tensors");
  const py::sequence list = py::reinterpret_borrow<py::sequence>(map);
  const char* names[5] = {"map[0]", "map[1]", "map[2]", "map[3]", "map[4]"};
  const DType dtypes[5] = {DType::i32, DType::i32, DType::i32, DType::u8, DType::i64};
  TensorView v[5];
  for (int i = 0; i < 5; ++i) {
    const py::object part = list[static_cast<size_t>(i)];
    v[i] = view_tensor(part, names[i]);
    checks.require(v[i].ndim == 1 && v[i].dtype == dtypes[i] && (v[i].size[0] < 2 || v[i].stride[0] == 1),
                   "a map's tensors must be contiguous vectors of int32, int32, int32, uint8 and int64");
  }
  MapView m{};
  m.n_out = v[0].size[0];
  m.n_in = v[1].size[0];
  m.taps = taps;
  m.tiles = (m.n_out + kTileRows - 1) / kTileRows;
  m.pairs = v[2].size[0];
  m.out_order = static_cast<const int32_t*>(v[0].data);
  m.in_order = static_cast<const int32_t*>(v[1].data);
  m.in_rows = static_cast<const int32_t*>(v[2].data);
  m.places = static_cast<const uint8_t*>(v[3].data);
  m.offsets = static_cast<const int64_t*>(v[4].data);
  checks.require(v[3].size[0] == m.pairs && v[4].size[0] == m.tiles * taps + 1,
                 "a map's tensors must fit together and have the kernel's taps");
  checks.require(m.offsets[0] == 0 && m.offsets[m.tiles * taps] == m.pairs, "a map's offsets must count its pairs");
  for (int64_t i = 0; i < m.tiles * taps; ++i)
    checks.require(m.offsets[i] <= m.offsets[i + 1], "a map's offsets must ascend");
  return m;
}

}  // namespace flexor
