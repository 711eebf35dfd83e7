// SPDX-License-Identifier: Apache-2.0
// What forward and backward share: the geometry, and weights and attentions in the dtype that is computed in.
#pragma once
#include "dynamic/mixing.h"
#include "dynamic/odconv2d.h"

namespace flexor::FLEXOR_ISA {

void odconv2d_forward(const ODConv2dParams& p);
void odconv2d_backward(const ODConv2dParams& p);

struct ODConv2dShape {
  int64_t batch, in_channels, out_channels, kernels, groups, inputs, outputs, kernel_h, kernel_w, taps, out_h, out_w;

  explicit ODConv2dShape(const ODConv2dParams& p)
      : batch(p.input.size[0]),
        in_channels(p.input.size[1]),
        out_channels(p.weight.size[1]),
        kernels(p.weight.size[0]),
        groups(p.groups),
        inputs(p.weight.size[2]),
        outputs(out_channels / groups),
        kernel_h(p.weight.size[3]),
        kernel_w(p.weight.size[4]),
        taps(kernel_h * kernel_w),
        out_h(p.output.size[2]),
        out_w(p.output.size[3]) {}

  bool depthwise() const { return inputs == 1 && outputs == 1; }
  int64_t row() const { return inputs * taps; }
  int64_t kernel_size() const { return out_channels * row(); }
};

inline Window window_of(const ODConv2dParams& p) {
  return {p.weight.size[3], p.weight.size[4], p.stride_h, p.stride_w, p.pad_h, p.pad_w, p.dilation_h, p.dilation_w};
}

// visit(start in the view, start in a contiguous copy) of every row of kw weights.
template <class Visit>
inline void for_weight_rows(const TensorView& w, Visit visit) {
  const int64_t per_output = w.size[2] * w.size[3];
  parallel_for(w.size[0] * w.size[1], [&](int64_t task) {
    const int64_t start = task / w.size[1] * w.stride[0] + task % w.size[1] * w.stride[1];
    for (int64_t i = 0; i < per_output; ++i)
      visit(start + i / w.size[3] * w.stride[2] + i % w.size[3] * w.stride[3], (task * per_output + i) * w.size[4]);
  });
}

template <class T>
inline void store_weights(const TensorView& w, const T* src) {
  for_weight_rows(w, [&](int64_t at, int64_t from) { store_row(w, at, w.stride[4], src + from, w.size[4]); });
}

template <class T>
class Operands {
 public:
  Operands(const ODConv2dParams& p, const ODConv2dShape& s) : buffer_(size(p, s) * sizeof(T)) {
    T* next = buffer_.as<T>();
    const auto take = [&](int64_t n) {
      T* part = next;
      next += n;
      return part;
    };
    const int64_t b = s.batch;
    m.scaled = true, m.kernels = s.kernels, m.kernel_size = s.kernel_size(), m.image_size = 0;
    m.groups = s.groups, m.outputs = s.outputs, m.inputs = s.inputs, m.taps = s.taps;
    T *ones = take(ones_of(s)), *filter = take(b * s.out_channels), *channel = take(b * s.in_channels),
      *spatial = take(b * s.taps), *kernel = take(b * s.kernels), *scale = take(b * s.groups * s.row());
    for (int64_t i = 0; i < ones_of(s); ++i) ones[i] = T(1);
    load_matrix(p.filter, b, s.out_channels, filter);
    load_matrix(p.channel, b, s.in_channels, channel);
    load_matrix(p.spatial, b, s.taps, spatial);
    load_matrix(p.kernel, b, s.kernels, kernel);
    for (int64_t i = 0; i < b * s.in_channels; ++i)
      for (int64_t t = 0; t < s.taps; ++t) scale[i * s.taps + t] = channel[i] * spatial[i / s.in_channels * s.taps + t];
    m.ones = ones, m.filter = filter, m.channel = channel, m.spatial = spatial, m.kernel = kernel, m.scale = scale;
    if (weights_in_place(p)) {
      m.weights = static_cast<const T*>(p.weight.data);
      return;
    }
    T* weights = next;
    for_weight_rows(p.weight, [&](int64_t at, int64_t to) {
      load_row(weights + to, p.weight, at, p.weight.stride[4], p.weight.size[4]);
    });
    m.weights = weights;
  }

  Mixture<T> m;

 private:
  static int64_t ones_of(const ODConv2dShape& s) { return larger(s.row(), s.out_channels); }

  static int64_t size(const ODConv2dParams& p, const ODConv2dShape& s) {
    const int64_t attentions = s.out_channels + s.in_channels + s.taps + s.kernels + s.groups * s.row();
    return ones_of(s) + s.batch * attentions + (weights_in_place(p) ? 0 : s.kernels * s.kernel_size());
  }

  static bool weights_in_place(const ODConv2dParams& p) {
    return p.weight.dtype == kOwnDType<T> && is_contiguous(p.weight);
  }

  static void load_matrix(const TensorView& view, int64_t rows, int64_t columns, T* dst) {
    for (int64_t r = 0; r < rows; ++r, dst += columns)
      if (view) load_row(dst, view, r * view.stride[0], view.stride[1], columns);
      else
        for (int64_t i = 0; i < columns; ++i) dst[i] = T(1);
  }

  SharedBuffer buffer_;
};

template <class T>
inline void store_vector(const TensorView& view, int64_t image, const T* src) {
  if (view) store_row(view, image * view.stride[0], view.stride[1], src, view.size[1]);
}

// Where every channel has a group of its own, with one output; grad_weight as the weights, nullptr where not needed.
template <class T>
void depthwise_forward(const ODConv2dParams& p, const ODConv2dShape& s, const Mixture<T>& m);
template <class T>
void depthwise_backward(const ODConv2dParams& p, const ODConv2dShape& s, const Mixture<T>& m, T* grad_weight);

}  // namespace flexor::FLEXOR_ISA
