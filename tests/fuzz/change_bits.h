// SPDX-License-Identifier: Apache-2.0
// A change that bytes hardly make: bits come, go or turn inside one NAL unit, mostly in its header, and the rest of the
// stream stays what it was, emulation prevention included.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace fuzz {

using Bytes = std::vector<uint8_t>;

inline std::vector<size_t> unit_begins(const Bytes& stream) {
  std::vector<size_t> begins;
  for (size_t i = 3; i < stream.size(); ++i)
    if (stream[i - 3] == 0 && stream[i - 2] == 0 && stream[i - 1] == 1) begins.push_back(i);
  return begins;
}

inline std::vector<bool> unwrapped_bits(const uint8_t* unit, size_t size) {
  std::vector<bool> bits;
  int zeros = 0;
  for (size_t i = 0; i < size; ++i) {
    const bool prevention = zeros >= 2 && unit[i] == 3;
    zeros = unit[i] == 0 ? zeros + 1 : 0;
    for (int bit = 7; bit >= 0 && !prevention; --bit) bits.push_back(unit[i] >> bit & 1);
  }
  return bits;
}

inline Bytes wrapped(const std::vector<bool>& bits) {
  Bytes unit;
  int zeros = 0;
  for (size_t i = 0; i < bits.size(); i += 8) {
    unsigned byte = 0;
    for (size_t bit = 0; bit < 8; ++bit) byte = byte << 1 | (i + bit < bits.size() && bits[i + bit]);
    if (zeros >= 2 && byte <= 3) {
      unit.push_back(3);
      zeros = 0;
    }
    zeros = byte == 0 ? zeros + 1 : 0;
    unit.push_back(static_cast<uint8_t>(byte));
  }
  return unit;
}

template <class Random>
void change_bits(Bytes& stream, Random& random) {
  const std::vector<size_t> begins = unit_begins(stream);
  if (begins.empty()) return;
  const size_t chosen = random() % begins.size();
  const size_t begin = begins[chosen];
  const size_t end = chosen + 1 < begins.size() ? begins[chosen + 1] - 3 : stream.size();
  std::vector<bool> bits = unwrapped_bits(stream.data() + begin, end - begin);
  const size_t reach = random() % 4 == 0 ? bits.size() : std::min<size_t>(bits.size(), 400);
  for (size_t changes = 1 + random() % 3; changes > 0 && reach > 0; --changes) {
    const auto at = bits.begin() + static_cast<ptrdiff_t>(std::min<size_t>(random() % reach, bits.size()));
    const auto left = static_cast<size_t>(bits.end() - at);
    const size_t count = std::min<size_t>(1 + random() % 4, left);
    switch (random() % 3) {
      case 0: bits.insert(at, 1 + random() % 4, random() % 2 != 0); break;
      case 1: bits.erase(at, at + static_cast<ptrdiff_t>(count)); break;
      default: std::transform(at, at + static_cast<ptrdiff_t>(count), at, [](bool bit) { return !bit; });
    }
  }
  const Bytes unit = wrapped(bits);
  stream.erase(stream.begin() + static_cast<ptrdiff_t>(begin), stream.begin() + static_cast<ptrdiff_t>(end));
  stream.insert(stream.begin() + static_cast<ptrdiff_t>(begin), unit.begin(), unit.end());
}

}  // namespace fuzz
