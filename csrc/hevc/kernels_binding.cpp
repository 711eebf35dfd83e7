// SPDX-License-Identifier: Apache-2.0
// The decoder's kernels on NumPy arrays, for tests and benchmarks: as the standard words them (reference) or fast.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "core/checks.h"
#include "hevc/loop_filter.h"
#include "hevc/transform.h"

namespace py = pybind11;

namespace flexor {
namespace {

using hevc::EdgeSegment;
using hevc::LoopFilterKernels;
using hevc::TransformKernels;
template <class T>
using Array = py::array_t<T, py::array::c_style>;

const TransformKernels& transforms(bool reference) {
  return reference ? FLEXOR_KERNELS(transform_reference_kernels) : FLEXOR_KERNELS(transform_kernels);
}

const LoopFilterKernels& filters(bool reference) {
  return reference ? FLEXOR_KERNELS(loop_filter_reference_kernels) : FLEXOR_KERNELS(loop_filter_kernels);
}

void require_depth(const Checks& checks, int bit_depth) {
  checks.require(bit_depth >= 8 && bit_depth <= 12, "bit_depth must be 8 to 12");
}

// Of blocks (count, n, n).
int log2_size(const Checks& checks, const py::array& blocks) {
  checks.require(blocks.ndim() == 3 && blocks.shape(1) == blocks.shape(2), "blocks must be (count, n, n)");
  for (int log2 = 2; log2 <= 5; ++log2)
    if (blocks.shape(1) == 1 << log2) return log2;
  throw py::value_error(std::string(checks.op) + ": n must be 4, 8, 16 or 32");
}

template <class F>
void for_blocks(const py::array& blocks, F f) {
  for (py::ssize_t i = 0; i < blocks.shape(0); ++i) f(i * blocks.shape(1) * blocks.shape(2));
}

// kind: one of dct, dst, skip, rotate, vertical, horizontal. In place.
void residual(Array<int16_t> blocks, const std::string& kind, int width, int height, int bit_depth, bool reference) {
  const Checks checks{"hevc_residual"};
  const int log2 = log2_size(checks, blocks), n = 1 << log2;
  require_depth(checks, bit_depth);
  checks.require(width >= 1 && width <= n && height >= 1 && height <= n, "width and height must be 1 to n");
  checks.require(kind != "dst" || n == 4, "dst has n = 4");
  const TransformKernels& k = transforms(reference);
  int16_t* data = blocks.mutable_data();
  for_blocks(blocks, [&](py::ssize_t at) {
    int16_t* block = data + at;
    if (kind == "dct") k.dct(block, block, log2, width, height, bit_depth);
    else if (kind == "dst") k.dst(block, block, bit_depth);
    else if (kind == "skip") k.skip(block, block, log2, bit_depth);
    else if (kind == "rotate") k.rotate(block, log2);
    else if (kind == "vertical" || kind == "horizontal") k.accumulate(block, log2, kind == "vertical");
    else throw py::value_error("hevc_residual: kind must be dct, dst, skip, rotate, vertical or horizontal");
  });
}

void cross_component(Array<int16_t> blocks, Array<int16_t> luma, int scale, int bit_depth_luma, int bit_depth_chroma,
                     bool reference) {
  const Checks checks{"hevc_cross_component"};
  const int log2 = log2_size(checks, blocks);
  require_depth(checks, bit_depth_luma);
  require_depth(checks, bit_depth_chroma);
  checks.require(luma.size() == blocks.size(), "luma must have the blocks' shape");
  checks.require(scale >= -8 && scale <= 8, "scale must be -8 to 8");
  int16_t* data = blocks.mutable_data();
  for_blocks(blocks, [&](py::ssize_t at) {
    transforms(reference).cross_component(data + at, luma.data() + at, scale, log2, bit_depth_luma, bit_depth_chroma);
  });
}

// Blocks beside each other, from the top left sample on.
void add(Array<uint16_t> samples, Array<int16_t> blocks, int bit_depth, bool reference) {
  const Checks checks{"hevc_add"};
  const int log2 = log2_size(checks, blocks), n = 1 << log2;
  require_depth(checks, bit_depth);
  checks.require(samples.ndim() == 2 && samples.shape(0) >= n && samples.shape(1) >= blocks.shape(0) * n,
                 "samples must be (at least n, at least count * n)");
  uint16_t* data = samples.mutable_data();
  for_blocks(blocks, [&](py::ssize_t at) {
    transforms(reference).add(data + at / n, samples.shape(1), blocks.data() + at, log2, bit_depth);
  });
}

// Along the whole edge before row or column `place`, from its begin on. edges: (segments, 4) of beta, tc, keep_p,
// keep_q. length: 0 for luma, or the lines of a chroma segment.
void deblock(Array<uint16_t> samples, Array<int16_t> edges, int place, bool columns, int length, int bit_depth,
             bool reference) {
  const Checks checks{"hevc_deblock"};
  require_depth(checks, bit_depth);
  checks.require(length == 0 || length == 2 || length == 4, "length must be 0, 2 or 4");
  checks.require(samples.ndim() == 2 && edges.ndim() == 2 && edges.shape(1) == 4,
                 "samples must be (h, w), edges (segments, 4)");
  const py::ssize_t across = samples.shape(columns), along = samples.shape(!columns), stride = samples.shape(1);
  checks.require(place >= 4 && place + 4 <= across, "place must leave 4 samples on both sides");
  const int segments = static_cast<int>(edges.shape(0));
  checks.require(segments * (length == 0 ? 4 : length) <= along, "edges must end within samples");
  std::vector<EdgeSegment> list;
  for (int i = 0; i < segments; ++i)
    list.push_back({edges.at(i, 0), edges.at(i, 1), edges.at(i, 2) != 0, edges.at(i, 3) != 0});
  uint16_t* q0 = samples.mutable_data() + place * (columns ? 1 : stride);
  const LoopFilterKernels& k = filters(reference);
  if (length == 0) (columns ? k.luma_columns : k.luma_rows)(q0, stride, segments, list.data(), bit_depth);
  else (columns ? k.chroma_columns : k.chroma_rows)(q0, stride, segments, length, list.data(), bit_depth);
}

// output (h, w) of samples (h + 2, w + 2). offsets: 32 of bands, or 5 of a direction's edges.
void sao(Array<uint16_t> output, Array<uint16_t> samples, Array<int16_t> offsets, int direction, int bit_depth,
         bool reference) {
  const Checks checks{"hevc_sao"};
  require_depth(checks, bit_depth);
  checks.require(output.ndim() == 2 && samples.ndim() == 2 && samples.shape(0) == output.shape(0) + 2 &&
                     samples.shape(1) == output.shape(1) + 2,
                 "samples must be one larger than output on every side");
  checks.require(offsets.size() == 32 || (offsets.size() == 5 && direction >= 0 && direction < 4),
                 "offsets must be 32, or 5 with a direction of 0 to 3");
  const py::ssize_t stride = samples.shape(1);
  const uint16_t* in = samples.data() + stride + 1;
  for (py::ssize_t i = 0; i < samples.size(); ++i)
    checks.require(samples.data()[i] < 1 << bit_depth, "samples must be less than 2^bit_depth");
  const int width = static_cast<int>(output.shape(1)), height = static_cast<int>(output.shape(0));
  const LoopFilterKernels& k = filters(reference);
  uint16_t* out = output.mutable_data();
  if (offsets.size() == 32) k.sao_band(out, width, in, stride, width, height, offsets.data(), bit_depth);
  else k.sao_edge(out, width, in, stride, width, height, direction, offsets.data(), bit_depth);
}

void narrow(Array<uint8_t> output, Array<uint16_t> samples, bool reference) {
  Checks{"hevc_narrow"}.require(output.size() == samples.size(), "output must have as many samples");
  filters(reference).narrow(output.mutable_data(), samples.data(), samples.size());
}

}  // namespace

void register_hevc_kernels(py::module_& m) {
  m.def("hevc_residual", &residual, py::arg("blocks").noconvert(), py::arg("kind"), py::arg("width"), py::arg("height"),
        py::arg("bit_depth"), py::arg("reference"));
  m.def("hevc_cross_component", &cross_component, py::arg("blocks").noconvert(), py::arg("luma").noconvert(),
        py::arg("scale"), py::arg("bit_depth_luma"), py::arg("bit_depth_chroma"), py::arg("reference"));
  m.def("hevc_add", &add, py::arg("samples").noconvert(), py::arg("blocks").noconvert(), py::arg("bit_depth"),
        py::arg("reference"));
  m.def("hevc_deblock", &deblock, py::arg("samples").noconvert(), py::arg("edges").noconvert(), py::arg("place"),
        py::arg("columns"), py::arg("length"), py::arg("bit_depth"), py::arg("reference"));
  m.def("hevc_sao", &sao, py::arg("output").noconvert(), py::arg("samples").noconvert(), py::arg("offsets").noconvert(),
        py::arg("direction"), py::arg("bit_depth"), py::arg("reference"));
  m.def("hevc_narrow", &narrow, py::arg("output").noconvert(), py::arg("samples").noconvert(), py::arg("reference"));
}

}  // namespace flexor
