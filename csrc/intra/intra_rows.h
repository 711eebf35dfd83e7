// SPDX-License-Identifier: Apache-2.0
// Rows of a block in vectors of 16-bit samples.
#pragma once
#include "core/simd.h"

namespace flexor::FLEXOR_ISA {

// Samples computed at a time; blocks of 4 use half of the shortest vector.
template <int N>
constexpr int row_width = N < 8                  ? 8
                          : N < kLanes<uint16_t> ? N
                                                 : kLanes<uint16_t>;

// The first N samples of a vector of 16-bit ones, if it has more.
template <int N, int W, class Sample>
FLEXOR_INLINE void store_row(Sample* row, Vec<uint16_t, W> samples) {
  constexpr int kCount = W < N ? W : N;
  if constexpr (sizeof(Sample) == 2) {
    __builtin_memcpy(row, &samples, kCount * sizeof(Sample));
  } else {
    const Vec<Sample, W> converted = __builtin_convertvector(samples, Vec<Sample, W>);
    __builtin_memcpy(row, &converted, kCount * sizeof(Sample));
  }
}

// 0, 1, 2, ...
template <class V>
FLEXOR_INLINE V count() {
  V v{};
  for (int i = 0; i < static_cast<int>(sizeof(V) / sizeof(v[0])); ++i) v[i] = static_cast<decltype(v[0] + 0)>(i);
  return v;
}

// x, f << 10 and the result have signs: (f * x + 16) >> 5, a rounded high half of a product.
template <int W>
FLEXOR_INLINE Vec<uint16_t, W> scaled(Vec<uint16_t, W> x, Vec<uint16_t, W> weight) {
  using V = Vec<uint16_t, W>;
#if defined(__SSSE3__)
  if constexpr (W == 8) return (V)_mm_mulhrs_epi16((__m128i)x, (__m128i)weight);
#endif
#if defined(__AVX2__)
  if constexpr (W == 16) return (V)_mm256_mulhrs_epi16((__m256i)x, (__m256i)weight);
#endif
#if defined(__AVX512BW__)
  if constexpr (W == 32) return (V)_mm512_mulhrs_epi16((__m512i)x, (__m512i)weight);
#endif
  using Signed = Vec<int16_t, W>;
  using Wide = Vec<int32_t, W>;
  const Wide product = __builtin_convertvector((Signed)x, Wide) * __builtin_convertvector((Signed)weight, Wide);
  return __builtin_convertvector((product + (1 << 14)) >> 15, V);
}

// ((32 - f) * a + f * b + 16) >> 5 == a + ((f * (b - a) + 16) >> 5), exact while b - a fits 16 bits; weight: f << 10.
template <int W>
FLEXOR_INLINE Vec<uint16_t, W> mix(Vec<uint16_t, W> a, Vec<uint16_t, W> b, Vec<uint16_t, W> weight) {
  return a + scaled<W>(b - a, weight);
}

template <int W>
FLEXOR_INLINE Vec<uint16_t, W> magnitude(Vec<uint16_t, W> x) {
  using V = Vec<uint16_t, W>;
#if defined(__SSSE3__)
  if constexpr (W == 8) return (V)_mm_abs_epi16((__m128i)x);
#endif
#if defined(__AVX2__)
  if constexpr (W == 16) return (V)_mm256_abs_epi16((__m256i)x);
#endif
#if defined(__AVX512BW__)
  if constexpr (W == 32) return (V)_mm512_abs_epi16((__m512i)x);
#endif
  const V sign = (V)((Vec<int16_t, W>)x >> 15);
  return (x ^ sign) - sign;
}

template <int W>  // of numbers without sign
FLEXOR_INLINE Vec<uint16_t, W> greater(Vec<uint16_t, W> a, Vec<uint16_t, W> b) {
#if defined(__SSE4_1__)
  using V = Vec<uint16_t, W>;
  if constexpr (W == 8) return (V)_mm_max_epu16((__m128i)a, (__m128i)b);
#endif
#if defined(__AVX2__)
  if constexpr (W == 16) return (V)_mm256_max_epu16((__m256i)a, (__m256i)b);
#endif
#if defined(__AVX512BW__)
  if constexpr (W == 32) return (V)_mm512_max_epu16((__m512i)a, (__m512i)b);
#endif
  return a > b ? a : b;
}

// Samples gathered from a line by a fixed pattern that moves along it. Pieces of `kPiece` columns are read at once.
template <int W>
struct Window {
  using V = Vec<uint16_t, W>;
#if FLEXOR_ISA_avx512
  static constexpr int kPiece = W;
#else
  static constexpr int kPiece = 8;
#endif
  V control;
  int offset[W / kPiece];

