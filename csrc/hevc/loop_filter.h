// SPDX-License-Identifier: Apache-2.0
// Deblocking and sample adaptive offset on samples (H.265 clauses 8.7.2.5 and 8.7.3). What is filtered, and how
// strongly, is decided in filter_picture.cpp.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/cpu.h"

namespace flexor::hevc {

// One edge segment: 4 luma lines, or the chroma lines beside them. beta 0 (luma) or tc 0 (chroma): left alone.
struct EdgeSegment {
  int16_t beta, tc;        // scaled to the bit depth
  uint8_t keep_p, keep_q;  // that side is not changed (lossless, PCM)
};

// Samples have at most 12 bits.
struct LoopFilterKernels {
  // A line of `segments` segments along one edge, p3 to q3 of which may be written with what they were. columns: a
  // vertical edge, q0 at its right, segment s holds rows 4s to 4s + 3. rows: a horizontal edge, q0 the first row below
  // it, segment s holds columns 4s to 4s + 3.
  void (*luma_columns)(uint16_t* q0, ptrdiff_t stride, int segments, const EdgeSegment* edges, int bit_depth);
  void (*luma_rows)(uint16_t* q0, ptrdiff_t stride, int segments, const EdgeSegment* edges, int bit_depth);
  // The same for chroma; a segment holds `length` (2 or 4) lines.
  void (*chroma_columns)(uint16_t* q0, ptrdiff_t stride, int segments, int length, const EdgeSegment* edges,
                         int bit_depth);
  void (*chroma_rows)(uint16_t* q0, ptrdiff_t stride, int segments, int length, const EdgeSegment* edges,
                      int bit_depth);
  // out = clip(in + offset): band[sample >> (bit_depth - 5)]; edge: by the signs against the two neighbours of
  // direction 0 horizontal, 1 vertical, 2 falling (135 degrees), 3 rising (45 degrees): offsets[edgeIdx] with edgeIdx
  // as in 8.7.3.2 (0 none, 1 valley, 2, 3, 4 peak). `in` has one more readable sample on every side; out and in do not
  // overlap.
  void (*sao_band)(uint16_t* out, ptrdiff_t out_stride, const uint16_t* in, ptrdiff_t in_stride, int width, int height,
                   const int16_t band[32], int bit_depth);
  void (*sao_edge)(uint16_t* out, ptrdiff_t out_stride, const uint16_t* in, ptrdiff_t in_stride, int width, int height,
                   int direction, const int16_t offsets[5], int bit_depth);
  void (*narrow)(uint8_t* out, const uint16_t* in, int64_t samples);  // 8-bit output
};

}  // namespace flexor::hevc

namespace flexor {
FLEXOR_DECLARE_KERNELS(hevc::LoopFilterKernels, loop_filter_kernels)
// As the standard words it, for tests and benchmarks.
FLEXOR_DECLARE_KERNELS(hevc::LoopFilterKernels, loop_filter_reference_kernels)
}  // namespace flexor
