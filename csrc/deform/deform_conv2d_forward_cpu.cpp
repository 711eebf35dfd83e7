// SPDX-License-Identifier: Apache-2.0
// Deformable convolution, forward: sample a tile of columns into the cache, multiply, next tile.
#include "deform/deform_conv2d_kernels.h"
#include "deform/samplers.h"

namespace flexor::FLEXOR_ISA {
namespace {

constexpr int64_t kShared = 640 << 10;        // elements of packed weights, and again of packed input, at a time
constexpr int64_t kColumnsBytes = 256 << 10;  // of a tile's columns: half of a small second-level cache

// A stretch of units of one convolution group: the steps of one product.
struct Run {
  int64_t unit, units, group, steps;  // steps: units * taps * lanes, padded to a whole block
};

template <class T>
class Forward {
 public:
  explicit Forward(const DeformConv2dParams& params)
      : p_(params), g_(params), planner_(p_, g_), out_(p_.output), few_(g_.few_channels()) {
    if (few_) g_.set_lanes(1);
    out_vectors_ = ceil_div(g_.group_outputs, kLanes<T>);
    out_stride_ = out_vectors_ * kLanes<T>;
    row_unit_ = few_ ? kFewUnit : 1;
    if (!few_)
      for_panels([&](int64_t, int nv) {
        row_unit_ = row_unit_ == 1 || row_unit_ == kPanelRows[nv] ? kPanelRows[nv] : kRowUnit;
      });
    tile_ = few_ ? kFewTile : kTile;
    const int64_t plan_bytes = g_.taps * Plan<T>::kFields * static_cast<int64_t>(sizeof(T));
    while (tile_ > row_unit_ && tile_ * plan_bytes > kColumnsBytes) tile_ -= row_unit_;
    tile_ = smaller(tile_, round_up(g_.pixels, row_unit_));
    tiles_ = ceil_div(g_.pixels, tile_);
  }

  void run() {
    if (g_.batch == 0 || g_.out_channels == 0) return;
    const int64_t unit_weights = few_ ? 0 : g_.taps * g_.lanes * out_stride_, unit_input = g_.padded_plane * g_.lanes;
    // Outputs of a lower precision cannot be added to between chunks: then all units are one chunk.
    const bool can_add = p_.output.dtype == kOwnDType<T>;
    const int64_t chunk = can_add ? larger<int64_t>(1, kShared / larger(unit_weights, unit_input)) : g_.units;
    const int64_t images =
        larger<int64_t>(1, smaller(g_.batch, kShared / larger<int64_t>(1, unit_input * smaller(chunk, g_.units))));
    const int64_t units = smaller(chunk, g_.units), bias_size = round_up(g_.out_channels, kBlock);
    const int64_t weight_size = few_ ? weight_copy_size() : units * unit_weights + p_.groups * kBlock * out_stride_;
    SharedBuffer shared((bias_size + weight_size + images * units * unit_input) * sizeof(T));
    bias_ = shared.as<T>(), weights_ = bias_ + bias_size, input_ = weights_ + weight_size;
    for (int64_t o = 0; o < g_.out_channels; ++o) bias_[o] = T(0);
    if (p_.bias) load_row(bias_, p_.bias, 0, p_.bias.stride[0], g_.out_channels);
    for (first_unit_ = 0; first_unit_ < g_.units; first_unit_ += chunk) {
      chunk_units_ = smaller(chunk, g_.units - first_unit_);
      if (!few_) pack_weights();
      else if (first_unit_ == 0) copy_weights();
      for (int64_t image = 0; image < g_.batch; image += images)
        chunk_of_images(image, smaller(images, g_.batch - image));
    }
  }

 private:
  static constexpr int64_t kTile = 224;
  static constexpr int64_t kFewUnit = 3 * kLanes<T>;
  static constexpr int64_t kFewTile = kFewUnit * (768 / kFewUnit);

  int64_t weight_copy_size() const { return weights_in_place() ? 0 : g_.out_channels * g_.group_channels * g_.taps; }

