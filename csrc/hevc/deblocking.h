// SPDX-License-Identifier: Apache-2.0
// Deblocking (8.7.2.5) on vectors, one number a line across the edge. A line that is left alone has tc 0 there, which
// makes every filter change it by nothing. 16 bits hold all sums up to 12-bit samples.
#pragma once
#include "hevc/loop_filter.h"
#include "hevc/vectors.h"

namespace flexor::FLEXOR_ISA {

using hevc::EdgeSegment;

// Of each four numbers, the one at `place`, four times.
template <int Place, int L, int... I>
FLEXOR_INLINE Shorts<L> of_four(Shorts<L> v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, (I / 4 * 4 + Place)...);
}

// On the first and the last of a segment's four lines, for all of them.
template <int L>
FLEXOR_INLINE Shorts<L> first_line(Shorts<L> v) {
  return of_four<0, L>(v, std::make_integer_sequence<int, L>{});
}
template <int L>
FLEXOR_INLINE Shorts<L> last_line(Shorts<L> v) {
  return of_four<3, L>(v, std::make_integer_sequence<int, L>{});
}

// get(segment) for each of its `length` (2 or 4) lines.
template <int L, class Get>
FLEXOR_INLINE Shorts<L> spread(const EdgeSegment* edges, int length, Get get) {
  const auto word = [&](int i) { return static_cast<uint64_t>(static_cast<uint16_t>(get(edges[i]))); };
  return from_fours<L>([&](int i) __attribute__((always_inline)) {
    if (length == 4) return word(i) * 0x0001000100010001;
    return word(2 * i) * 0x00010001 | word(2 * i + 1) * 0x0001000100000000;
  });
}

template <int L>
struct Tc {
  Shorts<L> both, p, q;  // p, q: 0 on a side that is kept

  FLEXOR_INLINE Tc(const EdgeSegment* edges, int length)
      : both(spread<L>(edges, length, [](const EdgeSegment& e) { return e.tc; })), p(both), q(both) {
    bool kept = false;
    for (int i = 0; i < L / length; ++i) kept |= edges[i].keep_p | edges[i].keep_q;
    if (!kept) return;
    p &= spread<L>(edges, length, [](const EdgeSegment& e) { return e.keep_p ? 0 : -1; });
    q &= spread<L>(edges, length, [](const EdgeSegment& e) { return e.keep_q ? 0 : -1; });
  }
};

template <int L>
FLEXOR_INLINE Shorts<L> limit(Shorts<L> x, Shorts<L> to) {
  return clamp(x, -to, to);
}

// The samples on one side, x0 next to the edge, and what the standard calls with p and q alike.
template <int L>
struct Side {
  Shorts<L> x0, x1, x2, x3;

  FLEXOR_INLINE Shorts<L> bend() const { return magnitude(x2 - 2 * x1 + x0); }

  FLEXOR_INLINE Side strong(const Side& o, Shorts<L> tc) const {
    const Shorts<L> edge = x0 + o.x0, near = edge + x1, reach = 2 * tc;
    return {x0 + limit<L>(((2 * near + x2 + o.x1 + 4) >> 3) - x0, reach),
            x1 + limit<L>(((near + x2 + 2) >> 2) - x1, reach),
            x2 + limit<L>(((near + 3 * x2 + 2 * x3 + 4) >> 3) - x2, reach), x3};
  }

  // delta: to be added to x0, before tc limits it to this side.
  FLEXOR_INLINE void add_weak(const Side& before, Shorts<L> delta, Shorts<L> tc, Shorts<L> bends, Shorts<L> side_limit,
                              Shorts<L> white) {
    const Shorts<L> middle = (before.x2 + before.x0 + 1) >> 1;
    const Shorts<L> next = limit<L>((middle - before.x1 + delta) >> 1, (tc >> 1) & (bends < side_limit));
    x0 = clamp(x0 + limit<L>(delta, tc), Shorts<L>{}, white);
    x1 = clamp(x1 + next, Shorts<L>{}, white);
  }
};

