// SPDX-License-Identifier: Apache-2.0
// transform_tree(), transform_unit() and the quantization parameters (H.265 clauses 7.3.8.8 to 7.3.8.14, 8.6.1).
#pragma once
#include "hevc/slice_decoder.h"

namespace flexor::FLEXOR_ISA {

inline void SliceDecoder::transform_tree(int x, int y, int x_base, int y_base, int log2_size, int depth, int part,
                                         int cbf_cb, int cbf_cr) {
  const PictureTools& tools = tools_;
  uint8_t* const models = contexts_.model;
  const bool must_split = log2_size > tools.max_tb_log2 || (nxn_ && depth == 0);
  bool split = must_split;
  if (!must_split && log2_size > tools.min_tb_log2 && depth < tools.max_transform_depth + nxn_) {
    split = cabac_.bin(models[kSplitTransform + 5 - log2_size]);
    count(kBitsQuadtree);
  }
  // Bit 0: the first chroma block, bit 1: the second one of 4:2:2. A 4x4 luma block has its parent's.
  if (tools.chroma != 0 && (log2_size > 2 || tools.chroma == 3)) {
    const bool two = tools.chroma == 2 && (!split || log2_size == 3);
    for (int* cbf : {&cbf_cb, &cbf_cr}) {
      if (depth > 0 && *cbf == 0) continue;
      *cbf = cabac_.bin(models[kCbfChroma + depth]);
      if (two) *cbf |= cabac_.bin(models[kCbfChroma + depth]) << 1;
    }
    count(kBitsCodedFlags);
  }
  if (split) {
    const int half = 1 << (log2_size - 1);
    for (int child = 0; child < 4; ++child) {
      transform_tree(x + (child & 1) * half, y + (child >> 1) * half, x, y, log2_size - 1, depth + 1,
                     nxn_ && depth == 0 ? child : part, cbf_cb, cbf_cr);
    }
    return;
  }
  const bool cbf_luma = cabac_.bin(models[kCbfLuma + (depth == 0)]);
  count(kBitsCodedFlags);
  if (slice_.deblocking) mark_edges(picture_, ctb_, x, y, log2_size);
  transform_unit(x, y, x_base, y_base, log2_size, part, cbf_luma, cbf_cb, cbf_cr);
}

inline void SliceDecoder::transform_unit(int x, int y, int x_base, int y_base, int log2_size, int part, bool cbf_luma,
                                         int cbf_cb, int cbf_cr) {
  const PictureTools& tools = tools_;
  if (cbf_luma || cbf_cb || cbf_cr) {
    if (tools.qp_delta && !qp_delta_coded_) delta_qp();
    if (slice_.chroma_qp_offsets && (cbf_cb || cbf_cr) && !bypass_ && !chroma_qp_offset_coded_) chroma_qp_offset();
  }
  const int mode = luma_modes_[nxn_ ? part : 0];
  predict(0, x, y, log2_size, mode, nearest_[nxn_ ? part : 0]);
  reconstruct(0, x, y, log2_size, mode, cbf_luma, 0);
  if (tools.chroma == 0) return;

  int chroma_x = x, chroma_y = y, chroma_log2 = log2_size, chroma_part = 0;
  if (tools.chroma == 3) {
    chroma_part = nxn_ ? part : 0;
  } else if (log2_size > 2) {
    chroma_log2 = log2_size - 1;
  } else {
    if (x == x_base || y == y_base) return;  // the chroma of four 4x4 luma blocks comes with the last of them
    chroma_x = x_base;
    chroma_y = y_base;
  }
  chroma_x >>= tools.sub_width_log2;
  chroma_y >>= tools.sub_height_log2;
  const int chroma_mode_here = chroma_modes_[chroma_part];
  for (int component = 1; component < 3; ++component) {
    const int cbf = component == 1 ? cbf_cb : cbf_cr;
    int scale = 0;
    if (tools.cross_component && cbf_luma && chroma_from_luma_[chroma_part]) {
      uint8_t* const models = contexts_.model + kResScaleAbs + 4 * (component - 1);
      int size = 0;
      while (size < 4 && cabac_.bin(models[size])) ++size;
      if (size > 0) {
        scale = 1 << (size - 1);
        if (cabac_.bin(contexts_.model[kResScaleSign + component - 1])) scale = -scale;
      }
      count(kBitsTransformSkip);
    }
    for (int block = 0; block < (tools.chroma == 2 ? 2 : 1); ++block) {
      const int block_y = chroma_y + (block << chroma_log2);
      predict(component, chroma_x, block_y, chroma_log2, chroma_mode_here,
              nearest_[chroma_part] && chroma_from_luma_[chroma_part]);
      reconstruct(component, chroma_x, block_y, chroma_log2, chroma_mode_here, (cbf >> block) & 1, scale);
    }
  }
}

inline void SliceDecoder::delta_qp() {
  int size = 0;
  while (size < 5 && cabac_.bin(contexts_.model[kCuQpDelta + (size > 0)])) ++size;
  if (size == 5) {
    int order = 0;
    while (order < 7 && cabac_.bypass()) size += 1 << order++;
    size += static_cast<int>(cabac_.bypass(order));
  }
  if (size != 0 && cabac_.bypass()) size = -size;
  const int half_offset = tools_.qp_bd_offset[0] / 2;
  if (size < -(26 + half_offset) || size > 25 + half_offset) {
    error_ = true;
    size = 0;
  }
  qp_delta_coded_ = true;
  qp_delta_ = size;
  set_qp(size);
  count(kBitsQp);
}

inline void SliceDecoder::chroma_qp_offset() {
  cu_cb_qp_offset_ = 0;
  cu_cr_qp_offset_ = 0;
  if (cabac_.bin(contexts_.model[kChromaQpOffsetFlag])) {
    int index = 0;
    while (index < tools_.chroma_qp_offsets - 1 && cabac_.bin(contexts_.model[kChromaQpOffsetIdx])) ++index;
    cu_cb_qp_offset_ = tools_.cb_qp_offset_list[index];
    cu_cr_qp_offset_ = tools_.cr_qp_offset_list[index];
  }
  chroma_qp_offset_coded_ = true;
  set_qp(qp_delta_);
  count(kBitsQp);
}

inline void SliceDecoder::set_qp(int delta) {
  const int offset = tools_.qp_bd_offset[0];
  qp_ = (predicted_qp_ + delta + 52 + 2 * offset) % (52 + offset) - offset;
  scaled_qp_[0] = qp_ + offset;
  if (tools_.chroma != 0) {
    scaled_qp_[1] = chroma_qp(tools_, qp_, slice_.cb_qp_offset + cu_cb_qp_offset_);
    scaled_qp_[2] = chroma_qp(tools_, qp_, slice_.cr_qp_offset + cu_cr_qp_offset_);
  }
}

}  // namespace flexor::FLEXOR_ISA
