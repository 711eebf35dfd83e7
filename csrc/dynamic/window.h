// SPDX-License-Identifier: Apache-2.0
// Where the taps of a convolution lie in the planes of its input, and in those of its gradient.
#pragma once
#include "core/planes.h"
#include "core/tasks.h"

namespace flexor::FLEXOR_ISA {

constexpr int64_t kPlanes = int64_t{1} << 22;  // elements of planes that are held at a time

struct Window {
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;

  int64_t taps() const { return kernel_h * kernel_w; }
};

inline PlaneLayout forward_layout(const Window& w, int64_t out_h, int64_t out_w) {
  PlaneLayout l;
  l.stride_h = w.stride_h, l.stride_w = w.stride_w, l.origin_h = -w.pad_h, l.origin_w = -w.pad_w;
  l.rows = (w.kernel_h - 1) * w.dilation_h / w.stride_h + out_h;
  l.pitch = (w.kernel_w - 1) * w.dilation_w / w.stride_w + out_w;
  l.used_h = PlaneLayout::phases_used(w.kernel_h, w.stride_h, w.dilation_h);
  l.used_w = PlaneLayout::phases_used(w.kernel_w, w.stride_w, w.dilation_w);
  return l;
}

inline void forward_offsets(const Window& w, const PlaneLayout& l, int64_t* offset) {
  for (int64_t i = 0; i < w.kernel_h; ++i)
    for (int64_t j = 0; j < w.kernel_w; ++j) *offset++ = l.at(i * w.dilation_h, j * w.dilation_w);
}

// The outputs of one axis that the input at one phase of the stride feeds: output q + reach[i] through tap[i].
struct AxisTaps {
  int64_t count = 0, positions = 0;
  int64_t *tap, *reach;
};

class InputAxis {
 public:
  InputAxis(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation)
      : size_(size), kernel_(kernel), stride_(stride), pad_(pad), dilation_(dilation) {
    int64_t most = 0;
    bool any = false;
    for (int64_t r = 0; r < phases(); ++r)
      for (int64_t i = 0; i < kernel; ++i) {
        if (rest(r, i) != 0) continue;
        const int64_t reach = reach_of(r, i);
        least = any ? smaller(least, reach) : reach, most = any ? larger(most, reach) : reach, any = true;
      }
    extent = ceil_div(size, stride) + most - least;
  }

  AxisTaps taps(int64_t phase, int64_t* room) const {  // room for 2 * kernel numbers
    AxisTaps t;
    t.positions = ceil_div(size_ - phase, stride_), t.tap = room, t.reach = room + kernel_;
    for (int64_t i = 0; i < kernel_; ++i) {
      if (rest(phase, i) != 0) continue;
      t.tap[t.count] = i, t.reach[t.count++] = reach_of(phase, i) - least;
    }
    return t;
  }

  int64_t phases() const { return smaller(stride_, size_); }

  int64_t least = 0, extent;  // first output of the planes, outputs of the planes

 private:
  int64_t rest(int64_t phase, int64_t i) const {
    return ((phase + pad_ - i * dilation_) % stride_ + stride_) % stride_;
  }
  int64_t reach_of(int64_t phase, int64_t i) const { return (phase + pad_ - i * dilation_) / stride_; }
  int64_t size_, kernel_, stride_, pad_, dilation_;
};

// The planes of some images: [image][group][channel, and where asked one more of zeros].
template <class T>
inline void fill_images(const PlaneLayout& layout, const TensorView& view, int64_t first, int64_t images,
                        int64_t groups, int64_t planes_a_group, T* dst) {
  constexpr int64_t kChannels = 16;
  const int64_t channels = view.size[1] / groups, parts = ceil_div(channels, kChannels);
  parallel_for(images * groups * parts, [&](int64_t task) {
    const int64_t part = task % parts, group = task / parts % groups, image = task / parts / groups;
    const int64_t c = part * kChannels, count = smaller(kChannels, channels - c);
    T* planes = dst + (image * groups + group) * planes_a_group * layout.size();
    fill_planes(layout, view, first + image, group * channels + c, count, planes + c * layout.size());
    if (part == parts - 1)
      for (int64_t i = channels * layout.size(); i < planes_a_group * layout.size(); ++i) planes[i] = T(0);
  });
}

inline void clear_positions(const TensorView& view, int64_t y0, int64_t sy, int64_t x0, int64_t sx) {
  parallel_for(view.size[0] * view.size[1], [&](int64_t plane) {
    const int64_t start = plane / view.size[1] * view.stride[0] + plane % view.size[1] * view.stride[1];
    const double zero = 0;
    for (int64_t y = y0; y < view.size[2]; y += sy)
      for (int64_t x = x0; x < view.size[3]; x += sx)
        store_row(view, start + y * view.stride[2] + x * view.stride[3], 1, &zero, 1);
  });
}

}  // namespace flexor::FLEXOR_ISA
