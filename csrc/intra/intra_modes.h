// SPDX-License-Identifier: Apache-2.0
// Every mode for blocks of N x N, written as samples of any integer type.
#pragma once
#include "core/simd.h"
#include "intra/intra_angles.h"
#include "intra/intra_kernels.h"
#include "intra/intra_rows.h"

namespace flexor::FLEXOR_ISA {

FLEXOR_INLINE int clip(int value, int bit_depth) {
  const int most = (1 << bit_depth) - 1;
  return value < 0 ? 0 : value > most ? most : value;
}

// Sums of T: 16 bits where n * 2^(bit_depth + 1) fits them, else 32. Between, sums may wrap; the last one does not.
template <int N, class T, class Sample>
FLEXOR_INLINE void planar(Sample* block, ptrdiff_t stride, const uint16_t* corner, int shift) {
  constexpr int W = row_width<N> < kLanes<T> ? row_width<N> : kLanes<T>;
  using V = Vec<T, W>;
  using U = Vec<uint16_t, W>;
  const V bottom = splat<V>(static_cast<T>(corner[-N - 1])), right = splat<V>(static_cast<T>(corner[N + 1]));
  for (int x = 0; x < N; x += W) {
    const V place = splat<V>(static_cast<T>(x)) + count<V>();
    const V top = __builtin_convertvector(load<U>(corner + 1 + x), V);
    const V rest = splat<V>(static_cast<T>(N - 1)) - place;
    V sum = (place + 1) * right + top * static_cast<T>(N - 1) + bottom + static_cast<T>(N);
    for (int y = 0; y < N; ++y) {
      const V left = splat<V>(static_cast<T>(corner[-1 - y]));
      store_row<N, W>(block + y * stride + x, __builtin_convertvector((sum + rest * left) >> shift, U));
      sum += bottom - top;
    }
  }
}

template <int N, class Sample>
FLEXOR_INLINE void dc(Sample* block, ptrdiff_t stride, const uint16_t* corner, int shift, bool edge_filter) {
  const uint16_t *left = corner - 1, *top = corner + 1;
  constexpr int W = N < 8 ? N : 8;
  Vec<uint32_t, W> sums{};
  for (int x = 0; x < N; x += W)
    sums += __builtin_convertvector(load<Vec<uint16_t, W>>(top + x), Vec<uint32_t, W>) +
            __builtin_convertvector(load<Vec<uint16_t, W>>(corner - N + x), Vec<uint32_t, W>);
  uint32_t sum = N;
  for (int lane = 0; lane < W; ++lane) sum += sums[lane];
  const int mean = static_cast<int>(sum >> shift);
  using V = Vec<uint16_t, row_width<N>>;
  const V row = splat<V>(static_cast<uint16_t>(mean));
  for (int y = 0; y < N; ++y)
    for (int x = 0; x < N; x += row_width<N>) store_row<N, row_width<N>>(block + y * stride + x, row);
  if (!edge_filter) return;
  const int rounded = 3 * mean + 2;
  for (int i = 0; i < N; ++i) block[i] = static_cast<Sample>((top[i] + rounded) >> 2);
  uint16_t edge[N];  // from the bottom up, as the border is
  for (int i = 0; i < N; ++i) edge[i] = static_cast<uint16_t>((corner[i - N] + rounded) >> 2);
  for (int y = 0; y < N; ++y) block[y * stride] = static_cast<Sample>(edge[N - 1 - y]);
  block[0] = static_cast<Sample>((left[0] + 2 * mean + top[0] + 2) >> 2);
}

// Blocks of one mode: samples(i) with rows `stride` apart, and the corner of the line each is predicted from.
template <class T>
struct OneBlock {
  using Sample = T;
  Sample* block;
  ptrdiff_t stride;
  const uint16_t* line;

  static constexpr int count = 1;
  FLEXOR_INLINE Sample* samples(int) const { return block; }
  FLEXOR_INLINE const uint16_t* corner(int) const { return line; }
};

template <class T>
struct ManyBlocks {
  using Sample = T;
  Sample* const* blocks;
  ptrdiff_t stride;
  const uint16_t* first;
  ptrdiff_t pitch;
  int count;

