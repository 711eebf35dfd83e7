// SPDX-License-Identifier: Apache-2.0
// The arithmetic decoder (H.265 clause 9.3.4.3). The nine bits of ivlOffset are the top of a 64-bit window that holds
// up to 55 bits of what follows, so that bytes are read a few at a time and many bypass bins come from one division.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace flexor::FLEXOR_ISA {

// Table 9-46, rangeTabLps[pStateIdx][qRangeIdx].
alignas(64) static constexpr uint8_t kRangeLps[64][4] = {
    {128, 176, 208, 240}, {128, 167, 197, 227}, {128, 158, 187, 216}, {123, 150, 178, 205}, {116, 142, 169, 195},
    {111, 135, 160, 185}, {105, 128, 152, 175}, {100, 122, 144, 166}, {95, 116, 137, 158},  {90, 110, 130, 150},
    {85, 104, 123, 142},  {81, 99, 117, 135},   {77, 94, 111, 128},   {73, 89, 105, 122},   {69, 85, 100, 116},
    {66, 80, 95, 110},    {62, 76, 90, 104},    {59, 72, 86, 99},     {56, 69, 81, 94},     {53, 65, 77, 89},
    {51, 62, 73, 85},     {48, 59, 69, 80},     {46, 56, 66, 76},     {43, 53, 63, 72},     {41, 50, 59, 69},
    {39, 48, 56, 65},     {37, 45, 54, 62},     {35, 43, 51, 59},     {33, 41, 48, 56},     {32, 39, 46, 53},
    {30, 37, 43, 50},     {29, 35, 41, 48},     {27, 33, 39, 45},     {26, 31, 37, 43},     {24, 30, 35, 41},
    {23, 28, 33, 39},     {22, 27, 32, 37},     {21, 26, 30, 35},     {20, 24, 29, 33},     {19, 23, 27, 31},
    {18, 22, 26, 30},     {17, 21, 25, 28},     {16, 20, 23, 27},     {15, 19, 22, 25},     {14, 18, 21, 24},
    {14, 17, 20, 23},     {13, 16, 19, 22},     {12, 15, 18, 21},     {12, 14, 17, 20},     {11, 14, 16, 19},
    {11, 13, 15, 18},     {10, 12, 15, 17},     {10, 12, 14, 16},     {9, 11, 13, 15},      {9, 11, 12, 14},
    {8, 10, 12, 14},      {8, 9, 11, 13},       {7, 9, 11, 12},       {7, 9, 10, 12},       {7, 8, 10, 11},
    {6, 8, 9, 11},        {6, 7, 9, 10},        {6, 7, 8, 9},         {2, 2, 2, 2},
};

// Table 9-47, transIdxLps.
static constexpr uint8_t kTransitionLps[64] = {0,  0,  1,  2,  2,  4,  4,  5,  6,  7,  8,  9,  9,  11, 11, 12,
                                               13, 13, 15, 15, 16, 16, 18, 18, 19, 19, 21, 21, 22, 22, 23, 24,
                                               24, 25, 26, 26, 27, 27, 28, 29, 29, 30, 30, 30, 31, 32, 32, 33,
                                               33, 33, 34, 34, 35, 35, 35, 36, 36, 36, 37, 37, 37, 38, 38, 63};

// The model after a bin: [model] after its likely value, [model ^ 255] after the other.
struct Transitions {
  uint8_t next[256] = {};
  constexpr Transitions() {
    for (int state = 0; state < 64; ++state) {
      for (int mps = 0; mps < 2; ++mps) {
        const int model = (state << 1) | mps;
        const int likely = state < 62 ? state + 1 : state;
        next[model] = static_cast<uint8_t>((likely << 1) | mps);
        next[model ^ 255] = static_cast<uint8_t>((kTransitionLps[state] << 1) | (state == 0 ? 1 - mps : mps));
      }
    }
  }
};
alignas(64) static constexpr Transitions kTransitions;

class Cabac {
 public:
  void start(const uint8_t* data, const uint8_t* end) {
    begin_ = next_ = data;
    end_ = end;
    range_ = 510;
    value_ = 0;
    missing_ = 0;
    spare_ = -9;
    fill_slowly();
    keep_below_range();
  }

