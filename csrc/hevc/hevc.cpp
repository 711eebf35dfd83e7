// SPDX-License-Identifier: Apache-2.0
// flexor._C.HevcDecoder.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "hevc/stream.h"

namespace py = pybind11;

namespace flexor {
namespace {

using namespace hevc;

constexpr const char* kGroupNames[] = {
    "sao",          "quadtree", "luma_mode", "chroma_mode",    "coded_flags", "qp", "last_position",
    "significance", "levels",   "signs",     "transform_skip", "pcm",         "end"};
static_assert(sizeof kGroupNames / sizeof *kGroupNames == kSyntaxGroups, "a name for every group");

struct Bytes {
  const uint8_t* data;
  size_t size;
};

Bytes view(const py::buffer_info& info) {
  if (info.itemsize != 1 || info.ndim > 1 || (info.ndim == 1 && info.strides[0] != 1))
    throw py::type_error("data must be contiguous bytes");
  return {static_cast<const uint8_t*>(info.ptr), static_cast<size_t>(info.size)};
}

DecoderConfiguration read_configuration(const py::buffer_info& info) {
  const Bytes bytes = view(info);
  try {
    return parse_configuration(bytes.data, bytes.size);
  } catch (const StreamError& error) { throw py::value_error(error.what()); }
}

// The array owns the plane's memory.
py::array to_array(OutputPlane& plane) {
  auto* const samples = plane.samples.release();
  const py::capsule owner(samples, [](void* buffer) { delete static_cast<SharedBuffer*>(buffer); });
  const py::dtype dtype = plane.bytes == 1 ? py::dtype::of<uint8_t>() : py::dtype::of<uint16_t>();
  return py::array(dtype, {plane.height, plane.width}, samples->as<void>(), owner);
}

template <class T>
py::array_t<T> copy_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::dict to_dict(const Analysis& analysis) {
  py::dict bits;
  for (int group = 0; group < kSyntaxGroups; ++group) bits[kGroupNames[group]] = analysis.bits[group];
  py::dict out;
  out["bits"] = bits;
  out["coding_blocks"] = copy_array(analysis.coding_blocks);
  out["transform_blocks"] = copy_array(analysis.transform_blocks);
  out["sao_types"] = copy_array(analysis.sao_types).reshape({-1, 3});
  return out;
}

py::dict to_dict(OutputPicture& picture) {
  const SequenceParameters& sps = *picture.sps;
  py::list planes;
  for (OutputPlane& plane : picture.planes) planes.append(to_array(plane));
  py::dict out;
  out["planes"] = planes;
  out["chroma_format_idc"] = sps.chroma_format_idc;
  out["bit_depth"] = sps.bit_depth_luma;
  out["bit_depth_chroma"] = sps.bit_depth_chroma;
  out["poc"] = picture.order_count;
  out["number"] = picture.number;
  out["nal_unit_type"] = picture.nal_unit_type;
  out["hash"] = picture.verified == nullptr ? py::object(py::none()) : py::str(picture.verified);
  out["damage"] = picture.damage.empty() ? py::object(py::none()) : py::str(picture.damage);
  out["colour"] = py::make_tuple(sps.vui.colour_primaries, sps.vui.transfer_characteristics, sps.vui.matrix_coeffs,
                                 sps.vui.video_full_range_flag);
  out["chroma_location"] = sps.vui.chroma_sample_loc_type_top_field;
  out["sample_aspect_ratio"] = py::make_tuple(sps.vui.sar_width, sps.vui.sar_height);
  out["analysis"] = picture.analysis == nullptr ? py::object(py::none()) : to_dict(*picture.analysis);
  return out;
}

// Elements that come again are a list.
py::dict to_dict(const TracedUnit& unit) {
  py::dict elements;
  for (const auto& [name, value] : unit.elements) {
    const py::str key(name);
    if (!elements.contains(key)) {
      elements[key] = value;
    } else if (const py::object known = elements[key]; py::isinstance<py::list>(known)) {
      known.cast<py::list>().append(value);
    } else {
      py::list both;
      both.append(known);
      both.append(value);
      elements[key] = both;
    }
  }
  py::dict out;
  out["nal_unit_type"] = unit.nal.nal_unit_type;
  out["nuh_layer_id"] = unit.nal.nuh_layer_id;
  out["temporal_id"] = unit.nal.temporal_id;
  out["bytes"] = unit.bytes;
  out["picture"] = unit.picture < 0 ? py::object(py::none()) : py::int_(unit.picture);
  out["elements"] = elements;
  return out;
}

// A StreamDecoder that several Python threads may call.
class HevcDecoder {
 public:
  HevcDecoder(int threads, bool verify, bool skip_inter, int length_size, bool inspect)
      : decoder_(StreamOptions{threads, verify, skip_inter, length_size, inspect}) {
    if (threads < 1) throw py::value_error("threads must be at least 1");
    if (length_size < 0 || length_size > 4 || length_size == 3)
      throw py::value_error("length_size must be 0, 1, 2 or 4");
  }

