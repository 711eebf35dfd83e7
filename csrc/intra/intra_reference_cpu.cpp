// SPDX-License-Identifier: Apache-2.0
// Intra prediction as clause 8.4.4.2 of H.265 writes it, a sample at a time: what the fast kernels are checked against
// and timed against.
#include "core/simd.h"
#include "intra/intra_angles.h"
#include "intra/intra_reference.h"

namespace flexor::FLEXOR_ISA {
namespace {

struct Block {
  uint16_t* samples;
  ptrdiff_t stride;
  const uint16_t* border;
  int log2_size, n;

  uint16_t& at(int x, int y) const { return samples[y * stride + x]; }
  int left(int y) const { return border[2 * n - 1 - y]; }  // y = -1: the corner
  int top(int x) const { return border[2 * n + 1 + x]; }
};

int clip(int value, int bit_depth) {
  const int most = (1 << bit_depth) - 1;
  return value < 0 ? 0 : value > most ? most : value;
}

void planar(const Block& b) {
  const int n = b.n;
  for (int y = 0; y < n; ++y)
    for (int x = 0; x < n; ++x)
      b.at(x, y) = static_cast<uint16_t>(
          ((n - 1 - x) * b.left(y) + (x + 1) * b.top(n) + (n - 1 - y) * b.top(x) + (y + 1) * b.left(n) + n) >>
          (b.log2_size + 1));
}

void dc(const Block& b, bool edge_filter) {
  const int n = b.n;
  int sum = n;
  for (int i = 0; i < n; ++i) sum += b.left(i) + b.top(i);
  const int mean = sum >> (b.log2_size + 1);
  for (int y = 0; y < n; ++y)
    for (int x = 0; x < n; ++x) b.at(x, y) = static_cast<uint16_t>(mean);
  if (!edge_filter) return;
  b.at(0, 0) = static_cast<uint16_t>((b.left(0) + 2 * mean + b.top(0) + 2) >> 2);
  for (int i = 1; i < n; ++i) {
    b.at(i, 0) = static_cast<uint16_t>((b.top(i) + 3 * mean + 2) >> 2);
    b.at(0, i) = static_cast<uint16_t>((b.left(i) + 3 * mean + 2) >> 2);
  }
}

void angular(const Block& b, int mode, bool nearest, bool edge_filter, int bit_depth) {
  const int n = b.n, angle = kIntraAngles[mode];
  const bool vertical = mode >= kFirstVerticalMode;
  uint16_t samples[3 * kMaxIntraSize + 1];
  uint16_t* const ref = samples + kMaxIntraSize;
  for (int i = 0; i <= 2 * n; ++i) ref[i] = static_cast<uint16_t>(vertical ? b.top(i - 1) : b.left(i - 1));
  const int first = (n * angle) >> 5;
  for (int i = -1; first < -1 && i >= first; --i) {
    const int other = ((128 - i * kIntraInverseAngles[mode - 11]) >> 8) - 1;
    ref[i] = static_cast<uint16_t>(vertical ? b.left(other) : b.top(other));
  }
  for (int y = 0; y < n; ++y)
    for (int x = 0; x < n; ++x) {
      const int along = vertical ? x : y, across = (vertical ? y : x) + 1;
      const int whole = (across * angle) >> 5, part = (across * angle) & 31;
      const int a = ref[along + whole + 1];
      const int next = part != 0 ? ref[along + whole + 2] : a;
      b.at(x, y) = static_cast<uint16_t>(nearest ? (part >= 16 ? next : a) : ((32 - part) * a + part * next + 16) >> 5);
    }
  if (!edge_filter || angle != 0) return;
  for (int i = 0; i < n; ++i) {
    if (vertical) b.at(0, i) = static_cast<uint16_t>(clip(b.top(0) + ((b.left(i) - b.top(-1)) >> 1), bit_depth));
    else b.at(i, 0) = static_cast<uint16_t>(clip(b.left(0) + ((b.top(i) - b.top(-1)) >> 1), bit_depth));
  }
}

void predict(uint16_t* block, ptrdiff_t stride, const uint16_t* border, int log2_size, int mode, bool nearest,
             bool edge_filter, int bit_depth) {
  const Block b{block, stride, border, log2_size, 1 << log2_size};
  if (mode == kIntraPlanar) planar(b);
  else if (mode == kIntraDc) dc(b, edge_filter);
  else angular(b, mode, nearest, edge_filter, bit_depth);
}

void smooth(uint16_t* smoothed, const uint16_t* border, int log2_size) {
  const int last = 4 << log2_size;
  smoothed[0] = border[0];
  for (int i = 1; i < last; ++i)
    smoothed[i] = static_cast<uint16_t>((border[i - 1] + 2 * border[i] + border[i + 1] + 2) >> 2);
  smoothed[last] = border[last];
}

void smooth_strong(uint16_t* smoothed, const uint16_t* border, int log2_size) {
  const int n = 1 << log2_size, corner = border[2 * n];
  for (int i = 0; i <= 2 * n; ++i) {
    smoothed[i] = static_cast<uint16_t>(((2 * n - i) * border[0] + i * corner + n) >> (log2_size + 1));
    smoothed[2 * n + i] = static_cast<uint16_t>(((2 * n - i) * corner + i * border[4 * n] + n) >> (log2_size + 1));
  }
}

}  // namespace

extern const IntraKernels intra_reference{predict, smooth, smooth_strong};

}  // namespace flexor::FLEXOR_ISA
