// SPDX-License-Identifier: Apache-2.0
// The whole HEVC decoder on hostile bytes: a stream in start codes, or in lengths if it does not begin with one. What
// it decodes must not depend on the number of threads nor on the pieces in which the stream came.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "change_bits.h"
#include "hevc/parameter_sets.h"
#include "hevc/stream.h"

namespace {

using namespace flexor::hevc;
using Pictures = std::vector<std::shared_ptr<OutputPicture>>;

constexpr size_t kMaxStream = size_t{1} << 16;
constexpr int64_t kMaxSamples = 512 * 512;  // larger pictures take long and find nothing that smaller ones do not

bool declares_large_picture(const RawNal& raw) {
  try {
    if (raw.size < 2 || (raw.data[0] >> 1 & 63) != kNalSps) return false;
    const NalUnit nal = unwrap(raw.data, raw.size);
    BitReader reader(nal.rbsp.data(), nal.rbsp.size());
    const auto sps = parse_sequence_parameters(reader);
    return int64_t{sps->width} * sps->height > kMaxSamples;
  } catch (const StreamError&) {
  } catch (const Unsupported&) {}
  return false;
}

bool declares_large_pictures(const uint8_t* data, size_t size, int length_size) {
  NalSplitter splitter(length_size);
  splitter.append(data, size);
  RawNal raw;
  bool cut_off = false;
  try {
    while (splitter.next(raw))
      if (declares_large_picture(raw)) return true;
  } catch (const StreamError&) { return false; }
  return splitter.rest(raw, cut_off) && declares_large_picture(raw);
}

Pictures decode(const uint8_t* data, size_t size, StreamOptions options, size_t piece) {
  StreamDecoder decoder(options);
  Pictures pictures;
  const auto take = [&] {
    for (auto& picture : decoder.take_pictures()) pictures.push_back(std::move(picture));
  };
  for (size_t at = 0; at < size; at += piece) {
    decoder.feed(data + at, piece < size - at ? piece : size - at, piece < size);
    take();
  }
  decoder.finish();
  take();
  decoder.take_problems();
  decoder.take_units();
  return pictures;
}

// What a container says before its samples.
void read_configuration(const uint8_t* data, size_t size) {
  try {
    const DecoderConfiguration configuration = parse_configuration(data, size);
    StreamDecoder({}).add_parameter_sets(configuration.parameter_sets);
  } catch (const StreamError&) {}
}

[[noreturn]] void differ(const char* what) {
  std::fprintf(stderr, "one thread and two, or the whole stream and its pieces, differ in %s\n", what);
  std::abort();
}

void compare(const Pictures& a, const Pictures& b) {
  if (a.size() != b.size()) differ("the number of pictures");
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i]->damage != b[i]->damage) differ("damage");
    if (a[i]->order_count != b[i]->order_count) differ("order");
    if (a[i]->planes.size() != b[i]->planes.size()) differ("planes");
    for (size_t p = 0; p < a[i]->planes.size(); ++p) {
      const OutputPlane &x = a[i]->planes[p], &y = b[i]->planes[p];
      if (x.width != y.width || x.height != y.height || x.bytes != y.bytes) differ("sizes");
      const size_t bytes = static_cast<size_t>(x.width) * static_cast<size_t>(x.height) * static_cast<size_t>(x.bytes);
      if (bytes > 0 && std::memcmp(x.samples->as<uint8_t>(), y.samples->as<uint8_t>(), bytes) != 0) differ("samples");
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 4 || size > kMaxStream) return -1;
  if (data[0] == 1) read_configuration(data, size);
  StreamOptions options;
  const bool start_code = data[0] == 0 && data[1] == 0 && (data[2] == 1 || (data[2] == 0 && data[3] == 1));
  if (!start_code) options.length_size = 4;
  if (declares_large_pictures(data, size, options.length_size)) return -1;
  const Pictures pictures = decode(data, size, options, size);
  // The rest takes longer: every so often, of those that decode.
  const unsigned draw = static_cast<unsigned>(size * 31 + data[size / 2] * 7 + data[size - 1]);
  if (!pictures.empty() && draw % 4 == 0) {
    options.threads = 2;
    compare(pictures, decode(data, size, options, draw % 8 == 0 ? 7 : size));
  }
  if (draw % 8 == 1) {
    options.threads = 1;
    options.inspect = options.skip_inter = true;
    decode(data, size, options, size);
  }
  return 0;
}

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size) __attribute__((weak));

// libFuzzer's own changes, and those of bits.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  std::minstd_rand random(seed);
  if (random() % 2 == 0) return LLVMFuzzerMutate(data, size, max_size);
  fuzz::Bytes stream(data, data + size);
  fuzz::change_bits(stream, random);
  const size_t changed = stream.size() < max_size ? stream.size() : max_size;
  std::memcpy(data, stream.data(), changed);
  return changed;
}
