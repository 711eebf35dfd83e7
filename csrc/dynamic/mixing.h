// SPDX-License-Identifier: Apache-2.0
// Weights that are mixed for every image, and their correlation with its planes. Weights are mixed a tile
// at a time while they are packed, so that no image's weights are ever stored.
#pragma once
#include "core/correlate.h"
#include "dynamic/window.h"

namespace flexor::FLEXOR_ISA {

// Weights [kernels][groups * outputs][inputs][taps] and what scales them for image b, all contiguous:
// filter[b][output] * sum over i of kernel[b][i] * weights[i] * channel[b][input] * spatial[b][tap].
template <class T>
struct Mixture {
  const T* weights;
  int64_t kernels, kernel_size;  // kernel_size: from one kernel to the next
  int64_t image_size;            // from one image's kernels to the next, 0 where all share them
  int64_t groups, outputs, inputs, taps;
  bool scaled;  // or all of the following are ones
  const T *filter, *channel, *spatial, *kernel;
  const T* scale;  // [B][groups][inputs][taps]: channel times spatial
  const T* ones;   // as many as a group's scales, filters or kernels

  int64_t row() const { return inputs * taps; }
  const T* weights_of(int64_t b) const { return weights + b * image_size; }
  const T* kernel_of(int64_t b) const { return scaled ? kernel + b * kernels : ones; }
  const T* spatial_of(int64_t b) const { return scaled ? spatial + b * taps : ones; }
  const T* filter_of(int64_t b, int64_t group) const { return scaled ? filter + (b * groups + group) * outputs : ones; }
  const T* channel_of(int64_t b, int64_t group) const {
    return scaled ? channel + (b * groups + group) * inputs : ones;
  }
  const T* scale_of(int64_t b, int64_t group) const { return scaled ? scale + (b * groups + group) * row() : ones; }
};

// Sixteen steps of a row go to dst, the next sixteen `apart` further on: factor * sum of a[i] * w[i * stride + j],
// then * scale[j], for j < n; zeros up to whole blocks.
template <class T, int N>
inline void mix_some(const T* w, int64_t stride, const T* a, T factor, const T* scale, int64_t n, T* dst,
                     int64_t apart) {
  constexpr int L = kLanes<T>;
  using V = Vec<T>;
  V c[N];
  unroll<N>([&](auto i) __attribute__((always_inline)) { c[i] = splat<V>(a[i] * factor); });
  int64_t j = 0;
  for (; j + kBlock <= n; j += kBlock, dst += apart)
    unroll<kBlock / L>([&](auto u) __attribute__((always_inline)) {
      V v = load<V>(w + j + u * L) * c[0];
      unroll<N - 1>([&](auto i)
                        __attribute__((always_inline)) { v += load<V>(w + (i + 1) * stride + j + u * L) * c[i + 1]; });
      store(dst + u * L, v * load<V>(scale + j + u * L));
    });
  if (j == n) return;
  for (int64_t u = 0; u < kBlock; ++u) {
    T v = T(0);
    if (j + u < n) {
      for (int i = 0; i < N; ++i) v += w[i * stride + j + u] * c[i][0];
      v *= scale[j + u];
    }
    dst[u] = v;
  }
}

template <class T>
inline void mix(const T* w, int64_t stride, int64_t kernels, const T* a, T factor, const T* scale, int64_t n, T* dst,
                int64_t apart) {
  switch (kernels) {
    case 1: return mix_some<T, 1>(w, stride, a, factor, scale, n, dst, apart);
    case 2: return mix_some<T, 2>(w, stride, a, factor, scale, n, dst, apart);
    case 3: return mix_some<T, 3>(w, stride, a, factor, scale, n, dst, apart);
    case 4: return mix_some<T, 4>(w, stride, a, factor, scale, n, dst, apart);
    default: break;
  }
  for (int64_t j = 0; j < n; j += kBlock, dst += apart)
    for (int64_t u = 0; u < kBlock; ++u) {
      T v = T(0);
      if (j + u < n) {
        for (int64_t i = 0; i < kernels; ++i) v += w[i * stride + j + u] * a[i];
        v *= factor * scale[j + u];
      }
      dst[u] = v;
    }
}

// Which of the taps a correlation has, and where they lie in the planes.
struct TapList {
  int64_t count;
  const int64_t* tap;     // its number in the weights
  const int64_t* offset;  // in a plane
};

// Forward: rows are outputs, steps are [input][tap] as the weights lie, padded to whole blocks.
template <class T>
struct ForwardRows {
  const Mixture<T>& m;
  TapList taps;

