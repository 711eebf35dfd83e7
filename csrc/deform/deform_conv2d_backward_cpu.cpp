// SPDX-License-Identifier: Apache-2.0
// Deformable convolution, backward. Work is cut by input channels: a task owns a few units, so it owns
// their part of the input and weight gradients, walks the tiles of an image, and shares nothing but the
// offset gradients of a group that is wider than a task, which are summed in a fixed order afterwards.
#include "deform/backward_samplers.h"
#include "deform/deform_conv2d_kernels.h"

namespace flexor::FLEXOR_ISA {
namespace {

constexpr int64_t kPartialBytes = 3 << 20;

template <class T>
class Backward {
 public:
  explicit Backward(const DeformConv2dParams& params)
      : p_(params), g_(params), planner_(p_, g_), grad_out_(p_.output), few_(g_.few_channels()) {
    if (few_) g_.set_lanes(1);
    sampled_ = p_.grad_input || p_.grad_offset || p_.grad_mask;
    unit_steps_ = g_.taps * g_.lanes;
    row_unit_ = few_ ? 3 * kLanes<T> : kRowUnit;
    tile_ = row_unit_ * larger<int64_t>(1, (few_ ? 576 : g_.group_outputs > 128 ? 112 : 224) / row_unit_);
    while (tile_ > row_unit_ && tile_ * g_.taps * Plan<T>::kFields * static_cast<int64_t>(sizeof(T)) > (256 << 10))
      tile_ -= row_unit_;
    tile_ = smaller(tile_, round_up(g_.pixels, row_unit_));
    plan_chunks();
  }

  void run() {
    if (p_.grad_bias) bias_gradient();
    if (!sampled_ && !p_.grad_weight) return;
    const int64_t weight_size = g_.out_channels * g_.group_channels * g_.taps;
    const int64_t weight_bytes = p_.grad_weight ? weight_size * static_cast<int64_t>(sizeof(T)) : 0;
    partial_size_ = split_ ? p_.offset_groups * g_.taps * 3 * g_.pixels : 0;
    const int64_t partial_bytes = partial_size_ * static_cast<int64_t>(sizeof(T));
    lanes_of_work_ = chunks_;
    if (split_)
      lanes_of_work_ = smaller(chunks_, larger<int64_t>(2, kPartialBytes / larger<int64_t>(1, partial_bytes)));
    const int64_t image_bytes = larger<int64_t>(1, weight_bytes + lanes_of_work_ * partial_bytes);
    images_ = larger<int64_t>(1, smaller(g_.batch, kPartialBytes / image_bytes));

    const bool in_place =
        images_ == 1 && p_.grad_weight && p_.grad_weight.dtype == kOwnDType<T> && contiguous(p_.grad_weight);
    SharedBuffer weight_sums(in_place ? 0 : images_ * weight_bytes);
    SharedBuffer partials(images_ * lanes_of_work_ * partial_bytes);
    SharedBuffer weights(few_ && sampled_ ? weight_size * sizeof(T) : 0);
    weight_sums_ = in_place ? static_cast<T*>(p_.grad_weight.data) : weight_sums.as<T>();
    weight_size_ = weight_size, partials_ = partials.as<T>(), weights_ = weights.as<T>();
    if (weights_ != nullptr) copy_weights_to(p_, g_, weights_);

    for (int64_t image = 0; image < g_.batch; image += images_) {
      const int64_t count = smaller(images_, g_.batch - image);
      parallel_for(count * lanes_of_work_,
                   [&](int64_t task) { work(image, task / lanes_of_work_, task % lanes_of_work_); });
      if (split_)
        parallel_for(count * p_.offset_groups * g_.taps, [&](int64_t task) {
          add_partials(image, task / (p_.offset_groups * g_.taps), task % (p_.offset_groups * g_.taps));
        });
    }
    if (p_.grad_weight && !in_place) store_weight_gradient();
    else if (in_place && g_.batch == 0)
      for (int64_t i = 0; i < weight_size; ++i) weight_sums_[i] = T(0);
  }

 private:
  struct Scratch {  // of a task, in its thread's workspace
    T *weights, *grad_out, *columns, *blocked, *grad_weight, *plans, *planner, *sums, *gradients, *input, *grad_input;
  };

  static bool contiguous(const TensorView& v) {
    int64_t expected = 1;
    for (int d = v.ndim - 1; d >= 0; --d) {
      if (v.size[d] != 1 && v.stride[d] != expected) return false;
      expected *= v.size[d];
    }
    return true;
  }

