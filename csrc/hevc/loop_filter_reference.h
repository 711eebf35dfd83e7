// SPDX-License-Identifier: Apache-2.0
// The entries of LoopFilterKernels as H.265 clauses 8.7.2.5 and 8.7.3 word them, one line at a time: what the fast ones
// are checked against and timed against.
#pragma once
#include "hevc/loop_filter.h"
#include "hevc/transform_reference.h"

namespace flexor::FLEXOR_ISA::reference {

using hevc::EdgeSegment;

FLEXOR_INLINE int absolute(int x) { return x < 0 ? -x : x; }

// The samples of one line across an edge: p0, p1, ... away from it on the one side, q0, q1, ... on the other.
struct Across {
  uint16_t* q0;
  ptrdiff_t step;  // from q0 to q1
  int white;       // the largest sample

  int p(int i) const { return q0[(-1 - i) * step]; }
  int q(int i) const { return q0[i * step]; }
  int bend_p() const { return absolute(p(2) - 2 * p(1) + p(0)); }
  int bend_q() const { return absolute(q(2) - 2 * q(1) + q(0)); }
  void set_p(int i, int x) const { q0[(-1 - i) * step] = static_cast<uint16_t>(clip(0, white, x)); }
  void set_q(int i, int x) const { q0[i * step] = static_cast<uint16_t>(clip(0, white, x)); }
};

// dSam of 8.7.2.5.6
inline bool is_smooth(const Across& a, const EdgeSegment& e) {
  return 2 * (a.bend_p() + a.bend_q()) < e.beta >> 2 &&
         absolute(a.p(3) - a.p(0)) + absolute(a.q(0) - a.q(3)) < e.beta >> 3 &&
         absolute(a.p(0) - a.q(0)) < (5 * e.tc + 1) >> 1;
}

// 8.7.2.5.7 with dE equal to 2
inline void filter_strong(const Across& a, const EdgeSegment& e) {
  const int p0 = a.p(0), p1 = a.p(1), p2 = a.p(2), p3 = a.p(3), q0 = a.q(0), q1 = a.q(1), q2 = a.q(2), q3 = a.q(3);
  const auto near = [&e](int x, int to) { return clip(x - 2 * e.tc, x + 2 * e.tc, to); };
  if (!e.keep_p) {
    a.set_p(0, near(p0, (p2 + 2 * p1 + 2 * p0 + 2 * q0 + q1 + 4) >> 3));
    a.set_p(1, near(p1, (p2 + p1 + p0 + q0 + 2) >> 2));
    a.set_p(2, near(p2, (2 * p3 + 3 * p2 + p1 + p0 + q0 + 4) >> 3));
  }
  if (!e.keep_q) {
    a.set_q(0, near(q0, (p1 + 2 * p0 + 2 * q0 + 2 * q1 + q2 + 4) >> 3));
    a.set_q(1, near(q1, (p0 + q0 + q1 + q2 + 2) >> 2));
    a.set_q(2, near(q2, (p0 + q0 + q1 + 3 * q2 + 2 * q3 + 4) >> 3));
  }
}

// 8.7.2.5.7 with dE equal to 1
inline void filter_weak(const Across& a, const EdgeSegment& e, bool change_p1, bool change_q1) {
  const int p0 = a.p(0), p1 = a.p(1), p2 = a.p(2), q0 = a.q(0), q1 = a.q(1), q2 = a.q(2);
  int delta = (9 * (q0 - p0) - 3 * (q1 - p1) + 8) >> 4;
  if (absolute(delta) >= e.tc * 10) return;
  delta = clip(-e.tc, e.tc, delta);
  const int half = e.tc >> 1;
  if (!e.keep_p) {
    a.set_p(0, p0 + delta);
    if (change_p1) a.set_p(1, p1 + clip(-half, half, (((p2 + p0 + 1) >> 1) - p1 + delta) >> 1));
  }
  if (!e.keep_q) {
    a.set_q(0, q0 - delta);
    if (change_q1) a.set_q(1, q1 + clip(-half, half, (((q2 + q0 + 1) >> 1) - q1 - delta) >> 1));
  }
}

// Decisions of 8.7.2.5.3 and the filter of each line. across: from one sample to the next across the edge, along: from
// one line to the next.
inline void luma_edge(uint16_t* q0, ptrdiff_t across, ptrdiff_t along, int segments, const EdgeSegment* edges,
                      int bit_depth) {
  for (int s = 0; s < segments; ++s) {
    const EdgeSegment& e = edges[s];
    const auto line = [&](int i) { return Across{q0 + (4 * s + i) * along, across, (1 << bit_depth) - 1}; };
    const Across first = line(0), last = line(3);
    const int dp = first.bend_p() + last.bend_p(), dq = first.bend_q() + last.bend_q();
    if (dp + dq >= e.beta) continue;
    const bool strong = is_smooth(first, e) && is_smooth(last, e);
    const int side_limit = (e.beta + (e.beta >> 1)) >> 3;
    for (int i = 0; i < 4; ++i) {
      if (strong) filter_strong(line(i), e);
      else filter_weak(line(i), e, dp < side_limit, dq < side_limit);
    }
  }
}

// 8.7.2.5.8
inline void chroma_edge(uint16_t* q0, ptrdiff_t across, ptrdiff_t along, int segments, int length,
                        const EdgeSegment* edges, int bit_depth) {
  for (int i = 0; i < segments * length; ++i) {
    const EdgeSegment& e = edges[i / length];
    const Across a{q0 + i * along, across, (1 << bit_depth) - 1};
    const int p = a.p(0), q = a.q(0);
    const int delta = clip(-e.tc, e.tc, (4 * (q - p) + a.p(1) - a.q(1) + 4) >> 3);
    if (!e.keep_p) a.set_p(0, p + delta);
    if (!e.keep_q) a.set_q(0, q - delta);
  }
}

inline void luma_columns(uint16_t* q0, ptrdiff_t stride, int segments, const EdgeSegment* edges, int bit_depth) {
  luma_edge(q0, 1, stride, segments, edges, bit_depth);
}
inline void luma_rows(uint16_t* q0, ptrdiff_t stride, int segments, const EdgeSegment* edges, int bit_depth) {
  luma_edge(q0, stride, 1, segments, edges, bit_depth);
}
inline void chroma_columns(uint16_t* q0, ptrdiff_t stride, int segments, int length, const EdgeSegment* edges,
                           int bit_depth) {
  chroma_edge(q0, 1, stride, segments, length, edges, bit_depth);
}
inline void chroma_rows(uint16_t* q0, ptrdiff_t stride, int segments, int length, const EdgeSegment* edges,
                        int bit_depth) {
  chroma_edge(q0, stride, 1, segments, length, edges, bit_depth);
}

inline void sao_band(uint16_t* out, ptrdiff_t out_stride, const uint16_t* in, ptrdiff_t in_stride, int width,
                     int height, const int16_t band[32], int bit_depth) {
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x) {
      const int sample = in[y * in_stride + x];
      out[y * out_stride + x] =
          static_cast<uint16_t>(clip(0, (1 << bit_depth) - 1, sample + band[sample >> (bit_depth - 5)]));
    }
}

inline void sao_edge(uint16_t* out, ptrdiff_t out_stride, const uint16_t* in, ptrdiff_t in_stride, int width,
                     int height, int direction, const int16_t offsets[5], int bit_depth) {
  const ptrdiff_t to_neighbour[4] = {1, in_stride, in_stride + 1, in_stride - 1};
  const ptrdiff_t step = to_neighbour[direction];
  constexpr int kEdgeIndex[5] = {1, 2, 0, 3, 4};
  const auto sign = [](int x) { return (x > 0) - (x < 0); };
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x) {
      const uint16_t* s = in + y * in_stride + x;
      const int index = kEdgeIndex[2 + sign(*s - s[-step]) + sign(*s - s[step])];
      out[y * out_stride + x] = static_cast<uint16_t>(clip(0, (1 << bit_depth) - 1, *s + offsets[index]));
    }
}

inline void narrow(uint8_t* out, const uint16_t* in, int64_t samples) {
  for (int64_t i = 0; i < samples; ++i) out[i] = static_cast<uint8_t>(in[i]);
}

}  // namespace flexor::FLEXOR_ISA::reference
