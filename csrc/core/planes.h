// SPDX-License-Identifier: Apache-2.0
// Channels as planes with zero borders, for correlations: every tap of every output of a row is then a
// plain load, whatever the padding, the dilation and the stride.
#pragma once
#include "core/rows.h"

namespace flexor::FLEXOR_ISA {

// For strides the pixels of one phase (position modulo stride) lie together.
struct PlaneLayout {
  int64_t stride_h = 1, stride_w = 1;
  int64_t origin_h = 0, origin_w = 0;  // source position of the first element, negative in the padding
  int64_t rows = 0, pitch = 0;         // of one phase
  int64_t used_h = 1, used_w = 1;      // bits of the phases that some tap reads

  int64_t size() const { return stride_h * stride_w * rows * pitch; }
  int64_t at(int64_t y, int64_t x) const {  // of source position origin + (y, x)
    return ((y % stride_h) * stride_w + x % stride_w) * rows * pitch + y / stride_h * pitch + x / stride_w;
  }

  static int64_t phases_used(int64_t taps, int64_t stride, int64_t dilation) {
    if (stride > 62) return -1;
    int64_t used = 0;
    for (int64_t i = 0; i < taps; ++i) used |= int64_t{1} << (i * dilation % stride);
    return used;
  }
  static bool is_used(int64_t used, int64_t phase) { return phase > 62 || ((used >> phase) & 1) != 0; }
};

template <class T>
FLEXOR_INLINE void copy_line(const T* src, int64_t n, T* dst) {
  constexpr int64_t L = kLanes<T>;
  int64_t x = 0;
  for (; x + L <= n; x += L) store(dst + x, load<Vec<T>>(src + x));
  for (; x < n; ++x) dst[x] = src[x];
}

// The planes of channels [c, c + count) of image n, one after the other at dst.
template <class T>
inline void fill_planes(const PlaneLayout& p, const TensorView& view, int64_t n, int64_t c, int64_t count, T* dst) {
  const int64_t* stride = view.stride;
  const bool own = view.dtype == kOwnDType<T>;
  const bool channels_together = own && stride[1] == 1 && stride[3] > 1 && p.stride_w == 1;
  for (int64_t py = 0; py < p.stride_h; ++py)
    for (int64_t px = 0; px < p.stride_w; ++px) {
      if (!p.is_used(p.used_h, py) || !p.is_used(p.used_w, px)) continue;
      const int64_t x0 = p.origin_w + px, width = view.size[3];
      const int64_t begin = x0 < 0 ? smaller(p.pitch, ceil_div(-x0, p.stride_w)) : 0;
      const int64_t end = width > x0 ? larger(begin, smaller(p.pitch, ceil_div(width - x0, p.stride_w))) : begin;
      const int64_t x_stride = stride[3] * p.stride_w;
      for (int64_t r = 0; r < p.rows; ++r) {
        const int64_t y = p.origin_h + py + r * p.stride_h;
        T* row = dst + ((py * p.stride_w + px) * p.rows + r) * p.pitch;
        const bool inside = y >= 0 && y < view.size[2] && begin < end;
        const int64_t from = inside ? begin : p.pitch, to = inside ? end : p.pitch;
        for (int64_t k = 0; k < count; ++k) {
          for (int64_t x = 0; x < from; ++x) row[k * p.size() + x] = T(0);
          for (int64_t x = to; x < p.pitch; ++x) row[k * p.size() + x] = T(0);
        }
        if (!inside) continue;
        const int64_t start = n * stride[0] + c * stride[1] + y * stride[2] + (x0 + begin * p.stride_w) * stride[3];
        if (channels_together) {
          transpose(static_cast<const T*>(view.data) + start, stride[3], end - begin, count, row + begin, p.size());
          continue;
        }
        for (int64_t k = 0; k < count; ++k) {
          T* line = row + k * p.size() + begin;
          if (own && x_stride == 1)
            copy_line(static_cast<const T*>(view.data) + start + k * stride[1], end - begin, line);
          else load_row(line, view, start + k * stride[1], x_stride, end - begin);
        }
      }
    }
}

}  // namespace flexor::FLEXOR_ISA
