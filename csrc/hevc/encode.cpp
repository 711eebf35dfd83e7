// SPDX-License-Identifier: Apache-2.0
// flexor._C.HevcEncoder.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "hevc/picture_encoder.h"
#include "hevc/threads.h"

namespace py = pybind11;

namespace flexor {
namespace {

using namespace hevc;

constexpr int kLargestSide = 16384;
constexpr const char* kPresets[] = {"fast", "medium", "best"};
constexpr const char* kNearest[] = {"off", "explicit", "sad", "boundary"};

template <class Enum, size_t kCount>
Enum parse_name(const char* argument, const char* const (&names)[kCount], const std::string& name) {
  std::string all;
  for (size_t i = 0; i < kCount; ++i) {
    if (name == names[i]) return static_cast<Enum>(i);
    all += std::string(i == 0 ? "" : ", ") + names[i];
  }
  throw py::value_error(std::string(argument) + " must be one of " + all + ", got " + name);
}

void check_range(const char* argument, int value, int least, int most) {
  if (value < least || value > most)
    throw py::value_error(std::string(argument) + " must be " + std::to_string(least) + " to " + std::to_string(most) +
                          ", got " + std::to_string(value));
}

void check_threads(int threads) {
  if (threads < 1) throw py::value_error("threads must be at least 1, got " + std::to_string(threads));
}

// The planes of a picture, and the arrays that keep them alive.
struct Source {
  std::vector<py::array> arrays;
  SourcePlane planes[3] = {};
};

class HevcEncoder {
 public:
  explicit HevcEncoder(const EncoderOptions& options) : options_(options), encoder_(options) {}

  py::bytes parameter_sets() const { return to_bytes(encoder_.parameter_sets()); }

  py::bytes encode(const py::sequence& planes, int threads) const {
    check_threads(threads);
    const Source source = read(planes);
    std::vector<uint8_t> stream;
    {
      const py::gil_scoped_release nogil;
      check_samples(source);
      stream = encoder_.encode(source.planes, threads);
    }
    return to_bytes(stream);
  }

  // Pictures side by side where every thread gets one, else one after the other with its rows on the threads.
  py::list encode_many(const py::sequence& pictures, int threads) const {
    check_threads(threads);
    std::vector<Source> sources;
    for (const py::handle picture : pictures) sources.push_back(read(picture.cast<py::sequence>()));
    const int count = static_cast<int>(sources.size());
    std::vector<std::vector<uint8_t>> streams(sources.size());
    {
      const py::gil_scoped_release nogil;
      for (const Source& source : sources) check_samples(source);
      const bool side_by_side = count >= threads;
      run_tasks(side_by_side ? threads : 1, count, [&](int i) {
        const size_t at = static_cast<size_t>(i);
        streams[at] = encoder_.encode(sources[at].planes, side_by_side ? 1 : threads);
      });
    }
    py::list out;
    for (const std::vector<uint8_t>& stream : streams) out.append(to_bytes(stream));
    return out;
  }

 private:
  static py::bytes to_bytes(const std::vector<uint8_t>& data) {
    return py::bytes(reinterpret_cast<const char*>(data.data()), data.size());
  }

  int width_of(int component) const { return options_.width >> (component > 0 && is_halved_across()); }
  int height_of(int component) const { return options_.height >> (component > 0 && options_.chroma_format == 1); }
  bool is_halved_across() const { return options_.chroma_format == 1 || options_.chroma_format == 2; }

  Source read(const py::sequence& planes) const;
  void check_samples(const Source& source) const;