  bool weights_in_place() const {
    const TensorView& w = p_.weight;
    return w.dtype == kOwnDType<T> && w.stride[3] == 1 && w.stride[2] == w.size[3] && w.stride[1] == g_.taps &&
           w.stride[0] == g_.group_channels * g_.taps;
  }

  void copy_weights() {
    if (weights_in_place()) weights_ = static_cast<T*>(p_.weight.data);
    else copy_weights_to(p_, g_, weights_);
  }

  // The part of the chunk's units that belongs to each convolution group.
  template <class Visit>
  void for_runs(Visit visit) const {
    int64_t steps_before = 0;
    for (int64_t unit = first_unit_; unit < first_unit_ + chunk_units_;) {
      const int64_t group = unit / g_.group_units;
      const int64_t end = smaller((group + 1) * g_.group_units, first_unit_ + chunk_units_);
      const Run run{unit, end - unit, group, round_up((end - unit) * g_.taps * g_.lanes, few_ ? 1 : kBlock)};
      visit(run, steps_before);
      steps_before += run.steps;
      unit = end;
    }
  }

  void pack_weights() {
    for_runs([&](const Run& run, int64_t before) {
      T* packed = weights_ + before * out_stride_;
      parallel_for(run.units, [&](int64_t u) { pack_unit_weights(run, u, packed); });
      const int64_t used = run.units * g_.taps * g_.lanes;
      for_panels([&](int64_t vector, int nv) {
        T* panel = packed + run.steps * vector * kLanes<T>;
        const int64_t width = nv * kLanes<T>;
        for (int64_t i = used * width; i < run.steps * width; ++i) panel[i] = T(0);
      });
    });
  }

  template <class Visit>
  void for_panels(Visit visit) const {
    for (int64_t vector = 0; vector < out_vectors_;) {
      const int nv = panel_vectors(out_vectors_ - vector);
      visit(vector, nv);
      vector += nv;
    }
  }

  // Panels [panel][step][output]: what the microkernel streams.
  void pack_unit_weights(const Run& run, int64_t u, T* packed) const {
    const TensorView& w = p_.weight;
    const int64_t channel = g_.unit_channel(run.unit + u) % g_.group_channels, n = g_.unit_size(run.unit + u);
    const int64_t tap_rows = w.stride[2] == g_.kernel_w * w.stride[3] ? g_.kernel_h : 1;  // read at once
    for_panels([&](int64_t vector, int nv) {
      const int64_t width = nv * kLanes<T>, o0 = vector * kLanes<T>;
      const int64_t outputs = smaller<int64_t>(width, g_.group_outputs - o0);
      T* dst = packed + run.steps * o0 + u * g_.taps * g_.lanes * width;
      if (n < g_.lanes || outputs < width)
        for (int64_t i = 0; i < g_.taps * g_.lanes * width; ++i) dst[i] = T(0);
      for (int64_t o = 0; o < outputs; ++o)
        for (int64_t c = 0; c < n; ++c)
          for (int64_t i = 0; i < g_.kernel_h; i += tap_rows) {
            const int64_t at =
                (run.group * g_.group_outputs + o0 + o) * w.stride[0] + (channel + c) * w.stride[1] + i * w.stride[2];
            pack_taps(dst + (i * g_.kernel_w * g_.lanes + c) * width + o, g_.lanes * width, at, tap_rows * g_.kernel_w);
          }
    });
  }

  FLEXOR_INLINE void pack_taps(T* dst, int64_t step, int64_t at, int64_t taps) const {
    const TensorView& w = p_.weight;
    if (w.dtype == kOwnDType<T>) {
      const T* src = static_cast<const T*>(w.data) + at;
      for (int64_t j = 0; j < taps; ++j) dst[j * step] = src[j * w.stride[3]];
      return;
    }
    for (int64_t j = 0; j < taps; ++j) load_row(dst + j * step, w, at + j * w.stride[3], 1, 1);
  }

