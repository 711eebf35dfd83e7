// SPDX-License-Identifier: Apache-2.0
// 16-bit arithmetic that the vectors of core/simd.h have no operators for: saturation, products of pairs, lookups.
// Vectors have 16, 32 or 64 bytes; what packs or looks up does so within each 16 of them.
#pragma once
#include "core/simd.h"

namespace flexor::FLEXOR_ISA {

template <int L = kLanes<int16_t>>
using Shorts = Vec<int16_t, L>;

template <class V>
FLEXOR_INLINE V smallest(V a, V b) {
  return a < b ? a : b;
}
template <class V>
FLEXOR_INLINE V largest(V a, V b) {
  return a > b ? a : b;
}
template <class V>
FLEXOR_INLINE V clamp(V x, V low, V high) {
  return smallest(largest(x, low), high);
}
template <class V>
FLEXOR_INLINE V magnitude(V x) {
  return largest(x, -x);
}

template <int L>
FLEXOR_INLINE Shorts<L> shorts(int x) {
  return splat<Shorts<L>>(static_cast<int16_t>(x));
}

// The vector of L 16-bit numbers whose fours are get(0), get(1), ...
template <int L, class Get>
FLEXOR_INLINE Shorts<L> from_fours(Get get) {
  Vec<int64_t, L / 4> fours;
  unroll<L / 4>([&](auto place) __attribute__((always_inline)) {
    constexpr int i = decltype(place)::value;
    fours[i] = static_cast<int64_t>(get(i));
  });
  return reinterpret_cast<Shorts<L>>(fours);
}

template <int L>
FLEXOR_INLINE int64_t four_of(Shorts<L> v, int i) {
  return reinterpret_cast<Vec<int64_t, L / 4>>(v)[i];
}

// The same of eights, for 8 or 16 numbers.
template <int L>
FLEXOR_INLINE Shorts<L> from_eights(Shorts<8> a, Shorts<8> b) {
  if constexpr (L == 8) return a;
  else return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

template <int I, int L>
FLEXOR_INLINE Shorts<8> eight_of(Shorts<L> v) {
  constexpr int k = 8 * I;
  return __builtin_shufflevector(v, v, k, k + 1, k + 2, k + 3, k + 4, k + 5, k + 6, k + 7);
}

#if defined(__SSSE3__)

template <class V>
FLEXOR_INLINE auto raw(V v) {
  if constexpr (sizeof(V) == 64) return reinterpret_cast<__m512i>(v);
  else if constexpr (sizeof(V) == 32) return reinterpret_cast<__m256i>(v);
  else return reinterpret_cast<__m128i>(v);
}

#define FLEXOR_BY_WIDTH(Result, call)                                                      \
  if constexpr (sizeof(Result) == 64) return reinterpret_cast<Result>(_mm512_##call);      \
  else if constexpr (sizeof(Result) == 32) return reinterpret_cast<Result>(_mm256_##call); \
  else return reinterpret_cast<Result>(_mm_##call)

// a[2i] b[2i] + a[2i + 1] b[2i + 1]
template <int L>
FLEXOR_INLINE Vec<int32_t, L> multiply_pairs(Vec<int32_t, L> a, Vec<int32_t, L> b) {
  using V = Vec<int32_t, L>;
  FLEXOR_BY_WIDTH(V, madd_epi16(raw(a), raw(b)));
}

// In each 16 bytes: four of a, then four of b, saturated.
template <int L>
FLEXOR_INLINE Shorts<2 * L> pack(Vec<int32_t, L> a, Vec<int32_t, L> b) {
  using V = Shorts<2 * L>;
  FLEXOR_BY_WIDTH(V, packs_epi32(raw(a), raw(b)));
}

template <class V>
FLEXOR_INLINE V add_saturated(V a, V b) {
  FLEXOR_BY_WIDTH(V, adds_epi16(raw(a), raw(b)));
}

// (a b + 2^14) >> 15
template <class V>
FLEXOR_INLINE V multiply_rounded(V a, V b) {
  FLEXOR_BY_WIDTH(V, mulhrs_epi16(raw(a), raw(b)));
}

// table[index] of bytes in each 16 of them; 0 where the index is negative.
template <class V>
FLEXOR_INLINE V look_up(V table, V index) {
  FLEXOR_BY_WIDTH(V, shuffle_epi8(raw(table), raw(index)));
}

// Whether any number of a comparison is true.
template <class V>
FLEXOR_INLINE bool any(V mask) {
  if constexpr (sizeof(V) == 64) return _mm512_test_epi64_mask(raw(mask), raw(mask)) != 0;
  else if constexpr (sizeof(V) == 32) return _mm256_movemask_epi8(raw(mask)) != 0;
  else return _mm_movemask_epi8(raw(mask)) != 0;
}

#undef FLEXOR_BY_WIDTH

#else  // other processors: what the compiler makes of loops

FLEXOR_INLINE int16_t to_short(int32_t x) { return static_cast<int16_t>(x < -32768 ? -32768 : x > 32767 ? 32767 : x); }

template <int L>
FLEXOR_INLINE Vec<int32_t, L> multiply_pairs(Vec<int32_t, L> a, Vec<int32_t, L> b) {
  return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
}

template <int L>
FLEXOR_INLINE Shorts<2 * L> pack(Vec<int32_t, L> a, Vec<int32_t, L> b) {
  Shorts<2 * L> packed;
  for (int i = 0; i < L; ++i) {
    packed[i / 4 * 8 + i % 4] = to_short(a[i]);
    packed[i / 4 * 8 + i % 4 + 4] = to_short(b[i]);
  }
  return packed;
}

template <class V>
FLEXOR_INLINE V add_saturated(V a, V b) {
  for (size_t i = 0; i < sizeof(V) / 2; ++i) a[i] = to_short(a[i] + b[i]);
  return a;
}

template <class V>
FLEXOR_INLINE V multiply_rounded(V a, V b) {
  for (size_t i = 0; i < sizeof(V) / 2; ++i) a[i] = static_cast<int16_t>((a[i] * b[i] + (1 << 14)) >> 15);
  return a;
}

template <class V>
FLEXOR_INLINE V look_up(V table, V index) {
  int8_t bytes[sizeof(V)], places[sizeof(V)], found[sizeof(V)];
  store(bytes, table);
  store(places, index);
  for (size_t i = 0; i < sizeof(V); ++i) found[i] = places[i] < 0 ? 0 : bytes[i / 16 * 16 + (places[i] & 15)];
  return load<V>(found);
}

template <class V>
FLEXOR_INLINE bool any(V mask) {
  auto bits = mask[0];
  for (size_t i = 1; i < sizeof(V) / sizeof(bits); ++i) bits |= mask[i];
  return bits != 0;
}

#endif

}  // namespace flexor::FLEXOR_ISA