  // A chunk is the units of one product; offset groups are kept whole where they are no wider than one.
  void plan_chunks() {
    const int64_t wanted =
        few_ ? smaller<int64_t>(16, ceil_div(g_.units, 8)) : (g_.group_channels >= 128 ? 32 : 16) / g_.lanes;
    chunk_units_ = smaller(larger<int64_t>(1, wanted), g_.group_units);
    const int64_t offset_units = g_.offset_group_channels / g_.segment * g_.segment_units;
    if (offset_units <= chunk_units_) chunk_units_ -= chunk_units_ % offset_units;
    group_chunks_ = ceil_div(g_.group_units, chunk_units_);
    chunks_ = p_.groups * group_chunks_;
    split_ =
        (p_.grad_offset || p_.grad_mask) && (chunk_units_ % offset_units != 0 || g_.group_units % offset_units != 0);
  }

  int64_t steps_of(int64_t units) const { return round_up(units * unit_steps_, kBlock); }

  int64_t gradient_plane() const { return g_.padded_plane * (few_ ? 4 : g_.lanes); }  // by corner where few_

  Scratch scratch() const {
    const int64_t steps = steps_of(chunk_units_), outputs = round_up(g_.group_outputs, kTallRows);
    const int64_t plane = chunk_units_ * g_.padded_plane * g_.lanes;
    int64_t total = 0;
    int64_t at[11], sizes[11] = {few_ ? 0 : steps * g_.group_outputs,
                                 outputs * tile_,
                                 steps * tile_,
                                 few_ ? steps * tile_ : 0,
                                 p_.grad_weight ? outputs * steps : 0,
                                 g_.taps * Plan<T>::kFields * tile_,
                                 Planner<T>::scratch(tile_),
                                 g_.taps * 4 * tile_,
                                 larger(3 * tile_, g_.width * g_.lanes),
                                 plane,
                                 sampled_ ? chunk_units_ * gradient_plane() : 0};
    for (int i = 0; i < 11; ++i) at[i] = total, total += round_up(sizes[i], 64 / static_cast<int64_t>(sizeof(T)));
    T* base = static_cast<T*>(thread_workspace(total * sizeof(T)));
    return {base + at[0], base + at[1], base + at[2], base + at[3], base + at[4], base + at[5],
            base + at[6], base + at[7], base + at[8], base + at[9], base + at[10]};
  }

  void work(int64_t image, int64_t slot, int64_t lane) const {
    const Scratch s = scratch();
    T* partial = nullptr;
    if (split_) {
      partial = partials_ + (slot * lanes_of_work_ + lane) * partial_size_;
      for (int64_t i = 0; i < partial_size_; ++i) partial[i] = T(0);
    }
    for (int64_t chunk = chunks_ * lane / lanes_of_work_; chunk < chunks_ * (lane + 1) / lanes_of_work_; ++chunk) {
      const int64_t group = chunk / group_chunks_, first = chunk % group_chunks_ * chunk_units_;
      const int64_t units = smaller(chunk_units_, g_.group_units - first);
      work_chunk(s, image, slot, group, group * g_.group_units + first, units, partial);
    }
  }

  void work_chunk(const Scratch& s, int64_t image0, int64_t slot, int64_t group, int64_t unit, int64_t units,
                  T* partial) const {
    const int64_t plane = g_.padded_plane * g_.lanes, steps = steps_of(units), image = image0 + slot;
    for (int64_t u = 0; u < units; ++u) pack_input(g_, p_.input, image, unit + u, s.input + u * plane, s.gradients);
    if (sampled_) {
      for (int64_t i = 0; i < units * gradient_plane(); ++i) s.grad_input[i] = T(0);
      if (!few_) pack_weights(s, group, unit, units, steps);
    }
    for (int64_t first = 0; first < g_.pixels; first += tile_) {
      const int64_t n = smaller(tile_, g_.pixels - first), rows = round_up(n, row_unit_);
      load_grad_out(s, image, group, first, n, rows);
      planner_.start_tile(s.planner, first, n, rows);
      if (sampled_) {
        if (few_) columns_gradient_few(s, group, unit, units, rows);
        else columns_gradient(s, steps, rows);
      }
      resample(s, image, unit, units, first, n, rows, partial);
      if (p_.grad_weight) weight_gradient(s, units, steps, rows, first > 0);
    }
    if (p_.grad_input) {
      for (int64_t u = 0; u < units; ++u) {
        const T* gradient = s.grad_input + u * gradient_plane();
        if (few_) join_corners(g_, gradient, s.input);  // which has been read
        unpack_gradient(g_, p_.grad_input, image, unit + u, few_ ? s.input : gradient, s.gradients);
      }
    }
    if (p_.grad_weight) keep_weight_gradient(s, slot, group, unit, units, steps, image0 > 0);
  }