  void chunk_of_images(int64_t image, int64_t images) {
    parallel_for(images * chunk_units_, [&](int64_t task) {
      T* scratch = static_cast<T*>(thread_workspace(g_.width * g_.lanes * sizeof(T)));
      pack_input(g_, p_.input, image + task / chunk_units_, first_unit_ + task % chunk_units_,
                 input_ + task * g_.padded_plane * g_.lanes, scratch);
    });
    parallel_for(images * tiles_, [&](int64_t task) {
      const int64_t i = task / tiles_;
      tile(image + i, input_ + i * chunk_units_ * g_.padded_plane * g_.lanes, task % tiles_ * tile_);
    });
  }

  // Units whose columns fit beside the plans.
  int64_t units_at_once() const {
    const int64_t unit_bytes = g_.taps * g_.lanes * tile_ * static_cast<int64_t>(sizeof(T));
    const int64_t whole_blocks = kBlock / smaller<int64_t>(g_.lanes, kBlock);
    return larger<int64_t>(1, kColumnsBytes / unit_bytes / whole_blocks) * whole_blocks;
  }

  void tile(int64_t image, const T* input, int64_t first) const {
    const int64_t n = smaller(tile_, g_.pixels - first);
    const int64_t rows = round_up(n, row_unit_);
    const int64_t plan_size = g_.taps * Plan<T>::kFields * rows, scratch_size = Planner<T>::scratch(rows);
    const int64_t units = units_at_once();
    const int64_t columns_size = (units * g_.taps * g_.lanes + kBlock) * rows;
    const int64_t out_size = rows * larger(out_stride_, round_up(g_.group_outputs, 8));
    T* plans = static_cast<T*>(thread_workspace((plan_size + scratch_size + columns_size + out_size) * sizeof(T)));
    T* scratch = plans + plan_size;
    T* columns = scratch + scratch_size;
    T* out = columns + columns_size;
    planner_.start_tile(scratch, first, n, rows);
    int64_t planned = -1;
    for_runs([&](const Run& run, int64_t before) {
      for (int64_t u = 0; u < run.units; u += units) {
        const int64_t count = smaller(units, run.units - u);
        for (int64_t k = 0; k < count; ++k) {
          const int64_t unit = run.unit + u + k;
          if (g_.unit_offset_group(unit) != planned) {
            planned = g_.unit_offset_group(unit);
            planner_.template plan_group<false>(plans, scratch, image, planned, first, n, rows);
          }
          const T* source = input + (unit - first_unit_) * g_.padded_plane * g_.lanes;
          sample_unit(g_, source, plans, rows, k, columns);
        }
        if (few_) multiply_few(run, u, count, columns, rows, out);
        else multiply(run, before, u, count, columns, rows, out);
      }
      store_tile(run, image, first, n, rows, out);
    });
  }

  void multiply(const Run& run, int64_t before, int64_t u, int64_t count, T* columns, int64_t rows, T* out) const {
    const int64_t step0 = u * g_.taps * g_.lanes, used = count * g_.taps * g_.lanes;
    const int64_t steps = round_up(used, kBlock), block = rows * kBlock;
    if (used < steps) clear_block_tail(columns + used / kBlock * block, rows, used % kBlock);
    for_panels([&](int64_t vector, int nv) {
      const int64_t width = nv * kLanes<T>;
      const T* packed = weights_ + before * out_stride_ + run.steps * vector * kLanes<T> + step0 * width;
      T* c = out + vector * kLanes<T>;
      switch (nv) {
        case 3: return panel<3>(columns, block, packed, steps, rows, c, u > 0);
        case 2: return panel<2>(columns, block, packed, steps, rows, c, u > 0);
        default: return panel<1>(columns, block, packed, steps, rows, c, u > 0);
      }
    });
  }

