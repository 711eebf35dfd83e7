// SPDX-License-Identifier: Apache-2.0
#include "hevc/loop_filter.h"

#include "hevc/deblocking.h"
#include "hevc/loop_filter_reference.h"

namespace flexor::FLEXOR_ISA {
namespace {

using hevc::LoopFilterKernels;

// f(lanes, first line) over as many of the lines as fill vectors; returns how many.
template <int L = kLanes<int16_t>, class F>
FLEXOR_INLINE int for_lines(int lines, F f, int done = 0) {
  for (; lines - done >= L; done += L) f(std::integral_constant<int, L>{}, done);
  if constexpr (L > 8) return for_lines<L / 2>(lines, f, done);
  else return done;
}

template <int L>
FLEXOR_INLINE bool any_beta(const EdgeSegment* edges) {
  int beta = 0;
  for (int i = 0; i < L / 4; ++i) beta |= edges[i].beta;
  return beta != 0;
}

template <int L>
FLEXOR_INLINE bool any_tc(const EdgeSegment* edges, int length) {
  int tc = 0;
  for (int i = 0; i < L / length; ++i) tc |= edges[i].tc;
  return tc != 0;
}

template <int L>
FLEXOR_INLINE void luma_rows_of(uint16_t* q0, ptrdiff_t stride, const EdgeSegment* edges, int bit_depth) {
  using V = Shorts<L>;
  if (!any_beta<L>(edges)) return;
  const auto row = [=](int i) __attribute__((always_inline)) { return load<V>(q0 + i * stride); };
  Side<L> p{row(-1), row(-2), row(-3), row(-4)}, q{row(0), row(1), row(2), row(3)};
  const int changed = filter_luma<L>(p, q, edges, bit_depth);
  if (changed == 0) return;
  store(q0 - 2 * stride, p.x1);
  store(q0 - stride, p.x0);
  store(q0, q.x0);
  store(q0 + stride, q.x1);
  if (changed == 2) return;
  store(q0 - 3 * stride, p.x2);
  store(q0 + 2 * stride, q.x2);
}

// The 8 samples of a row fill 16 bytes: those bytes of 8 rows are transposed, and those of 8 more beside them.
template <int L>
FLEXOR_INLINE void luma_columns_of(uint16_t* q0, ptrdiff_t stride, const EdgeSegment* edges, int bit_depth) {
  if (!any_beta<L>(edges)) return;
  const auto row = [=](int i) __attribute__((always_inline)) { return q0 - 4 + i * stride; };
  Shorts<L> v[8];
  for (int i = 0; i < 8; ++i) v[i] = from_eights<L>(load<Shorts<8>>(row(i)), load<Shorts<8>>(row(i + L - 8)));
  rotate_places<3, 8, L>(v);
  Side<L> p{v[3], v[2], v[1], v[0]}, q{v[4], v[5], v[6], v[7]};
  if (filter_luma<L>(p, q, edges, bit_depth) == 0) return;
  Shorts<L> filtered[8] = {p.x3, p.x2, p.x1, p.x0, q.x0, q.x1, q.x2, q.x3};
  rotate_places<3, 8, L>(filtered);
  for (int i = 0; i < 8; ++i) {
    store(row(i), eight_of<0, L>(filtered[i]));
    if constexpr (L == 16) store(row(i + 8), eight_of<1, L>(filtered[i]));
  }
}

void luma_rows(uint16_t* q0, ptrdiff_t stride, int segments, const EdgeSegment* edges, int bit_depth) {
  const int done = for_lines(4 * segments, [=](auto lanes, int x) __attribute__((always_inline)) {
    luma_rows_of<decltype(lanes)::value>(q0 + x, stride, edges + x / 4, bit_depth);
  });
  reference::luma_rows(q0 + done, stride, segments - done / 4, edges + done / 4, bit_depth);
}

void luma_columns(uint16_t* q0, ptrdiff_t stride, int segments, const EdgeSegment* edges, int bit_depth) {
  const int done =
      for_lines<smaller(16, kLanes<int16_t>)>(4 * segments, [=](auto lanes, int y) __attribute__((always_inline)) {
        luma_columns_of<decltype(lanes)::value>(q0 + y * stride, stride, edges + y / 4, bit_depth);
      });
  reference::luma_columns(q0 + done * stride, stride, segments - done / 4, edges + done / 4, bit_depth);
}

template <int L>
FLEXOR_INLINE void chroma_rows_of(uint16_t* q0, ptrdiff_t stride, int length, const EdgeSegment* edges, int bit_depth) {
  using V = Shorts<L>;
  if (!any_tc<L>(edges, length)) return;
  V p = load<V>(q0 - stride), q = load<V>(q0);
  filter_chroma<L>(load<V>(q0 - 2 * stride), p, q, load<V>(q0 + stride), Tc<L>(edges, length), bit_depth);
  store(q0 - stride, p);
  store(q0, q);
}

// The 4 samples of two rows fill 16 bytes. Wider vectors take longer to fill than they save.
FLEXOR_INLINE void chroma_columns_of_8(uint16_t* q0, ptrdiff_t stride, int length, const EdgeSegment* edges,
                                       int bit_depth) {
  if (!any_tc<8>(edges, length)) return;
  uint16_t* const p1 = q0 - 2;
  Shorts<8> v[4];
  for (int i = 0; i < 4; ++i)
    v[i] =
        from_fours<8>([=](int j) __attribute__((always_inline)) { return load<int64_t>(p1 + (2 * i + j) * stride); });
  rotate_places<3, 4, 8>(v);
  filter_chroma<8>(v[0], v[1], v[2], v[3], Tc<8>(edges, length), bit_depth);
  rotate_places<2, 4, 8>(v);
  for (int i = 0; i < 8; ++i) store(p1 + i * stride, four_of<8>(v[i / 2], i % 2));
}

void chroma_rows(uint16_t* q0, ptrdiff_t stride, int segments, int length, const EdgeSegment* edges, int bit_depth) {
  const int done = for_lines(segments * length, [=](auto lanes, int x) __attribute__((always_inline)) {
    chroma_rows_of<decltype(lanes)::value>(q0 + x, stride, length, edges + x / length, bit_depth);
  });
  reference::chroma_rows(q0 + done, stride, segments - done / length, length, edges + done / length, bit_depth);
}

void chroma_columns(uint16_t* q0, ptrdiff_t stride, int segments, int length, const EdgeSegment* edges, int bit_depth) {
  const int done = for_lines<8>(segments * length, [=](auto, int y) __attribute__((always_inline)) {
    chroma_columns_of_8(q0 + y * stride, stride, length, edges + y / length, bit_depth);
  });
  reference::chroma_columns(q0 + done * stride, stride, segments - done / length, length, edges + done / length,
                            bit_depth);
}

template <int L>
FLEXOR_INLINE Shorts<L> table_of(Shorts<8> entries) {
  return from_fours<L>([=](int i) __attribute__((always_inline)) { return four_of<8>(entries, i % 2); });
}

// Where both bytes of 16-bit entry i of a table begin, for i from 0 to 7.
template <int L>
FLEXOR_INLINE Shorts<L> entry(Shorts<L> i) {
  return i * static_cast<int16_t>(0x0202) + static_cast<int16_t>(0x0100);
}

// out = clip(sample + offset(lanes, where the sample is)) over a picture area. The last vector of a row overlaps the
// one before it. False: too narrow for a vector.
template <int L = kLanes<int16_t>, class Offset>
FLEXOR_INLINE bool add_offsets(uint16_t* out, ptrdiff_t out_stride, const uint16_t* in, ptrdiff_t in_stride, int width,
                               int height, int bit_depth, Offset offset) {
  using V = Shorts<L>;
  if (width < L) {
    if constexpr (L == 8) return false;
    else return add_offsets<L / 2>(out, out_stride, in, in_stride, width, height, bit_depth, offset);
  }
  const V white = shorts<L>((1 << bit_depth) - 1);
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; x += L) {
      const int from = smaller(x, width - L);
      const uint16_t* s = in + y * in_stride + from;
      const V sample = load<V>(s);
      store(out + y * out_stride + from,
            clamp(add_saturated(sample, offset(std::integral_constant<int, L>{}, sample, s)), V{}, white));
    }
  return true;
}

void sao_band(uint16_t* out, ptrdiff_t out_stride, const uint16_t* in, ptrdiff_t in_stride, int width, int height,
              const int16_t band[32], int bit_depth) {
  // Bands with an offset are neighbours, four of them in a stream: a table of 8 from the first of them on.
  int first = 0;
  while (first < 31 && (band[first] == 0 || band[(first + 31) % 32] != 0)) ++first;
  Shorts<8> near;
  for (int i = 0; i < 8; ++i) near[i] = band[(first + i) % 32];
  bool far = false;
  for (int i = 8; i < 32; ++i) far |= band[(first + i) % 32] != 0;
  const int shift = bit_depth - 5;
  const bool done = !far && add_offsets(out, out_stride, in, in_stride, width, height, bit_depth,
                                        [=](auto lanes, auto sample, const uint16_t*) __attribute__((always_inline)) {
                                          constexpr int L = decltype(lanes)::value;
                                          const Shorts<L> i = ((sample >> shift) - static_cast<int16_t>(first)) & 31;
                                          // Entries from the eighth on become negative: no offset.
                                          const Shorts<L> beyond = (i > 7) & static_cast<int16_t>(0x8080);
                                          return look_up(table_of<L>(near), entry<L>(i) | beyond);
                                        });
  if (!done) reference::sao_band(out, out_stride, in, in_stride, width, height, band, bit_depth);
}

void sao_edge(uint16_t* out, ptrdiff_t out_stride, const uint16_t* in, ptrdiff_t in_stride, int width, int height,
              int direction, const int16_t offsets[5], int bit_depth) {
  const ptrdiff_t step = direction == 0 ? 1 : in_stride + (direction == 1 ? 0 : direction == 2 ? 1 : -1);
  const Shorts<8> by_signs{offsets[1], offsets[2], offsets[0], offsets[3], offsets[4]};
  const bool done = add_offsets(out, out_stride, in, in_stride, width, height, bit_depth,
                                [=](auto lanes, auto sample, const uint16_t* s) __attribute__((always_inline)) {
                                  constexpr int L = decltype(lanes)::value;
                                  using V = Shorts<L>;
                                  const V one = shorts<L>(1);
                                  const V signs = limit<L>(sample - load<V>(s - step), one) +
                                                  limit<L>(sample - load<V>(s + step), one);
                                  return look_up(table_of<L>(by_signs), entry<L>(signs + 2));
                                });
  if (!done) reference::sao_edge(out, out_stride, in, in_stride, width, height, direction, offsets, bit_depth);
}

}  // namespace

extern const LoopFilterKernels loop_filter_kernels{&luma_columns, &luma_rows, &chroma_columns,   &chroma_rows,
                                                   &sao_band,     &sao_edge,  &reference::narrow};

extern const LoopFilterKernels loop_filter_reference_kernels{
    &reference::luma_columns, &reference::luma_rows, &reference::chroma_columns, &reference::chroma_rows,
    &reference::sao_band,     &reference::sao_edge,  &reference::narrow};

}  // namespace flexor::FLEXOR_ISA