  int64_t rows() const { return m.outputs; }
  int64_t sources() const { return m.inputs; }
  int64_t steps() const { return round_up(m.row(), kBlock); }
  int64_t step_unit() const { return kBlock; }
  int64_t source(int64_t step) const { return step / m.taps; }  // m.inputs or more: a step of padding
  int64_t tap_offset(int64_t step) const { return taps.offset[step % m.taps]; }
  static int64_t scratch(int64_t) { return 0; }

  // What a column is scaled by where weights are not mixed, and a row of the result then.
  T column_scale(int64_t b, int64_t group, int64_t step) const {
    return step < m.row() ? m.scale_of(b, group)[step] : T(0);
  }
  T row_scale(int64_t b, int64_t group, int64_t row) const { return m.filter_of(b, group)[row]; }

  // A[steps / 16][rows][16] of some rows and steps.
  void pack(const T* weights, int64_t kernels, const T* a, const T* filter, const T* scale, int64_t group, int64_t row,
            int64_t rows, int64_t step, int64_t steps, T*, T* packed) const {
    const int64_t n = smaller(steps, m.row() - step);
    for (int64_t r = 0; r < rows; ++r) {
      const T* w = weights + (group * m.outputs + row + r) * m.row() + step;
      mix(w, m.kernel_size, kernels, a, filter[row + r], scale + step, n, packed + r * kBlock, rows * kBlock);
    }
  }
};

// Backward: rows are inputs, steps are [output / 16][tap][output % 16].
template <class T>
struct BackwardRows {
  const Mixture<T>& m;
  TapList taps;

  int64_t rows() const { return m.inputs; }
  int64_t sources() const { return m.outputs; }
  int64_t steps() const { return ceil_div(m.outputs, kBlock) * step_unit(); }
  int64_t step_unit() const { return kBlock * taps.count; }
  int64_t source(int64_t step) const { return step / step_unit() * kBlock + step % kBlock; }
  int64_t tap_offset(int64_t step) const { return taps.offset[step % step_unit() / kBlock]; }
  int64_t scratch(int64_t rows) const { return kBlock * (round_up(smaller(rows * m.taps, kStrip), kBlock) + kBlock); }

  T column_scale(int64_t b, int64_t group, int64_t step) const {
    const int64_t o = source(step), tap = taps.tap[step % step_unit() / kBlock];
    return o < m.outputs ? m.filter_of(b, group)[o] * m.spatial_of(b)[tap] : T(0);
  }
  T row_scale(int64_t b, int64_t group, int64_t row) const { return m.channel_of(b, group)[row]; }

  void pack(const T* weights, int64_t kernels, const T* a, const T* filter, const T* scale, int64_t group, int64_t row,
            int64_t rows, int64_t step, int64_t steps, T* scratch, T* packed) const {
    for (int64_t k = 0; k < steps; k += step_unit()) {
      const int64_t o0 = (step + k) / step_unit() * kBlock, outputs = smaller<int64_t>(kBlock, m.outputs - o0);
      for (int64_t first = 0; first < rows * m.taps; first += kStrip) {
        const int64_t n = smaller(kStrip, rows * m.taps - first), pitch = round_up(n, kBlock) + kBlock;
        for (int64_t o = 0; o < kBlock; ++o) {
          T* line = scratch + o * pitch;
          if (o < outputs) {
            const T* w = weights + (group * m.outputs + o0 + o) * m.row() + row * m.taps + first;
            mix(w, m.kernel_size, kernels, a, filter[o0 + o], scale + row * m.taps + first, n, line, kBlock);
          } else {
            for (int64_t j = 0; j < round_up(n, kBlock); ++j) line[j] = T(0);
          }
        }
        spread(scratch, pitch, first, n, rows, packed + k * rows);
      }
    }
  }

 private:
  static constexpr int64_t kStrip = 256;