  FLEXOR_INLINE V read(const uint16_t* line) const {
    V samples;
    if constexpr (W == kPiece) {
      samples = load<V>(line + offset[0]);
    } else {
      using Half = Vec<uint16_t, W / 2>;
      samples = __builtin_shufflevector(load<Half>(line + offset[0]), load<Half>(line + offset[1]), 0, 1, 2, 3, 4, 5, 6,
                                        7, 8, 9, 10, 11, 12, 13, 14, 15);
    }
    return permuted(samples);
  }

 private:
  FLEXOR_INLINE V permuted(V samples) const {
#if FLEXOR_ISA_avx512
    if constexpr (W == 32) return (V)_mm512_permutexvar_epi16((__m512i)control, (__m512i)samples);
    if constexpr (W == 16) return (V)_mm256_permutexvar_epi16((__m256i)control, (__m256i)samples);
    if constexpr (W == 8) return (V)_mm_permutexvar_epi16((__m128i)control, (__m128i)samples);
#elif defined(__AVX2__)
    if constexpr (W == 16) return (V)_mm256_shuffle_epi8((__m256i)samples, (__m256i)control);
#endif
#if defined(__SSSE3__) && !FLEXOR_ISA_avx512
    if constexpr (W == 8) return (V)_mm_shuffle_epi8((__m128i)samples, (__m128i)control);
#elif !defined(__SSSE3__)
    V out;
    for (int i = 0; i < W; ++i) out[i] = samples[control[i]];
    return out;
#endif
  }
};

// Columns x to x + W - 1 of a horizontal mode: column x reads ref[y + whole + 1] and ref[y + whole + 2], which lie at
// corner - y - whole - 1 and before it.
template <int W>
struct Columns {
  using V = Vec<int16_t, W>;
  V whole, part;
  int spare;  // how much farther than its first and last column it may read

  FLEXOR_INLINE Columns(int x, int angle) : Columns(count<V>() + static_cast<int16_t>(x + 1), angle, 0) {}

  // Columns 0 to 3 of a row, and of the row below, which reads a sample further on.
  static FLEXOR_INLINE Columns twice_4(int angle) {
    Columns columns((count<V>() & 3) + int16_t{1}, angle, 1);
    columns.whole += count<V>() >> 2;
    return columns;
  }

  // next: -1 or 1 where the second of the two is wanted, else 0.
  FLEXOR_INLINE Window<W> window(V next) const {
    constexpr int kPiece = Window<W>::kPiece;
    const V index = whole + (next & 1 & (part != 0));  // part 0 has no second sample
    Window<W> w;
    V base;
    for (int p = 0; p < W / kPiece; ++p) {
      const int first = index[p * kPiece], last = index[p * kPiece + kPiece - 1];
      const int farthest = larger(first, last) + spare;
      w.offset[p] = -1 - farthest;
      for (int i = 0; i < kPiece; ++i) base[p * kPiece + i] = static_cast<int16_t>(farthest);
    }
    w.control = (Vec<uint16_t, W>)(base - index);
#if defined(__SSSE3__) && !FLEXOR_ISA_avx512
    w.control = w.control * uint16_t{0x0202} + uint16_t{0x0100};
#endif
    return w;
  }

 private:
  FLEXOR_INLINE Columns(V column, int angle, int spare_samples) : spare(spare_samples) {
    const V place = column * static_cast<int16_t>(angle);
    whole = place >> 5;
    part = place & 31;
  }
};

}  // namespace flexor::FLEXOR_ISA
