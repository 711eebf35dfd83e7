// SPDX-License-Identifier: Apache-2.0
// Vectors of the instruction set being compiled, on the compiler's vector extensions.
// Everything lives in a namespace of that set, and kernel sources take no inline code from the standard
// library: the linker would keep one copy of it, compiled for whichever set came first.
#pragma once
#include <cstdint>
#include <type_traits>
#include <utility>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define FLEXOR_INLINE inline __attribute__((always_inline))

namespace flexor::FLEXOR_ISA {

#if FLEXOR_ISA_avx512
constexpr int kVectorBytes = 64;
#elif FLEXOR_ISA_avx2
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T, int N>
struct VecOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N = kLanes<T>>
using Vec = typename VecOf<T, N>::type;

template <class V, class T>
FLEXOR_INLINE V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <class V, class T>
FLEXOR_INLINE void store(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

template <class V, class T>
FLEXOR_INLINE V splat(T x) {
  return x - V{};
}

template <int... I, class F>
FLEXOR_INLINE void unroll_sequence(std::integer_sequence<int, I...>, F&& f) {
  (f(std::integral_constant<int, I>{}), ...);
}

// f(0), f(1), ... f(N-1) with compile-time arguments, so that arrays indexed by them stay in registers.
template <int N, class F>
FLEXOR_INLINE void unroll(F&& f) {
  unroll_sequence(std::make_integer_sequence<int, N>{}, f);
}

template <class T, int L, int D, int... I>
FLEXOR_INLINE void exchange(Vec<T, L>& a, Vec<T, L>& b, std::integer_sequence<int, I...>) {
  const Vec<T, L> upper = __builtin_shufflevector(a, b, ((I & D) ? L + I - D : I)...);
  b = __builtin_shufflevector(a, b, ((I & D) ? L + I : I + D)...);
  a = upper;
}

template <class T, int L, int D>
FLEXOR_INLINE void transpose_step(Vec<T, L>* r) {
  unroll<L>([&](auto i) __attribute__((always_inline)) {
    if constexpr ((decltype(i)::value & D) == 0)
      exchange<T, L, D>(r[i], r[i + D], std::make_integer_sequence<int, L>{});
  });
  if constexpr (D > 1) transpose_step<T, L, D / 2>(r);
}

// dst[j * dst_stride + i] = src[i * src_stride + j] for i, j < L
template <class T, int L>
FLEXOR_INLINE void transpose_square(const T* src, int64_t src_stride, T* dst, int64_t dst_stride) {
  Vec<T, L> r[L];
  unroll<L>([&](auto i) __attribute__((always_inline)) { r[i] = load<Vec<T, L>>(src + i * src_stride); });
  transpose_step<T, L, L / 2>(r);
  unroll<L>([&](auto i) __attribute__((always_inline)) { store(dst + i * dst_stride, r[i]); });
}

// dst[j * dst_stride + i] = src[i * src_stride + j] for i < rows, j < columns
template <class T>
inline void transpose(const T* src, int64_t src_stride, int64_t rows, int64_t columns, T* dst, int64_t dst_stride) {
  constexpr int L = kLanes<T>;
  const int64_t whole_rows = rows / L * L, whole_columns = columns / L * L;
  for (int64_t i = 0; i < whole_rows; i += L)
    for (int64_t j = 0; j < whole_columns; j += L)
      transpose_square<T, L>(src + i * src_stride + j, src_stride, dst + j * dst_stride + i, dst_stride);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j)
      dst[j * dst_stride + i] = src[i * src_stride + j];
}

// Of float and double only; whole vectors of them, which the library's functions are not.
template <class T>
FLEXOR_INLINE T floor_of(T x) {
  if constexpr (sizeof(T) == 8) return __builtin_floor(x);
  else return __builtin_floorf(x);
}

template <class T>
FLEXOR_INLINE T round_of(T x) {  // halves to even
  if constexpr (sizeof(T) == 8) return __builtin_rint(x);
  else return __builtin_rintf(x);
}

template <class T>
FLEXOR_INLINE constexpr T smaller(T a, T b) {
  return b < a ? b : a;
}
template <class T>
FLEXOR_INLINE constexpr T larger(T a, T b) {
  return a < b ? b : a;
}
FLEXOR_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FLEXOR_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace flexor::FLEXOR_ISA