  FLEXOR_INLINE Sample* samples(int i) const { return blocks[i]; }
  FLEXOR_INLINE const uint16_t* corner(int i) const { return first + i * pitch; }
};

// A mode of negative angle reads samples of its own side, side 1 of vertical modes and -1 of horizontal ones, and
// before the corner some of the other side's. They take the places of those nearer to the corner, which are not read.
FLEXOR_INLINE void project(uint16_t* corner, const uint16_t* from, int n, int mode) {
  const int side = mode >= kFirstVerticalMode ? 1 : -1;
  const int inverse = kIntraInverseAngles[mode - 11];
  for (int i = 1; i < -((n * kIntraAngles[mode]) >> 5); ++i)
    corner[-side * i] = from[-side * ((i * inverse + 128) >> 8)];
}

template <int N, bool kNearest, class Blocks>
FLEXOR_INLINE void vertical(const Blocks& blocks, int angle) {
  constexpr int W = row_width<N>;
  using V = Vec<uint16_t, W>;
  for (int y = 0, place = angle; y < N; ++y, place += angle) {
    const int part = place & 31, at = (place >> 5) + 1 + (kNearest ? part >> 4 : 0);
    const V weight = splat<V>(static_cast<uint16_t>(part << 10));
    for (int i = 0; i < blocks.count; ++i)
      for (int x = 0; x < N; x += W) {
        const uint16_t* line = blocks.corner(i) + at + x;
        V row = load<V>(line);
        if constexpr (!kNearest) row = mix<W>(row, load<V>(line + 1), weight);
        store_row<N, W>(blocks.samples(i) + y * blocks.stride + x, row);
      }
  }
}

template <int N, bool kNearest, class Blocks>
FLEXOR_INLINE void horizontal(const Blocks& blocks, int angle) {
  constexpr int W = row_width<N>;
  using V = Vec<uint16_t, W>;
  for (int x = 0; x < N; x += W) {
    const Columns<W> columns(x, angle);
    const auto next = kNearest ? columns.part >= 16 : Vec<int16_t, W>{};
    const Window<W> a = columns.window(next), b = columns.window(splat<Vec<int16_t, W>>(int16_t{1}));
    const V weight = (V)(columns.part << 10);
    for (int i = 0; i < blocks.count; ++i)
      for (int y = 0; y < N; ++y) {
        const uint16_t* corner = blocks.corner(i) - y;
        V row = a.read(corner);
        if constexpr (!kNearest) row = mix<W>(row, b.read(corner), weight);
        store_row<N, W>(blocks.samples(i) + y * blocks.stride + x, row);
      }
  }
}

// Blocks of 4 x 4, two rows in a vector.
template <class V>
FLEXOR_INLINE V two_rows(const uint16_t* upper, const uint16_t* lower) {
  using Half = Vec<uint16_t, 4>;
  return __builtin_shufflevector(load<Half>(upper), load<Half>(lower), 0, 1, 2, 3, 4, 5, 6, 7);
}

template <class Sample>
FLEXOR_INLINE void store_two_rows(Sample* upper, ptrdiff_t stride, Vec<uint16_t, 8> rows) {
  if (stride == 4) {
    store_row<8, 8>(upper, rows);
    return;
  }
  Sample samples[8];
  store_row<8, 8>(samples, rows);
  __builtin_memcpy(upper, samples, 4 * sizeof(Sample));
  __builtin_memcpy(upper + stride, samples + 4, 4 * sizeof(Sample));
}

template <bool kNearest, class Blocks>
FLEXOR_INLINE void vertical_of_4(const Blocks& blocks, int angle) {
  using V = Vec<uint16_t, 8>;
  const V lower = (V)(count<Vec<int16_t, 8>>() >= 4);
  int at[4];
  V weights[2];
  for (int y = 0; y < 4; ++y) at[y] = (((y + 1) * angle + (kNearest ? 16 : 0)) >> 5) + 1;
  for (int pair = 0; pair < 2; ++pair) {
    const int first = (2 * pair + 1) * angle & 31, second = (2 * pair + 2) * angle & 31;
    const V upper_weight = splat<V>(static_cast<uint16_t>(first << 10));
    const V lower_weight = splat<V>(static_cast<uint16_t>(second << 10));
    weights[pair] = (~lower & upper_weight) | (lower & lower_weight);
  }
  for (int i = 0; i < blocks.count; ++i)
    for (int pair = 0; pair < 2; ++pair) {
      const uint16_t *upper_row = blocks.corner(i) + at[2 * pair], *lower_row = blocks.corner(i) + at[2 * pair + 1];
      V rows = two_rows<V>(upper_row, lower_row);
      if constexpr (!kNearest) rows = mix<8>(rows, two_rows<V>(upper_row + 1, lower_row + 1), weights[pair]);
      store_two_rows(blocks.samples(i) + 2 * pair * blocks.stride, blocks.stride, rows);
    }
}

template <bool kNearest, class Blocks>
FLEXOR_INLINE void horizontal_of_4(const Blocks& blocks, int angle) {
  using V = Vec<uint16_t, 8>;
  const Columns<8> columns = Columns<8>::twice_4(angle);
  const auto next = kNearest ? columns.part >= 16 : Vec<int16_t, 8>{};
  const Window<8> a = columns.window(next), b = columns.window(splat<Vec<int16_t, 8>>(int16_t{1}));
  const V weight = (V)(columns.part << 10);
  for (int i = 0; i < blocks.count; ++i)
    for (int y = 0; y < 4; y += 2) {
      const uint16_t* corner = blocks.corner(i) - y;
      V rows = a.read(corner);
      if constexpr (!kNearest) rows = mix<8>(rows, b.read(corner), weight);
      store_two_rows(blocks.samples(i) + y * blocks.stride, blocks.stride, rows);
    }
}

template <int N, bool kNearest, class Blocks>
FLEXOR_INLINE void angular(const Blocks& blocks, int mode) {
  const int angle = kIntraAngles[mode];
  const bool is_vertical = mode >= kFirstVerticalMode;
  if constexpr (N == 4) is_vertical ? vertical_of_4<kNearest>(blocks, angle) : horizontal_of_4<kNearest>(blocks, angle);
  else is_vertical ? vertical<N, kNearest>(blocks, angle) : horizontal<N, kNearest>(blocks, angle);
}

template <int N, class Sample>
FLEXOR_INLINE void straight_edge(Sample* block, ptrdiff_t stride, const uint16_t* corner, int mode, int bit_depth) {
  uint16_t edge[N];
  const bool down = mode == kIntraVertical;
  const uint16_t* other = down ? corner - N : corner + 1;
  const int base = down ? corner[1] : corner[-1], middle = *corner;
  for (int i = 0; i < N; ++i) edge[i] = static_cast<uint16_t>(clip(base + ((other[i] - middle) >> 1), bit_depth));
  for (int i = 0; i < N; ++i) {
    if (down) block[i * stride] = static_cast<Sample>(edge[N - 1 - i]);
    else block[i] = static_cast<Sample>(edge[i]);
  }
}

// Lines of modes with negative angles are projected.
template <int N, class Blocks>
FLEXOR_INLINE void predict_blocks(const Blocks& blocks, int mode, bool nearest, bool edge_filter, int bit_depth) {
  constexpr int kShift = N == 4 ? 3 : N == 8 ? 4 : N == 16 ? 5 : N == 32 ? 6 : 7;
  if (mode > kIntraDc) nearest ? angular<N, true>(blocks, mode) : angular<N, false>(blocks, mode);
  const bool edge = edge_filter && (mode == kIntraHorizontal || mode == kIntraVertical);
  if (mode > kIntraDc && !edge) return;
  for (int i = 0; i < blocks.count; ++i) {
    const uint16_t* corner = blocks.corner(i);
    if (mode == kIntraDc) dc<N>(blocks.samples(i), blocks.stride, corner, kShift, edge_filter);
    else if (edge) straight_edge<N>(blocks.samples(i), blocks.stride, corner, mode, bit_depth);
    else if (kShift + bit_depth <= 16) planar<N, uint16_t>(blocks.samples(i), blocks.stride, corner, kShift);
    else planar<N, uint32_t>(blocks.samples(i), blocks.stride, corner, kShift);
  }
}

}  // namespace flexor::FLEXOR_ISA
