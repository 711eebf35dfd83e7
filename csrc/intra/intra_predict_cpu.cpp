// SPDX-License-Identifier: Apache-2.0
#include "core/simd.h"
#include "intra/intra_angles.h"
#include "intra/intra_reference.h"
#include "intra/intra_rows.h"

namespace flexor::FLEXOR_ISA {
namespace {

constexpr int kSlack = kIntraSlack;

int clip(int value, int bit_depth) {
  const int most = (1 << bit_depth) - 1;
  return value < 0 ? 0 : value > most ? most : value;
}

// Sums of T: 16 bits where n * 2^(bit_depth + 1) fits them, else 32. Between, sums may wrap; the last one does not.
template <int N, class T>
void planar(uint16_t* block, ptrdiff_t stride, const uint16_t* border, int shift) {
  constexpr int W = row_width<N> < kLanes<T> ? row_width<N> : kLanes<T>;
  using V = Vec<T, W>;
  using U = Vec<uint16_t, W>;
  const V bottom = splat<V>(static_cast<T>(border[N - 1])), right = splat<V>(static_cast<T>(border[3 * N + 1]));
  for (int x = 0; x < N; x += W) {
    const V place = splat<V>(static_cast<T>(x)) + count<V>();
    const V top = __builtin_convertvector(load<U>(border + 2 * N + 1 + x), V);
    const V rest = splat<V>(static_cast<T>(N - 1)) - place;
    V sum = (place + 1) * right + top * static_cast<T>(N - 1) + bottom + static_cast<T>(N);
    for (int y = 0; y < N; ++y) {
      const V left = splat<V>(static_cast<T>(border[2 * N - 1 - y]));
      store_row<N>(block + y * stride + x, __builtin_convertvector((sum + rest * left) >> shift, U));
      sum += bottom - top;
    }
  }
}

template <int N>
void dc(uint16_t* block, ptrdiff_t stride, const uint16_t* border, int log2_size, bool edge_filter) {
  const uint16_t *left = border + 2 * N - 1, *top = border + 2 * N + 1;
  constexpr int W = N < 8 ? N : 8;
  Vec<uint32_t, W> sums{};
  for (int x = 0; x < N; x += W)
    sums += __builtin_convertvector(load<Vec<uint16_t, W>>(top + x), Vec<uint32_t, W>) +
            __builtin_convertvector(load<Vec<uint16_t, W>>(border + N + x), Vec<uint32_t, W>);
  uint32_t sum = N;
  for (int lane = 0; lane < W; ++lane) sum += sums[lane];
  const int mean = static_cast<int>(sum >> (log2_size + 1));
  using V = Vec<uint16_t, row_width<N>>;
  const V row = splat<V>(static_cast<uint16_t>(mean));
  for (int y = 0; y < N; ++y)
    for (int x = 0; x < N; x += row_width<N>) store_row<N>(block + y * stride + x, row);
  if (!edge_filter) return;
  for (int i = 0; i < N; ++i) {
    block[i] = static_cast<uint16_t>((top[i] + 3 * mean + 2) >> 2);
    block[i * stride] = static_cast<uint16_t>((left[-i] + 3 * mean + 2) >> 2);
  }
  block[0] = static_cast<uint16_t>((left[0] + 2 * mean + top[0] + 2) >> 2);
}

// The line that a mode of negative angle reads: the samples on its own side, then some of the other side's.
// side is 1 of vertical modes, -1 of horizontal ones; corner points to border[2n] and to its place in the line.
template <int N>
void extend(uint16_t* line, const uint16_t* corner, int side, int angle, int inverse) {
  constexpr int W = N < 8 ? 4 : 8;
  using V = Vec<uint16_t, W>;
  const int first = side > 0 ? 0 : -N;
  for (int i = 0; i < N; i += W) store(line + first + i, load<V>(corner + first + i));
  line[first + N] = corner[first + N];
  for (int i = 1; i < -((N * angle) >> 5); ++i) line[-side * i] = corner[-side * ((i * inverse + 128) >> 8)];
}

template <int N, bool kNearest>
void vertical(uint16_t* block, ptrdiff_t stride, const uint16_t* corner, int angle) {
  constexpr int W = row_width<N>;
  using V = Vec<uint16_t, W>;
  for (int y = 0, place = angle; y < N; ++y, place += angle) {
    const int part = place & 31;
    const uint16_t* at = corner + (place >> 5) + 1;
    const V weight = splat<V>(static_cast<uint16_t>(part << 10));
    for (int x = 0; x < N; x += W) {
      V row;
      if constexpr (kNearest) row = load<V>(at + (part >> 4) + x);
      else row = mix<W>(load<V>(at + x), load<V>(at + x + 1), weight);
      store_row<N>(block + y * stride + x, row);
    }
  }
}

template <int N, bool kNearest>
void horizontal(uint16_t* block, ptrdiff_t stride, const uint16_t* corner, int angle) {
  constexpr int W = row_width<N>;
  using V = Vec<uint16_t, W>;
  for (int x = 0; x < N; x += W) {
    const Columns<W> columns(x, angle);
    const auto next = kNearest ? columns.part >= 16 : Vec<int16_t, W>{};
    const Window<W> a = columns.window(next), b = columns.window(splat<Vec<int16_t, W>>(int16_t{1}));
    const V weight = (V)(columns.part << 10);
    for (int y = 0; y < N; ++y) {
      V row = a.read(corner - y);
      if constexpr (!kNearest) row = mix<W>(row, b.read(corner - y), weight);
      store_row<N>(block + y * stride + x, row);
    }
  }
}

template <int N, bool kNearest>
void angular(uint16_t* block, ptrdiff_t stride, const uint16_t* border, int mode) {
  const int angle = kIntraAngles[mode];
  const bool is_vertical = mode >= kFirstVerticalMode;
  const uint16_t* corner = border + 2 * N;
  uint16_t line[2 * N + 1 + 2 * kSlack];
  if (angle < 0) {
    extend<N>(line + N + kSlack, corner, is_vertical ? 1 : -1, angle, kIntraInverseAngles[mode - 11]);
    corner = line + N + kSlack;
  }
  if (is_vertical) vertical<N, kNearest>(block, stride, corner, angle);
  else horizontal<N, kNearest>(block, stride, corner, angle);
}

template <int N>
void straight_edge(uint16_t* block, ptrdiff_t stride, const uint16_t* border, int mode, int bit_depth) {
  const uint16_t *left = border + 2 * N - 1, *top = border + 2 * N + 1;
  const int corner = border[2 * N];
  for (int i = 0; i < N; ++i) {
    if (mode == kIntraVertical)
      block[i * stride] = static_cast<uint16_t>(clip(top[0] + ((left[-i] - corner) >> 1), bit_depth));
    else block[i] = static_cast<uint16_t>(clip(left[0] + ((top[i] - corner) >> 1), bit_depth));
  }
}

template <int N>
void predict_block(uint16_t* block, ptrdiff_t stride, const uint16_t* border, int log2_size, int mode, bool nearest,
                   bool edge_filter, int bit_depth) {
  if (mode == kIntraPlanar) {
    if (log2_size + 1 + bit_depth <= 16) planar<N, uint16_t>(block, stride, border, log2_size + 1);
    else planar<N, uint32_t>(block, stride, border, log2_size + 1);
  } else if (mode == kIntraDc) {
    dc<N>(block, stride, border, log2_size, edge_filter);
  } else if (nearest) {
    angular<N, true>(block, stride, border, mode);
  } else {
    angular<N, false>(block, stride, border, mode);
  }
  if (edge_filter && (mode == kIntraHorizontal || mode == kIntraVertical))
    straight_edge<N>(block, stride, border, mode, bit_depth);
}

void predict(uint16_t* block, ptrdiff_t stride, const uint16_t* border, int log2_size, int mode, bool nearest,
             bool edge_filter, int bit_depth) {
  // The differences of samples of 16 bits do not fit them.
  if (bit_depth > 15)
    return intra_reference.predict(block, stride, border, log2_size, mode, nearest, edge_filter, bit_depth);
  switch (log2_size) {
    case 2: return predict_block<4>(block, stride, border, log2_size, mode, nearest, edge_filter, bit_depth);
    case 3: return predict_block<8>(block, stride, border, log2_size, mode, nearest, edge_filter, bit_depth);
    case 4: return predict_block<16>(block, stride, border, log2_size, mode, nearest, edge_filter, bit_depth);
    case 5: return predict_block<32>(block, stride, border, log2_size, mode, nearest, edge_filter, bit_depth);
    default: return predict_block<64>(block, stride, border, log2_size, mode, nearest, edge_filter, bit_depth);
  }
}

void smooth(uint16_t* smoothed, const uint16_t* border, int log2_size) {
  constexpr int W = kLanes<uint16_t> < 16 ? kLanes<uint16_t> : 16;
  using V = Vec<uint16_t, W>;
  const int last = 4 << log2_size;
  for (int i = 0; i < last; i += W) {
    const V a = load<V>(border + i - 1), b = load<V>(border + i), c = load<V>(border + i + 1);
    const V sides = (a & c) + ((a ^ c) >> 1);               // their mean, rounded down
    store(smoothed + i, (b | sides) - ((b ^ sides) >> 1));  // the mean of both, rounded up: no sum overflows
  }
  smoothed[0] = border[0];
  smoothed[last] = border[last];
}

void smooth_strong(uint16_t* smoothed, const uint16_t* border, int log2_size) {
  const int n = 1 << log2_size;
  const int bottom = border[0], corner = border[2 * n], right = border[4 * n];
  for (int i = 0; i < 2 * n; ++i) {
    smoothed[i] = static_cast<uint16_t>(((2 * n - i) * bottom + i * corner + n) >> (log2_size + 1));
    smoothed[2 * n + i] = static_cast<uint16_t>(((2 * n - i) * corner + i * right + n) >> (log2_size + 1));
  }
  smoothed[4 * n] = border[4 * n];
}

}  // namespace

extern const IntraKernels intra_kernels{predict, smooth, smooth_strong};

}  // namespace flexor::FLEXOR_ISA
