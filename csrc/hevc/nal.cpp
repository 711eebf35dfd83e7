// SPDX-License-Identifier: Apache-2.0
#include "hevc/nal.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

namespace flexor::hevc {
namespace {

constexpr size_t kMaxNalBytes = size_t{1} << 28;  // more than the largest picture takes as PCM
constexpr size_t kNone = SIZE_MAX;

// The first 00 00 `last` at or after `from`, or kNone. Looks at one byte in three where no zeros are.
size_t find_zeros_and(uint8_t last, const uint8_t* data, size_t size, size_t from) {
  size_t i = from;
  while (i + 2 < size) {
    const uint8_t third = data[i + 2];
    if (third > last) {
      i += 3;
    } else if (third == last && data[i] == 0 && data[i + 1] == 0) {
      return i;
    } else {
      ++i;
    }
  }
  return kNone;
}

size_t count_nonzero(const uint8_t* data, size_t size) {
  return size - static_cast<size_t>(std::count(data, data + size, uint8_t{0}));
}

size_t without_trailing_zeros(const uint8_t* data, size_t size) {
  while (size > 0 && data[size - 1] == 0) --size;
  return size;
}

}  // namespace

NalUnit unwrap(const uint8_t* data, size_t size) {
  if (size < 2) throw StreamError("a NAL unit ends inside its header");
  NalUnit nal;
  if (data[0] & 0x80) throw StreamError("a NAL unit has forbidden_zero_bit 1");
  nal.nal_unit_type = data[0] >> 1;
  nal.nuh_layer_id = (data[0] & 1) << 5 | data[1] >> 3;
  nal.temporal_id = (data[1] & 7) - 1;
  if (nal.temporal_id < 0) throw StreamError("a NAL unit has nuh_temporal_id_plus1 0");
  nal.rbsp.reserve(size - 2);
  for (size_t from = 2; from < size;) {
    const size_t found = find_zeros_and(3, data, size, from);
    const size_t end = found == kNone ? size : found + 2;
    nal.rbsp.insert(nal.rbsp.end(), data + from, data + end);
    if (found != kNone) nal.removed.push_back(nal.rbsp.size());
    from = end + 1;
  }
  return nal;
}

std::vector<size_t> substream_positions(const NalUnit& nal, size_t header, const std::vector<uint32_t>& offsets) {
  const size_t length = nal.rbsp.size() - header;
  std::vector<size_t> positions{0};
  positions.reserve(offsets.size() + 1);
  // The emulation prevention bytes before byte p of the RBSP are those with removed <= p.
  size_t passed =
      static_cast<size_t>(std::upper_bound(nal.removed.begin(), nal.removed.end(), header) - nal.removed.begin());
  uint64_t raw = header + passed;  // position before unwrapping
  for (const uint32_t offset : offsets) {
    raw += offset;
    while (passed < nal.removed.size() && nal.removed[passed] + passed < raw) ++passed;
    const uint64_t position = raw - passed - header;
    positions.push_back(static_cast<size_t>(std::min<uint64_t>(position, length)));
  }
  return positions;
}

void NalSplitter::append(const uint8_t* data, size_t size) {
  buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<ptrdiff_t>(begin_));
  scanned_ -= begin_;
  begin_ = 0;
  buffer_.insert(buffer_.end(), data, data + size);
}

bool NalSplitter::next(RawNal& nal) { return length_size_ == 0 ? next_start_code(nal) : next_length(nal); }

bool NalSplitter::next_start_code(RawNal& nal) {
  for (;;) {
    const size_t found = find_zeros_and(1, buffer_.data(), buffer_.size(), scanned_);
    if (found == kNone) {
      scanned_ = std::max(begin_, buffer_.size() < 2 ? 0 : buffer_.size() - 2);
      if (!started_) {  // nothing of it is needed
        skipped_ += count_nonzero(buffer_.data() + begin_, scanned_ - begin_);
        begin_ = scanned_;
      }
      if (buffer_.size() - begin_ > kMaxNalBytes)
        throw StreamError("a NAL unit is longer than " + std::to_string(kMaxNalBytes >> 20) + " MiB");
      return false;
    }
    const size_t begin = begin_;
    begin_ = scanned_ = found + 3;
    const size_t size = without_trailing_zeros(buffer_.data() + begin, found - begin);
    if (!started_) {
      skipped_ += count_nonzero(buffer_.data() + begin, size);
      started_ = true;
      continue;
    }
    nal = {buffer_.data() + begin, size};
    return true;
  }
}

bool NalSplitter::next_length(RawNal& nal) {
  const size_t prefix = static_cast<size_t>(length_size_);
  if (buffer_.size() - begin_ < prefix) return false;
  size_t length = 0;
  for (size_t i = 0; i < prefix; ++i) length = length << 8 | buffer_[begin_ + i];
  if (length > kMaxNalBytes)
    throw StreamError("a NAL unit's length is " + std::to_string(length) + " bytes: the lengths cannot be right");
  if (buffer_.size() - begin_ - prefix < length) return false;
  nal = {buffer_.data() + begin_ + prefix, length};
  begin_ += prefix + length;
  scanned_ = begin_;
  return true;
}

bool NalSplitter::rest(RawNal& nal, bool& cut_off) {
  const size_t begin = begin_;
  begin_ = scanned_ = buffer_.size();
  cut_off = false;
  if (length_size_ == 0) {
    nal = {buffer_.data() + begin, without_trailing_zeros(buffer_.data() + begin, buffer_.size() - begin)};
    if (!started_) skipped_ += count_nonzero(nal.data, nal.size);
    return std::exchange(started_, false);
  }
  cut_off = begin < buffer_.size();
  const size_t prefix = std::min(static_cast<size_t>(length_size_), buffer_.size() - begin);
  nal = {buffer_.data() + begin + prefix, buffer_.size() - begin - prefix};
  return nal.size > 0;
}

DecoderConfiguration parse_configuration(const uint8_t* data, size_t size) {
  const auto need = [size](size_t bytes) {
    if (bytes > size) throw StreamError("the decoder configuration record (hvcC) ends early");
  };
  need(23);
  if (data[0] != 1)
    throw StreamError("the decoder configuration record (hvcC) has configurationVersion " + std::to_string(data[0]) +
                      ", not 1");
  DecoderConfiguration configuration;
  configuration.length_size = (data[21] & 3) + 1;
  if (configuration.length_size == 3)
    throw StreamError("the decoder configuration record (hvcC) has lengths of 3 bytes");
  size_t at = 23;
  for (int array = 0; array < data[22]; ++array) {
    need(at + 3);
    const int count = data[at + 1] << 8 | data[at + 2];
    at += 3;
    for (int i = 0; i < count; ++i) {
      need(at + 2);
      const size_t length = static_cast<size_t>(data[at] << 8 | data[at + 1]);
      at += 2;
      need(at + length);
      configuration.parameter_sets.push_back({data + at, length});
      at += length;
    }
  }
  return configuration;
}

}  // namespace flexor::hevc
