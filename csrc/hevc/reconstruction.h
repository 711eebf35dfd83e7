// SPDX-License-Identifier: Apache-2.0
// A block's samples: its prediction and what the residual adds to it (H.265 clauses 8.6.2 to 8.6.7).
#pragma once
#include "hevc/slice_decoder.h"

namespace flexor::FLEXOR_ISA {

inline void SliceDecoder::predict(int component, int x, int y, int log2_size, int mode, bool nearest) {
  const ptrdiff_t stride = picture_.stride[component];
  border_.read(picture_, ctb_, component, x, y, log2_size);
  border_.predict(picture_, picture_.samples[component] + y * stride + x, stride, mode, nearest, bypass_);
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
      if (has_rdpcm(tools, mode)) {
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
