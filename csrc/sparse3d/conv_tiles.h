// SPDX-License-Identifier: Apache-2.0
// Tiles of a convolution as tasks: begun with the bias, multiplied, finished and stored to the rows they belong to.
#pragma once
#include "sparse3d/packed_weight.h"
#include "sparse3d/sparse_conv.h"

namespace flexor::FLEXOR_ISA {

// Few tiles are cut by channels too, so that every thread has some.
constexpr int64_t kEnoughTiles = 64;

template <class A>
struct ConvTiles {
  using T = typename A::Sum;
  const MapView& map;
  const PairShape<T> shape;
  const TileProduct<A> product;
  const TensorView& output;  // its rows in the order of map.out_order
  const TensorView *bias, *residual;
  bool identity;  // of the order
  bool activate;
  T slope;

  void run() const {
    const int64_t panels = shape.panels(), parts = map.tiles < kEnoughTiles ? panels : 1;
    parallel_for(map.tiles * parts, [&](int64_t task) {
      const int64_t part = task % parts;
      run_tile(task / parts, panels * part / parts, panels * (part + 1) / parts);
    });
  }

 private:
  void run_tile(int64_t tile, int64_t first_panel, int64_t last_panel) const {
    T* sums = static_cast<T*>(thread_workspace(static_cast<size_t>(product.workspace() + shape.row()) * sizeof(T)));
    T* line = sums + product.workspace();
    const int64_t first = tile * kTileRows, rows = smaller<int64_t>(kTileRows, map.n_out - first);
    begin_tile(sums, line, rows);
    product.add(tile, first_panel, last_panel, sums);
    for_panels(first_panel, last_panel, [&](int64_t channel, int64_t count, int64_t at) {
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t to = identity ? first + r : map.out_order[first + r];
        if (!identity && r + kRowsAhead < rows) prefetch_row<1>(output, map.out_order[first + r + kRowsAhead]);
        finish(sums + r * shape.row() + at, line, to, channel, count);
        store_row(output, to * output.stride[0] + channel * output.stride[1], output.stride[1],
                  sums + r * shape.row() + at, count);
      }
    });
  }

  // Runs of output channels that are side by side: visit(first channel, channels, their place in a row of sums).
  template <class Visit>
  FLEXOR_INLINE void for_panels(int64_t first, int64_t last, Visit visit) const {
    if (shape.depthwise()) return visit(0, shape.groups, 0);
    int64_t number = 0;
    for (int64_t group = 0; group < shape.groups; ++group) {
      int64_t begin = -1, end = 0;
      for (int64_t vector = 0; vector < shape.vectors; ++number) {
        const int width = pair_panel(shape.vectors - vector);
        if (number >= first && number < last) {
          if (begin < 0) begin = vector * kLanes<T>;
          end = smaller((vector + width) * kLanes<T>, shape.outputs);
        }
        vector += width;
      }
      if (begin >= 0) visit(group * shape.outputs + begin, end - begin, group * shape.width + begin);
    }
  }

  void begin_tile(T* sums, T* line, int64_t rows) const {
    for (int64_t c = 0; c < shape.row(); ++c) line[c] = T(0);
    if (bias != nullptr && *bias) {
      if (shape.depthwise()) {
        load_row(line, *bias, 0, bias->stride[0], shape.groups);
      } else {
        for (int64_t g = 0; g < shape.groups; ++g)
          load_row(line + g * shape.width, *bias, g * shape.outputs * bias->stride[0], bias->stride[0], shape.outputs);
      }
    }
    for (int64_t r = 0; r < rows; ++r)
      __builtin_memcpy(sums + r * shape.row(), line, static_cast<size_t>(shape.row()) * sizeof(T));
  }

  FLEXOR_INLINE void finish(T* sums, T* line, int64_t row, int64_t channel, int64_t count) const {
    if (residual != nullptr && *residual) {
      load_row(line, *residual, row * residual->stride[0] + channel * residual->stride[1], residual->stride[1], count);
      for (int64_t c = 0; c < count; ++c) sums[c] += line[c];
    }
    if (activate)
      for (int64_t c = 0; c < count; ++c)
        sums[c] = sums[c] > T(0) ? sums[c] : (sums[c] != sums[c] ? sums[c] : slope * sums[c]);
  }
};

}  // namespace flexor::FLEXOR_ISA
