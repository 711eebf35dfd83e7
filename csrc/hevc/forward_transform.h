// SPDX-License-Identifier: Apache-2.0
// From residuals to coefficients: the transposes of the inverse transforms of H.265 clause 8.6.4.2, scaled so that a
// coefficient is 2^(15 - bit depth - log2 n) times the orthonormal one.
#pragma once
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

// Sum of absolute values of the Hadamard transforms of the 8x8 (4x4) blocks of a residual, as HM scales it.
template <int N>
inline int hadamard(const int16_t* residual, ptrdiff_t stride) {
  int32_t m[N][N];
  for (int y = 0; y < N; ++y)
    for (int x = 0; x < N; ++x) m[y][x] = residual[y * stride + x];
  for (int step = 1; step < N; step *= 2) {
    for (int y = 0; y < N; ++y) {
      if (y & step) continue;
      for (int x = 0; x < N; ++x) {
        const int32_t a = m[y][x], b = m[y + step][x];
        m[y][x] = a + b;
        m[y + step][x] = a - b;
      }
    }
  }
  int32_t t[N][N];
  for (int y = 0; y < N; ++y)
    for (int x = 0; x < N; ++x) t[x][y] = m[y][x];
  for (int step = 1; step < N; step *= 2) {
    for (int y = 0; y < N; ++y) {
      if (y & step) continue;
      for (int x = 0; x < N; ++x) {
        const int32_t a = t[y][x], b = t[y + step][x];
        t[y][x] = a + b;
        t[y + step][x] = a - b;
      }
    }
  }
  int32_t sum = 0;
  for (int y = 0; y < N; ++y)
    for (int x = 0; x < N; ++x) sum += t[y][x] < 0 ? -t[y][x] : t[y][x];
  return N == 4 ? (sum + 1) >> 1 : (sum + 2) >> 2;
}

inline int satd(const int16_t* residual, int log2_size) {
  const int n = 1 << log2_size;
  if (n == 4) return hadamard<4>(residual, 4);
  int sum = 0;
  for (int y = 0; y < n; y += 8)
    for (int x = 0; x < n; x += 8) sum += hadamard<8>(residual + y * n + x, n);
  return sum;
}

}  // namespace flexor::FLEXOR_ISA