  // Panels [panel][output][step] of the chunk's weights.
  void pack_weights(const Scratch& s, int64_t group, int64_t unit, int64_t units, int64_t steps) const {
    const TensorView& w = p_.weight;
    const int64_t outputs = g_.group_outputs;
    for (int64_t i = 0; i < steps * outputs; ++i) s.weights[i] = T(0);
    for (int64_t u = 0; u < units; ++u) {
      const int64_t channel = g_.unit_channel(unit + u) % g_.group_channels, n = g_.unit_size(unit + u);
      for (int64_t tap = 0; tap < g_.taps; ++tap) {
        const int64_t step = (u * g_.taps + tap) * g_.lanes;
        for (int64_t l = 0; l < n; ++l) {
          const int64_t at = group * outputs * w.stride[0] + (channel + l) * w.stride[1] +
                             tap / g_.kernel_w * w.stride[2] + tap % g_.kernel_w * w.stride[3];
          scatter_outputs(panel_at(s.weights, steps, step + l), w, at);
        }
      }
    }
  }

  struct PanelColumn {
    T* p;
    int64_t stride;
  };

  // Where step k of the packed weights is, in whichever panel it falls.
  PanelColumn panel_at(T* packed, int64_t steps, int64_t k) const {
    constexpr int64_t L = kLanes<T>;
    for (int64_t vector = 0;;) {
      const int64_t nv = panel_vectors(steps / L - vector);
      if (k < (vector + nv) * L) return {packed + vector * L * g_.group_outputs + k - vector * L, nv * L};
      vector += nv;
    }
  }

  void scatter_outputs(PanelColumn column, const TensorView& w, int64_t at) const {
    if (w.dtype == DType::f32) {
      const float* src = static_cast<const float*>(w.data) + at;
      for (int64_t o = 0; o < g_.group_outputs; ++o) column.p[o * column.stride] = static_cast<T>(src[o * w.stride[0]]);
      return;
    }
    for (int64_t o = 0; o < g_.group_outputs; ++o)
      load_row(column.p + o * column.stride, w, at + o * w.stride[0], 1, 1);
  }

  // [output][pixel] of one tile; rows of zeros fill it up for the microkernel.
  void load_grad_out(const Scratch& s, int64_t image, int64_t group, int64_t first, int64_t n, int64_t rows) const {
    const int64_t outputs = g_.group_outputs;
    const TensorView& grad = p_.output;
    const bool pixels_of_channels = grad.dtype == kOwnDType<T> && grad.stride[1] == 1 && grad_out_.flat;
    if (pixels_of_channels) {
      const T* src = static_cast<const T*>(grad.data) + grad_out_.start(image, group * outputs, 0, first);
      transpose(src, grad.stride[3], n, outputs, s.grad_out, rows);
    }
    for (int64_t o = 0; o < outputs; ++o) {
      T* dst = s.grad_out + o * rows;
      if (!pixels_of_channels) grad_out_.load(dst, image, group * outputs + o, first, n);
      for (int64_t i = n; i < rows; ++i) dst[i] = T(0);
    }
    for (int64_t i = outputs * rows; i < round_up(outputs, kTallRows) * rows; ++i) s.grad_out[i] = T(0);
  }

  template <class Visit>
  static void for_panels(int64_t steps, Visit visit) {
    for (int64_t vector = 0; vector < steps / kLanes<T>;) {
      const int nv = panel_vectors(steps / kLanes<T> - vector);
      switch (nv) {
        case 3: visit(vector * kLanes<T>, std::integral_constant<int, 3>{}); break;
        case 2: visit(vector * kLanes<T>, std::integral_constant<int, 2>{}); break;
        default: visit(vector * kLanes<T>, std::integral_constant<int, 1>{}); break;
      }
      vector += nv;
    }
  }