  // Lines of 16 outputs over [row][tap] to vectors of outputs at [tap][row].
  void spread(const T* lines, int64_t pitch, int64_t first, int64_t n, int64_t rows, T* packed) const {
    constexpr int64_t L = kLanes<T>;
    T square[kBlock * kBlock];
    for (int64_t j = 0; j < n; j += kBlock) {
      for (int64_t u = 0; u < kBlock; u += L)
        for (int64_t v = 0; v < kBlock; v += L)
          transpose_square<T, L>(lines + u * pitch + j + v, pitch, square + v * kBlock + u, kBlock);
      for (int64_t i = 0; i < smaller<int64_t>(kBlock, n - j); ++i) {
        const int64_t at = first + j + i, slot = slot_of(at % m.taps);
        if (slot < 0) continue;
        T* dst = packed + (slot * rows + at / m.taps) * kBlock;
        for (int64_t u = 0; u < kBlock; u += L) store(dst + u, load<Vec<T>>(square + i * kBlock + u));
      }
    }
  }

  int64_t slot_of(int64_t tap) const {
    if (taps.count == m.taps) return tap;
    for (int64_t i = 0; i < taps.count; ++i)
      if (taps.tap[i] == tap) return i;
    return -1;
  }
};

// Backward for few outputs: steps are [tap][output] without gaps.
template <class T>
struct TightBackwardRows {
  const Mixture<T>& m;
  TapList taps;

  int64_t rows() const { return m.inputs; }
  int64_t sources() const { return m.outputs; }
  int64_t steps() const { return round_up(taps.count * m.outputs, kBlock); }
  int64_t step_unit() const { return kBlock; }
  int64_t source(int64_t step) const { return step < taps.count * m.outputs ? step % m.outputs : m.outputs; }
  int64_t tap_offset(int64_t step) const { return taps.offset[step / m.outputs % taps.count]; }
  static int64_t scratch(int64_t) { return 0; }

  T column_scale(int64_t b, int64_t group, int64_t step) const {
    const int64_t o = source(step);
    return o < m.outputs ? m.filter_of(b, group)[o] * m.spatial_of(b)[taps.tap[step / m.outputs]] : T(0);
  }
  T row_scale(int64_t b, int64_t group, int64_t row) const { return m.channel_of(b, group)[row]; }

  void pack(const T* weights, int64_t kernels, const T* a, const T* filter, const T* scale, int64_t group, int64_t row,
            int64_t rows, int64_t step, int64_t steps, T*, T* packed) const {
    for (int64_t k = 0; k < steps; ++k) {
      const int64_t o = source(step + k);
      T* dst = packed + k / kBlock * rows * kBlock + k % kBlock;
      for (int64_t r = 0; r < rows; ++r) {
        T v = T(0);
        if (o < m.outputs) {
          const int64_t j = (row + r) * m.taps + taps.tap[(step + k) / m.outputs];
          const T* w = weights + (group * m.outputs + o) * m.row() + j;
          for (int64_t i = 0; i < kernels; ++i) v += w[i * m.kernel_size] * a[i];
          v *= filter[o] * scale[j];
        }
        dst[r * kBlock] = v;
      }
    }
  }
};

// One correlation of a batch: out[b][group][row] = mixed rows times the planes of b.
template <class T, class Rows>
class MixedCorrelation {
 public:
  // run() takes, for every image from first_image on and every group, the planes of its sources and one of
  // zeros, for steps of padding.
  MixedCorrelation(const Mixture<T>& mixture, const Rows& rows, const PlaneLayout& layout, int64_t out_h, int64_t out_w,
                   int64_t images, int64_t planes_a_group)
      : m_(mixture), rows_(rows), layout_(layout), images_(images), planes_a_group_(planes_a_group) {
    const int64_t pixels = out_h * out_w;
    wide_ = smaller(rows_.rows(), kWideRows);
    tiles_ = choose_tiles<T>(out_h, out_w, layout, wide_);
    choose_static(pixels);
    if (static_) {
      tiles_.in_place = false, tiles_.band = out_h, tiles_.piece = out_w, tiles_.bands = tiles_.pieces = 1;
    }
    lanes_ = lanes_of(tiles_.span_of(tiles_.band, tiles_.piece));
    cut();
  }

