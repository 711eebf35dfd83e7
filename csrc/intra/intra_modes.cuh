// SPDX-License-Identifier: Apache-2.0
// Intra prediction for code that runs on a GPU (H.265 clause 8.4.4.2): the borders, smoothing and modes that the CPU's
// kernels have, bit by bit. It includes nothing, so that NVRTC can compile it without a toolkit.
//
// A border is a line of 4n + 1 integers around its corner: corner[1 + x] is p[x][-1], corner[-1 - y] is p[-1][y].
#pragma once

namespace flexor {

using i32 = int;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

constexpr int kPlanarMode = 0, kDcMode = 1, kHorizontalMode = 10, kVerticalMode = 26, kModes = 35;
constexpr int kFirstVertical = 18;

__device__ inline int least(int a, int b) { return a < b ? a : b; }
__device__ inline i64 least(i64 a, i64 b) { return a < b ? a : b; }
__device__ inline int size_of(int x) { return x < 0 ? -x : x; }

// Whether the border of a block is smoothed: minDistVerHor > intraHorVerDistThres[nTbS].
__device__ inline bool smooths(int log2_size, int mode) {
  if (mode == kDcMode || log2_size == 2) return false;
  const int distance = least(size_of(mode - kVerticalMode), size_of(mode - kHorizontalMode));
  return distance > (log2_size == 3 ? 7 : log2_size == 4 ? 1 : 0);
}

// biIntFlag: nearly straight on both sides.
__device__ inline bool is_straight(const int* corner, int n, int bit_depth) {
  const int limit = 1 << (bit_depth - 5);
  return size_of(corner[0] + corner[2 * n] - 2 * corner[n]) < limit &&
         size_of(corner[0] + corner[-2 * n] - 2 * corner[-n]) < limit;
}

// The sample of a smoothed border at `place`, -2n to 2n (clause 8.4.4.2.3).
__device__ inline int smoothed(const int* corner, int log2_size, int place, bool strong, int bit_depth) {
  const int n = 1 << log2_size, reach = size_of(place);
  if (strong && n >= 32 && is_straight(corner, n, bit_depth))
    return ((2 * n - reach) * corner[0] + reach * corner[place < 0 ? -2 * n : 2 * n] + n) >> (log2_size + 1);
  if (reach == 2 * n) return corner[place];
  return (corner[place - 1] + 2 * corner[place] + corner[place + 1] + 2) >> 2;
}

__device__ inline int planar(const int* corner, int log2_size, int x, int y) {
  const int n = 1 << log2_size;
  return ((n - 1 - x) * corner[-1 - y] + (x + 1) * corner[1 + n] + (n - 1 - y) * corner[1 + x] +
          (y + 1) * corner[-1 - n] + n) >>
         (log2_size + 1);
}

__device__ inline int dc(const int* corner, int mean, bool edges, int x, int y) {
  if (!edges || (x > 0 && y > 0)) return mean;
  if (x == 0 && y == 0) return (corner[-1] + 2 * mean + corner[1] + 2) >> 2;
  return ((x > 0 ? corner[1 + x] : corner[-1 - y]) + 3 * mean + 2) >> 2;
}

// Modes 2 to 34. A horizontal mode is a vertical one of the border read the other way, transposed: `along` and `across`
// are x and y of a vertical mode, y and x of a horizontal one.
struct Angular {
  int angle, inverse, side;  // side: 1 or, of horizontal modes, -1

  __device__ explicit Angular(int mode) {
    const int steps = mode < kFirstVertical ? kHorizontalMode - mode : mode - kVerticalMode;
    const int reach = size_of(steps);  // 0 to 8: 0, 2, 5, 9, 13, 17, 21, 26, 32
    const int slope = reach == 8 ? 32 : static_cast<int>(0x1A15110D09050200u >> (8 * reach) & 0xFF);
    angle = steps < 0 ? -slope : slope;
    inverse = slope == 0 ? 0 : (8192 + slope / 2) / slope;
    side = mode < kFirstVertical ? -1 : 1;
  }

  // Before the corner come the samples of the other side, projected.
  __device__ int reference(const int* corner, int place) const {
    return corner[side * (place < 0 ? -((128 - place * inverse) >> 8) : place)];
  }

  // The one past the end of a border may be read, not used.
  __device__ int at(const int* corner, bool nearest, int along, int across) const {
    const int whole = ((across + 1) * angle) >> 5, part = ((across + 1) * angle) & 31;
    const int a = reference(corner, along + whole + 1), b = reference(corner, along + whole + 2);
    return nearest ? (part >= 16 ? b : a) : ((32 - part) * a + part * b + 16) >> 5;
  }

  // Clause 8.4.4.2.6: the samples of angle 0 with along = 0.
  __device__ int filtered(const int* corner, int value, int across, int bit_depth) const {
    const int sum = value + ((corner[-side * (1 + across)] - corner[0]) >> 1);
    return sum < 0 ? 0 : least(sum, (1 << bit_depth) - 1);
  }
};

}  // namespace flexor