  // columns[step][pixel] = sum over outputs of weight * grad_out
  void columns_gradient(const Scratch& s, int64_t steps, int64_t rows) const {
    for_panels(steps, [&](int64_t step, auto nv) {
      constexpr int NV = decltype(nv)::value, MR = kPanelRows[NV];
      const T* panel = s.weights + step * g_.group_outputs;
      for (int64_t i = 0; i < rows; i += MR)
        gemm_micro<T, MR, NV>(g_.group_outputs, ColumnsA<T>{s.grad_out + i, rows}, RowsB<T>{panel, NV * kLanes<T>},
                              BlockedC<T>{s.columns + i * kBlock, rows * kBlock, step}, false);
    });
  }

  void columns_gradient_few(const Scratch& s, int64_t group, int64_t unit, int64_t units, int64_t rows) const {
    const int64_t row = g_.group_channels * g_.taps, steps = units * g_.taps;
    const T* weights = weights_ + group * g_.group_outputs * row + unit % g_.group_units * g_.taps;
    for (int64_t k = 0; k < steps; k += kTallRows)
      for (int64_t i = 0; i < rows; i += row_unit_)
        gemm_tall<T, 3>(static_cast<int>(smaller<int64_t>(kTallRows, steps - k)), g_.group_outputs,
                        ColumnsA<T>{weights + k, row}, RowsB<T>{s.grad_out + i, rows},
                        RowsC<T>{s.columns + k * rows + i, rows}, false);
  }

  void resample(const Scratch& s, int64_t image, int64_t unit, int64_t units, int64_t first, int64_t n, int64_t rows,
                T* partial) const {
    const int64_t plane = g_.padded_plane * g_.lanes;
    for (int64_t u = 0; u < units;) {
      const int64_t offset_group = g_.unit_offset_group(unit + u);
      planner_.template plan_group<true>(s.plans, s.planner, image, offset_group, first, n, rows);
      for (bool add = false; u < units && g_.unit_offset_group(unit + u) == offset_group; ++u, add = true) {
        if (sampled_)
          resample_unit(g_, s.input + u * plane, s.grad_input + u * gradient_plane(), s.plans, rows, u, s.columns,
                        s.sums, add);
        else sample_unit(g_, s.input + u * plane, s.plans, rows, u, s.columns);
      }
      if (p_.grad_offset || p_.grad_mask) offset_gradient(s, image, offset_group, first, n, rows, partial);
    }
  }

  void offset_gradient(const Scratch& s, int64_t image, int64_t offset_group, int64_t first, int64_t n, int64_t rows,
                       T* partial) const {
    for (int64_t tap = 0; tap < g_.taps; ++tap) {
      const Plan<T> plan(s.plans, tap, rows);
      const T* sums = s.sums + tap * 4 * rows;
      if (few_) finish_sums<T, 1>(plan, sums, rows, s.gradients);
      else finish_sums<T, 4>(plan, sums, rows, s.gradients);
      const int64_t channel = offset_group * g_.taps + tap;
      if (!split_) {
        store_offset_gradient(image, channel, first, n, s.gradients, rows);
        continue;
      }
      for (int64_t field = 0; field < 3; ++field) {
        T* dst = partial + (channel * 3 + field) * g_.pixels + first;
        for (int64_t i = 0; i < n; ++i) dst[i] += s.gradients[field * rows + i];
      }
    }
  }

  void store_offset_gradient(int64_t image, int64_t channel, int64_t first, int64_t n, const T* fields,
                             int64_t stride) const {
    if (p_.grad_mask) PlanePixels(p_.grad_mask).store(fields, image, channel, first, n);
    if (!p_.grad_offset) return;
    const PlanePixels plane(p_.grad_offset);
    plane.store(fields + stride, image, 2 * channel, first, n);
    plane.store(fields + 2 * stride, image, 2 * channel + 1, first, n);
  }

  void add_partials(int64_t image0, int64_t slot, int64_t channel) const {
    T* sum = partials_ + slot * lanes_of_work_ * partial_size_ + channel * 3 * g_.pixels;
    for (int64_t lane = 1; lane < lanes_of_work_; ++lane)
      for (int64_t i = 0; i < 3 * g_.pixels; ++i) sum[i] += sum[lane * partial_size_ + i];
    store_offset_gradient(image0 + slot, channel, 0, g_.pixels, sum, g_.pixels);
  }