  void run(const T* planes, int64_t first_image, const TensorView& output, const OutputGrid& grid) const {
    SharedBuffer shared((rows_.steps() + step_chunk_) * sizeof(int64_t));
    int64_t* offset = shared.as<int64_t>();
    for (int64_t k = 0; k < rows_.steps(); ++k)
      offset[k] = smaller(rows_.source(k), rows_.sources()) * layout_.size() + rows_.tap_offset(k);
    int64_t* packed_offset = offset + rows_.steps();
    for (int64_t k = 0; k < step_chunk_; ++k) packed_offset[k] = k * set_lanes_;
    const int64_t sets = ceil_div(images_, set_images_), cuts = ceil_div(tiles_.count(), set_tiles_);
    parallel_for(m_.groups * row_tiles_ * sets * cuts, [&](int64_t task) {
      Part p;
      p.tile = task % cuts * set_tiles_, p.tiles = smaller(set_tiles_, tiles_.count() - p.tile);
      p.image = task / cuts % sets * set_images_, p.images = smaller(set_images_, images_ - p.image);
      p.row = task / cuts / sets % row_tiles_ * row_chunk_, p.rows = smaller(row_chunk_, rows_.rows() - p.row);
      p.group = task / cuts / sets / row_tiles_;
      p.first_image = first_image, p.planes = planes, p.offset = offset, p.packed_offset = packed_offset;
      p.acc = static_cast<T*>(thread_workspace(workspace_ * sizeof(T)));
      p.packed = p.acc + acc_size_, p.scratch = p.packed + row_chunk_ * step_chunk_;
      p.columns = p.scratch + rows_.scratch(row_chunk_);
      if (static_) run_static(p);
      else run_mixed(p);
      store(p, output, grid);
    });
  }

 private:
  static constexpr int64_t kWideRows = 128, kNarrowRows = 64;
  static constexpr int64_t kWeights = 18432;        // elements of a tile of mixed weights
  static constexpr int64_t kSlice = 12288;          // of the kernels' and the mixed weights of a slice of rows
  static constexpr int64_t kColumns = 81920;        // of the columns of the images that share a slice
  static constexpr int64_t kAccumulators = 114688;  // elements of results that a task collects

  struct Part {
    int64_t group, row, rows, image, images, tile, tiles, first_image;
    const T* planes;
    const int64_t *offset, *packed_offset;
    T *acc, *packed, *scratch, *columns;
  };

  // Columns and results of a tile, a row of them: never a multiple of 2 KiB, which would fall on few cache sets.
  static int64_t lanes_of(int64_t span) {
    const int64_t lanes = round_up(span, kLanes<T>);
    return lanes % 128 == 0 ? lanes + kLanes<T> : lanes;
  }

  // Small outputs waste lanes image by image: then all images share the columns and scale them instead,
  // at the price of every kernel being multiplied.
  void choose_static(int64_t pixels) {
    constexpr double L = kLanes<T>;
    static_ = false;
    if (m_.image_size != 0 || images_ < 2 || pixels > kTileLanes / 2) return;
    const double n = static_cast<double>(m_.kernels), b = static_cast<double>(images_);
    const double mixed = static_cast<double>(round_up(pixels, kLeast<T>)) / L + (n + 3) / L;
    const double fixed = n * (static_cast<double>(round_up(images_ * pixels, kLeast<T>)) / L / b + 4 / L / b);
    static_ = fixed < mixed;
  }

