// SPDX-License-Identifier: Apache-2.0
// The entries of TransformKernels as H.265 clause 8.6 words them, one number at a time: what the fast ones are checked
// against and timed against.
#pragma once
#include "core/simd.h"
#include "hevc/transform.h"

namespace flexor::FLEXOR_ISA::reference {

FLEXOR_INLINE int clip(int low, int high, int x) { return x < low ? low : x > high ? high : x; }
FLEXOR_INLINE int16_t saturate(int x) { return static_cast<int16_t>(clip(-32768, 32767, x)); }

// transMatrix of 8.6.4.2 is cos(pi k (2i + 1) / 64), rounded by hand: only the angles of the first quadrant differ.
constexpr int16_t kCosines[33] = {64, 90, 90, 90, 89, 88, 87, 85, 83, 82, 80, 78, 75, 73, 70, 67, 64,
                                  61, 57, 54, 50, 46, 43, 38, 36, 31, 25, 22, 18, 13, 9,  4,  0};

// Row k, column i of the 32x32 matrix. A smaller one of n takes every (32 / n)th row, and the first n columns.
struct DctMatrix {
  int16_t factor[32][32];
  constexpr DctMatrix() : factor{} {
    for (int k = 0; k < 32; ++k)
      for (int i = 0; i < 32; ++i) {
        const int angle = k * (2 * i + 1) % 128;
        const int half = angle > 64 ? 128 - angle : angle;
        factor[k][i] = static_cast<int16_t>(half > 32 ? -kCosines[64 - half] : kCosines[half]);
      }
  }
};
constexpr DctMatrix kDct{};

constexpr int16_t kDst[4][4] = {{29, 55, 74, 84}, {74, 74, 0, -74}, {84, -29, -74, 55}, {55, -84, 74, -29}};

// Both stages of 8.6.4.2; factor(k, i) is what coefficient k adds to sample i.
template <class Factor>
inline void inverse(int16_t* residual, const int16_t* coefficients, int n, int bit_depth, Factor factor) {
  int16_t columns[32 * 32];
  for (int x = 0; x < n; ++x)
    for (int y = 0; y < n; ++y) {
      int sum = 64;
      for (int k = 0; k < n; ++k) sum += factor(k, y) * coefficients[k * n + x];
      columns[y * n + x] = saturate(sum >> 7);
    }
  const int shift = 20 - bit_depth;
  for (int y = 0; y < n; ++y)
    for (int x = 0; x < n; ++x) {
      int sum = 1 << (shift - 1);
      for (int k = 0; k < n; ++k) sum += factor(k, x) * columns[y * n + k];
      residual[y * n + x] = saturate(sum >> shift);
    }
}

inline void dct(int16_t* residual, const int16_t* coefficients, int log2_size, int, int, int bit_depth) {
  inverse(residual, coefficients, 1 << log2_size, bit_depth,
          [log2_size](int k, int i) { return kDct.factor[k << (5 - log2_size)][i]; });
}

inline void dst(int16_t* residual, const int16_t* coefficients, int bit_depth) {
  inverse(residual, coefficients, 4, bit_depth, [](int k, int i) { return kDst[k][i]; });
}

inline void skip(int16_t* residual, const int16_t* coefficients, int log2_size, int bit_depth) {
  const int scale = 1 << (5 + log2_size), shift = 20 - bit_depth;
  for (int i = 0; i < 1 << 2 * log2_size; ++i)
    residual[i] = saturate((coefficients[i] * scale + (1 << (shift - 1))) >> shift);
}

inline void rotate(int16_t* block, int log2_size) {
  for (int i = 0, j = (1 << 2 * log2_size) - 1; i < j; ++i, --j) {
    const int16_t first = block[i];
    block[i] = block[j];
    block[j] = first;
  }
}

inline void accumulate(int16_t* residual, int log2_size, bool vertical) {
  const int n = 1 << log2_size, step = vertical ? n : 1, to_next_line = vertical ? 1 : n;
  for (int line = 0; line < n; ++line)
    for (int i = 0, sum = 0; i < n; ++i) {
      int16_t* r = residual + line * to_next_line + i * step;
      sum += *r;
      *r = saturate(sum);
    }
}

inline void cross_component(int16_t* residual, const int16_t* luma, int scale, int log2_size, int bit_depth_luma,
                            int bit_depth_chroma) {
  for (int i = 0; i < 1 << 2 * log2_size; ++i)
    residual[i] = saturate(residual[i] + (scale * (luma[i] * (1 << bit_depth_chroma) >> bit_depth_luma) >> 3));
}

inline void add(uint16_t* samples, ptrdiff_t stride, const int16_t* residual, int log2_size, int bit_depth) {
  const int n = 1 << log2_size, white = (1 << bit_depth) - 1;
  for (int y = 0; y < n; ++y)
    for (int x = 0; x < n; ++x) {
      uint16_t* s = samples + y * stride + x;
      *s = static_cast<uint16_t>(clip(0, white, *s + residual[y * n + x]));
    }
}

}  // namespace flexor::FLEXOR_ISA::reference
