// SPDX-License-Identifier: Apache-2.0
// The transforms and the last addition are written for vectors; of the rest the compiler makes vectors by itself.
#include "hevc/transform.h"

#include "hevc/inverse_transform.h"

namespace flexor::FLEXOR_ISA {
namespace {

using hevc::TransformKernels;

template <class F>
FLEXOR_INLINE void for_size(int log2_size, F f) {
  switch (log2_size) {
    case 2: return f(std::integral_constant<int, 4>{});
    case 3: return f(std::integral_constant<int, 8>{});
    case 4: return f(std::integral_constant<int, 16>{});
    default: return f(std::integral_constant<int, 32>{});
  }
}

void fill(int16_t* block, int log2_size, int16_t x) {
  constexpr int L = smaller(16, kLanes<int16_t>);
  for (int i = 0; i < 1 << 2 * log2_size; i += L) store(block + i, splat<Shorts<L>>(x));
}

void dct(int16_t* residual, const int16_t* coefficients, int log2_size, int width, int height, int bit_depth) {
  if (width == 1 && height == 1) {
    const int column = (64 * coefficients[0] + 64) >> 7, shift = 20 - bit_depth;
    return fill(residual, log2_size, reference::saturate((64 * column + (1 << (shift - 1))) >> shift));
  }
  for_size(log2_size, [=](auto n) __attribute__((always_inline)) {
    Inverse<Dct, decltype(n)::value>::run(residual, coefficients, width, height, bit_depth);
  });
}

void dst(int16_t* residual, const int16_t* coefficients, int bit_depth) {
  Inverse<Dst, 4>::run(residual, coefficients, 4, 4, bit_depth);
}

template <int N>
FLEXOR_INLINE void add_rows(uint16_t* samples, ptrdiff_t stride, const int16_t* residual, int bit_depth) {
  constexpr int L = smaller(N, kLanes<int16_t>);
  const Shorts<L> white = shorts<L>((1 << bit_depth) - 1);
  for (int y = 0; y < N; ++y)
    for (int x = 0; x < N; x += L) {
      uint16_t* s = samples + y * stride + x;
      store(s, clamp(add_saturated(load<Shorts<L>>(s), load<Shorts<L>>(residual + y * N + x)), Shorts<L>{}, white));
    }
}

// Two rows of 4 samples fill a vector.
template <>
FLEXOR_INLINE void add_rows<4>(uint16_t* samples, ptrdiff_t stride, const int16_t* residual, int bit_depth) {
  using Rows = Vec<int64_t, 2>;
  const Shorts<8> white = shorts<8>((1 << bit_depth) - 1);
  for (int y = 0; y < 4; y += 2) {
    uint16_t *a = samples + y * stride, *b = a + stride;
    const Rows rows{load<int64_t>(a), load<int64_t>(b)};
    const Shorts<8> sum = add_saturated(reinterpret_cast<Shorts<8>>(rows), load<Shorts<8>>(residual + 4 * y));
    const Rows clipped = reinterpret_cast<Rows>(clamp(sum, Shorts<8>{}, white));
    store(a, clipped[0]);
    store(b, clipped[1]);
  }
}

void add(uint16_t* samples, ptrdiff_t stride, const int16_t* residual, int log2_size, int bit_depth) {
  for_size(log2_size, [=](auto n) __attribute__((always_inline)) {
    add_rows<decltype(n)::value>(samples, stride, residual, bit_depth);
  });
}

}  // namespace

extern const TransformKernels transform_kernels{
    &dct, &dst, &reference::skip, &reference::rotate, &reference::accumulate, &reference::cross_component, &add};

extern const TransformKernels transform_reference_kernels{&reference::dct,        &reference::dst,
                                                          &reference::skip,       &reference::rotate,
                                                          &reference::accumulate, &reference::cross_component,
                                                          &reference::add};

}  // namespace flexor::FLEXOR_ISA