  template <int NV>
  __attribute__((noinline)) void panel(const T* columns, int64_t block, const T* packed, int64_t steps, int64_t rows,
                                       T* out, bool add) const {
    constexpr int MR = kPanelRows[NV];
    for (int64_t i = 0; i < rows; i += MR)
      gemm_micro<T, MR, NV>(steps, BlockedA<T>{columns + i * kBlock, block}, RowsB<T>{packed, NV * kLanes<T>},
                            RowsC<T>{out + i * out_stride_, out_stride_}, add);
  }

  // Few channels: columns are [step][pixel], weights are read as they lie, the result is [output][pixel].
  void multiply_few(const Run& run, int64_t u, int64_t count, const T* columns, int64_t rows, T* out) const {
    const int64_t row = g_.group_channels * g_.taps, steps = count * g_.taps;
    const int64_t first = (run.unit + u) % g_.group_units * g_.taps;
    const T* weights = weights_ + run.group * g_.group_outputs * row + first;
    for_slices(g_.group_outputs, [&](int64_t o, int height) {
      for (int64_t i = 0; i < rows; i += kFewUnit)
        gemm_tall<T, 3>(height, steps, RowsA<T>{weights + o * row, row}, RowsB<T>{columns + i, rows},
                        RowsC<T>{out + o * rows + i, rows}, u > 0);
    });
  }

  void store_tile(const Run& run, int64_t image, int64_t first, int64_t n, int64_t rows, const T* out) const {
    constexpr int64_t L = kLanes<T>;
    const bool add = run.unit % g_.group_units != 0;
    const int64_t o0 = run.group * g_.group_outputs;
    if (!few_ && p_.output.dtype == kOwnDType<T> && p_.output.stride[1] == 1)
      return store_channels(run, image, first, n, out);
    T lines[L * kLine], previous[kLine];
    for (int64_t i = 0; i < n; i += kLine)
      for (int64_t o = 0; o < g_.group_outputs; o += L) {
        const int64_t count = smaller(kLine, n - i), outputs = smaller(L, g_.group_outputs - o);
        if (!few_) transpose(out + i * out_stride_ + o, out_stride_, smaller(kLine, rows - i), L, lines, kLine);
        for (int64_t j = 0; j < outputs; ++j) {
          T* line = few_ ? const_cast<T*>(out) + (o + j) * rows + i : lines + j * kLine;
          if (add) {
            out_.load(previous, image, o0 + o + j, first + i, count);
            for (int64_t k = 0; k < count; ++k) line[k] += previous[k];
          } else if (p_.bias) {
            const T b = bias_[o0 + o + j];
            for (int64_t k = 0; k < count; ++k) line[k] += b;
          }
          out_.store(line, image, o0 + o + j, first + i, count);
        }
      }
  }

  // channels_last: a pixel's outputs lie together on both sides.
  void store_channels(const Run& run, int64_t image, int64_t first, int64_t n, const T* out) const {
    const bool add = run.unit % g_.group_units != 0;
    const T* bias = bias_ + run.group * g_.group_outputs;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t y = (first + i) / g_.out_width, x = (first + i) % g_.out_width;
      T* dst = static_cast<T*>(p_.output.data) + out_.start(image, run.group * g_.group_outputs, y, x);
      const T* src = out + i * out_stride_;
      const T* base = add ? dst : bias;
      for (int64_t o = 0; o < g_.group_outputs; ++o) dst[o] = src[o] + base[o];
    }
  }

  static constexpr int64_t kLine = 64;

  const DeformConv2dParams& p_;
  Geometry g_;
  Planner<T> planner_;
  PlanePixels out_;
  bool few_;
  int64_t out_vectors_, out_stride_, row_unit_, tile_, tiles_;
  T* bias_ = nullptr;
  T* weights_ = nullptr;
  T* input_ = nullptr;
  int64_t first_unit_ = 0, chunk_units_ = 0;
};

}  // namespace

void deform_conv2d_forward(const DeformConv2dParams& p) {
  if (p.input.dtype == DType::f64) Forward<double>(p).run();
  else Forward<float>(p).run();
}

}  // namespace flexor::FLEXOR_ISA
