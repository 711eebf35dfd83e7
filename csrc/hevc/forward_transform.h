// SPDX-License-Identifier: Apache-2.0
// From residuals to coefficients: the transposes of the inverse transforms of H.265 clause 8.6.4.2, scaled so that a
// coefficient is 2^(15 - bit depth - log2 n) times the orthonormal one.
#pragma once
#include <cstring>
#include <utility>

#include "hevc/encoder_state.h"
#include "hevc/transform_reference.h"

namespace flexor::FLEXOR_ISA {

template <int N>
struct ForwardMatrix {
  alignas(64) int16_t factor[N][N];  // [sample][frequency]
  constexpr explicit ForwardMatrix(bool dst) : factor{} {
    for (int k = 0; k < N; ++k)
      for (int i = 0; i < N; ++i)
        factor[i][k] = dst ? reference::kDst[k & 3][i & 3] : reference::kDct.factor[k * (32 / N)][i];
  }
};

// One stage: out[k][y] = sum over i of in[y][i] factor[i][k], rounded and shifted; the result is transposed.
template <int N>
inline void forward_stage(int16_t* out, const int16_t* in, const ForwardMatrix<N>& matrix, int shift) {
  const int rounding = 1 << (shift - 1);
  for (int y = 0; y < N; ++y) {
    int32_t sums[N];
    for (int k = 0; k < N; ++k) sums[k] = rounding;
    for (int i = 0; i < N; ++i) {
      const int32_t value = in[y * N + i];
      for (int k = 0; k < N; ++k) sums[k] += value * matrix.factor[i][k];
    }
    for (int k = 0; k < N; ++k) out[k * N + y] = static_cast<int16_t>(sums[k] >> shift);
  }
}

template <int N>
inline void forward(int16_t* coefficients, const int16_t* residual, bool dst, int bit_depth) {
  static constexpr ForwardMatrix<N> kCosine(false);
  static constexpr ForwardMatrix<N> kSine(N == 4);
  constexpr int kLog2 = N == 4 ? 2 : N == 8 ? 3 : N == 16 ? 4 : 5;
  alignas(64) int16_t between[N * N];
  const ForwardMatrix<N>& matrix = dst ? kSine : kCosine;
  forward_stage<N>(between, residual, matrix, kLog2 + bit_depth - 9);
  forward_stage<N>(coefficients, between, matrix, kLog2 + 6);
}

inline void forward_transform(int16_t* coefficients, const int16_t* residual, int log2_size, bool dst, int bit_depth) {
  switch (log2_size) {
    case 2: return forward<4>(coefficients, residual, dst, bit_depth);
    case 3: return forward<8>(coefficients, residual, false, bit_depth);
    case 4: return forward<16>(coefficients, residual, false, bit_depth);
    default: return forward<32>(coefficients, residual, false, bit_depth);
  }
}

inline void forward_skip(int16_t* coefficients, const int16_t* residual, int log2_size, int bit_depth) {
  const int shift = 15 - bit_depth - log2_size;
  for (int i = 0; i < 1 << (2 * log2_size); ++i) coefficients[i] = static_cast<int16_t>(residual[i] * (1 << shift));
}

// --- Sums of absolute Hadamard transforms -------------------------------------------------------------------------

template <class T, int L>
using Lanes __attribute__((vector_size(L * sizeof(T)))) = T;

// A butterfly between the lanes that differ in bit kStep.
template <int kStep, class V, int... I>
inline V lane_butterfly(V v, const std::integer_sequence<int, I...>) {
  const V swapped = __builtin_shufflevector(v, v, (I ^ kStep)...);
  const V mask = {static_cast<decltype(v[0] + v[0])>(I & kStep ? -1 : 0)...};
  return swapped + ((v ^ mask) - mask);
}

// kBlocks blocks of N x N that lie side by side; rows are vectors of N * kBlocks lanes.
template <class T, int N, int kBlocks>
inline int32_t hadamard(const int16_t* residual, ptrdiff_t stride) {
  constexpr int L = N * kBlocks;
  using V = Lanes<T, L>;
  const auto lanes = std::make_integer_sequence<int, L>();
  V rows[N];
  for (int y = 0; y < N; ++y) {
    if constexpr (sizeof(T) == 2) {
      memcpy(&rows[y], residual + y * stride, sizeof(V));
    } else {
      Lanes<int16_t, L> narrow;
      memcpy(&narrow, residual + y * stride, sizeof narrow);
      rows[y] = __builtin_convertvector(narrow, V);
    }
  }
  for (int step = 1; step < N; step *= 2) {
    for (int y = 0; y < N; ++y) {
      if (y & step) continue;
      const V a = rows[y], b = rows[y + step];
      rows[y] = a + b;
      rows[y + step] = a - b;
    }
  }
  Lanes<int32_t, L> sums = {};
  for (int y = 0; y < N; ++y) {
    V v = lane_butterfly<2>(lane_butterfly<1>(rows[y], lanes), lanes);
    if constexpr (N == 8) v = lane_butterfly<4>(v, lanes);
    v = v < 0 ? -v : v;
    sums += __builtin_convertvector(v, decltype(sums));
  }
  int32_t total = 0;
  for (int block = 0; block < kBlocks; ++block) {
    int32_t sum = 0;
    for (int i = 0; i < N; ++i) sum += sums[block * N + i];
    total += N == 4 ? (sum + 1) >> 1 : (sum + 2) >> 2;
  }
  return total;
}

// As HM scales them. 16 bits hold the sums of residuals of 9.
template <class T>
inline int satd(const int16_t* residual, int log2_size) {
  const int n = 1 << log2_size;
  if (n == 4) return hadamard<T, 4, 1>(residual, 4);
  int sum = 0;
  for (int y = 0; y < n; y += 8) {
    if (n == 8) {
      sum += hadamard<T, 8, 1>(residual, 8);
    } else {
      for (int x = 0; x < n; x += 16) sum += hadamard<T, 8, 2>(residual + y * n + x, n);
    }
  }
  return sum;
}

inline int satd(const int16_t* residual, int log2_size, int bit_depth) {
  return bit_depth == 8 ? satd<int16_t>(residual, log2_size) : satd<int32_t>(residual, log2_size);
}

}  // namespace flexor::FLEXOR_ISA
