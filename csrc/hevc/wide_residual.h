// SPDX-License-Identifier: Apache-2.0
// Residuals of extended_precision_processing_flag: coefficients of up to 19 bits (H.265 clauses 8.6.2 to 8.6.6). Rare,
// so plain.
#pragma once
#include "hevc/slice_decoder.h"
#include "hevc/transform_reference.h"

namespace flexor::FLEXOR_ISA {

// 8.6.4.2 without the last shift, into wide_.residual.
inline void SliceDecoder::wide_transform(int component, int log2_size) {
  const int n = 1 << log2_size;
  const int64_t limit = int64_t{1} << tools_.transform_range_log2[component != 0];
  const bool dst = component == 0 && log2_size == 2;
  const auto factor = [&](int k, int i) -> int64_t {
    return dst ? reference::kDst[k][i] : reference::kDct.factor[k << (5 - log2_size)][i];
  };
  const int32_t* const coefficients = wide_.coefficients;
  int32_t between[32 * 32];
  for (int y = 0; y < n; ++y) {
    for (int x = 0; x < nonzero_width_; ++x) {
      int64_t sum = 64;
      for (int k = 0; k < nonzero_height_; ++k) sum += factor(k, y) * coefficients[k * n + x];
      sum >>= 7;
      between[y * n + x] = static_cast<int32_t>(sum < -limit ? -limit : sum >= limit ? limit - 1 : sum);
    }
  }
  const int shift = larger(20 - tools_.bit_depth[component != 0], 11);
  for (int y = 0; y < n; ++y) {
    for (int x = 0; x < n; ++x) {
      int64_t sum = int64_t{1} << (shift - 1);
      for (int k = 0; k < nonzero_width_; ++k) sum += factor(k, x) * between[y * n + k];
      wide_.residual[y * n + x] = static_cast<int32_t>(sum >> shift);
    }
  }
}

// residual() with 32-bit numbers; what is left of them in the end goes to residual_.
inline int SliceDecoder::wide_residual(int component, int log2_size, int mode, bool coded, int scale) {
  const PictureTools& tools = tools_;
  const int n = 1 << log2_size, samples = n * n;
  int32_t* const residual = wide_.residual;
  int flags = 0;
  memset(residual, 0, sizeof wide_.residual);
  if (coded) {
    residual_coding(component, log2_size, mode);
    flags = kTransformCoded | (sign_hidden_ ? kTransformSignHidden : 0);
    if (bypass_ || skipped_) {
      const bool rotated = tools.transform_skip_rotation && log2_size == 2;
      const int down = larger(20 - tools.bit_depth[component != 0], 11);
      const int up = smaller(5, down - 2) + log2_size;
      for (int i = 0; i < samples; ++i) {
        const int64_t level = wide_.coefficients[rotated ? samples - 1 - i : i];
        residual[i] = static_cast<int32_t>(bypass_ ? level : (level * (1 << up) + (1 << (down - 1))) >> down);
      }
      if (rotated) flags |= kTransformRotated;
      if (skipped_) flags |= kTransformSkipped;
      if (has_rdpcm(tools, mode)) {
        const int step = mode == kIntraVertical ? n : 1;
        for (int i = 0; i < samples; ++i) {
          if (step == n ? i >= n : i % n != 0) residual[i] += residual[i - step];
        }
        flags |= kTransformRdpcm;
      }
    } else {
      wide_transform(component, log2_size);
    }
    memset(wide_.coefficients, 0, sizeof wide_.coefficients);
  }
  if (scale != 0) {
    for (int i = 0; i < samples; ++i) {
      const int64_t luma = wide_.luma_residual[i] * (int64_t{1} << tools.bit_depth[1]) >> tools.bit_depth[0];
      residual[i] += static_cast<int32_t>((scale * luma) >> 3);
    }
    flags |= kTransformCrossComponent;
  }
  if (component == 0) memcpy(wide_.luma_residual, residual, sizeof wide_.residual);
  for (int i = 0; i < samples; ++i) residual_[i] = static_cast<int16_t>(clamp_to(residual[i], -32768, 32767));
  return flags;
}

}  // namespace flexor::FLEXOR_ISA
