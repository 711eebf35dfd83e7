// SPDX-License-Identifier: Apache-2.0
// coding_quadtree(), coding_unit() and the prediction modes (H.265 clauses 7.3.8.4, 7.3.8.5, 8.4.2, 8.4.3).
#pragma once
#include "hevc/slice_decoder.h"

namespace flexor::FLEXOR_ISA {

inline void SliceDecoder::coding_quadtree(int x, int y, int log2_size, int depth) {
  const PictureTools& tools = tools_;
  const int size = 1 << log2_size;
  bool split = log2_size > tools.min_cb_log2;
  if (split && x + size <= tools.width && y + size <= tools.height) {
    const int mask = (1 << tools.ctb_log2) - 1;
    const uint8_t* const here =
        picture_.depth + (y >> tools.min_cb_log2) * picture_.blocks_stride + (x >> tools.min_cb_log2);
    const bool left = x != ctb_.x || ctb_.left;
    const bool top = y != ctb_.y || ctb_.top;
    const int context = (left && here[-1] > depth) + (top && here[-picture_.blocks_stride] > depth);
    split = cabac_.bin(contexts_.model[kSplitCu + context]);
  }
  if (tools.qp_delta && log2_size >= tools.min_qp_delta_log2) {
    qp_delta_coded_ = false;
    qp_delta_ = 0;
  }
  if (slice_.chroma_qp_offsets && log2_size >= tools.min_chroma_qp_offset_log2) chroma_qp_offset_coded_ = false;
  if (log2_size >= tools.min_qp_delta_log2) {
    // A quantization group begins: qPY_PRED of clause 8.6.1.
    const int8_t* const here =
        picture_.qp + (y >> tools.min_cb_log2) * picture_.blocks_stride + (x >> tools.min_cb_log2);
    const int left = x != ctb_.x ? here[-1] : last_qp_;
    const int top = y != ctb_.y ? here[-picture_.blocks_stride] : last_qp_;
    predicted_qp_ = (left + top + 1) >> 1;
  }
  count(kBitsQuadtree);
  if (!split) return coding_unit(x, y, log2_size);
  const int half = size >> 1;
  for (int part = 0; part < 4; ++part) {
    const int part_x = x + (part & 1) * half, part_y = y + (part >> 1) * half;
    if (part_x < tools.width && part_y < tools.height) coding_quadtree(part_x, part_y, log2_size - 1, depth + 1);
  }
}

inline void SliceDecoder::coding_unit(int x, int y, int log2_size) {
  const PictureTools& tools = tools_;
  bypass_ = tools.transquant_bypass && cabac_.bin(contexts_.model[kTransquantBypass]);
  nxn_ = log2_size == tools.min_cb_log2 && !cabac_.bin(contexts_.model[kPartMode]);
  count(kBitsQuadtree);
  set_qp(qp_delta_);

  bool pcm = false;
  if (tools.pcm && !nxn_ && log2_size >= tools.min_pcm_log2 && log2_size <= tools.max_pcm_log2) {
    pcm = cabac_.terminate();
    count(kBitsPcm);
  }
  const int blocks = 1 << (log2_size - tools.min_cb_log2);
  const ptrdiff_t first = (y >> tools.min_cb_log2) * picture_.blocks_stride + (x >> tools.min_cb_log2);
  const int depth = tools.ctb_log2 - log2_size;
  const bool unfiltered = bypass_ || (pcm && tools.pcm_unfiltered);
  for (int row = 0; row < blocks; ++row) {
    memset(picture_.depth + first + row * picture_.blocks_stride, depth, static_cast<size_t>(blocks));
    memset(picture_.unfiltered + first + row * picture_.blocks_stride, unfiltered, static_cast<size_t>(blocks));
  }
  if (pcm) {
    luma_modes_[0] = kIntraDc;
    chroma_modes_[0] = kIntraDc;
    const int units = 1 << (log2_size - 2);
    for (int unit = 0; unit < units; ++unit) {
      memset(picture_.luma_mode + ((y >> 2) + unit) * picture_.units_stride + (x >> 2), kIntraDc,
             static_cast<size_t>(units));
    }
    pcm_sample(x, y, log2_size);
    if (slice_.deblocking) mark_edges(picture_, ctb_, x, y, log2_size);
  } else {
    prediction_modes(x, y, log2_size, nxn_ ? 4 : 1);
    transform_tree(x, y, x, y, log2_size, 0, 0, 0, 0);
  }
  for (int row = 0; row < blocks; ++row) {
    memset(picture_.qp + first + row * picture_.blocks_stride, qp_, static_cast<size_t>(blocks));
  }
  last_qp_ = qp_;
  if (__builtin_expect(picture_.analysis != nullptr, 0)) {
    int nearest_flags = 0;
    for (int part = 0; part < (nxn_ ? 4 : 1) && !pcm; ++part)
      nearest_flags |= nearest_[part] ? kBlockNearest << part : 0;
    CodingBlock block = {static_cast<int16_t>(x),
                         static_cast<int16_t>(y),
                         static_cast<uint8_t>(log2_size),
                         static_cast<uint8_t>((nxn_ ? kBlockNxN : 0) | (bypass_ ? kBlockBypass : 0) |
                                              (pcm ? kBlockPcm : 0) | nearest_flags),
                         static_cast<int8_t>(qp_),
                         static_cast<uint8_t>(chroma_modes_[0]),
                         {}};
    for (int part = 0; part < 4; ++part) block.luma_modes[part] = static_cast<uint8_t>(luma_modes_[nxn_ ? part : 0]);
    picture_.on_coding_block(*picture_.analysis, block);
  }
}

// Table 8-2 and clause 8.4.2: `coded` is mpm_idx or rem_intra_luma_pred_mode.
inline int SliceDecoder::luma_mode(int x, int y, bool most_probable, int coded) const {
  int candidates[3];
  most_probable_modes(picture_, ctb_, x, y, candidates);
  if (most_probable) return candidates[coded];
  const auto sort = [&](int a, int b) {
    if (candidates[a] > candidates[b]) {
      const int other = candidates[a];
      candidates[a] = candidates[b];
      candidates[b] = other;
    }
  };
  sort(0, 1);
  sort(0, 2);
  sort(1, 2);
  int mode = coded;
  for (int candidate : candidates) mode += mode >= candidate;
  return mode;
}

inline void SliceDecoder::prediction_modes(int x, int y, int log2_size, int parts) {
  bool most_probable[4];
  for (int part = 0; part < parts; ++part) most_probable[part] = cabac_.bin(contexts_.model[kPrevIntraLuma]);
  const int part_log2 = parts == 4 ? log2_size - 1 : log2_size;
  for (int part = 0; part < parts; ++part) {
    int coded;
    if (most_probable[part]) {
      coded = cabac_.bypass() ? 1 + cabac_.bypass() : 0;
    } else {
      coded = static_cast<int>(cabac_.bypass(5));
    }
    const int part_x = x + ((part & 1) << part_log2), part_y = y + ((part >> 1) << part_log2);
    const int mode = luma_mode(part_x, part_y, most_probable[part], coded);
    luma_modes_[part] = mode;
    const int units = 1 << (part_log2 - 2);
    if (tools_.nearest_variant == NearestExtension::kExplicit) {
      uint8_t choice = kNoChoice;
      if (is_fractional(mode)) {
        choice =
            cabac_.bin(contexts_.model[nearest_context(picture_, ctb_, part_x, part_y)]) ? kNearestSample : kBilinear;
      }
      nearest_[part] = choice == kNearestSample;
      for (int unit = 0; unit < units; ++unit) {
        memset(picture_.nearest + ((part_y >> 2) + unit) * picture_.units_stride + (part_x >> 2), choice,
               static_cast<size_t>(units));
      }
    }
    for (int unit = 0; unit < units; ++unit) {
      memset(picture_.luma_mode + ((part_y >> 2) + unit) * picture_.units_stride + (part_x >> 2), mode,
             static_cast<size_t>(units));
    }
  }
  count(kBitsLumaMode);
  const int chroma_parts = tools_.chroma == 0 ? 0 : tools_.chroma == 3 ? parts : 1;
  for (int part = 0; part < chroma_parts; ++part) {
    int coded = 4;
    if (cabac_.bin(contexts_.model[kIntraChroma])) coded = static_cast<int>(cabac_.bypass(2));
    chroma_modes_[part] = derive_chroma_mode(tools_, coded, luma_modes_[part]);
    chroma_from_luma_[part] = coded == 4;
  }
  count(kBitsChromaMode);
}

inline void SliceDecoder::pcm_sample(int x, int y, int log2_size) {
  const PictureTools& tools = tools_;
  const uint8_t* const data = cabac_.position();
  const int64_t limit = 8 * static_cast<int64_t>(cabac_.end() - data);
  int64_t position = 0;
  for (int component = 0; component < (tools.chroma == 0 ? 1 : 3); ++component) {
    const bool chroma = component > 0;
    const int sub_x = chroma ? tools.sub_width_log2 : 0, sub_y = chroma ? tools.sub_height_log2 : 0;
    const int bits = tools.pcm_bit_depth[chroma], shift = tools.bit_depth[chroma] - bits;
    const int width = (1 << log2_size) >> sub_x, height = (1 << log2_size) >> sub_y;
    const ptrdiff_t stride = picture_.stride[component];
    uint16_t* row = picture_.samples[component] + (y >> sub_y) * stride + (x >> sub_x);
    for (int j = 0; j < height; ++j, row += stride) {
      for (int i = 0; i < width; ++i) {
        unsigned value = 0;
        if (position + bits <= limit) {
          for (int bit = 0; bit < bits; ++bit, ++position) {
            value = (value << 1) | ((data[position >> 3] >> (7 - (position & 7))) & 1u);
          }
        } else {
          error_ = true;
        }
        row[i] = static_cast<uint16_t>(value << shift);
      }
    }
  }
  const uint8_t* const after = data + ((position + 7) >> 3);
  if (__builtin_expect(picture_.analysis != nullptr, 0)) {
    picture_.on_bits(*picture_.analysis, kBitsPcm, static_cast<double>(position));
  }
  cabac_.start(after, cabac_.end());
  counted_ = bits_so_far();
}

}  // namespace flexor::FLEXOR_ISA