  void cut() {
    const int64_t image_lanes = static_ ? tiles_.span_of(tiles_.band, tiles_.piece) : tiles_.count() * lanes_;
    const int64_t some = smaller<int64_t>(images_, 8);
    const int64_t most_rows =
        image_lanes * smaller<int64_t>(some, 4) * kWideRows <= kAccumulators ? kWideRows : kNarrowRows;
    row_tiles_ = ceil_div(rows_.rows(), most_rows);
    row_chunk_ = smaller(rows_.rows(), round_up(ceil_div(rows_.rows(), row_tiles_), kTallRows));
    row_tiles_ = ceil_div(rows_.rows(), row_chunk_);
    const int64_t unit = rows_.step_unit();
    step_chunk_ = smaller(rows_.steps(), larger<int64_t>(1, kWeights / row_chunk_ / unit) * unit);
    const int64_t fit = larger<int64_t>(1, kAccumulators / row_chunk_);  // lanes of results
    set_images_ = smaller(images_, larger<int64_t>(1, fit / image_lanes));
    if (static_) set_images_ = smaller(set_images_, larger<int64_t>(1, 2 * kTileLanes / image_lanes));
    set_tiles_ = static_ ? 1 : smaller(tiles_.count(), larger<int64_t>(1, fit / lanes_));
    if (set_images_ > 1) set_tiles_ = tiles_.count();
    share_out();
    set_lanes_ = static_ ? lanes_of(set_images_ * image_lanes) : lanes_;
    acc_size_ = row_chunk_ * (static_ ? set_lanes_ : set_images_ * set_tiles_ * lanes_) + kLanes<T>;
    held_images_ =
        static_ || tiles_.in_place ? set_images_ : smaller(set_images_, larger<int64_t>(1, kColumns / image_columns()));
    slice_rows_ = larger<int64_t>(kTallRows, kSlice / (m_.kernels + 1) / step_chunk_ / kTallRows * kTallRows);
    const int64_t columns = tiles_.in_place ? 0 : static_ ? step_chunk_ * set_lanes_ : held_images_ * image_columns();
    workspace_ = acc_size_ + row_chunk_ * step_chunk_ + rows_.scratch(row_chunk_) + columns + 4 * kLanes<T>;
  }

  // Work for every thread, where there are few images and tiles; what is computed stays the same.
  void share_out() {
    const int64_t parts = m_.groups * row_tiles_, threads = max_threads();
    while (set_images_ > 1 && parts * ceil_div(images_, set_images_) < threads) set_images_ = ceil_div(set_images_, 2);
    while (set_tiles_ > 1 && parts * ceil_div(images_, set_images_) * ceil_div(tiles_.count(), set_tiles_) < threads)
      set_tiles_ = ceil_div(set_tiles_, 2);
  }

  const T* planes_of(const Part& p, int64_t b) const {
    return p.planes + ((p.image + b) * m_.groups + p.group) * planes_a_group_ * layout_.size();
  }

  void pack(const Part& p, int64_t b, int64_t row, int64_t rows, int64_t step, int64_t steps) const {
    const int64_t image = p.first_image + p.image + b;
    rows_.pack(m_.weights_of(image), m_.kernels, m_.kernel_of(image), m_.filter_of(image, p.group),
               m_.scale_of(image, p.group), p.group, p.row + row, rows, step, steps, p.scratch, p.packed);
  }

  // A slice of rows is mixed for one image after the other while the kernels' weights are near.
  void run_mixed(const Part& p) const {
    for (int64_t step = 0; step < rows_.steps(); step += step_chunk_) {
      const int64_t steps = smaller(step_chunk_, rows_.steps() - step);
      for (int64_t first = 0; first < p.images; first += held_images_) {
        const int64_t images = smaller(held_images_, p.images - first);
        if (!tiles_.in_place)
          for (int64_t b = 0; b < images; ++b) copy_columns(p, first + b, step, steps, p.columns + b * image_columns());
        for (int64_t row = 0; row < p.rows; row += slice_rows_) {
          const int64_t rows = smaller(slice_rows_, p.rows - row);
          for (int64_t b = 0; b < images; ++b) {
            pack(p, first + b, row, rows, step, steps);
            multiply_tiles(p, first + b, row, rows, step, steps, p.columns + b * image_columns());
          }
        }
      }
    }
  }

  int64_t image_columns() const { return set_tiles_ * step_chunk_ * lanes_; }

  void copy_columns(const Part& p, int64_t b, int64_t step, int64_t steps, T* columns) const {
    for (int64_t t = 0; t < p.tiles; ++t, columns += step_chunk_ * lanes_) {
      const int64_t h = tiles_.height(p.tile + t), w = tiles_.width(p.tile + t);
      const T* source = tile_source(p, b, p.tile + t);
      for (int64_t k = 0; k < steps; ++k)
        copy_rows(source + p.offset[step + k], layout_.pitch, h, w, T(1), columns + k * lanes_);
    }
  }

