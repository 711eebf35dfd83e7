// SPDX-License-Identifier: Apache-2.0
// Intra prediction of one block from its border (H.265 clause 8.4.4.2), shared by flexor.ops and the codec.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/cpu.h"

namespace flexor {

// The border of an n x n block is one line of 4n + 1 samples, from the bottom left up to the corner and on to the
// top right: border[2n] = p[-1][-1], border[2n - 1 - y] = p[-1][y], border[2n + 1 + x] = p[x][-1].
// Kernels may read (not use) kIntraSlack samples before its first and after its last.
constexpr int kIntraSlack = 32;
constexpr int kMaxIntraSize = 64;

enum IntraMode { kIntraPlanar = 0, kIntraDc = 1, kIntraHorizontal = 10, kIntraVertical = 26 };

struct IntraKernels {
  // block[y * stride + x]; n = 1 << log2_size, 4 to 64. nearest: the nearer of the two samples instead of their
  // weighted mean (angular modes). edge_filter: clause 8.4.4.2.5 for DC, 8.4.4.2.6 for modes 10 and 26.
  void (*predict)(uint16_t* block, ptrdiff_t stride, const uint16_t* border, int log2_size, int mode, bool nearest,
                  bool edge_filter, int bit_depth);
  // Clause 8.4.4.2.3, [1 2 1] / 4 along the border; the ends are kept. smoothed must not overlap border.
  void (*smooth)(uint16_t* smoothed, const uint16_t* border, int log2_size);
  // The same clause's bilinear interpolation between the ends and the corner (biIntFlag equal to 1).
  void (*smooth_strong)(uint16_t* smoothed, const uint16_t* border, int log2_size);
};

FLEXOR_DECLARE_KERNELS(IntraKernels, intra_kernels)

// Whether the border of a block is smoothed: minDistVerHor > intraHorVerDistThres[nTbS].
static inline bool intra_smooths(int log2_size, int mode) {
  if (mode == kIntraDc || log2_size == 2) return false;
  const int vertical = mode > kIntraVertical ? mode - kIntraVertical : kIntraVertical - mode;
  const int horizontal = mode > kIntraHorizontal ? mode - kIntraHorizontal : kIntraHorizontal - mode;
  const int distance = vertical < horizontal ? vertical : horizontal;
  return distance > (log2_size == 3 ? 7 : log2_size == 4 ? 1 : 0);
}

// biIntFlag of a luma border: nearly straight on both sides.
static inline bool intra_is_straight(const uint16_t* border, int log2_size, int bit_depth) {
  const int n = 1 << log2_size;
  const int limit = 1 << (bit_depth - 5);
  const int corner = border[2 * n];
  const int top = corner + border[4 * n] - 2 * border[3 * n];
  const int left = corner + border[0] - 2 * border[n];
  return top < limit && -top < limit && left < limit && -left < limit;
}

}  // namespace flexor