  void add_parameter_sets(const py::buffer& record) {
    const py::buffer_info info = record.request();
    const DecoderConfiguration configuration = read_configuration(info);
    const py::gil_scoped_release nogil;
    const std::lock_guard<std::mutex> lock(mutex_);
    decoder_.add_parameter_sets(configuration.parameter_sets);
  }

  void feed(const py::buffer& data, bool prompt) {
    const py::buffer_info info = data.request();
    const Bytes bytes = view(info);
    const py::gil_scoped_release nogil;
    const std::lock_guard<std::mutex> lock(mutex_);
    decoder_.feed(bytes.data, bytes.size, prompt);
  }

  void finish() {
    const py::gil_scoped_release nogil;
    const std::lock_guard<std::mutex> lock(mutex_);
    decoder_.finish();
  }

  py::list pictures() {
    py::list out;
    for (const auto& picture : taken(&StreamDecoder::take_pictures)) out.append(to_dict(*picture));
    return out;
  }

  py::list problems() {
    py::list out;
    for (const Problem& problem : taken(&StreamDecoder::take_problems))
      out.append(py::make_tuple(problem.unsupported, problem.message));
    return out;
  }

  py::list units() {
    py::list out;
    for (const TracedUnit& unit : taken(&StreamDecoder::take_units)) out.append(to_dict(unit));
    return out;
  }

 private:
  template <class T>
  std::vector<T> taken(std::vector<T> (StreamDecoder::*take)()) {
    const py::gil_scoped_release nogil;
    const std::lock_guard<std::mutex> lock(mutex_);
    return (decoder_.*take)();
  }

  StreamDecoder decoder_;
  std::mutex mutex_;
};

}  // namespace

void register_hevc(py::module_& m) {
  PYBIND11_NUMPY_DTYPE(CodingBlock, x, y, log2_size, flags, qp, chroma_mode, luma_modes);
  PYBIND11_NUMPY_DTYPE(TransformBlock, x, y, log2_size, component, flags);
  py::class_<HevcDecoder>(m, "HevcDecoder")
      .def(py::init<int, bool, bool, int, bool>(), py::arg("threads"), py::arg("verify"), py::arg("skip_inter"),
           py::arg("length_size"), py::arg("inspect"))
      .def("add_parameter_sets", &HevcDecoder::add_parameter_sets)
      .def("feed", &HevcDecoder::feed, py::arg("data"), py::arg("prompt"))
      .def("finish", &HevcDecoder::finish)
      .def("pictures", &HevcDecoder::pictures)
      .def("problems", &HevcDecoder::problems)
      .def("units", &HevcDecoder::units);
  m.def("hevc_length_size", [](const py::buffer& record) { return read_configuration(record.request()).length_size; });
}

}  // namespace flexor