// Filters in place. Returns how many samples of each side may have changed: 0, 2 or 3.
template <int L>
FLEXOR_INLINE int filter_luma(Side<L>& p, Side<L>& q, const EdgeSegment* edges, int bit_depth) {
  using V = Shorts<L>;
  const V beta = spread<L>(edges, 4, [](const EdgeSegment& e) { return e.beta; });
  const V bend_p = p.bend(), bend_q = q.bend(), bend = bend_p + bend_q;
  const V active = first_line<L>(bend) + last_line<L>(bend) < beta;
  if (!any(active)) return 0;

  const Tc<L> tc(edges, 4);
  const V flat = magnitude(p.x3 - p.x0) + magnitude(q.x0 - q.x3), step = magnitude(p.x0 - q.x0);
  const V smooth = (2 * bend < beta >> 2) & (flat < beta >> 3) & (step < (5 * tc.both + 1) >> 1);
  const V strong = active & first_line<L>(smooth) & last_line<L>(smooth);

  const V slope = 3 * (q.x0 - p.x0) - (q.x1 - p.x1);
  const V unlimited = multiply_rounded(slope, shorts<L>(3 << 11));  // (3 slope + 8) >> 4
  const V weak = active & ~strong & (magnitude(unlimited) < 10 * tc.both);
  const Side<L> old_p = p, old_q = q;
  const bool any_strong = any(strong);
  if (any_strong) {
    p = old_p.strong(old_q, tc.p & strong);
    q = old_q.strong(old_p, tc.q & strong);
  }
  if (any(weak)) {
    const V delta = limit<L>(unlimited, tc.both), side_limit = (beta + (beta >> 1)) >> 3;
    const V white = shorts<L>((1 << bit_depth) - 1);
    p.add_weak(old_p, delta, tc.p & weak, first_line<L>(bend_p) + last_line<L>(bend_p), side_limit, white);
    q.add_weak(old_q, -delta, tc.q & weak, first_line<L>(bend_q) + last_line<L>(bend_q), side_limit, white);
  }
  return any_strong ? 3 : 2;
}

// 8.7.2.5.8
template <int L>
FLEXOR_INLINE void filter_chroma(Shorts<L> p1, Shorts<L>& p0, Shorts<L>& q0, Shorts<L> q1, const Tc<L>& tc,
                                 int bit_depth) {
  const Shorts<L> white = shorts<L>((1 << bit_depth) - 1);
  const Shorts<L> delta = (4 * (q0 - p0) + p1 - q1 + 4) >> 3;
  p0 = clamp(p0 + limit<L>(delta, tc.p), Shorts<L>{}, white);
  q0 = clamp(q0 - limit<L>(delta, tc.q), Shorts<L>{}, white);
}

template <int L, int... I>
FLEXOR_INLINE void interleave_lanes(Shorts<L> a, Shorts<L> b, Shorts<L>& low, Shorts<L>& high,
                                    std::integer_sequence<int, I...>) {
  low = __builtin_shufflevector(a, b, (I / 8 * 8 + I % 8 / 2 + I % 2 * L)...);
  high = __builtin_shufflevector(a, b, (I / 8 * 8 + I % 8 / 2 + I % 2 * L + 4)...);
}

// In each 16 bytes: vector v[i] and number j of it, taken as digits of one place, move that place `Times` bits to the
// left, round. Of 8 vectors, 3 times are a transpose; of 4, 3 times gather what 2 times scatter.
template <int Times, int Count, int L>
FLEXOR_INLINE void rotate_places(Shorts<L> (&v)[Count]) {
  Shorts<L> turned[Count];
  unroll<Count / 2>([&](auto i) __attribute__((always_inline)) {
    interleave_lanes<L>(v[i], v[i + Count / 2], turned[2 * i], turned[2 * i + 1], std::make_integer_sequence<int, L>{});
  });
  unroll<Count>([&](auto i) __attribute__((always_inline)) { v[i] = turned[i]; });
  if constexpr (Times > 1) rotate_places<Times - 1, Count, L>(v);
}

}  // namespace flexor::FLEXOR_ISA
