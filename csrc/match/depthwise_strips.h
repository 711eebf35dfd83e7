// SPDX-License-Identifier: Apache-2.0
// The register kernels of depth-wise correlation. An output row needs KH input rows, and an input row serves KH
// output rows: walking down a strip, the sums of KH unfinished output rows stay in registers, so that a vector
// of input is loaded once for a column of taps.
#pragma once
#include "core/simd.h"

namespace flexor::FLEXOR_ISA {

#if FLEXOR_ISA_avx512
constexpr int kVectorRegisters = 32;
#else
constexpr int kVectorRegisters = 16;
#endif
constexpr int kTapRows = 7;  // of a strip at most

constexpr int within(int least, int n, int most) { return n < least ? least : n > most ? most : n; }

FLEXOR_INLINE int64_t greatest_divisor(int64_t a, int64_t b) {
  while (b != 0) {
    const int64_t rest = a % b;
    a = b, b = rest;
  }
  return a;
}

template <class T, int N, int... I>
FLEXOR_INLINE T sum_of(Vec<T, N> v, std::integer_sequence<int, I...>) {
  if constexpr (N == 2) return v[0] + v[1];
  else {
    const Vec<T, N / 2> halves = __builtin_shufflevector(v, v, I...) + __builtin_shufflevector(v, v, (I + N / 2)...);
    return sum_of<T, N / 2>(halves, std::make_integer_sequence<int, N / 4>{});
  }
}

// The sum of a vector's lanes, in an order of its own.
template <class T>
FLEXOR_INLINE T sum_of(Vec<T> v) {
  return sum_of<T, kLanes<T>>(v, std::make_integer_sequence<int, kLanes<T> / 2>{});
}

// The same rows of the next plane, whose memory is asked for while this one is computed.
struct Ahead {
  const char* data;
  int64_t step;  // bytes
};

// Output rows and tap rows between which the rows of input are equal steps apart.
template <class T>
struct Strip {
  const T* input;  // row that the first output row and the first tap row meet at
  int64_t input_step;
  T* output;  // the gradient of the output where taps are summed
  int64_t output_step, outputs;
  int taps;  // rows, not more than outputs
  const T* tap;
  T* sums;  // a vector for every tap
  int64_t tap_step;
  const int64_t* column;  // of each column of taps in a row of input
  int64_t columns;
  bool first;  // nothing was added to these outputs before
  int64_t width, lanes;
  bool whole;  // vectors do not reach over the end of a row: the last one overlaps the one before
  Ahead input_ahead, output_ahead;