  const T* tile_source(const Part& p, int64_t b, int64_t tile) const {
    return planes_of(p, b) + tiles_.y(tile) * layout_.pitch + tiles_.x(tile);
  }

  void multiply_tiles(const Part& p, int64_t b, int64_t row, int64_t rows, int64_t step, int64_t steps,
                      const T* columns) const {
    for (int64_t t = 0; t < p.tiles; ++t) {
      T* acc = p.acc + ((b * set_tiles_ + t) * row_chunk_ + row) * lanes_;
      const int64_t span = tiles_.span(p.tile + t);
      if (tiles_.in_place)
        multiply(p.packed, rows, steps, tile_source(p, b, p.tile + t), p.offset + step, span, acc, lanes_, step > 0);
      else
        multiply(p.packed, rows, steps, columns + t * step_chunk_ * lanes_, p.packed_offset, span, acc, lanes_,
                 step > 0);
    }
  }

  void run_static(const Part& p) const {
    const int64_t h = tiles_.out_h, w = tiles_.out_w, pixels = h * w;
    const T one = T(1);
    bool add = false;
    for (int64_t i = 0; i < m_.kernels; ++i)
      for (int64_t step = 0; step < rows_.steps(); step += step_chunk_) {
        const int64_t steps = smaller(step_chunk_, rows_.steps() - step);
        rows_.pack(m_.weights + i * m_.kernel_size, 1, &one, m_.ones, m_.ones, p.group, p.row, p.rows, step, steps,
                   p.scratch, p.packed);
        for (int64_t k = 0; k < steps; ++k)
          for (int64_t b = 0; b < p.images; ++b) {
            const int64_t image = p.first_image + p.image + b;
            const T scale = rows_.column_scale(image, p.group, step + k) * m_.kernel_of(image)[i];
            copy_rows(planes_of(p, b) + p.offset[step + k], layout_.pitch, h, w, scale,
                      p.columns + k * set_lanes_ + b * pixels);
          }
        multiply(p.packed, p.rows, steps, p.columns, p.packed_offset, p.images * pixels, p.acc, set_lanes_, add);
        add = true;
      }
    for (int64_t r = 0; r < p.rows; ++r)
      for (int64_t b = 0; b < p.images; ++b) {
        const T scale = rows_.row_scale(p.first_image + p.image + b, p.group, p.row + r);
        T* line = p.acc + r * set_lanes_ + b * pixels;
        for (int64_t x = 0; x < pixels; ++x) line[x] *= scale;
      }
  }

  void store(const Part& p, const TensorView& output, const OutputGrid& grid) const {
    const int64_t channel = p.group * rows_.rows() + p.row;
    for (int64_t b = 0; b < p.images; ++b)
      for (int64_t t = 0; t < p.tiles; ++t) {
        const int64_t tile = p.tile + t;
        const T* acc = p.acc + (static_ ? b * tiles_.out_h * tiles_.out_w : (b * set_tiles_ + t) * lanes_ * row_chunk_);
        store_rows(output, grid, p.first_image + p.image + b, channel, p.rows, tiles_.y(tile), tiles_.x(tile),
                   tiles_.height(tile), tiles_.width(tile), acc, set_lanes_,
                   tiles_.in_place ? layout_.pitch : tiles_.width(tile));
      }
  }

