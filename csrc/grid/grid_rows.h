// SPDX-License-Identifier: Apache-2.0
// What both directions of grid_conv share: which weights meet which cells, and rows of channels.
// Inside the grid the two branches read the same cells, so their weights are added first; only the pairs
// that cross a border are multiplied once a branch.
#pragma once
#include "core/gemm.h"
#include "core/rows.h"
#include "core/tasks.h"
#include "grid/grid_conv.h"

namespace flexor::FLEXOR_ISA {

// One set of weights, the sum of one or both branches, and the pairs (cell, source cell) that it meets.
struct WeightSet {
  bool first, second;    // branches in the sum
  bool inside, outside;  // pairs whose source lies in the grid, pairs that cross its border
  char border;
};

struct GridGeometry {
  explicit GridGeometry(const GridConvParams& p)
      : batch(p.input.size[0]),
        in_channels(p.input.size[1]),
        out_channels(p.weight1.size[0]),
        height(p.input.size[2]),
        width(p.input.size[3]),
        cells(height * width),
        kernel_h(p.weight1.size[2]),
        kernel_w(p.weight1.size[3]),
        taps(kernel_h * kernel_w) {
    const bool two = p.border2 != 0;
    if (!two || p.border1 == p.border2) {
      set[sets++] = {true, two, true, true, p.border1};
      return;
    }
    set[sets++] = {true, true, true, false, 'z'};
    if (p.border1 != 'z') set[first_set = sets++] = {true, false, false, true, p.border1};
    if (p.border2 != 'z') set[second_set = sets++] = {false, true, false, true, p.border2};
  }

  // The pairs of one set and tap; each cell occurs once at most.
  int64_t pairs(const WeightSet& of, int64_t tap, int64_t* cell, int64_t* source) const {
    const int64_t dy = tap / kernel_w - kernel_h / 2, dx = tap % kernel_w - kernel_w / 2;
    int64_t count = 0;
    for (int64_t y = 0; y < height; ++y) {
      const bool row_inside = y + dy >= 0 && y + dy < height;
      const int64_t source_y = resolve(y + dy, height, of.border);
      if (source_y < 0 || (!row_inside && !of.outside)) continue;
      for (int64_t x = 0; x < width; ++x) {
        const bool inside = row_inside && x + dx >= 0 && x + dx < width;
        const int64_t source_x = resolve(x + dx, width, of.border);
        if (source_x < 0 || !(inside ? of.inside : of.outside)) continue;
        cell[count] = y * width + x;
        source[count++] = source_y * width + source_x;
      }
    }
    return count;
  }

  int64_t batch, in_channels, out_channels, height, width, cells, kernel_h, kernel_w, taps;
  int sets = 0, first_set = -1, second_set = -1;  // of one branch alone, where there are any
  WeightSet set[3];

