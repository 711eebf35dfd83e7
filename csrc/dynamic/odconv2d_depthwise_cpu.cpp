// SPDX-License-Identifier: Apache-2.0
// Omni-dimensional dynamic convolution of every channel by itself: a plane's taps are few enough to be mixed
// when its turn comes.
#include "dynamic/odconv2d_kernels.h"
#include "match/depthwise.h"

namespace flexor::FLEXOR_ISA {
namespace {

template <class T>
class Depthwise {
 public:
  Depthwise(const ODConv2dParams& p, const ODConv2dShape& s, const Mixture<T>& m)
      : p_(p),
        s_(s),
        m_(m),
        geometry_{p.input.size[2], p.input.size[3], s.out_h, s.out_w, s.kernel_h,   s.kernel_w,
                  p.stride_h,      p.stride_w,      p.pad_h, p.pad_w, p.dilation_h, p.dilation_w} {}

  void forward() const {
    parallel_for(s_.batch * s_.out_channels, [&](int64_t task) {
      const int64_t b = task / s_.out_channels, c = task % s_.out_channels;
      DepthwisePlane<T> plane(geometry_);
      plane.use(thread_workspace(plane.workspace()));
      mix_taps(b, c, plane.taps());
      plane.forward(p_.input, p_.output, b, c);
    });
  }

  void grad_input() const {
    const bool turn = p_.stride_h == 1 && p_.stride_w == 1;
    parallel_for(s_.batch * s_.out_channels, [&](int64_t task) {
      const int64_t b = task / s_.out_channels, c = task % s_.out_channels;
      DepthwisePlane<T> turned(geometry_.transposed()), plane(geometry_);
      if (turn) {
        turned.use(thread_workspace(turned.workspace()));
        mix_taps(b, c, turned.taps());
        if (turned.finite_taps()) {
          turned.reverse_taps();
          return turned.forward(p_.output, p_.grad_input, b, c);
        }
      }
      plane.use(thread_workspace(plane.workspace()));
      mix_taps(b, c, plane.taps());
      plane.grad_input(p_.output, p_.grad_input, b, c);
    });
  }

  // Every gradient of the weights' side follows from D, the gradient of an image's plain taps.
  void weight_side(T* grad_weight) const {
    const int64_t sums = s_.taps + m_.kernels;  // of spatial and kernel attention, a channel and image
    SharedBuffer buffer((s_.out_channels * s_.batch * (sums + 2)) * sizeof(T));
    T *partial = buffer.as<T>(), *channel = partial + s_.out_channels * s_.batch * sums;
    T* filter = channel + s_.out_channels * s_.batch;
    parallel_for(s_.out_channels, [&](int64_t c) {
      DepthwisePlane<T> plane(geometry_);
      plane.use(thread_workspace(plane.workspace()));
      for (int64_t i = 0; i < m_.kernels; ++i)
        for (int64_t t = 0; t < s_.taps; ++t) grad_weight[i * m_.kernel_size + c * s_.taps + t] = T(0);
      for (int64_t b = 0; b < s_.batch; ++b) {
        plane.grad_taps(p_.input, p_.output, b, c);
        T* spatial = partial + (c * s_.batch + b) * sums;
        const int64_t at = b * s_.out_channels + c;
        use_up(b, c, plane.taps(), grad_weight, spatial, spatial + s_.taps, channel + at, filter + at);
      }
    });
    parallel_for(s_.batch, [&](int64_t b) {
      SharedBuffer totals(sums * sizeof(T));
      T* total = totals.as<T>();
      for (int64_t i = 0; i < sums; ++i) total[i] = T(0);
      for (int64_t c = 0; c < s_.out_channels; ++c)
        for (int64_t i = 0; i < sums; ++i) total[i] += partial[(c * s_.batch + b) * sums + i];
      store_vector(p_.grad_spatial, b, total);
      store_vector(p_.grad_kernel, b, total + s_.taps);
      store_vector(p_.grad_channel, b, channel + b * s_.out_channels);
      store_vector(p_.grad_filter, b, filter + b * s_.out_channels);
    });
  }

 private:
  void mix_taps(int64_t b, int64_t c, T* taps) const {
    const T *a = m_.kernel_of(b), *scale = m_.scale_of(b, c);
    for (int64_t t = 0; t < s_.taps; ++t) {
      T v = T(0);
      for (int64_t i = 0; i < m_.kernels; ++i) v += a[i] * m_.weights[i * m_.kernel_size + c * s_.taps + t];
      taps[t] = v * scale[t] * *m_.filter_of(b, c);
    }
  }

  void use_up(int64_t b, int64_t c, const T* d, T* grad_weight, T* spatial, T* kernel, T* channel, T* filter) const {
    const T *a = m_.kernel_of(b), *scale = m_.scale_of(b, c), *s = m_.spatial_of(b);
    const T f = *m_.filter_of(b, c), of_channel = *m_.channel_of(b, c);
    *channel = *filter = T(0);
    for (int64_t i = 0; i < m_.kernels; ++i) kernel[i] = T(0);
    for (int64_t t = 0; t < s_.taps; ++t) {
      const T scaled = d[t] * scale[t], full = scaled * f;
      T mixed = T(0);
      for (int64_t i = 0; i < m_.kernels; ++i) {
        const int64_t at = i * m_.kernel_size + c * s_.taps + t;
        mixed += m_.weights[at] * a[i];
        kernel[i] += full * m_.weights[at];
        grad_weight[at] += full * a[i];
      }
      *filter += mixed * scaled;
      *channel += mixed * d[t] * f * s[t];
      spatial[t] = mixed * d[t] * f * of_channel;
    }
  }

  const ODConv2dParams& p_;
  const ODConv2dShape& s_;
  const Mixture<T>& m_;
  PlaneGeometry geometry_;
};

}  // namespace

template <class T>
void depthwise_forward(const ODConv2dParams& p, const ODConv2dShape& s, const Mixture<T>& m) {
  Depthwise<T>(p, s, m).forward();
}

template <class T>
void depthwise_backward(const ODConv2dParams& p, const ODConv2dShape& s, const Mixture<T>& m, T* grad_weight) {
  if (p.grad_input) Depthwise<T>(p, s, m).grad_input();
  if (grad_weight != nullptr) Depthwise<T>(p, s, m).weight_side(grad_weight);
}

template void depthwise_forward<float>(const ODConv2dParams&, const ODConv2dShape&, const Mixture<float>&);
template void depthwise_forward<double>(const ODConv2dParams&, const ODConv2dShape&, const Mixture<double>&);
template void depthwise_backward<float>(const ODConv2dParams&, const ODConv2dShape&, const Mixture<float>&, float*);
template void depthwise_backward<double>(const ODConv2dParams&, const ODConv2dShape&, const Mixture<double>&, double*);

}  // namespace flexor::FLEXOR_ISA
