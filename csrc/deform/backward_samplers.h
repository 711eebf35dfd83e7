// SPDX-License-Identifier: Apache-2.0
// The sampler read backwards. For a sample with corners v00 v01 v10 v11 and a gradient d of its column:
// the four sums S = sum over channels of d * v (from which mask and offset gradients follow, see
// finish_sums), d times each corner weight into the input gradient, and the column itself for the weight
// gradient, which replaces d where it lay.
#pragma once
#include "deform/samplers.h"

namespace flexor::FLEXOR_ISA {

template <class T, int N>
FLEXOR_INLINE Vec<T, 4> to_four(Vec<T, N> v) {
  if constexpr (N == 16) {
    return to_four<T, 8>(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                         __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
  } else if constexpr (N == 8) {
    return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
  } else {
    return v;
  }
}

// (sum a, sum b, sum c, sum d)
template <class T>
FLEXOR_INLINE Vec<T, 4> sums_of_four(Vec<T, 4> a, Vec<T, 4> b, Vec<T, 4> c, Vec<T, 4> d) {
  const Vec<T, 4> ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Vec<T, 4> cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}

// Lanes are channels; sums [pixel][4].
template <class T, int N>
FLEXOR_INLINE void resample_lanes(const T* source, T* grad, int64_t row, const Plan<T>& plan, int64_t rows, T* column,
                                  T* sums, bool add) {
  constexpr int L = N < kLanes<T> ? N : (kLanes<T> < 4 ? 4 : kLanes<T>);
  using V = Vec<T, L>;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t at = static_cast<int64_t>(plan.corner[i]) * N;
    const T *top = source + at, *bottom = top + row;
    T *grad_top = grad + at, *grad_bottom = grad_top + row;
    const Vec<T, 4> w = load<Vec<T, 4>>(plan.weights + 4 * i);
    const V w00 = splat<V>(w[0]), w01 = splat<V>(w[1]), w10 = splat<V>(w[2]), w11 = splat<V>(w[3]);
    V s00{}, s01{}, s10{}, s11{};
    unroll<N / L>([&](auto j) __attribute__((always_inline)) {
      T* c = column + i * kBlock + j * L;
      const V d = load<V>(c);
      const V v00 = load<V>(top + j * L), v01 = load<V>(top + N + j * L);
      const V v10 = load<V>(bottom + j * L), v11 = load<V>(bottom + N + j * L);
      s00 += d * v00, s01 += d * v01, s10 += d * v10, s11 += d * v11;
      store(c, (w00 * v00 + w01 * v01) + (w10 * v10 + w11 * v11));
      store(grad_top + j * L, load<V>(grad_top + j * L) + w00 * d);
      store(grad_top + N + j * L, load<V>(grad_top + N + j * L) + w01 * d);
      store(grad_bottom + j * L, load<V>(grad_bottom + j * L) + w10 * d);
      store(grad_bottom + N + j * L, load<V>(grad_bottom + N + j * L) + w11 * d);
    });
    const Vec<T, 4> s = sums_of_four<T>(to_four<T, L>(s00), to_four<T, L>(s01), to_four<T, L>(s10), to_four<T, L>(s11));
    store(sums + 4 * i, add ? load<Vec<T, 4>>(sums + 4 * i) + s : s);
  }
}

// grad[corner][0..3] += v[0..3] of each pixel
template <class T>
FLEXOR_INLINE void add_corners(Vec<T>* v, const int32_t* corner, T* grad) {
  constexpr int L = kLanes<T>;
  if constexpr (L % 4 == 0) {
    transpose_quads<T, L>(v, std::make_integer_sequence<int, L>{});
    unroll<L>([&](auto l) __attribute__((always_inline)) {
      constexpr int from = decltype(l)::value / 4 * 4;
      const Vec<T> quads = v[l % 4];
      T* p = grad + 4 * static_cast<int64_t>(corner[l]);
      store(p, load<Vec<T, 4>>(p) + __builtin_shufflevector(quads, quads, from, from + 1, from + 2, from + 3));
    });
  } else {
    for (int l = 0; l < L; ++l) {
      T* p = grad + 4 * static_cast<int64_t>(corner[l]);
      for (int k = 0; k < 4; ++k) p[k] += v[k][l];
    }
  }
}

// Lanes are pixels; sums [4][pixel]. The input gradient is kept by corner, [cell][4]: one sum a sample in place of
// four, and samples side by side do not wait for each other's; see join_corners.
template <class T>
inline void resample_pixels(const T* source, T* grad, int64_t row, const Plan<T>& plan, int64_t rows, T* column,
                            T* sums, bool add) {
  using V = Vec<T>;
  for (int64_t i = 0; i < rows; i += kLanes<T>) {
    const int32_t* corner = plan.corner + i;
    V v[4];
    gather_corners(source, row, corner, v);
    const V d = load<V>(column + i);
    const T* w = plan.weights + i;
    const V w00 = load<V>(w), w01 = load<V>(w + rows), w10 = load<V>(w + 2 * rows), w11 = load<V>(w + 3 * rows);
    store(column + i, (w00 * v[0] + w01 * v[1]) + (w10 * v[2] + w11 * v[3]));
    unroll<4>([&](auto j) __attribute__((always_inline)) {
      T* s = sums + j * rows + i;
      store(s, add ? load<V>(s) + d * v[j] : d * v[j]);
    });
    v[0] = w00 * d, v[1] = w01 * d, v[2] = w10 * d, v[3] = w11 * d;
    add_corners<T>(v, corner, grad);
  }
}

// From [cell][4] of resample_pixels to the padded copy's cells, those of the border apart.
template <class T>
inline void join_corners(const Geometry& g, const T* corners, T* grad) {
  const int64_t row = g.padded_width;
  for (int64_t y = 1; y <= g.height; ++y)
    for (int64_t i = y * row + 1; i <= y * row + g.width; ++i)
      grad[i] =
          (corners[4 * i] + corners[4 * (i - 1) + 1]) + (corners[4 * (i - row) + 2] + corners[4 * (i - row - 1) + 3]);
}

template <class T>
inline void resample_unit(const Geometry& g, const T* source, T* grad, T* plans, int64_t rows, int64_t u, T* columns,
                          T* sums, bool add) {
  const int64_t row = g.padded_width * g.lanes;
  for (int64_t tap = 0; tap < g.taps; ++tap, sums += 4 * rows) {
    const Plan<T> plan(plans, tap, rows);
    const int64_t k = (u * g.taps + tap) * g.lanes;
    switch (g.lanes) {
      case 16: resample_lanes<T, 16>(source, grad, row, plan, rows, column_at(columns, rows, k), sums, add); break;
      case 8: resample_lanes<T, 8>(source, grad, row, plan, rows, column_at(columns, rows, k), sums, add); break;
      case 4: resample_lanes<T, 4>(source, grad, row, plan, rows, column_at(columns, rows, k), sums, add); break;
      default: resample_pixels(source, grad, row, plan, rows, columns + k * rows, sums, add); break;
    }
  }
}

// From the sums of one offset group and tap to its gradients, [3][rows]: mask, y, x.
//   mask: sum of d * (unmasked value); y: mask * (hx (S10 - S00) + lx (S11 - S01)); x alike.
template <class T, int kStep>
inline void finish_sums(const Plan<T>& plan, const T* sums, int64_t rows, T* out) {
  const int64_t corner = kStep == 1 ? rows : 1;
  const T *s0 = sums, *s1 = sums + corner, *s2 = sums + 2 * corner, *s3 = sums + 3 * corner;
#pragma GCC ivdep
  for (int64_t i = 0; i < rows; ++i) {
    const T s00 = s0[i * kStep], s01 = s1[i * kStep], s10 = s2[i * kStep], s11 = s3[i * kStep];
    const T ly = plan.ly[i], lx = plan.lx[i], hy = T(1) - ly, hx = T(1) - lx, m = plan.mask[i];
    out[i] = hy * (hx * s00 + lx * s01) + ly * (hx * s10 + lx * s11);
    out[rows + i] = m * (hx * (s10 - s00) + lx * (s11 - s01));
    out[2 * rows + i] = m * (hy * (s01 - s00) + ly * (s11 - s10));
  }
}

// The gradient of one unit's input, back from its padded copy; the border and the zeros behind are dropped.
// `scratch` holds a line of the unit, lanes * width.
template <class T>
void unpack_gradient(const Geometry& g, const TensorView& grad_input, int64_t image, int64_t unit, const T* src,
                     T* scratch) {
  const int64_t c0 = g.unit_channel(unit), n = g.unit_size(unit), lanes = g.lanes, row = g.padded_width * lanes;
  for (int64_t y = 0; y < g.height; ++y) {
    const T* line = src + (y + 1) * row + lanes;
    const int64_t at = image * grad_input.stride[0] + c0 * grad_input.stride[1] + y * grad_input.stride[2];
    if (grad_input.stride[1] == 1 && grad_input.dtype == kOwnDType<T> && n == lanes) {
      copy_pixels(line, lanes, lanes, g.width, static_cast<T*>(grad_input.data) + at, grad_input.stride[3]);
      continue;
    }
    if (grad_input.stride[1] == 1) {
      for (int64_t x = 0; x < g.width; ++x)
        store_row(grad_input, at + x * grad_input.stride[3], 1, line + x * lanes, n);
      continue;
    }
    transpose(line, lanes, g.width, lanes, scratch, g.width);
    for (int64_t l = 0; l < n; ++l)
      store_row(grad_input, at + l * grad_input.stride[1], grad_input.stride[3], scratch + l * g.width, g.width);
  }
}

}  // namespace flexor::FLEXOR_ISA