  int64_t overlap(int64_t end) const { return whole && end == lanes ? lanes - width : 0; }
};

// Slot i of the sums is output row y - (KH - 1) + i at input row y: tap row KH - 1 - i goes there.
template <int KH, int V, class T>
void correlate_columns(const Strip<T>& s, int64_t x) {
  constexpr int64_t L = kLanes<T>;
  const T* in = s.input + x;
  T* out = s.output + x;
  const int64_t last = (V - 1) * L - s.overlap(x + V * L);
  const auto lane = [&](auto v) __attribute__((always_inline)) { return v == V - 1 ? last : v * L; };
  Vec<T> sum[KH][V] = {};
  const auto begin_row = [&](int64_t y) __attribute__((always_inline)) {
    unroll<V>([&](auto v) __attribute__((always_inline)) {
      sum[KH - 1][v] = s.first ? Vec<T>{} : load<Vec<T>>(out + y * s.output_step + lane(v));
    });
  };
  const auto add_row = [&](auto begin, auto end) __attribute__((always_inline)) {
    const T* tap = s.tap;
    for (int64_t j = 0; j < s.columns; ++j, tap += s.tap_step) {
      Vec<T> value[V];
      unroll<V>([&](auto v) __attribute__((always_inline)) { value[v] = load<Vec<T>>(in + s.column[j] + lane(v)); });
      unroll<KH>([&](auto i) __attribute__((always_inline)) {
        if constexpr (i >= begin && i < end) {
          const Vec<T> factor = splat<Vec<T>>(tap[KH - 1 - i]);
          unroll<V>([&](auto v) __attribute__((always_inline)) { sum[i][v] += factor * value[v]; });
        }
      });
    }
    in += s.input_step;
  };
  const auto next_row = [&]() __attribute__((always_inline)) {
    unroll<KH - 1>([&](auto i) __attribute__((always_inline)) {
      unroll<V>([&](auto v) __attribute__((always_inline)) { sum[i][v] = sum[i + 1][v]; });
    });
  };
  const auto end_row = [&](int64_t y) __attribute__((always_inline)) {
    unroll<V>([&](auto v) __attribute__((always_inline)) { store(out + y * s.output_step + lane(v), sum[0][v]); });
    next_row();
  };
  unroll<KH - 1>([&](auto y) __attribute__((always_inline)) {
    begin_row(y);
    add_row(std::integral_constant<int, KH - 1 - y>{}, std::integral_constant<int, KH>{});
    next_row();
  });
  const char* ahead = s.input_ahead.data + x * static_cast<int64_t>(sizeof(T));
  for (int64_t y = KH - 1; y < s.outputs; ++y, ahead += s.input_ahead.step) {
    for (int v = 0; v < V; ++v) __builtin_prefetch(ahead + v * kVectorBytes);
    begin_row(y);
    add_row(std::integral_constant<int, 0>{}, std::integral_constant<int, KH>{});
    end_row(y - (KH - 1));
  }
  unroll<KH - 1>([&](auto y) __attribute__((always_inline)) {
    add_row(std::integral_constant<int, 0>{}, std::integral_constant<int, KH - 1 - y>{});
    end_row(s.outputs - (KH - 1) + y);
  });
}

template <int KH, class T>
void correlate_rows(const Strip<T>& s) {
  constexpr int64_t L = kLanes<T>;
  constexpr int kMost = within(1, (kVectorRegisters - 2) / (KH + 1), 4);
  for (int64_t x = 0; x < s.lanes;) {
    const int64_t left = (s.lanes - x) / L, vectors = ceil_div(left, ceil_div(left, kMost));
    unroll<kMost>([&](auto most) {
      constexpr int V = decltype(most)::value + 1;
      if (vectors == V) correlate_columns<KH, V>(s, x);
    });
    x += vectors * L;
  }
}

// A vector of columns at x, and J columns of taps: the last KH rows of input stay in registers.
template <int KH, int J, class T>
void multiply_columns(const Strip<T>& s, int64_t x, int64_t j0) {
  constexpr int64_t L = kLanes<T>;
  using Bits = Vec<std::conditional_t<sizeof(T) == 8, int64_t, int32_t>, L>;
  const int64_t seen = s.overlap(x + L), bytes = x * static_cast<int64_t>(sizeof(T));
  const T* in = s.input + x - seen;
  const T* grad = s.output + x - seen;
  Bits lanes;  // the others are other pixels' or had their turn: not even infinity times 0 may count
  for (int64_t i = 0; i < L; ++i) lanes[i] = i >= seen && x - seen + i < s.width ? -1 : 0;
  const auto inside = [&](const T* at) __attribute__((always_inline)) {
    return reinterpret_cast<Vec<T>>(reinterpret_cast<Bits>(load<Vec<T>>(at)) & lanes);
  };
  int64_t column[J];
  Vec<T> sum[KH][J] = {}, value[KH][J] = {};
  unroll<J>([&](auto j) __attribute__((always_inline)) { column[j] = s.column[j0 + j]; });
  const auto next_row = [&](auto last) __attribute__((always_inline)) {
    unroll<J>([&](auto j) __attribute__((always_inline)) { value[last][j] = inside(in + column[j]); });
    in += s.input_step;
  };
  unroll<KH - 1>([&](auto i) __attribute__((always_inline)) { next_row(i); });
  for (int64_t y = 0; y < s.outputs; ++y, grad += s.output_step) {
    if (j0 == 0) {
      __builtin_prefetch(s.input_ahead.data + bytes + y * s.input_ahead.step);
      __builtin_prefetch(s.output_ahead.data + bytes + y * s.output_ahead.step);
    }
    next_row(std::integral_constant<int, KH - 1>{});
    const Vec<T> g = inside(grad);
    unroll<KH>([&](auto i) __attribute__((always_inline)) {
      unroll<J>([&](auto j) __attribute__((always_inline)) { sum[i][j] += g * value[i][j]; });
    });
    unroll<KH - 1>([&](auto i) __attribute__((always_inline)) {
      unroll<J>([&](auto j) __attribute__((always_inline)) { value[i][j] = value[i + 1][j]; });
    });
  }
  unroll<J>([&](auto j) __attribute__((always_inline)) {
    unroll<KH>([&](auto i) __attribute__((always_inline)) {
      T* total = s.sums + ((j0 + j) * s.tap_step + i) * L;
      store(total, load<Vec<T>>(total) + sum[i][j]);
    });
  });
}

template <int KH, class T>
void multiply_rows(const Strip<T>& s) {
  constexpr int kMost = within(1, (kVectorRegisters - 3) / (2 * KH), 3);
  for (int64_t x = 0; x < s.lanes; x += kLanes<T>) {
    int64_t j = 0;
    for (; j + kMost <= s.columns; j += kMost) multiply_columns<KH, kMost>(s, x, j);
    for (; j < s.columns; ++j) multiply_columns<KH, 1>(s, x, j);
  }
}

template <class Visit>
FLEXOR_INLINE void with_tap_rows(int taps, Visit visit) {
  unroll<kTapRows>([&](auto i) {
    constexpr int KH = decltype(i)::value + 1;
    if (taps == KH) visit(std::integral_constant<int, KH>{});
  });
}

// output (+)= input correlated with the taps
template <class T>
void correlate(const Strip<T>& s) {
  with_tap_rows(s.taps, [&](auto kh) { correlate_rows<decltype(kh)::value>(s); });
}

// sums += input times the gradient of the output, for every tap
template <class T>
void multiply(const Strip<T>& s) {
  with_tap_rows(s.taps, [&](auto kh) { multiply_rows<decltype(kh)::value>(s); });
}

}  // namespace flexor::FLEXOR_ISA
