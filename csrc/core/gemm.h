// SPDX-License-Identifier: Apache-2.0
// The matrix-multiply microkernel of all families: C[MR x NV vectors] (+)= A[MR x depth] B[depth x NV].
// Operands say where element (row i, step k) lies; the loops around the microkernel belong to the op,
// which writes the packed operand itself.
#pragma once
#include "core/simd.h"

namespace flexor::FLEXOR_ISA {

// Columns are kept in blocks of 16 steps, [k / 16][row][k % 16]: what a sampler writes in one go, and
// what the microkernel reads at constant distances whichever side of the product it is.
constexpr int kBlock = 16;

constexpr int kAnyRun = 0;

template <class T>
struct RowsA {  // a(k, i) = p[i * stride + k]
  static constexpr int kRun = kAnyRun;
  const T* p;
  int64_t stride;
  FLEXOR_INLINE T at(int i) const { return p[i * stride]; }
  FLEXOR_INLINE void advance() { ++p; }
  FLEXOR_INLINE void end_run() {}
};

template <class T>
struct ColumnsA {  // a(k, i) = p[k * stride + i]
  static constexpr int kRun = kAnyRun;
  const T* p;
  int64_t stride;
  FLEXOR_INLINE T at(int i) const { return p[i]; }
  FLEXOR_INLINE void advance() { p += stride; }
  FLEXOR_INLINE void end_run() {}
};

template <class T>
struct BlockedA {  // a(k, i) = p[k / 16 * block + i * 16 + k % 16]
  static constexpr int kRun = kBlock;
  const T* p;
  int64_t block;
  FLEXOR_INLINE T at(int i) const { return p[i * kBlock]; }
  FLEXOR_INLINE void advance() { ++p; }
  FLEXOR_INLINE void end_run() { p += block - kBlock; }
};

template <class T>
struct RowsB {  // b(k, j) = p[k * stride + j]
  const T* p;
  int64_t stride;
  FLEXOR_INLINE const T* at(int j) const { return p + j; }
  FLEXOR_INLINE void advance() { p += stride; }
};

template <class T>
struct BlockedB {  // b(k, j) = p[(first + j) / 16 * block + k * 16 + (first + j) % 16]
  const T* p;
  int64_t block, first;
  FLEXOR_INLINE const T* at(int j) const { return p + (first + j) / kBlock * block + (first + j) % kBlock; }
  FLEXOR_INLINE void advance() { p += kBlock; }
};

template <class T>
struct IndexedB {  // b(k, j) = p[offset[k] + j]
  const T* p;
  const int64_t* offset;
  FLEXOR_INLINE const T* at(int j) const { return p + *offset + j; }
  FLEXOR_INLINE void advance() { ++offset; }
};

template <class T>
struct RowsC {  // c(i, j) = p[i * stride + j]
  T* p;
  int64_t stride;
  FLEXOR_INLINE T* at(int i, int j) const { return p + i * stride + j; }
};

template <class T>
struct BlockedC {  // c(i, j) = p[(first + j) / 16 * block + i * 16 + (first + j) % 16]
  T* p;
  int64_t block, first;
  FLEXOR_INLINE T* at(int i, int j) const {
    return p + (first + j) / kBlock * block + i * kBlock + (first + j) % kBlock;
  }
};

template <class T, int MR, int NV, int L = kLanes<T>, class A, class B, class C>
FLEXOR_INLINE void gemm_micro(int64_t depth, A a, B b, C c, bool accumulate) {
  using V = Vec<T, L>;
  V acc[MR][NV];
  if (accumulate) {
    unroll<MR>([&](auto i) __attribute__((always_inline)) {
      unroll<NV>([&](auto j) __attribute__((always_inline)) { acc[i][j] = load<V>(c.at(i, j * L)); });
    });
  } else {
    unroll<MR>([&](auto i) __attribute__((always_inline)) {
      unroll<NV>([&](auto j) __attribute__((always_inline)) { acc[i][j] = V{}; });
    });
  }
  const int64_t run = A::kRun == kAnyRun ? depth : A::kRun;
  for (int64_t k = 0; k < depth; k += run) {
    for (int64_t r = 0; r < run; ++r) {
      V bv[NV];
      unroll<NV>([&](auto j) __attribute__((always_inline)) { bv[j] = load<V>(b.at(j * L)); });
      unroll<MR>([&](auto i) __attribute__((always_inline)) {
        const V av = splat<V>(a.at(i));
        unroll<NV>([&](auto j) __attribute__((always_inline)) { acc[i][j] += av * bv[j]; });
      });
      a.advance();
      b.advance();
    }
    a.end_run();
  }
  unroll<MR>([&](auto i) __attribute__((always_inline)) {
    unroll<NV>([&](auto j) __attribute__((always_inline)) { store(c.at(i, j * L), acc[i][j]); });
  });
}

// Rows of the microkernel for a panel of NV vectors: as many accumulators as there are registers.
#if FLEXOR_ISA_avx512
constexpr int kPanelRows[4] = {0, 14, 14, 8};
constexpr int kRowUnit = 56;  // a multiple of each
#else
constexpr int kPanelRows[4] = {0, 4, 4, 4};
constexpr int kRowUnit = 4;
#endif
constexpr int kTallRows = kVectorBytes == 64 ? 8 : 4;  // rows where B is three vectors wide

// gemm_micro of a height known at run time, 1 to kTallRows.
template <class T, int NV, int L = kLanes<T>, class A, class B, class C>
inline void gemm_tall(int height, int64_t depth, A a, B b, C c, bool add) {
  switch (height) {
    case 1: return gemm_micro<T, 1, NV, L>(depth, a, b, c, add);
    case 2: return gemm_micro<T, 2, NV, L>(depth, a, b, c, add);
    case 3: return gemm_micro<T, 3, NV, L>(depth, a, b, c, add);
#if FLEXOR_ISA_avx512
    case 4: return gemm_micro<T, 4, NV, L>(depth, a, b, c, add);
    case 5: return gemm_micro<T, 5, NV, L>(depth, a, b, c, add);
    case 6: return gemm_micro<T, 6, NV, L>(depth, a, b, c, add);
    case 7: return gemm_micro<T, 7, NV, L>(depth, a, b, c, add);
#endif
    default: return gemm_micro<T, kTallRows, NV, L>(depth, a, b, c, add);
  }
}

// Rows in slices of nearly equal height, at most kTallRows: visit(first row, height).
template <class Visit>
FLEXOR_INLINE void for_slices(int64_t rows, Visit visit) {
  const int64_t slices = ceil_div(rows, kTallRows);
  for (int64_t s = 0, row = 0; s < slices; ++s) {
    const int64_t height = (rows - row + slices - s - 1) / (slices - s);
    visit(row, static_cast<int>(height));
    row += height;
  }
}

// Vectors of the next panel when `left` remain: 3 where it divides, else 2, so that 1 is left only alone.
FLEXOR_INLINE int panel_vectors(int64_t left) { return left % 3 == 0 ? 3 : left == 1 ? 1 : 2; }

}  // namespace flexor::FLEXOR_ISA