  EncoderOptions options_;
  PictureEncoder encoder_;
};

Source HevcEncoder::read(const py::sequence& planes) const {
  const size_t expected = options_.chroma_format == 0 ? 1 : 3;
  if (planes.size() != expected)
    throw py::value_error("a picture must have " + std::to_string(expected) + " planes, got " +
                          std::to_string(planes.size()));
  Source source;
  for (size_t c = 0; c < expected; ++c) {
    const std::string name = "planes[" + std::to_string(c) + "]";
    const py::object plane = planes[c];
    if (!py::isinstance<py::array>(plane)) throw py::type_error(name + " must be a NumPy array");
    py::array array = py::reinterpret_borrow<py::array>(plane);
    const bool narrow = py::isinstance<py::array_t<uint8_t>>(array);
    if (!narrow && !py::isinstance<py::array_t<uint16_t>>(array))
      throw py::type_error(name + " must be uint8 or uint16, got " + py::str(array.dtype()).cast<std::string>());
    const int width = width_of(static_cast<int>(c)), height = height_of(static_cast<int>(c));
    if (array.ndim() != 2 || array.shape(0) != height || array.shape(1) != width)
      throw py::value_error(name + " must have shape (" + std::to_string(height) + ", " + std::to_string(width) +
                            "), got " + py::str(plane.attr("shape")).cast<std::string>());
    // Samples side by side, rows anywhere a whole number of samples apart.
    const py::ssize_t size = array.itemsize();
    const bool aligned = (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
    if ((width > 1 && array.strides(1) != size) || (height > 1 && array.strides(0) % size != 0) || !aligned)
      array = py::module_::import("numpy").attr("ascontiguousarray")(array);
    source.planes[c] = {array.data(), height > 1 ? array.strides(0) / size : width, static_cast<int>(size)};
    source.arrays.push_back(std::move(array));
  }
  return source;
}

void HevcEncoder::check_samples(const Source& source) const {
  const int most = (1 << options_.bit_depth) - 1;
  for (size_t c = 0; c < source.arrays.size(); ++c) {
    const SourcePlane& plane = source.planes[c];
    if (plane.bytes == 1) continue;  // of at least 8 bits
    const int width = width_of(static_cast<int>(c)), height = height_of(static_cast<int>(c));
    uint16_t largest = 0;
    for (int y = 0; y < height; ++y) {
      const uint16_t* const row = static_cast<const uint16_t*>(plane.samples) + y * plane.stride;
      for (int x = 0; x < width; ++x) largest = std::max(largest, row[x]);
    }
    if (largest > most)
      throw std::invalid_argument("planes[" + std::to_string(c) + "] has a sample of " + std::to_string(largest) +
                                  ", but bit_depth " + std::to_string(options_.bit_depth) + " allows " +
                                  std::to_string(most) + " at most");
  }
}

HevcEncoder make_encoder(int width, int height, int chroma_format, int bit_depth, int qp, bool lossless,
                         const std::string& preset, bool range_extensions, const std::string& nearest,
                         int nearest_threshold, bool edge_filters, bool hash, const std::array<int, 4>& colour,
                         const std::array<uint32_t, 2>& timing) {
  check_range("width", width, 1, kLargestSide);
  check_range("height", height, 1, kLargestSide);
  check_range("chroma_format", chroma_format, 0, 3);
  if (bit_depth != 8 && bit_depth != 10)
    throw py::value_error("bit_depth must be 8 or 10, got " + std::to_string(bit_depth));
  check_range("qp", qp, 0, 51);
  check_range("nearest_threshold", nearest_threshold, -1, 255);
  if ((width % 2 != 0 && (chroma_format == 1 || chroma_format == 2)) || (height % 2 != 0 && chroma_format == 1))
    throw py::value_error("an odd size cannot be told in 4:2:0 or 4:2:2");
  EncoderOptions options;
  options.width = width;
  options.height = height;
  options.chroma_format = chroma_format;
  options.bit_depth = bit_depth;
  options.qp = qp;
  options.lossless = lossless;
  options.preset = parse_name<Preset>("preset", kPresets, preset);
  options.range_extensions = range_extensions;
  options.nearest = parse_name<Nearest>("nearest", kNearest, nearest);
  options.nearest_threshold = nearest_threshold;
  options.edge_filters = edge_filters;
  options.hash = hash;
  for (const int code : colour) check_range("colour", code, 0, 255);
  options.usability.colour_primaries = colour[0];
  options.usability.transfer_characteristics = colour[1];
  options.usability.matrix_coeffs = colour[2];
  options.usability.video_full_range_flag = colour[3] != 0;
  options.usability.vui_timing_info_present_flag = timing[0] != 0 && timing[1] != 0;
  options.usability.vui_num_units_in_tick = timing[0];
  options.usability.vui_time_scale = timing[1];
  return HevcEncoder(options);
}

}  // namespace

void register_hevc_encoder(py::module_& m) {
  py::class_<HevcEncoder>(m, "HevcEncoder")
      .def(py::init(&make_encoder), py::arg("width"), py::arg("height"), py::arg("chroma_format"), py::arg("bit_depth"),
           py::arg("qp"), py::arg("lossless"), py::arg("preset"), py::arg("range_extensions"), py::arg("nearest"),
           py::arg("nearest_threshold"), py::arg("edge_filters"), py::arg("hash"), py::arg("colour"), py::arg("timing"))
      .def("parameter_sets", &HevcEncoder::parameter_sets)
      .def("encode", &HevcEncoder::encode, py::arg("planes"), py::arg("threads"))
      .def("encode_many", &HevcEncoder::encode_many, py::arg("pictures"), py::arg("threads"));
}

}  // namespace flexor
