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

// x[j][i] = rows.p[i * rows.stride + k + j]
template <class T>
FLEXOR_INLINE void load_turned(WeightRows<T> rows, int64_t k, Vec<T>* x) {
  constexpr int L = kLanes<T>;
  unroll<L>([&](auto i) __attribute__((always_inline)) { x[i] = load<Vec<T>>(rows.p + i * rows.stride + k); });
  transpose_step<T, L, L / 2>(x);
}

template <class T, bool Two>
inline void turn_both(const GridGeometry& g, WeightRows<T> first, WeightRows<T> second, int64_t steps, T* dst,
                      int64_t step_stride, int64_t set_stride) {
  constexpr int L = kLanes<T>;
  for (int64_t begin = 0; begin < steps; begin += L) {
    const int64_t k = larger<int64_t>(0, smaller<int64_t>(begin, steps - L));
    const int64_t n = smaller<int64_t>(L, steps);
    T* at = dst + k * step_stride;
    Vec<T> x[L], y[L];
    load_turned(first, k, x);
    if constexpr (Two) load_turned(second, k, y);
    for (int s = 0; s < g.sets; ++s, at += set_stride)
      unroll<L>([&](auto i) __attribute__((always_inline)) {
        if (i >= n) return;
        if constexpr (Two) store(at + i * step_stride, g.set[s].first ? g.set[s].second ? x[i] + y[i] : x[i] : y[i]);
        else store(at + i * step_stride, x[i]);
      });
  }
}

// dst[set][step][row]
template <class T>
inline void turn_weights(const GridGeometry& g, WeightRows<T> first, WeightRows<T> second, int64_t steps, T* dst,
                         int64_t step_stride, int64_t set_stride) {
  if (second.p == nullptr) turn_both<T, false>(g, first, second, steps, dst, step_stride, set_stride);
  else turn_both<T, true>(g, first, second, steps, dst, step_stride, set_stride);
}

}  // namespace flexor::FLEXOR_ISA