  const Mixture<T>& m_;
  Rows rows_;
  PlaneLayout layout_;
  int64_t images_, planes_a_group_;
  Tiles tiles_;
  bool static_ = false;
  int64_t wide_, lanes_, set_lanes_ = 0;
  int64_t row_chunk_ = 0, row_tiles_ = 0, step_chunk_ = 0, set_images_ = 0, set_tiles_ = 0;
  int64_t held_images_ = 0, slice_rows_ = 0;
  int64_t acc_size_ = 0, workspace_ = 0;
};

// Images a time, so that their planes are few enough to hold.
inline int64_t images_at_once(int64_t batch, int64_t image_size) {
  return smaller(batch, larger<int64_t>(1, kPlanes / image_size));
}

// output = the correlation of input with every image's mixed weights
template <class T>
inline void mixed_forward(const Mixture<T>& m, const Window& window, const TensorView& input,
                          const TensorView& output) {
  const int64_t batch = output.size[0], out_h = output.size[2], out_w = output.size[3];
  const PlaneLayout layout = forward_layout(window, out_h, out_w);
  SharedBuffer taps(m.taps * sizeof(int64_t));
  forward_offsets(window, layout, taps.as<int64_t>());
  const ForwardRows<T> rows{m, {m.taps, nullptr, taps.as<int64_t>()}};
  using Pass = MixedCorrelation<T, ForwardRows<T>>;
  const int64_t planes = m.inputs + (m.row() % kBlock == 0 ? 0 : 1), image_size = m.groups * planes * layout.size();
  const int64_t images = images_at_once(batch, image_size);
  SharedBuffer buffer((images * image_size + 4 * kLanes<T>)*sizeof(T));
  for (int64_t first = 0; first < batch; first += images) {
    const int64_t count = smaller(images, batch - first);
    fill_images(layout, input, first, count, m.groups, planes, buffer.as<T>());
    Pass(m, rows, layout, out_h, out_w, count, planes).run(buffer.as<T>(), first, output, OutputGrid{});
  }
}

// grad_input = the correlation of grad_output with the mixed weights turned round, a phase of the stride at a time
template <class T, class Rows>
inline void mixed_backward_with(const Mixture<T>& m, const Window& window, const TensorView& grad_output,
                                const TensorView& grad_input) {
  const InputAxis rows(grad_input.size[2], window.kernel_h, window.stride_h, window.pad_h, window.dilation_h);
  const InputAxis columns(grad_input.size[3], window.kernel_w, window.stride_w, window.pad_w, window.dilation_w);
  PlaneLayout layout;
  layout.origin_h = rows.least, layout.origin_w = columns.least, layout.rows = rows.extent,
  layout.pitch = columns.extent;
  SharedBuffer lists((2 * m.taps + 2 * window.kernel_h + 2 * window.kernel_w) * sizeof(int64_t));
  int64_t *tap = lists.as<int64_t>(), *offset = tap + m.taps, *room_h = offset + m.taps,
          *room_w = room_h + 2 * window.kernel_h;
  using Pass = MixedCorrelation<T, Rows>;
  const int64_t planes = m.outputs + 1, batch = grad_input.size[0], image_size = m.groups * planes * layout.size();
  const int64_t images = images_at_once(batch, image_size);
  SharedBuffer buffer((images * image_size + 4 * kLanes<T>)*sizeof(T));
  for (int64_t first = 0; first < batch; first += images) {
    const int64_t count = smaller(images, batch - first);
    fill_images(layout, grad_output, first, count, m.groups, planes, buffer.as<T>());
    for (int64_t y = 0; y < rows.phases(); ++y)
      for (int64_t x = 0; x < columns.phases(); ++x) {
        const AxisTaps v = rows.taps(y, room_h), h = columns.taps(x, room_w);
        if (v.count * h.count == 0) {
          if (first == 0) clear_positions(grad_input, y, window.stride_h, x, window.stride_w);
          continue;
        }
        for (int64_t i = 0; i < v.count; ++i)
          for (int64_t j = 0; j < h.count; ++j) {
            tap[i * h.count + j] = v.tap[i] * window.kernel_w + h.tap[j];
            offset[i * h.count + j] = v.reach[i] * layout.pitch + h.reach[j];
          }
        const Rows pass{m, {v.count * h.count, tap, offset}};
        Pass(m, pass, layout, v.positions, h.positions, count, planes)
            .run(buffer.as<T>(), first, grad_input, OutputGrid{y, x, window.stride_h, window.stride_w});
      }
  }
}

template <class T>
inline void mixed_backward(const Mixture<T>& m, const Window& window, const TensorView& grad_output,
                           const TensorView& grad_input) {
  if (grad_input.numel() == 0) return;
  if (m.outputs % kBlock != 0 && m.outputs < 4 * kBlock)
    mixed_backward_with<T, TightBackwardRows<T>>(m, window, grad_output, grad_input);
  else mixed_backward_with<T, BackwardRows<T>>(m, window, grad_output, grad_input);
}

}  // namespace flexor::FLEXOR_ISA
