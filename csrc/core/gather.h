// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "core/simd.h"

namespace flexor::FLEXOR_ISA {

// The pair (p[corner], p[corner + 1]) for a vector of corners, apart.
template <class T>
FLEXOR_INLINE void gather_pairs(const T* p, const int32_t* corner, Vec<T>* left, Vec<T>* right) {
  Vec<T> a{}, b{};
  for (int i = 0; i < kLanes<T>; ++i) a[i] = p[corner[i]], b[i] = p[corner[i] + 1];
  *left = a, *right = b;
}

#if FLEXOR_ISA_avx512
// Half the gathered elements: 64 bits take both neighbours.
template <>
FLEXOR_INLINE void gather_pairs<float>(const float* p, const int32_t* corner, Vec<float>* left, Vec<float>* right) {
  const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(corner));
  const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(corner + 8));
  // Into zeros, and the compiler kept from knowing that no zero stays: into a register of whatever content
  // each gather would wait for the one before it.
  __mmask8 all = 0xff;
  __asm__("" : "+Yk"(all));
  const __m512 a = _mm512_castpd_ps(_mm512_mask_i32gather_pd(_mm512_setzero_pd(), all, first, p, 4));
  const __m512 b = _mm512_castpd_ps(_mm512_mask_i32gather_pd(_mm512_setzero_pd(), all, second, p, 4));
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  *left = reinterpret_cast<Vec<float>>(_mm512_permutex2var_ps(a, even, b));
  *right = reinterpret_cast<Vec<float>>(_mm512_permutex2var_ps(a, odd, b));
}
#elif FLEXOR_ISA_avx2
template <>
FLEXOR_INLINE void gather_pairs<float>(const float* p, const int32_t* corner, Vec<float>* left, Vec<float>* right) {
  const double* base = reinterpret_cast<const double*>(p);
  const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(corner));
  const __m128i second = _mm_loadu_si128(reinterpret_cast<const __m128i*>(corner + 4));
  __m256d all = _mm256_castsi256_pd(_mm256_set1_epi64x(-1));
  __asm__("" : "+x"(all));
  const __m256d a = _mm256_mask_i32gather_pd(_mm256_setzero_pd(), base, first, all, 4);
  const __m256d b = _mm256_mask_i32gather_pd(_mm256_setzero_pd(), base, second, all, 4);
  const __m256d low = _mm256_permute2f128_pd(a, b, 0x20), high = _mm256_permute2f128_pd(a, b, 0x31);
  *left = reinterpret_cast<Vec<float>>(_mm256_shuffle_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high), 0x88));
  *right = reinterpret_cast<Vec<float>>(_mm256_shuffle_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high), 0xdd));
}
#endif

}  // namespace flexor::FLEXOR_ISA
