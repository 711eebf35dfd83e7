// SPDX-License-Identifier: Apache-2.0
// Correlations as matrix products in the cache: out[row][pixel] = sum over steps A[row][step] * plane pixel.
// Rows are output channels, lanes are output pixels, a step is one tap of one channel. A tile of outputs
// either reads the planes where they lie, tap by tap, or columns that are copied together first.
#pragma once
#include "core/gemm.h"
#include "core/planes.h"
#include "core/tasks.h"

namespace flexor::FLEXOR_ISA {

// How the pixels of an output are cut into tiles: bands of whole rows, or pieces of one row.
struct Tiles {
  int64_t out_h = 0, out_w = 0;
  int64_t band = 1, piece = 1;  // rows and columns of a tile
  int64_t bands = 0, pieces = 0;
  int64_t pitch = 0;  // from row to row: that of the planes where they are read in place
  bool in_place = false;

  int64_t count() const { return bands * pieces; }
  int64_t y(int64_t tile) const { return tile / pieces * band; }
  int64_t x(int64_t tile) const { return tile % pieces * piece; }
  int64_t height(int64_t tile) const { return smaller(band, out_h - y(tile)); }
  int64_t width(int64_t tile) const { return smaller(piece, out_w - x(tile)); }
  int64_t span(int64_t tile) const { return span_of(height(tile), width(tile)); }
  int64_t span_of(int64_t h, int64_t w) const { return in_place ? (h - 1) * pitch + w : h * w; }
};

// The narrowest vector: half of one where two halves take no longer.
template <class T>
constexpr int64_t kLeast = kVectorBytes == 64 ? kLanes<T> / 2 : kLanes<T>;
constexpr int64_t kTileLanes = 240;  // most lanes of a tile
constexpr double kCopyCost = 6.0;    // of a vector of columns, in multiply-adds of a vector

// The cheaper cut for products of so many rows.
template <class T>
inline Tiles choose_tiles(int64_t out_h, int64_t out_w, const PlaneLayout& planes, int64_t rows) {
  constexpr int64_t L = kLanes<T>;
  Tiles best;
  double least = -1;
  for (int in_place = 0; in_place < 2; ++in_place) {
    Tiles t;
    t.out_h = out_h, t.out_w = out_w, t.in_place = in_place != 0;
    t.pieces = ceil_div(out_w, kTileLanes);
    t.piece = t.pieces == 1 ? out_w : round_up(ceil_div(out_w, t.pieces), L);
    t.pieces = ceil_div(out_w, t.piece);
    t.pitch = in_place ? planes.pitch : t.piece;
    const int64_t most = t.pieces > 1 ? 1 : larger<int64_t>(1, smaller(out_h, kTileLanes / t.pitch));
    for (t.band = 1; t.band <= most; ++t.band) {
      t.bands = ceil_div(out_h, t.band);
      const int64_t last = out_h - (t.bands - 1) * t.band;
      const int64_t lanes = (t.bands - 1) * round_up(t.span_of(t.band, t.piece), kLeast<T>) +
                            round_up(t.span_of(last, t.piece), kLeast<T>);
      const double vectors = static_cast<double>(lanes * t.pieces) / L;
      const double copies = in_place ? 0 : kCopyCost * static_cast<double>(out_h * t.pieces * ceil_div(t.piece, L));
      const double overhead = 0.25 * static_cast<double>(t.bands * t.pieces);  // of a tile
      const double cost = vectors + overhead + copies / static_cast<double>(rows);
      if (least < 0 || cost < least) least = cost, best = t;
    }
  }
  return best;
}

// acc[rows][lanes] (+)= packed A[steps / 16][all rows][16] times vectors at b + offset[step].
template <class T>
inline void multiply(const T* packed, int64_t rows, int64_t steps, const T* b, const int64_t* offset, int64_t span,
                     T* acc, int64_t lanes, bool add) {
  constexpr int64_t L = kLanes<T>;
  const int64_t halves = ceil_div(span, kLeast<T>), vectors = kLeast<T> < L ? halves / 2 : halves;
  if (vectors * L < span)
    for_slices(rows, [&](int64_t row, int height) __attribute__((always_inline)) {
      gemm_tall<T, 1, static_cast<int>(kLeast<T>)>(height, steps, BlockedA<T>{packed + row * kBlock, rows * kBlock},
                                                   IndexedB<T>{b + vectors * L, offset},
                                                   RowsC<T>{acc + row * lanes + vectors * L, lanes}, add);
    });
  for (int64_t v = 0; v < vectors;) {
    const int nv = panel_vectors(vectors - v);
    for_slices(rows, [&](int64_t row, int height) __attribute__((always_inline)) {
      const BlockedA<T> a{packed + row * kBlock, rows * kBlock};
      const IndexedB<T> from{b + v * L, offset};
      const RowsC<T> to{acc + row * lanes + v * L, lanes};
      switch (nv) {
        case 3: return gemm_tall<T, 3>(height, steps, a, from, to, add);
        case 2: return gemm_tall<T, 2>(height, steps, a, from, to, add);
        default: return gemm_tall<T, 1>(height, steps, a, from, to, add);
      }
    });
    v += nv;
  }
}

// One step of the columns of a tile: h rows of w pixels, `pitch` apart at src, together at dst; times scale.
// Whole vectors are stored, each over the tail of the row before: dst has room for one more.
template <class T>
FLEXOR_INLINE void copy_rows(const T* src, int64_t pitch, int64_t h, int64_t w, T scale, T* dst) {
  constexpr int64_t L = kLanes<T>;
  const Vec<T> s = splat<Vec<T>>(scale);
  if (w <= L) {
    for (int64_t y = 0; y < h; ++y, src += pitch, dst += w) store(dst, load<Vec<T>>(src) * s);
    return;
  }
  for (int64_t y = 0; y < h; ++y, src += pitch, dst += w)
    for (int64_t x = 0; x < w; x += L) store(dst + x, load<Vec<T>>(src + x) * s);
}

// Where a tile of acc goes: pixel (y, x) to (first_h + y * step_h, first_w + x * step_w) of the view.
struct OutputGrid {
  int64_t first_h = 0, first_w = 0, step_h = 1, step_w = 1;
};

// Rows of acc to channels c, c + 1, ... of image n: tile rows lie `pitch` apart from `acc` on.
template <class T>
inline void store_rows(const TensorView& view, const OutputGrid& grid, int64_t n, int64_t c, int64_t rows, int64_t y0,
                       int64_t x0, int64_t h, int64_t w, const T* acc, int64_t lanes, int64_t pitch) {
  const int64_t x_stride = view.stride[3] * grid.step_w;
  const bool channels_together = view.stride[1] == 1 && x_stride > 1 && view.dtype == kOwnDType<T>;
  if (pitch == w && grid.step_h * view.stride[2] == w * x_stride) w *= h, h = 1;  // all rows are one
  for (int64_t y = 0; y < h; ++y) {
    const int64_t start = n * view.stride[0] + c * view.stride[1] +
                          (grid.first_h + (y0 + y) * grid.step_h) * view.stride[2] +
                          (grid.first_w + x0 * grid.step_w) * view.stride[3];
    const T* src = acc + y * pitch;
    if (channels_together) {
      transpose(src, lanes, rows, w, static_cast<T*>(view.data) + start, x_stride);
      continue;
    }
    for (int64_t r = 0; r < rows; ++r) store_row(view, start + r * view.stride[1], x_stride, src + r * lanes, w);
  }
}

}  // namespace flexor::FLEXOR_ISA
