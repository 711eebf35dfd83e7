// SPDX-License-Identifier: Apache-2.0
// From scaled coefficients to samples (H.265 clauses 8.6.2, 8.6.4 to 8.6.7). Blocks are dense, row after row, n = 1 <<
// log2_size wide, 64-byte aligned. Residuals beyond 16 bits saturate.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/cpu.h"

namespace flexor::hevc {

struct TransformKernels {
  // 8.6.4.2, DCT of 4x4 to 32x32. Only the first `width` columns and `height` rows of the coefficients are not zero
  // (at least 1; the kernel rounds them up as it likes). width = height = 1 is the DC-only case.
  void (*dct)(int16_t* residual, const int16_t* coefficients, int log2_size, int width, int height, int bit_depth);
  void (*dst)(int16_t* residual, const int16_t* coefficients, int bit_depth);  // 4x4 luma
  // 8.6.4.2 with transform_skip_flag: (c << tsShift + rounding) >> bdShift. In place allowed.
  void (*skip)(int16_t* residual, const int16_t* coefficients, int log2_size, int bit_depth);
  void (*rotate)(int16_t* block, int log2_size);  // by 180 degrees, in place
  // 8.6.8, residual DPCM, in place: each value adds to the next one below (vertical) or to the right.
  void (*accumulate)(int16_t* residual, int log2_size, bool vertical);
  // 8.6.6: residual += (scale * ((luma << bit_depth_chroma) >> bit_depth_luma)) >> 3, scale in -8..8.
  void (*cross_component)(int16_t* residual, const int16_t* luma, int scale, int log2_size, int bit_depth_luma,
                          int bit_depth_chroma);
  // 8.6.7: samples = clip(samples + residual).
  void (*add)(uint16_t* samples, ptrdiff_t stride, const int16_t* residual, int log2_size, int bit_depth);
};

}  // namespace flexor::hevc

namespace flexor {
FLEXOR_DECLARE_KERNELS(hevc::TransformKernels, transform_kernels)
// As the standard words it, for tests and benchmarks.
FLEXOR_DECLARE_KERNELS(hevc::TransformKernels, transform_reference_kernels)
}  // namespace flexor