  // grad_weight[output][step] (+)= sum over pixels of grad_out * column
  void weight_gradient(const Scratch& s, int64_t units, int64_t steps, int64_t rows, bool add) const {
    const int64_t used = units * unit_steps_;
    const T* columns = s.columns;
    if (few_) {
      for (int64_t k = 0; k < used; k += kBlock)
        transpose(s.columns + k * rows, rows, smaller<int64_t>(kBlock, used - k), rows, column_at(s.blocked, rows, k),
                  kBlock);
      columns = s.blocked;
    }
    if (used < steps) clear_block_tail(const_cast<T*>(columns) + used / kBlock * rows * kBlock, rows, used % kBlock);
    for_panels(steps, [&](int64_t step, auto nv) {
      constexpr int NV = decltype(nv)::value;
      for (int64_t o = 0; o < g_.group_outputs; o += kTallRows)
        gemm_micro<T, kTallRows, NV>(rows, RowsA<T>{s.grad_out + o * rows, rows},
                                     BlockedB<T>{columns, rows * kBlock, step},
                                     RowsC<T>{s.grad_weight + o * steps + step, steps}, add);
    });
  }

  // Into [output][channel][tap] of this image's slot.
  void keep_weight_gradient(const Scratch& s, int64_t slot, int64_t group, int64_t unit, int64_t units, int64_t steps,
                            bool add) const {
    for (int64_t o = 0; o < g_.group_outputs; ++o)
      for (int64_t u = 0; u < units; ++u) {
        const int64_t channel = g_.unit_channel(unit + u) % g_.group_channels;
        T* dst = weight_sums_ + slot * weight_size_ +
                 ((group * g_.group_outputs + o) * g_.group_channels + channel) * g_.taps;
        const T* src = s.grad_weight + o * steps + u * unit_steps_;
        for (int64_t l = 0; l < g_.unit_size(unit + u); ++l)
          for (int64_t tap = 0; tap < g_.taps; ++tap) {
            const T x = src[tap * g_.lanes + l];
            dst[l * g_.taps + tap] = add ? dst[l * g_.taps + tap] + x : x;
          }
      }
  }

  void store_weight_gradient() const {
    const TensorView& w = p_.grad_weight;
    const int64_t row = g_.group_channels * g_.taps, slots = smaller(images_, g_.batch);
    parallel_for(g_.out_channels, [&](int64_t o) {
      T* sum = weight_sums_ + o * row;
      if (slots == 0)
        for (int64_t i = 0; i < row; ++i) sum[i] = T(0);
      for (int64_t slot = 1; slot < slots; ++slot)
        for (int64_t i = 0; i < row; ++i) sum[i] += sum[slot * weight_size_ + i];
      for (int64_t c = 0; c < g_.group_channels; ++c)
        for (int64_t i = 0; i < g_.kernel_h; ++i)
          store_row(w, o * w.stride[0] + c * w.stride[1] + i * w.stride[2], w.stride[3],
                    sum + c * g_.taps + i * g_.kernel_w, g_.kernel_w);
    });
  }

  void bias_gradient() const {
    parallel_for(g_.out_channels, [&](int64_t o) {
      constexpr int64_t kLine = 256;
      T line[kLine];
      double sum = 0;
      for (int64_t n = 0; n < g_.batch; ++n)
        for (int64_t i = 0; i < g_.pixels; i += kLine) {
          const int64_t count = smaller(kLine, g_.pixels - i);
          grad_out_.load(line, n, o, i, count);
          T part = 0;
          for (int64_t k = 0; k < count; ++k) part += line[k];
          sum += static_cast<double>(part);
        }
      const T result = static_cast<T>(sum);
      store_row(p_.grad_bias, o * p_.grad_bias.stride[0], 1, &result, 1);
    });
  }

  const DeformConv2dParams& p_;
  Geometry g_;
  Planner<T> planner_;
  PlanePixels grad_out_;
  bool few_, sampled_ = false, split_ = false;
  int64_t unit_steps_, row_unit_, tile_, chunk_units_, group_chunks_, chunks_;
  int64_t lanes_of_work_ = 1, images_ = 1, partial_size_ = 0, weight_size_ = 0;
  T *weight_sums_ = nullptr, *partials_ = nullptr, *weights_ = nullptr;
};

}  // namespace

void deform_conv2d_backward(const DeformConv2dParams& p) {
  if (p.input.dtype == DType::f64) Backward<double>(p).run();
  else Backward<float>(p).run();
}

extern const DeformConv2dKernels deform_conv2d_kernels{&deform_conv2d_forward, &deform_conv2d_backward};

}  // namespace flexor::FLEXOR_ISA
