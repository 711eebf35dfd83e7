// SPDX-License-Identifier: Apache-2.0
// Weights [output][channel][tap] turned, so that a vector holds the same step of kLanes rows: of outputs for
// the forward (a step is a tap of a channel), of channels for the backward (a step is a tap).
#pragma once
#include "grid/grid_rows.h"

namespace flexor::FLEXOR_ISA {

// kLanes rows of steps; up to kLanes elements may be read past a row's end.
template <class T>
struct WeightRows {
  const T* p = nullptr;
  int64_t stride = 0;
};

FLEXOR_INLINE bool taps_together(const TensorView& w) {
  return w.stride[3] == 1 && w.stride[2] == w.size[3] && w.stride[1] == w.size[2] * w.size[3];
}

// All taps of channels [first, first + n) of one output.
template <class T>
inline void load_weights(const TensorView& w, int64_t output, int64_t first, int64_t n, T* row) {
  const int64_t kh = w.size[2], kw = w.size[3], start = output * w.stride[0] + first * w.stride[1];
  if (taps_together(w)) return load_row(row, w, start, 1, n * kh * kw);
  for (int64_t c = 0; c < n; ++c)
    for (int64_t y = 0; y < kh; ++y, row += kw)
      load_row(row, w, start + c * w.stride[1] + y * w.stride[2], w.stride[3], kw);
}

template <class T>
inline void store_weights(const TensorView& w, int64_t output, const T* row) {
  const int64_t channels = w.size[1], kh = w.size[2], kw = w.size[3], start = output * w.stride[0];
  if (taps_together(w)) return store_row(w, start, 1, row, channels * kh * kw);
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t y = 0; y < kh; ++y, row += kw)
      store_row(w, start + c * w.stride[1] + y * w.stride[2], w.stride[3], row, kw);
}

// Rows of outputs where they lie, else copied; outputs past the last repeat it, and nobody reads theirs.
template <class T>
inline WeightRows<T> output_rows(const TensorView& w, int64_t output, int64_t first, int64_t n, T* copies) {
  constexpr int64_t L = kLanes<T>;
  const int64_t steps = n * w.size[2] * w.size[3];
  if (w.dtype == kOwnDType<T> && taps_together(w) && output + L <= w.size[0] && steps >= L)
    return {static_cast<const T*>(w.data) + output * w.stride[0] + first * w.stride[1], w.stride[0]};
  for (int64_t i = 0; i < L; ++i) load_weights(w, smaller(output + i, w.size[0] - 1), first, n, copies + i * steps);
  return {copies, steps};
}

// Rows of channels, all taps of one output, where they lie with enough behind them, else copied.
template <class T>
inline WeightRows<T> channel_rows(const TensorView& w, int64_t output, T* copy) {
  const int64_t taps = w.size[2] * w.size[3], size = w.size[1] * taps;
  const bool can_read_past = output + 1 < w.size[0] && w.stride[0] == size && w.size[1] > 2 * kLanes<T>;
  if (w.dtype == kOwnDType<T> && taps_together(w) && can_read_past)
    return {static_cast<const T*>(w.data) + output * size, taps};
  load_weights(w, output, 0, w.size[1], copy);
  return {copy, taps};
}

// x[j][i] = rows.p[i * rows.stride + k + j]
template <class T>
FLEXOR_INLINE void load_turned(WeightRows<T> rows, int64_t k, Vec<T>* x) {
  constexpr int L = kLanes<T>;
  unroll<L>([&](auto i) __attribute__((always_inline)) { x[i] = load<Vec<T>>(rows.p + i * rows.stride + k); });
  transpose_step<T, L, L / 2>(x);
}

// dst[set][step][row], step k at place(k), for steps [k, k + n). The first branch goes where it lies alone, if
// anywhere, and is read back to be added to the second: both do not fit in the registers.
template <class T, class Place>
FLEXOR_INLINE void turn_square(const GridGeometry& g, WeightRows<T> first, WeightRows<T> second, int64_t k, int64_t n,
                               T* dst, int64_t set_stride, Place place) {
  constexpr int L = kLanes<T>;
  using V = Vec<T>;
  const auto put = [&](T* to, auto value) __attribute__((always_inline)) {
    if (n == L) unroll<L>([&](auto i) __attribute__((always_inline)) { store(to + place(k + i), value(i)); });
    else
      unroll<L>([&](auto i) __attribute__((always_inline)) {
        if (i < n) store(to + place(k + i), value(i));
      });
  };
  const T* base = dst + (g.first_set < 0 ? 0 : g.first_set) * set_stride;
  V x[L];
  load_turned(first, k, x);
  put(const_cast<T*>(base), [&](auto i) __attribute__((always_inline)) { return x[i]; });
  if (second.p == nullptr) return;
  load_turned(second, k, x);
  if (g.second_set >= 0)
    put(dst + g.second_set * set_stride, [&](auto i) __attribute__((always_inline)) { return x[i]; });
  put(dst, [&](auto i) __attribute__((always_inline)) { return load<V>(base + place(k + i)) + x[i]; });
}

template <class T, class Place>
inline void turn_weights(const GridGeometry& g, WeightRows<T> first, WeightRows<T> second, int64_t steps, T* dst,
                         int64_t set_stride, Place place) {
  constexpr int64_t L = kLanes<T>;
  for (int64_t k = 0; k < steps; k += L)
    turn_square(g, first, second, larger<int64_t>(0, smaller(k, steps - L)), smaller(L, steps), dst, set_stride, place);
}

}  // namespace flexor::FLEXOR_ISA
