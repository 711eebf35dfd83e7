// SPDX-License-Identifier: Apache-2.0
// Prediction of a block from its neighbours (H.265 clause 8.4.4.2) and what the residual adds to it (8.6.2 to 8.6.7).
#pragma once
#include "hevc/slice_decoder.h"

namespace flexor::FLEXOR_ISA {

inline void fill(uint16_t* samples, int count, uint16_t value) {
  for (int i = 0; i < count; ++i) samples[i] = value;
}

inline void SliceDecoder::predict(int component, int x, int y, int log2_size, int mode) {
  const PictureTools& tools = tools_;
  const int n = 1 << log2_size;
  const bool chroma = component != 0;
  const int sub_x = chroma ? tools.sub_width_log2 : 0, sub_y = chroma ? tools.sub_height_log2 : 0;
  const int bit_depth = tools.bit_depth[chroma];
  const ptrdiff_t stride = picture_.stride[component];
  uint16_t* const block = picture_.samples[component] + y * stride + x;

  // How many samples of each side are available. Bottom left and top right are squares of the quadtree as a whole:
  // their first sample decides.
  const int luma_x = x << sub_x, luma_y = y << sub_y;
  const int mask = (1 << tools.ctb_log2) - 1;
  const bool at_left = (luma_x & mask) == 0, at_top = (luma_y & mask) == 0;
  const int z = picture_.z_order[((luma_y & mask) >> 2) * 16 + ((luma_x & mask) >> 2)];
  const bool left = at_left ? left_available_ : true;
  const bool top = at_top ? top_available_ : true;
  const bool corner = at_left ? (at_top ? top_left_available_ : left_available_) : (at_top ? top_available_ : true);
  const int next_x = luma_x + (n << sub_x), next_y = luma_y + (n << sub_y);
  int below = 0, beyond = 0;
  if (left && next_y < tools.height && next_y < ctb_y_ + mask + 1) {
    if (at_left || in_ctb_before(luma_x - 1, next_y, z)) { below = smaller(n, (tools.height - next_y) >> sub_y); }
  }
  if (next_x < tools.width) {  // a slice may begin just there: top right without top
    const bool in_ctb = next_x < ctb_x_ + mask + 1;
    if (at_top ? (in_ctb ? top : top_right_available_) : (in_ctb && in_ctb_before(next_x, luma_y - 1, z))) {
      beyond = smaller(n, (tools.width - next_x) >> sub_x);
    }
  }

  // The border with substitution (8.4.4.2.2): what is missing repeats the sample before it, from the bottom left on.
  uint16_t* border = border_[0] + kIntraSlack;
  if (!left && !top && !corner && beyond == 0) {
    fill(border, 4 * n + 1, static_cast<uint16_t>(1 << (bit_depth - 1)));
  } else {
    if (left) {
      const uint16_t* sample = block - 1 + (n + below - 1) * stride;
      for (int i = n - below; i < 2 * n; ++i, sample -= stride) border[i] = *sample;
    }
    if (corner) border[2 * n] = block[-stride - 1];
    const int first_above = top ? 0 : n, end_above = n + beyond;
    if (first_above < end_above) {
      memcpy(border + 2 * n + 1 + first_above, block - stride + first_above,
             sizeof(uint16_t) * static_cast<size_t>(end_above - first_above));
    }
    const int first = left ? n - below : corner ? 2 * n : 2 * n + 1 + first_above;
    fill(border, first, border[first]);
    if (left && !corner) border[2 * n] = border[2 * n - 1];
    if (!top && first <= 2 * n) fill(border + 2 * n + 1, n, border[2 * n]);
    fill(border + 2 * n + 1 + end_above, n - beyond, border[2 * n + end_above]);
  }

  if ((!chroma || tools.chroma == 3) && !tools.no_smoothing && intra_smooths(log2_size, mode)) {
    uint16_t* const smoothed = border_[1] + kIntraSlack;
    if (tools.strong_smoothing && !chroma && log2_size == 5 && intra_is_straight(border, log2_size, bit_depth)) {
      picture_.intra.smooth_strong(smoothed, border, log2_size);
    } else {
      picture_.intra.smooth(smoothed, border, log2_size);
    }
    border = smoothed;
  }
  bool edge_filter = !chroma && log2_size < 5;
  if (mode != kIntraDc && tools.implicit_rdpcm && bypass_) edge_filter = false;
  picture_.intra.predict(block, stride, border, log2_size, mode, false, edge_filter, bit_depth);
}

// The residual of a block, parsed if it is coded, with `scale` eighths of the luma residual added. Returns what was
// done, TransformFlags; none: there is no residual.
inline int SliceDecoder::residual(int component, int log2_size, int mode, bool coded, int scale) {
  const PictureTools& tools = tools_;
  const TransformKernels& kernels = picture_.transform;
  const bool chroma = component != 0;
  const int bit_depth = tools.bit_depth[chroma];
  const size_t bytes = sizeof(int16_t) << (2 * log2_size);
  int16_t* const residual = !chroma && tools.cross_component ? luma_residual_ : residual_;
  int flags = 0;
  if (coded) {
    residual_coding(component, log2_size, mode);
    flags = kTransformCoded | (sign_hidden_ ? kTransformSignHidden : 0);
    if (bypass_ || skipped_) {
      if (tools.transform_skip_rotation && log2_size == 2) {
        kernels.rotate(coefficients_, log2_size);
        flags |= kTransformRotated;
      }
      if (bypass_) {
        memcpy(residual, coefficients_, bytes);
      } else {
        kernels.skip(residual, coefficients_, log2_size, bit_depth);
        flags |= kTransformSkipped;
      }
      if (tools.implicit_rdpcm && (mode == kIntraHorizontal || mode == kIntraVertical)) {
        kernels.accumulate(residual, log2_size, mode == kIntraVertical);
        flags |= kTransformRdpcm;
      }
      memset(coefficients_, 0, bytes);
    } else {
      if (!chroma && log2_size == 2) {
        kernels.dst(residual, coefficients_, bit_depth);
      } else {
        kernels.dct(residual, coefficients_, log2_size, nonzero_width_, nonzero_height_, bit_depth);
      }
      for (int row = 0; row < nonzero_height_; ++row) {
        memset(coefficients_ + (row << log2_size), 0, sizeof(int16_t) * static_cast<size_t>(nonzero_width_));
      }
    }
  } else if (scale != 0) {
    memset(residual, 0, bytes);
  }
  if (scale != 0) {
    kernels.cross_component(residual, luma_residual_, scale, log2_size, tools.bit_depth[0], tools.bit_depth[1]);
    flags |= kTransformCrossComponent;
  }
  return flags;
}

// Adds a block's residual to what was predicted.
inline void SliceDecoder::reconstruct(int component, int x, int y, int log2_size, int mode, bool coded, int scale) {
  const bool chroma = component != 0;
  const bool wide = tools_.extended_precision;
  const int flags = wide ? wide_residual(component, log2_size, mode, coded, scale)
                         : residual(component, log2_size, mode, coded, scale);
  if (flags != 0) {
    const int16_t* const added = !chroma && tools_.cross_component && !wide ? luma_residual_ : residual_;
    const ptrdiff_t stride = picture_.stride[component];
    picture_.transform.add(picture_.samples[component] + y * stride + x, stride, added, log2_size,
                           tools_.bit_depth[chroma]);
  }
  if (__builtin_expect(picture_.analysis != nullptr, 0)) {
    picture_.on_transform_block(*picture_.analysis,
                                {static_cast<int16_t>(x), static_cast<int16_t>(y), static_cast<uint8_t>(log2_size),
                                 static_cast<uint8_t>(component), static_cast<uint8_t>(flags)});
  }
}

}  // namespace flexor::FLEXOR_ISA