 private:
  static int64_t resolve(int64_t at, int64_t size, char border) {
    if (at >= 0 && at < size) return at;
    if (border == 'c') return ((at % size) + size) % size;
    return border == 'r' ? (at < 0 ? 0 : size - 1) : -1;
  }
};

// Rows that a product reads by broadcast: kChunk channels at a time, so that rows lie at a constant
// distance, and an odd number of cache lines apart.
constexpr int64_t kChunk = 128;
template <class T>
constexpr int64_t kRowStride = kChunk + 64 / static_cast<int64_t>(sizeof(T));

template <class T>
struct ChunkA {  // a(k, i) = p[i * kRowStride + k]
  static constexpr int kRun = kAnyRun;
  const T* p;
  FLEXOR_INLINE T at(int i) const { return p[i * kRowStride<T>]; }
  FLEXOR_INLINE void advance() { ++p; }
  FLEXOR_INLINE void end_run() {}
};

template <class T>
struct IndexedC {  // c(i, j) = p[offset[i] + j]
  T* p;
  const int64_t* offset;
  FLEXOR_INLINE T* at(int i, int j) const { return p + offset[i] + j; }
};

// f(first vector, vectors) for each panel of `vectors` vectors, as a compile-time number of vectors.
template <class Visit>
FLEXOR_INLINE void for_panels(int64_t vectors, Visit visit) {
  for (int64_t v = 0; v < vectors;) {
    const int nv = panel_vectors(vectors - v);
    switch (nv) {
      case 3: visit(v, std::integral_constant<int, 3>{}); break;
      case 2: visit(v, std::integral_constant<int, 2>{}); break;
      default: visit(v, std::integral_constant<int, 1>{}); break;
    }
    v += nv;
  }
}

// Cells of a sample as rows of channels: rows[cell][channel], zeros up to the stride.
template <class T>
inline void load_cells(const TensorView& view, int64_t sample, T* rows, int64_t stride, T* scratch) {
  const PlanePixels plane(view);
  const int64_t cells = view.size[2] * view.size[3], channels = view.size[1];
  for (int64_t cell = 0; cell < cells; ++cell)
    for (int64_t c = channels; c < stride; ++c) rows[cell * stride + c] = T(0);
  if (view.stride[1] == 1 && plane.flat) {
    for (int64_t cell = 0; cell < cells; ++cell)
      load_row(rows + cell * stride, view, plane.start(sample, 0, 0, cell), 1, channels);
    return;
  }
  if (view.dtype == kOwnDType<T> && plane.flat && view.stride[3] == 1)
    return transpose(static_cast<const T*>(view.data) + plane.start(sample, 0, 0, 0), view.stride[1], channels, cells,
                     rows, stride);
  constexpr int64_t L = kLanes<T>;
  for (int64_t c = 0; c < channels; c += L) {
    const int64_t n = smaller(L, channels - c);
    for (int64_t i = 0; i < n; ++i) plane.load(scratch + i * cells, sample, c + i, 0, cells);
    transpose(scratch, cells, n, cells, rows + c, stride);
  }
}

// The other way, for channels [first, first + channels); scratch holds kLanes planes.
template <class T>
inline void store_cells(const TensorView& view, int64_t sample, int64_t first, int64_t channels, const T* rows,
                        int64_t stride, T* scratch) {
  const PlanePixels plane(view);
  const int64_t cells = view.size[2] * view.size[3];
  if (view.stride[1] == 1 && plane.flat) {
    for (int64_t cell = 0; cell < cells; ++cell)
      store_row(view, plane.start(sample, first, 0, cell), 1, rows + cell * stride, channels);
    return;
  }
  if (view.dtype == kOwnDType<T> && plane.flat && view.stride[3] == 1)
    return transpose(rows, stride, cells, channels, static_cast<T*>(view.data) + plane.start(sample, first, 0, 0),
                     view.stride[1]);
  constexpr int64_t L = kLanes<T>;
  for (int64_t c = 0; c < channels; c += L) {
    const int64_t n = smaller(L, channels - c);
    transpose(rows + c, stride, cells, n, scratch, cells);
    for (int64_t i = 0; i < n; ++i) plane.store(scratch + i * cells, sample, first + c + i, 0, cells);
  }
}

// Attention of a sample: [tap][cell].
template <class T>
inline void load_attention(const TensorView& view, int64_t sample, T* attention) {
  const PlanePixels plane(view);
  const int64_t cells = view.size[2] * view.size[3];
  for (int64_t tap = 0; tap < view.size[1]; ++tap) plane.load(attention + tap * cells, sample, tap, 0, cells);
}

template <class T>
inline void store_attention(const TensorView& view, int64_t sample, const T* attention) {
  const PlanePixels plane(view);
  const int64_t cells = view.size[2] * view.size[3];
  for (int64_t tap = 0; tap < view.size[1]; ++tap) plane.store(attention + tap * cells, sample, tap, 0, cells);
}

// to[k] = from[k] * scale for k < n, in whole vectors
template <class T>
FLEXOR_INLINE void copy_scaled(const T* from, T scale, int64_t n, T* to) {
  const Vec<T> s = splat<Vec<T>>(scale);
  for (int64_t k = 0; k < n; k += kLanes<T>) store(to + k, load<Vec<T>>(from + k) * s);
}

}  // namespace flexor::FLEXOR_ISA
