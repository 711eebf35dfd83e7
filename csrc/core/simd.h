// SPDX-License-Identifier: Apache-2.0
// Vectors of the instruction set being compiled, on the compiler's vector extensions.
// Everything lives in a namespace of that set, and kernel sources take no inline code from the standard
// library: the linker would keep one copy of it, compiled for whichever set came first.
#pragma once
#include <cstdint>
#include <type_traits>
#include <utility>
#if FLEXOR_ISA_avx2 || FLEXOR_ISA_avx512
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

template <class T>
FLEXOR_INLINE T smaller(T a, T b) {
  return b < a ? b : a;
}
template <class T>
FLEXOR_INLINE T larger(T a, T b) {
  return a < b ? b : a;
}
FLEXOR_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FLEXOR_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace flexor::FLEXOR_ISA
