// SPDX-License-Identifier: Apache-2.0
// Winograd's F(2x2, 3x3): four outputs of a 3x3 kernel from 16 products in place of 36.
//   Y = A' [(G g G') . (B' d B)] A      d: 4x4 inputs, g: 3x3 taps, Y: 2x2 outputs, ' transposed, . elementwise
// With dilation D the pixels that are D apart form D * D images of their own; a tile is taken from one of them.
// Lanes are channels, so that neither D nor borders disturb the vectors.
#pragma once
#include "core/rows.h"

namespace flexor::FLEXOR_ISA {

constexpr int kPositions = 16;  // of a tile of products

// Tile i along one axis starts at pixel start(i) and gives the outputs start(i) and start(i) + dilation.
struct TileAxis {
  int64_t size, dilation;

  int64_t count() const {
    const int64_t period = 2 * dilation;
    return size / period * dilation + smaller(size % period, dilation);
  }
  int64_t start(int64_t i) const { return i / dilation * 2 * dilation + i % dilation; }
};

// B' d B
template <class V>
FLEXOR_INLINE void transform_input(const V (&d)[4][4], V (&v)[4][4]) {
  V t[4][4];
  unroll<4>([&](auto j) __attribute__((always_inline)) {
    t[0][j] = d[0][j] - d[2][j], t[1][j] = d[1][j] + d[2][j];
    t[2][j] = d[2][j] - d[1][j], t[3][j] = d[1][j] - d[3][j];
  });
  unroll<4>([&](auto i) __attribute__((always_inline)) {
    v[i][0] = t[i][0] - t[i][2], v[i][1] = t[i][1] + t[i][2];
    v[i][2] = t[i][2] - t[i][1], v[i][3] = t[i][1] - t[i][3];
  });
}

// G g G'
template <class T, class V>
FLEXOR_INLINE void transform_weight(const V (&g)[3][3], V (&u)[4][4]) {
  const V half = splat<V>(T(0.5));
  V t[4][3];
  unroll<3>([&](auto j) __attribute__((always_inline)) {
    const V sum = g[0][j] + g[2][j];
    t[0][j] = g[0][j], t[1][j] = half * (sum + g[1][j]), t[2][j] = half * (sum - g[1][j]), t[3][j] = g[2][j];
  });
  unroll<4>([&](auto i) __attribute__((always_inline)) {
    const V sum = t[i][0] + t[i][2];
    u[i][0] = t[i][0], u[i][1] = half * (sum + t[i][1]), u[i][2] = half * (sum - t[i][1]), u[i][3] = t[i][2];
  });
}

// A' m A
template <class V>
FLEXOR_INLINE void transform_output(const V (&m)[4][4], V (&y)[2][2]) {
  V t[2][4];
  unroll<4>([&](auto j) __attribute__((always_inline)) {
    const V sum = m[1][j] + m[2][j], difference = m[1][j] - m[2][j];
    t[0][j] = m[0][j] + sum, t[1][j] = difference - m[3][j];
  });
  unroll<2>([&](auto i) __attribute__((always_inline)) {
    y[i][0] = t[i][0] + (t[i][1] + t[i][2]), y[i][1] = (t[i][1] - t[i][2]) - t[i][3];
  });
}

// A y A', what the gradient of the outputs is to the products
template <class V>
FLEXOR_INLINE void transform_grad_output(const V (&y)[2][2], V (&m)[4][4]) {
  V t[4][2];
  unroll<2>([&](auto j) __attribute__((always_inline)) {
    t[0][j] = y[0][j], t[1][j] = y[0][j] + y[1][j], t[2][j] = y[0][j] - y[1][j], t[3][j] = -y[1][j];
  });
  unroll<4>([&](auto i) __attribute__((always_inline)) {
    m[i][0] = t[i][0], m[i][1] = t[i][0] + t[i][1], m[i][2] = t[i][0] - t[i][1], m[i][3] = -t[i][1];
  });
}

// G' u G, from the gradient of the transformed weight to that of the taps
template <class T, class V>
FLEXOR_INLINE void transform_grad_weight(const V (&u)[4][4], V (&g)[3][3]) {
  const V half = splat<V>(T(0.5));
  V t[3][4];
  unroll<4>([&](auto j) __attribute__((always_inline)) {
    const V sum = half * (u[1][j] + u[2][j]);
    t[0][j] = u[0][j] + sum, t[1][j] = half * (u[1][j] - u[2][j]), t[2][j] = sum + u[3][j];
  });
  unroll<3>([&](auto i) __attribute__((always_inline)) {
    const V sum = half * (t[i][1] + t[i][2]);
    g[i][0] = t[i][0] + sum, g[i][1] = half * (t[i][1] - t[i][2]), g[i][2] = sum + t[i][3];
  });
}

// Pixels [begin, end) of row y of channels [c, c + count) as [pixel][stride], zeros in the lanes that are left, and
// one more pixel of zeros. Outside the image the row is zeros. `scratch` holds stride * (end - begin).
template <class T>
inline void pack_row(const TensorView& view, int64_t n, int64_t c, int64_t count, int64_t y, int64_t begin, int64_t end,
                     int64_t stride, T* scratch, T* dst) {
  const int64_t width = end - begin;
  for (int64_t l = 0; l < stride; ++l) dst[width * stride + l] = T(0);
  if (y < 0 || y >= view.size[2]) {
    for (int64_t i = 0; i < width * stride; ++i) dst[i] = T(0);
    return;
  }
  if (count < stride)
    for (int64_t i = 0; i < width; ++i)
      for (int64_t l = count; l < stride; ++l) dst[i * stride + l] = T(0);
  const int64_t at = n * view.stride[0] + c * view.stride[1] + y * view.stride[2] + begin * view.stride[3];
  if (view.dtype == kOwnDType<T> && view.stride[3] == 1)
    return transpose(static_cast<const T*>(view.data) + at, view.stride[1], count, width, dst, stride);
  for (int64_t k = 0; k < count; ++k)
    load_row(scratch + k * width, view, at + k * view.stride[1], view.stride[3], width);
  transpose(scratch, width, count, width, dst, stride);
}

// The way back: [pixel][stride] to pixels [begin, begin + width) of row y. `scratch` holds count * width.
template <class T>
inline void unpack_row(const T* src, int64_t stride, const TensorView& view, int64_t n, int64_t c, int64_t count,
                       int64_t y, int64_t begin, int64_t width, T* scratch) {
  const int64_t at = n * view.stride[0] + c * view.stride[1] + y * view.stride[2] + begin * view.stride[3];
  if (view.dtype == kOwnDType<T> && view.stride[3] == 1)
    return transpose(src, stride, width, count, static_cast<T*>(view.data) + at, view.stride[1]);
  transpose(src, stride, width, count, scratch, width);
  for (int64_t k = 0; k < count; ++k)
    store_row(view, at + k * view.stride[1], view.stride[3], scratch + k * width, width);
}

}  // namespace flexor::FLEXOR_ISA
