// SPDX-License-Identifier: Apache-2.0
// Scans of coefficients and their significance contexts (H.265 clauses 6.5.3 to 6.5.5, 9.3.4.2.5).
#pragma once
#include <cstdint>

namespace flexor::FLEXOR_ISA {

// Scans of 2x2, 4x4 and 8x8 (clause 6.5.3 to 6.5.5): scan 0 up-right diagonal, 1 horizontal, 2 vertical.
struct Scan {
  uint8_t x[64] = {}, y[64] = {};
  uint8_t rank[64] = {};  // of position y * size + x
};

struct Scans {
  Scan scan[3][4];  // [scanIdx][log2 of the size]
  constexpr Scans() {
    for (int log2_size = 0; log2_size < 4; ++log2_size) {
      const int size = 1 << log2_size;
      int rank[3] = {0, 0, 0};
      for (int diagonal = 0; diagonal < 2 * size - 1; ++diagonal) {
        for (int x = 0; x <= diagonal; ++x) {
          if (x < size && diagonal - x < size) put(scan[0][log2_size], rank[0]++, x, diagonal - x, size);
        }
      }
      for (int i = 0; i < size * size; ++i) {
        put(scan[1][log2_size], rank[1]++, i % size, i / size, size);
        put(scan[2][log2_size], rank[2]++, i / size, i % size, size);
      }
    }
  }
  static constexpr void put(Scan& scan, int rank, int x, int y, int size) {
    scan.x[rank] = static_cast<uint8_t>(x);
    scan.y[rank] = static_cast<uint8_t>(y);
    scan.rank[y * size + x] = static_cast<uint8_t>(rank);
  }
};
static constexpr Scans kScans;

// sigCtx of clause 9.3.4.2.5 before its offsets, by scan, by which coded neighbours a sub-block has (1 right, 2 below;
// 4: a 4x4 block, which has a table), and by scan position.
struct SignificanceContexts {
  uint8_t context[3][5][16] = {};
  uint8_t whole[16] = {0, 1, 4, 5, 2, 3, 4, 5, 6, 6, 8, 8, 7, 7, 8, 8};  // of a 4x4 block, by y * 4 + x
  constexpr SignificanceContexts() {
    for (int scan = 0; scan < 3; ++scan) {
      for (int n = 0; n < 16; ++n) {
        const int x = kScans.scan[scan][2].x[n], y = kScans.scan[scan][2].y[n];
        context[scan][0][n] = x + y == 0 ? 2 : x + y < 3 ? 1 : 0;
        context[scan][1][n] = y == 0 ? 2 : y == 1 ? 1 : 0;
        context[scan][2][n] = x == 0 ? 2 : x == 1 ? 1 : 0;
        context[scan][3][n] = 2;
        context[scan][4][n] = whole[y * 4 + x];
      }
    }
  }
};
static constexpr SignificanceContexts kSignificanceContexts;

// levelScale of clause 8.6.3.
static constexpr int kLevelScale[6] = {40, 45, 51, 57, 64, 72};

// scanIdx of clause 7.4.9.11: blocks of some directions are scanned across them.
inline int scan_of(int chroma_type, int component, int log2_size, int mode) {
  if (log2_size != 2 && (log2_size != 3 || (component != 0 && chroma_type != 3))) return 0;
  return mode >= 6 && mode <= 14 ? 2 : mode >= 22 && mode <= 30 ? 1 : 0;
}

// sig_coeff_flag: where a block's contexts begin among those of its component, before the pattern's.
inline int significance_offset(int component, int log2_size, int scan_index) {
  if (log2_size == 2) return 0;
  if (log2_size == 3) return component != 0 ? 9 : scan_index == 0 ? 9 : 15;
  return component != 0 ? 12 : 21;
}

}  // namespace flexor::FLEXOR_ISA
