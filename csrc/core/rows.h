// SPDX-License-Identifier: Apache-2.0
// Rows of a tensor of any dtype and stride, to and from the dtype that kernels compute in; the
// conversions of bfloat16 and float16 are exact, and round to nearest even on the way back.
#pragma once
#include <cstring>

#include "core/simd.h"
#include "core/tensor.h"

namespace flexor::FLEXOR_ISA {

template <class T>
constexpr DType kOwnDType = sizeof(T) == 8 ? DType::f64 : DType::f32;

inline bool is_contiguous(const TensorView& view) {
  int64_t packed = 1;
  for (int d = view.ndim - 1; d >= 0; --d) {
    if (view.size[d] != 1 && view.stride[d] != packed) return false;
    packed *= view.size[d];
  }
  return true;
}

FLEXOR_INLINE uint32_t bits_of(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  return u;
}
FLEXOR_INLINE float float_of(uint32_t u) {
  float x;
  __builtin_memcpy(&x, &u, 4);
  return x;
}

FLEXOR_INLINE float from_bf16(uint16_t h) { return float_of(static_cast<uint32_t>(h) << 16); }

FLEXOR_INLINE uint16_t to_bf16(float x) {
  const uint32_t u = bits_of(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}

FLEXOR_INLINE float from_f16(uint16_t h) {
  const uint32_t magnitude = (h & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const float normal = float_of(magnitude + (112u << 23));
  const float special = float_of(magnitude | 0x7f800000u);                       // infinity, NaN
  const float tiny = float_of(magnitude + (113u << 23)) - float_of(113u << 23);  // zero, subnormal
  const float x = magnitude >= (0x1fu << 23) ? special : magnitude < (1u << 23) ? tiny : normal;
  return float_of(bits_of(x) | sign);
}

FLEXOR_INLINE uint16_t to_f16(float x) {
  const uint32_t u = bits_of(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7fffffffu;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t tiny = bits_of(float_of(magnitude) + float_of(126u << 23)) - (126u << 23);
  uint32_t h = magnitude < (113u << 23) ? tiny : normal;
  h = magnitude >= 0x477ff000u ? 0x7c00u : h;  // rounds past 65504
  h = magnitude > 0x7f800000u ? 0x7e00u : h;
  return static_cast<uint16_t>(sign | h);
}

template <class T, class Element, class Convert>
FLEXOR_INLINE void load_strided(T* dst, const Element* src, int64_t stride, int64_t n, Convert convert) {
  if (stride == 1)
    for (int64_t i = 0; i < n; ++i) dst[i] = static_cast<T>(convert(src[i]));
  else
    for (int64_t i = 0; i < n; ++i) dst[i] = static_cast<T>(convert(src[i * stride]));
}

template <class T>
inline void load_row(T* dst, const TensorView& view, int64_t start, int64_t stride, int64_t n) {
  switch (view.dtype) {
    case DType::f32:
      return load_strided(dst, static_cast<const float*>(view.data) + start, stride, n, [](float x) { return x; });
    case DType::f64:
      return load_strided(dst, static_cast<const double*>(view.data) + start, stride, n, [](double x) { return x; });
    case DType::bf16: return load_strided(dst, static_cast<const uint16_t*>(view.data) + start, stride, n, &from_bf16);
    default: return load_strided(dst, static_cast<const uint16_t*>(view.data) + start, stride, n, &from_f16);
  }
}

template <class T, class Element, class Convert>
FLEXOR_INLINE void store_strided(Element* dst, const T* src, int64_t stride, int64_t n, Convert convert) {
  if (stride == 1)
    for (int64_t i = 0; i < n; ++i) dst[i] = convert(src[i]);
  else
    for (int64_t i = 0; i < n; ++i) dst[i * stride] = convert(src[i]);
}

template <class T>
inline void store_row(const TensorView& view, int64_t start, int64_t stride, const T* src, int64_t n) {
  switch (view.dtype) {
    case DType::f32:
      return store_strided(static_cast<float*>(view.data) + start, src, stride, n,
                           [](T x) { return static_cast<float>(x); });
    case DType::f64:
      return store_strided(static_cast<double*>(view.data) + start, src, stride, n,
                           [](T x) { return static_cast<double>(x); });
    case DType::bf16:
      return store_strided(static_cast<uint16_t*>(view.data) + start, src, stride, n,
                           [](T x) { return to_bf16(static_cast<float>(x)); });
    default:
      return store_strided(static_cast<uint16_t*>(view.data) + start, src, stride, n,
                           [](T x) { return to_f16(static_cast<float>(x)); });
  }
}

// Pixels [first, first + n) of one plane of an NCHW-indexed view, counted row by row.
struct PlanePixels {
  const TensorView& view;
  int64_t width;
  bool flat;  // one stride for all pixels of the plane

  explicit PlanePixels(const TensorView& v)
      : view(v), width(v.size[3]), flat(v.stride[2] == v.size[3] * v.stride[3] || v.size[2] == 1) {}

  FLEXOR_INLINE int64_t start(int64_t n, int64_t c, int64_t y, int64_t x) const {
    return n * view.stride[0] + c * view.stride[1] + y * view.stride[2] + x * view.stride[3];
  }

  template <class Row>
  FLEXOR_INLINE void for_rows(int64_t n, int64_t c, int64_t first, int64_t count, Row row) const {
    if (flat) return row(start(n, c, 0, first), int64_t{0}, count);
    for (int64_t done = 0; done < count;) {
      const int64_t y = (first + done) / width, x = (first + done) % width;
      const int64_t run = smaller(width - x, count - done);
      row(start(n, c, y, x), done, run);
      done += run;
    }
  }

  template <class T>
  void load(T* dst, int64_t n, int64_t c, int64_t first, int64_t count) const {
    for_rows(n, c, first, count,
             [&](int64_t at, int64_t done, int64_t run) { load_row(dst + done, view, at, view.stride[3], run); });
  }

  template <class T>
  void store(const T* src, int64_t n, int64_t c, int64_t first, int64_t count) const {
    for_rows(n, c, first, count,
             [&](int64_t at, int64_t done, int64_t run) { store_row(view, at, view.stride[3], src + done, run); });
  }
};

}  // namespace flexor::FLEXOR_ISA
