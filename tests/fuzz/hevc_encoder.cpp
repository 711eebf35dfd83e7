// SPDX-License-Identifier: Apache-2.0
// The HEVC encoder and decoder as a pair: bytes say how a small picture is made and encoded. Its stream must be decoded
// without damage, to the hash of the encoder's own samples, near the source (lossless: to it), and must not depend on
// the number of threads.
//
// Bytes 0 to 7: format, preset and extension, QP, width, height, threshold, pattern, storage. The rest: samples.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "hevc/picture_encoder.h"
#include "hevc/stream.h"

namespace {

using namespace flexor::hevc;

constexpr size_t kHeader = 8;
constexpr int kLargestSide = 80;  // more than a CTB
constexpr int kLargestArea = 1600;

struct Recipe {
  EncoderOptions options;
  int pattern, bytes_a_sample, padding;  // of rows, in samples
  const uint8_t* samples;
  size_t count;
};

Recipe read_recipe(const uint8_t* data, size_t size) {
  Recipe recipe;
  EncoderOptions& options = recipe.options;
  options.chroma_format = data[0] & 3;
  options.bit_depth = data[0] & 4 ? 10 : 8;
  options.lossless = (data[0] & 24) == 24;
  options.range_extensions = data[0] & 32;
  options.edge_filters = data[0] & 64;
  options.preset = static_cast<Preset>(data[1] % 3);
  options.nearest = static_cast<Nearest>(data[1] >> 2 & 3);
  options.qp = data[2] % 52;
  options.width = 1 + data[3] % kLargestSide;
  options.height = std::min(1 + data[4] % kLargestSide, kLargestArea / options.width);
  if (options.chroma_format == 1 || options.chroma_format == 2) options.width += options.width % 2;
  if (options.chroma_format == 1) options.height += options.height % 2;
  options.nearest_threshold = data[5] == 255 ? -1 : data[5];
  recipe.pattern = data[6] % 4;
  recipe.bytes_a_sample = options.bit_depth > 8 || data[7] & 1 ? 2 : 1;
  recipe.padding = data[7] >> 1 & 15;
  recipe.samples = data + kHeader;
  recipe.count = size - kHeader;
  return recipe;
}

// 8 bits: the bytes one after the other, as tiles of text, as a slope, or as blocks of the darkest and the brightest.
int sample(const Recipe& recipe, int component, int x, int y) {
  const auto byte = [&](int at) { return int{recipe.samples[static_cast<size_t>(at) % recipe.count]}; };
  switch (recipe.pattern) {
    case 0: return byte(component * 17 + y * recipe.options.width + x);
    case 1: return byte((x & 7) + 8 * (y & 7) + 8 * (7 * (x >> 3) + 3 * (y >> 3)) + component);
    case 2: return (byte(component) + (x * (byte(3) - 128) + y * (byte(4) - 128)) / 16) & 255;
    default: return byte(component + x / (1 + byte(0) % 9) + 5 * (y / (1 + byte(1) % 9))) & 1 ? 255 : 0;
  }
}

// One byte or two a sample, as they are given to the encoder.
struct PlaneOfSamples {
  int width = 0, height = 0;
  ptrdiff_t stride = 0;
  std::vector<uint8_t> narrow;
  std::vector<uint16_t> wide;
  int at(int x, int y) const {
    const size_t place = static_cast<size_t>(y * stride + x);
    return narrow.empty() ? wide[place] : narrow[place];
  }
};

PlaneOfSamples make_plane(const Recipe& recipe, int component) {
  const EncoderOptions& options = recipe.options;
  PlaneOfSamples plane;
  const bool across = component > 0 && (options.chroma_format == 1 || options.chroma_format == 2);
  plane.width = options.width >> across;
  plane.height = options.height >> (component > 0 && options.chroma_format == 1);
  plane.stride = plane.width + recipe.padding;
  // To the last sample and no further, so that reading on is found.
  const size_t size = static_cast<size_t>((plane.height - 1) * plane.stride + plane.width);
  if (recipe.bytes_a_sample == 1) {
    plane.narrow.resize(size);
  } else {
    plane.wide.resize(size);
  }
  for (int y = 0; y < plane.height; ++y) {
    for (int x = 0; x < plane.width; ++x) {
      const int value = sample(recipe, component, x, y);
      const size_t place = static_cast<size_t>(y * plane.stride + x);
      if (recipe.bytes_a_sample == 1) {
        plane.narrow[place] = static_cast<uint8_t>(value);
      } else {
        const int deep = options.bit_depth > 8 ? value << 2 | value >> 6 : value;
        plane.wide[place] = static_cast<uint16_t>(deep);
      }
    }
  }
  return plane;
}

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "encoder and decoder: %s\n", what);
  std::abort();
}

std::shared_ptr<OutputPicture> decode(const std::vector<uint8_t>& stream) {
  StreamDecoder decoder(StreamOptions{});
  decoder.feed(stream.data(), stream.size(), false);
  decoder.finish();
  expect(decoder.take_problems().empty(), "the stream has a problem");
  auto pictures = decoder.take_pictures();
  expect(pictures.size() == 1, "not one picture");
  return pictures[0];
}

// The mean error must be below what the quantiser's step explains; lossless: none.
void compare(const EncoderOptions& options, const PlaneOfSamples& source, const OutputPlane& decoded) {
  expect(source.width == decoded.width && source.height == decoded.height, "the picture has another size");
  double sum = 0;
  for (int y = 0; y < source.height; ++y) {
    for (int x = 0; x < source.width; ++x) {
      const size_t place = static_cast<size_t>(y) * static_cast<size_t>(source.width) + static_cast<size_t>(x);
      const int value =
          decoded.bytes == 1 ? decoded.samples->as<uint8_t>()[place] : decoded.samples->as<uint16_t>()[place];
      sum += std::abs(value - source.at(x, y));
    }
  }
  const double mean = sum / (double{1} * source.width * source.height);
  const double step = std::pow(2.0, (options.qp - 4) / 6.0) * (1 << (options.bit_depth - 8));
  expect(mean <= (options.lossless ? 0.0 : 4 + 2 * step), "the picture is not its source's");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size <= kHeader) return -1;
  const Recipe recipe = read_recipe(data, size);
  const EncoderOptions& options = recipe.options;
  const int components = options.chroma_format == 0 ? 1 : 3;
  PlaneOfSamples planes[3];
  SourcePlane source[3] = {};
  for (int c = 0; c < components; ++c) {
    planes[c] = make_plane(recipe, c);
    const void* const samples = recipe.bytes_a_sample == 1 ? static_cast<const void*>(planes[c].narrow.data())
                                                           : static_cast<const void*>(planes[c].wide.data());
    source[c] = {samples, planes[c].stride, recipe.bytes_a_sample};
  }
  const PictureEncoder encoder(options);
  std::vector<uint8_t> stream = encoder.parameter_sets();
  const std::vector<uint8_t> coded = encoder.encode(source, 1);
  // Twice the time: every fourth.
  if (data[size - 1] % 4 == 0) expect(encoder.encode(source, 2) == coded, "two threads make another stream");
  stream.insert(stream.end(), coded.begin(), coded.end());
  const auto picture = decode(stream);
  expect(picture->damage.empty() && picture->verified != nullptr, "the samples are not the encoder's");
  expect(static_cast<int>(picture->planes.size()) == components, "another number of planes");
  for (int c = 0; c < components; ++c) compare(options, planes[c], picture->planes[static_cast<size_t>(c)]);
  return 0;
}
