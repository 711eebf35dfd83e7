// SPDX-License-Identifier: Apache-2.0
#include "hevc/picture_hash.h"

#include <cstring>
#include <vector>

namespace flexor::hevc {
namespace {

uint32_t rotate(uint32_t x, int by) { return x << by | x >> (32 - by); }

// One round of 16 steps. kRound's function of b, c, d; message words in steps of kStep from kFirst.
template <int kRound>
inline void md5_round(uint32_t (&s)[4], const uint32_t* words) {
  static constexpr uint32_t kSines[4][16] = {
      {0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501, 0x698098d8,
       0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821},
      {0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8, 0x21e1cde6,
       0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a},
      {0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70, 0x289b7ec6,
       0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665},
      {0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1, 0x6fa87e4f,
       0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391}};
  static constexpr int kShifts[4][4] = {{7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}};
  static constexpr int kFirst[4] = {0, 1, 5, 0}, kStep[4] = {1, 5, 3, 7};
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC unroll 16
#else
#pragma unroll
#endif
  for (int i = 0; i < 16; ++i) {
    uint32_t &a = s[(16 - i) & 3], b = s[(17 - i) & 3], c = s[(18 - i) & 3], d = s[(19 - i) & 3];
    const uint32_t f = kRound == 0   ? d ^ (b & (c ^ d))
                       : kRound == 1 ? c ^ (d & (b ^ c))
                       : kRound == 2 ? b ^ c ^ d
                                     : c ^ (b | ~d);
    a = b +
        rotate(a + f + words[(kFirst[kRound] + i * kStep[kRound]) & 15] + kSines[kRound][i], kShifts[kRound][i & 3]);
  }
}

class Md5 {
 public:
  void update(const uint8_t* data, size_t size) {
    total_ += size;
    if (held_ > 0) {
      const size_t take = size < 64 - held_ ? size : 64 - held_;
      std::memcpy(block_ + held_, data, take);
      held_ += take, data += take, size -= take;
      if (held_ < 64) return;
      add_block(block_);
      held_ = 0;
    }
    for (; size >= 64; data += 64, size -= 64) add_block(data);
    std::memcpy(block_, data, size);
    held_ = size;
  }

  Digest finish() {
    const uint64_t bits = total_ * 8;
    static constexpr uint8_t kPadding[64] = {0x80};
    update(kPadding, (held_ < 56 ? 56 : 120) - held_);
    uint8_t length[8];
    for (int i = 0; i < 8; ++i) length[i] = static_cast<uint8_t>(bits >> (8 * i));
    update(length, 8);
    Digest digest;
    for (size_t i = 0; i < 16; ++i) digest[i] = static_cast<uint8_t>(state_[i / 4] >> (8 * (i % 4)));
    return digest;
  }

 private:
  void add_block(const uint8_t* data) {
    uint32_t words[16];
    for (int i = 0; i < 16; ++i, data += 4)
      words[i] = static_cast<uint32_t>(data[0]) | static_cast<uint32_t>(data[1]) << 8 |
                 static_cast<uint32_t>(data[2]) << 16 | static_cast<uint32_t>(data[3]) << 24;
    uint32_t s[4] = {state_[0], state_[1], state_[2], state_[3]};
    md5_round<0>(s, words);
    md5_round<1>(s, words);
    md5_round<2>(s, words);
    md5_round<3>(s, words);
    for (int i = 0; i < 4; ++i) state_[i] += s[i];
  }

  uint32_t state_[4] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476};
  uint64_t total_ = 0;
  uint8_t block_[64];
  size_t held_ = 0;
};

struct CrcTable {
  uint16_t next[256];
  constexpr CrcTable() : next() {
    for (unsigned byte = 0; byte < 256; ++byte) {
      unsigned crc = byte << 8;
      for (int bit = 0; bit < 8; ++bit) crc = crc & 0x8000 ? crc << 1 ^ 0x1021 : crc << 1;
      next[byte] = static_cast<uint16_t>(crc);
    }
  }
};

class Crc {
 public:
  void update(const uint8_t* data, size_t size) {
    static constexpr CrcTable table;
    for (size_t i = 0; i < size; ++i) crc_ = static_cast<uint16_t>(crc_ << 8 ^ table.next[(crc_ >> 8 ^ data[i]) & 255]);
  }
  Digest finish() const { return {static_cast<uint8_t>(crc_ >> 8), static_cast<uint8_t>(crc_)}; }

 private:
  uint16_t crc_ = 0x1d0f;  // what 0xffff becomes when the standard's 16 zero bits are moved from the end to the start
};

// pictureData of the clause: samples row after row, in one byte or in two, low byte first.
template <class Hash>
Digest hash_rows(const Plane& plane, int bit_depth) {
  const size_t width = static_cast<size_t>(plane.width);
  std::vector<uint8_t> row(width * 2);
  Hash hash;
  for (int y = 0; y < plane.height; ++y) {
    const uint16_t* in = plane.samples + y * plane.stride;
    if (bit_depth == 8) {
      for (size_t x = 0; x < width; ++x) row[x] = static_cast<uint8_t>(in[x]);
      hash.update(row.data(), width);
    } else {
      for (size_t x = 0; x < width; ++x) {
        row[2 * x] = static_cast<uint8_t>(in[x]);
        row[2 * x + 1] = static_cast<uint8_t>(in[x] >> 8);
      }
      hash.update(row.data(), width * 2);
    }
  }
  return hash.finish();
}

Digest checksum(const Plane& plane, int bit_depth) {
  uint32_t sum = 0;
  for (int y = 0; y < plane.height; ++y) {
    const uint16_t* row = plane.samples + y * plane.stride;
    const uint32_t row_mask = static_cast<uint32_t>((y & 255) ^ (y >> 8));
    for (int x = 0; x < plane.width; ++x) {
      const uint32_t mask = row_mask ^ static_cast<uint32_t>((x & 255) ^ (x >> 8));
      sum += (row[x] & 255u) ^ mask;
      if (bit_depth > 8) sum += (row[x] >> 8) ^ mask;
    }
  }
  return {static_cast<uint8_t>(sum >> 24), static_cast<uint8_t>(sum >> 16), static_cast<uint8_t>(sum >> 8),
          static_cast<uint8_t>(sum)};
}

}  // namespace

Digest hash_plane(HashMethod method, const Plane& plane, int bit_depth) {
  switch (method) {
    case HashMethod::kMd5: return hash_rows<Md5>(plane, bit_depth);
    case HashMethod::kCrc: return hash_rows<Crc>(plane, bit_depth);
    default: return checksum(plane, bit_depth);
  }
}

}  // namespace flexor::hevc
