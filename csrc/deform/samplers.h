// SPDX-License-Identifier: Apache-2.0
// Columns from packed input: a vector of channels at a time where a segment has several, a vector of
// pixels at a time where it has few.
#pragma once
#include "core/gather.h"
#include "deform/sampling.h"

namespace flexor::FLEXOR_ISA {

// Step `k` of a tile's blocked columns, first pixel.
template <class T>
FLEXOR_INLINE T* column_at(T* columns, int64_t rows, int64_t k) {
  return columns + k / kBlock * (rows * kBlock) + k % kBlock;
}

template <class T, int N>
FLEXOR_INLINE void sample_lanes(const T* source, int64_t row, const Plan<T>& plan, int64_t rows, T* column) {
  constexpr int L = N < kLanes<T> ? N : kLanes<T>;
  using V = Vec<T, L>;
  for (int64_t i = 0; i < rows; ++i) {
    const T* top = source + static_cast<int64_t>(plan.corner[i]) * N;
    const T* bottom = top + row;
    const Vec<T, 4> w = load<Vec<T, 4>>(plan.weights + 4 * i);
    const V w00 = splat<V>(w[0]), w01 = splat<V>(w[1]), w10 = splat<V>(w[2]), w11 = splat<V>(w[3]);
    unroll<N / L>([&](auto j) __attribute__((always_inline)) {
      const V upper = w00 * load<V>(top + j * L) + w01 * load<V>(top + N + j * L);
      store(column + i * kBlock + j * L, upper + (w10 * load<V>(bottom + j * L) + w11 * load<V>(bottom + N + j * L)));
    });
  }
}

template <class T>
inline void sample_pixels(const T* source, int64_t row, const Plan<T>& plan, int64_t rows, T* column) {
  using V = Vec<T>;
  for (int64_t i = 0; i < rows; i += kLanes<T>) {
    V v[4];
    gather_corners(source, row, plan.corner + i, v);
    const T* w = plan.weights + i;
    const V upper = load<V>(w) * v[0] + load<V>(w + rows) * v[1];
    store(column + i, upper + (load<V>(w + 2 * rows) * v[2] + load<V>(w + 3 * rows) * v[3]));
  }
}

// All taps of unit `u` of the columns.
template <class T>
inline void sample_unit(const Geometry& g, const T* source, T* plans, int64_t rows, int64_t u, T* columns) {
  const int64_t row = g.padded_width * g.lanes;
  for (int64_t tap = 0; tap < g.taps; ++tap) {
    const Plan<T> plan(plans, tap, rows);
    const int64_t k = (u * g.taps + tap) * g.lanes;
    switch (g.lanes) {
      case 16: sample_lanes<T, 16>(source, row, plan, rows, column_at(columns, rows, k)); break;
      case 8: sample_lanes<T, 8>(source, row, plan, rows, column_at(columns, rows, k)); break;
      case 4: sample_lanes<T, 4>(source, row, plan, rows, column_at(columns, rows, k)); break;
      default: sample_pixels(source, row, plan, rows, columns + k * rows); break;
    }
  }
}

// Steps [from, 16) of one block of the columns.
template <class T>
inline void clear_block_tail(T* block, int64_t rows, int64_t from) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = from; k < kBlock; ++k) block[i * kBlock + k] = T(0);
}

// The weights as [output][channel][tap] in the dtype that is computed in.
template <class T>
inline void copy_weights_to(const DeformConv2dParams& p, const Geometry& g, T* dst) {
  const TensorView& w = p.weight;
  for (int64_t o = 0; o < g.out_channels; ++o)
    for (int64_t c = 0; c < g.group_channels; ++c)
      for (int64_t i = 0; i < g.kernel_h; ++i, dst += g.kernel_w)
        load_row(dst, w, o * w.stride[0] + c * w.stride[1] + i * w.stride[2], w.stride[3], g.kernel_w);
}

}  // namespace flexor::FLEXOR_ISA