  // One bin of a context variable.
  inline __attribute__((always_inline)) int bin(uint8_t& model) {
    const uint32_t state = model;
    const uint32_t lps = kRangeLps[state >> 1][(range_ >> 6) & 3];
    const uint32_t likely = range_ - lps;
    const uint64_t limit = static_cast<uint64_t>(likely) << 55;
    const uint64_t other = value_ >= limit ? ~uint64_t{0} : 0;  // all ones: the less likely value
    const uint32_t index = state ^ (static_cast<uint32_t>(other) & 255);
    model = kTransitions.next[index];
    const uint32_t range = likely + ((lps - likely) & static_cast<uint32_t>(other));
    value_ -= limit & other;
    const int shift = __builtin_clz(range) - 23;
    range_ = range << shift;
    value_ <<= shift;
    spare_ -= shift;
    if (__builtin_expect(spare_ < 16, 0)) fill();
    return static_cast<int>(index & 1);
  }

  int bypass() {
    const uint64_t limit = static_cast<uint64_t>(range_) << 54;
    const bool one = value_ >= limit;
    value_ = (value_ - (one ? limit : 0)) << 1;
    if (--spare_ < 16) fill();
    return one;
  }

  // count bins at once, 0 to 16: the quotient of the offset and the range.
  uint32_t bypass(int count) {
    const uint32_t quotient = static_cast<uint32_t>(value_ >> (55 - count)) / range_;
    value_ = (value_ - (static_cast<uint64_t>(quotient * range_) << (55 - count))) << count;
    spare_ -= count;
    if (spare_ < 16) fill();
    return quotient;
  }

  // Any number up to 32.
  uint32_t bypass_long(int count) {
    uint32_t value = 0;
    while (count > 16) {
      value = (value << 16) | bypass(16);
      count -= 16;
    }
    return (value << count) | bypass(count);
  }

  // Clause 9.3.4.3.6: bypass bins are then bits of the stream.
  void align() {
    range_ = 256;
    keep_below_range();
  }

  // end_of_slice_segment_flag, end_of_subset_one_bit, pcm_flag.
  int terminate() {
    range_ -= 2;
    const uint64_t limit = static_cast<uint64_t>(range_) << 55;
    if (value_ >= limit) return 1;
    if (range_ < 256) {
      range_ <<= 1;
      value_ <<= 1;
      if (--spare_ < 16) fill();
    }
    return 0;
  }

  // Where the next byte-aligned data begin after terminate() gave 1: pcm samples, or another substream.
  const uint8_t* position() const {
    const int64_t byte = (bits_read() + 7) >> 3;
    return byte < end_ - begin_ ? begin_ + byte : end_;
  }
  const uint8_t* end() const { return end_; }
  bool exhausted() const { return bits_read() > 8 * static_cast<int64_t>(end_ - begin_); }
  int64_t bits_read() const { return 8 * static_cast<int64_t>(next_ - begin_ + missing_) - spare_; }
  uint32_t range() const { return range_; }

 private:
  // An offset beyond the range is no stream's, and would make bins of several bits larger than they can be.
  void keep_below_range() {
    const uint64_t limit = static_cast<uint64_t>(range_) << 55;
    if (value_ >= limit) value_ = limit - 1;
  }

  inline __attribute__((always_inline)) void fill() {
    if (__builtin_expect(end_ - next_ < 4, 0)) return fill_slowly();
    uint32_t word;
    memcpy(&word, next_, 4);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    word = __builtin_bswap32(word);
#endif
    value_ |= static_cast<uint64_t>(word) << (23 - spare_);
    next_ += 4;
    spare_ += 32;
  }

  // Near the end: byte by byte; zeros stand for what is missing.
  __attribute__((noinline)) void fill_slowly() {
    while (spare_ <= 47) {
      if (next_ < end_) {
        value_ |= static_cast<uint64_t>(*next_++) << (47 - spare_);
      } else {
        ++missing_;
      }
      spare_ += 8;
    }
  }

  uint64_t value_ = 0;
  uint32_t range_ = 510;
  int spare_ = 0;  // bits in the window beyond the nine
  const uint8_t* next_ = nullptr;
  const uint8_t* begin_ = nullptr;
  const uint8_t* end_ = nullptr;
  int64_t missing_ = 0;
};

}  // namespace flexor::FLEXOR_ISA
