// SPDX-License-Identifier: Apache-2.0
// Slice segment data: coding tree units and what is in them (H.265 clause 7.3.8), in decoding order.
#include "hevc/reconstruction.h"
#include "hevc/residual_coding.h"

namespace flexor::FLEXOR_ISA {

// --- Coding tree blocks -------------------------------------------------------------------------------------------

void SliceDecoder::decode() {
  if (substream_.owned_ts < substream_.first_ts) give_up(substream_.owned_ts, substream_.first_ts);
  int ts = substream_.first_ts;
  substream_.damaged = !decode_ctbs(ts) || substream_.owned_ts < substream_.first_ts;
  if (ts < substream_.last_ts) {
    substream_.damaged = true;
    give_up(ts, substream_.last_ts);
  }
  substream_.exit_contexts = contexts_;
  substream_.exit_qp = last_qp_;
}

// False where the data broke; ts is then the first CTB that is not decoded.
bool SliceDecoder::decode_ctbs(int& ts) {
  const PictureTools& tools = tools_;
  cabac_.start(substream_.data, substream_.end);
  counted_ = bits_so_far();
  for (bool first = true; ts < substream_.last_ts; first = false) {
    enter_ctb(ts);
    start_contexts(ts, first);
    if (slice_.sao_luma || slice_.sao_chroma) {
      sao();
    } else {
      memset(&picture_.sao[ctb_rs_], 0, sizeof(SaoParameters));
    }
    coding_quadtree(ctb_x_, ctb_y_, tools.ctb_log2, 0);
    const bool last = cabac_.terminate();
    count(kBitsEnd);
    if (error_ || cabac_.exhausted()) return false;

    const int left = picture_.tile_left[ctb_rs_];
    const int column = ctb_rs_ % tools.width_ctbs;
    const int row_rs = ctb_rs_ - column + left;
    if (tools.wavefront && column == left + 1) picture_.row_contexts[row_rs] = contexts_;
    picture_.publish(picture_, row_rs, column - left + 1);
    ++ts;
    if (last) return substream_.ends_segment;
    if (ts == substream_.last_ts) {
      // The row or the tile ends here, and the segment goes on in the next substream.
      return !substream_.ends_segment && cabac_.terminate();
    }
    const int next = picture_.ts_to_rs[ts];
    const bool new_tile = picture_.tile_id[ts] != picture_.tile_id[ts - 1];
    if (new_tile || (tools.wavefront && next % tools.width_ctbs == picture_.tile_left[next])) {
      if (!cabac_.terminate()) return false;
      cabac_.start(cabac_.position(), cabac_.end());
      counted_ = bits_so_far();
    }
  }
  return true;
}

void SliceDecoder::enter_ctb(int ts) {
  const PictureTools& tools = tools_;
  const int rs = picture_.ts_to_rs[ts];
  const int width = tools.width_ctbs;
  const int column = rs % width;
  const int tile = picture_.tile_id[ts];
  const int left = picture_.tile_left[rs], right = picture_.tile_right[rs];
  ctb_rs_ = rs;
  ctb_x_ = column << tools.ctb_log2;
  ctb_y_ = rs / width << tools.ctb_log2;
  const auto same_slice = [&](int other) {
    return picture_.slice[other] != nullptr && picture_.slice[other]->slice_address == slice_.slice_address;
  };
  const bool in_tile_left = column > left;
  const bool in_tile_top = rs / width > picture_.tile_top[rs];
  left_available_ = in_tile_left && same_slice(rs - 1);
  top_available_ = in_tile_top && same_slice(rs - width);
  top_left_available_ = in_tile_left && in_tile_top && same_slice(rs - width - 1);
  top_right_available_ = in_tile_top && column + 1 < right && same_slice(rs - width + 1);

  // Substreams of other threads: the row above must be one CTB further, the CTB to the left done.
  if (in_tile_top) {
    const int row_above = rs - column - width + left;
    const int needed = top_right_available_ ? column - left + 2 : top_available_ ? column - left + 1 : column - left;
    if (top_available_ || top_left_available_ || top_right_available_) picture_.wait(picture_, row_above, needed);
  }
  if (left_available_) picture_.wait(picture_, rs - column + left, column - left);

  const bool other_tile_left = column > 0 && picture_.tile_id[picture_.rs_to_ts[rs - 1]] != tile;
  const bool other_tile_top = rs >= width && picture_.tile_id[picture_.rs_to_ts[rs - width]] != tile;
  filter_left_ = column > 0 && (slice_.across_slices || same_slice(rs - 1)) && (tools.across_tiles || !other_tile_left);
  filter_top_ =
      rs >= width && (slice_.across_slices || same_slice(rs - width)) && (tools.across_tiles || !other_tile_top);

  // Nothing is filtered until a block says so.
  const int units = 1 << (tools.ctb_log2 - 2);
  for (int unit = 0; unit < units; ++unit) {
    memset(picture_.vertical_edges + ((ctb_y_ >> 2) + unit) * picture_.units_stride + (ctb_x_ >> 3), 0,
           static_cast<size_t>(units >> 1));
  }
  for (int unit = 0; unit < units >> 1; ++unit) {
    memset(picture_.horizontal_edges + ((ctb_y_ >> 3) + unit) * picture_.units_stride + (ctb_x_ >> 2), 0,
           static_cast<size_t>(units));
  }
}

// Clause 9.3.1, and the luma QP that clause 8.6.1 begins with.
void SliceDecoder::start_contexts(int ts, bool first) {
  const bool new_tile = ts == 0 || picture_.tile_id[ts] != picture_.tile_id[ts - 1];
  const int column = ctb_rs_ % tools_.width_ctbs;
  const int left = picture_.tile_left[ctb_rs_];
  const bool new_segment = first && substream_.begins_segment;
  if (new_tile || (tools_.wavefront && column == left)) {
    if (!new_tile && top_right_available_) {
      contexts_ = picture_.row_contexts[ctb_rs_ - tools_.width_ctbs];
    } else {
      initialise_contexts(contexts_, slice_.slice_qp);
    }
    last_qp_ = slice_.slice_qp;
  } else if (new_segment && slice_.dependent && index_ > 0) {
    picture_.wait_substream(picture_, index_ - 1);
    contexts_ = picture_.substreams[index_ - 1].exit_contexts;
    last_qp_ = picture_.substreams[index_ - 1].exit_qp;
  } else if (new_segment) {
    initialise_contexts(contexts_, slice_.slice_qp);
    last_qp_ = slice_.slice_qp;
  } else {
    return;
  }
  if (new_segment && !slice_.dependent) {
    cu_cb_qp_offset_ = 0;
    cu_cr_qp_offset_ = 0;
  }
}

// CTBs that could not be decoded become grey, unfiltered.
void SliceDecoder::give_up(int first_ts, int last_ts) {
  const PictureTools& tools = tools_;
  for (int ts = first_ts; ts < last_ts; ++ts) {
    enter_ctb(ts);
    memset(&picture_.sao[ctb_rs_], 0, sizeof(SaoParameters));
    const int size = 1 << tools.ctb_log2;
    const int width = smaller(size, tools.width - ctb_x_), height = smaller(size, tools.height - ctb_y_);
    for (int component = 0; component < (tools.chroma == 0 ? 1 : 3); ++component) {
      const int sub_x = component > 0 ? tools.sub_width_log2 : 0, sub_y = component > 0 ? tools.sub_height_log2 : 0;
      const uint16_t grey = static_cast<uint16_t>(1 << (tools.bit_depth[component > 0] - 1));
      const ptrdiff_t stride = picture_.stride[component];
      uint16_t* row = picture_.samples[component] + (ctb_y_ >> sub_y) * stride + (ctb_x_ >> sub_x);
      for (int y = 0; y < height >> sub_y; ++y, row += stride) {
        for (int x = 0; x < width >> sub_x; ++x) row[x] = grey;
      }
    }
    for (int y = 0; y < height; y += 4) {
      memset(picture_.luma_mode + ((ctb_y_ + y) >> 2) * picture_.units_stride + (ctb_x_ >> 2), kIntraDc,
             static_cast<size_t>(width >> 2));
    }
    const int block = 1 << tools.min_cb_log2;
    for (int y = 0; y < height; y += block) {
      const ptrdiff_t row =
          ((ctb_y_ + y) >> tools.min_cb_log2) * picture_.blocks_stride + (ctb_x_ >> tools.min_cb_log2);
      const size_t blocks = static_cast<size_t>(width >> tools.min_cb_log2);
      memset(picture_.depth + row, 0, blocks);
      memset(picture_.qp + row, slice_.slice_qp, blocks);
      memset(picture_.unfiltered + row, 1, blocks);
    }
    const int left = picture_.tile_left[ctb_rs_], column = ctb_rs_ % tools.width_ctbs;
    if (tools.wavefront && column == left + 1) picture_.row_contexts[ctb_rs_ - 1] = contexts_;
    picture_.publish(picture_, ctb_rs_ - column + left, column - left + 1);
  }
}

// --- Sample adaptive offset ---------------------------------------------------------------------------------------

void SliceDecoder::sao() {
  SaoParameters& sao = picture_.sao[ctb_rs_];
  if (left_available_ && cabac_.bin(contexts_.model[kSaoMerge])) {
    sao = picture_.sao[ctb_rs_ - 1];
  } else if (top_available_ && cabac_.bin(contexts_.model[kSaoMerge])) {
    sao = picture_.sao[ctb_rs_ - tools_.width_ctbs];
  } else {
    memset(&sao, 0, sizeof sao);
    for (int component = 0; component < (tools_.chroma == 0 ? 1 : 3); ++component) {
      if (component == 0 ? slice_.sao_luma : slice_.sao_chroma) sao_component(sao, component);
    }
  }
  count(kBitsSao);
}

void SliceDecoder::sao_component(SaoParameters& sao, int component) {
  if (component < 2) {
    sao.type[component] = 0;
    if (cabac_.bin(contexts_.model[kSaoType])) sao.type[component] = cabac_.bypass() ? 2 : 1;
  } else {
    sao.type[2] = sao.type[1];
  }
  if (sao.type[component] == 0) return;

  const int largest = (1 << (smaller(tools_.bit_depth[component > 0], 10) - 5)) - 1;
  int offsets[4];
  for (int& offset : offsets) {
    offset = 0;
    while (offset < largest && cabac_.bypass()) ++offset;
  }
  if (sao.type[component] == 1) {
    for (int& offset : offsets) {
      if (offset != 0 && cabac_.bypass()) offset = -offset;
    }
    sao.band_or_class[component] = static_cast<uint8_t>(cabac_.bypass(5));
  } else {
    offsets[2] = -offsets[2];
    offsets[3] = -offsets[3];
    sao.band_or_class[component] = component == 2 ? sao.band_or_class[1] : static_cast<uint8_t>(cabac_.bypass(2));
  }
  for (int i = 0; i < 4; ++i) {
    sao.offset[component][i] = static_cast<int16_t>(offsets[i] * (1 << tools_.sao_scale_log2[component > 0]));
  }
}

// --- The quadtree -------------------------------------------------------------------------------------------------

void SliceDecoder::coding_quadtree(int x, int y, int log2_size, int depth) {
  const PictureTools& tools = tools_;
  const int size = 1 << log2_size;
  bool split = log2_size > tools.min_cb_log2;
  if (split && x + size <= tools.width && y + size <= tools.height) {
    const int mask = (1 << tools.ctb_log2) - 1;
    const uint8_t* const here =
        picture_.depth + (y >> tools.min_cb_log2) * picture_.blocks_stride + (x >> tools.min_cb_log2);
    const bool left = (x & mask) != 0 || left_available_;
    const bool top = (y & mask) != 0 || top_available_;
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
    const int mask = (1 << tools.ctb_log2) - 1;
    const int8_t* const here =
        picture_.qp + (y >> tools.min_cb_log2) * picture_.blocks_stride + (x >> tools.min_cb_log2);
    const int left = (x & mask) != 0 ? here[-1] : last_qp_;
    const int top = (y & mask) != 0 ? here[-picture_.blocks_stride] : last_qp_;
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

void SliceDecoder::coding_unit(int x, int y, int log2_size) {
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
    mark_edges(x, y, log2_size);
  } else {
    prediction_modes(x, y, log2_size, nxn_ ? 4 : 1);
    transform_tree(x, y, x, y, log2_size, 0, 0, 0, 0);
  }
  for (int row = 0; row < blocks; ++row) {
    memset(picture_.qp + first + row * picture_.blocks_stride, qp_, static_cast<size_t>(blocks));
  }
  last_qp_ = qp_;
  if (__builtin_expect(picture_.analysis != nullptr, 0)) {
    CodingBlock block = {
        static_cast<int16_t>(x),
        static_cast<int16_t>(y),
        static_cast<uint8_t>(log2_size),
        static_cast<uint8_t>((nxn_ ? kBlockNxN : 0) | (bypass_ ? kBlockBypass : 0) | (pcm ? kBlockPcm : 0)),
        static_cast<int8_t>(qp_),
        static_cast<uint8_t>(chroma_modes_[0]),
        {}};
    for (int part = 0; part < 4; ++part) block.luma_modes[part] = static_cast<uint8_t>(luma_modes_[nxn_ ? part : 0]);
    picture_.on_coding_block(*picture_.analysis, block);
  }
}

// Table 8-2 and clause 8.4.2: `coded` is mpm_idx or rem_intra_luma_pred_mode.
int SliceDecoder::luma_mode(int x, int y, bool most_probable, int coded) const {
  const int mask = (1 << tools_.ctb_log2) - 1;
  const uint8_t* const here = picture_.luma_mode + (y >> 2) * picture_.units_stride + (x >> 2);
  const int left = (x & mask) != 0 || left_available_ ? here[-1] : +kIntraDc;
  const int top = (y & mask) != 0 ? here[-picture_.units_stride] : +kIntraDc;  // not from the row of CTBs above
  int candidates[3];
  if (left == top) {
    if (left < 2) {
      candidates[0] = kIntraPlanar;
      candidates[1] = kIntraDc;
      candidates[2] = kIntraVertical;
    } else {
      candidates[0] = left;
      candidates[1] = 2 + ((left + 29) & 31);
      candidates[2] = 2 + ((left - 1) & 31);
    }
  } else {
    candidates[0] = left;
    candidates[1] = top;
    candidates[2] = left != kIntraPlanar && top != kIntraPlanar ? kIntraPlanar
                    : left != kIntraDc && top != kIntraDc       ? kIntraDc
                                                                : kIntraVertical;
  }
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

// Tables 8-2 and 8-3.
int SliceDecoder::chroma_mode(int coded, int luma) const {
  static constexpr int kModes[4] = {kIntraPlanar, kIntraVertical, kIntraHorizontal, kIntraDc};
  int mode = luma;
  if (coded < 4) mode = kModes[coded] == luma ? 34 : kModes[coded];
  return tools_.chroma == 2 ? tools_.chroma_mode_422[mode] : mode;
}

void SliceDecoder::prediction_modes(int x, int y, int log2_size, int parts) {
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
    chroma_modes_[part] = chroma_mode(coded, luma_modes_[part]);
    chroma_from_luma_[part] = coded == 4;
  }
  count(kBitsChromaMode);
}

void SliceDecoder::pcm_sample(int x, int y, int log2_size) {
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

void SliceDecoder::mark_edges(int x, int y, int log2_size) {
  if (!slice_.deblocking) return;
  const int units = 1 << (log2_size - 2);
  if ((x & 7) == 0 && (x != ctb_x_ || filter_left_)) {
    uint8_t* edge = picture_.vertical_edges + (y >> 2) * picture_.units_stride + (x >> 3);
    for (int unit = 0; unit < units; ++unit, edge += picture_.units_stride) *edge = 1;
  }
  if ((y & 7) == 0 && (y != ctb_y_ || filter_top_)) {
    memset(picture_.horizontal_edges + (y >> 3) * picture_.units_stride + (x >> 2), 1, static_cast<size_t>(units));
  }
}

// --- The transform tree -------------------------------------------------------------------------------------------

void SliceDecoder::transform_tree(int x, int y, int x_base, int y_base, int log2_size, int depth, int part, int cbf_cb,
                                  int cbf_cr) {
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
  mark_edges(x, y, log2_size);
  transform_unit(x, y, x_base, y_base, log2_size, part, cbf_luma, cbf_cb, cbf_cr);
}

void SliceDecoder::transform_unit(int x, int y, int x_base, int y_base, int log2_size, int part, bool cbf_luma,
                                  int cbf_cb, int cbf_cr) {
  const PictureTools& tools = tools_;
  if (cbf_luma || cbf_cb || cbf_cr) {
    if (tools.qp_delta && !qp_delta_coded_) delta_qp();
    if (slice_.chroma_qp_offsets && (cbf_cb || cbf_cr) && !bypass_ && !chroma_qp_offset_coded_) chroma_qp_offset();
  }
  const int mode = luma_modes_[nxn_ ? part : 0];
  predict(0, x, y, log2_size, mode);
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
      predict(component, chroma_x, block_y, chroma_log2, chroma_mode_here);
      reconstruct(component, chroma_x, block_y, chroma_log2, chroma_mode_here, (cbf >> block) & 1, scale);
    }
  }
}

// --- Quantization parameters --------------------------------------------------------------------------------------

void SliceDecoder::delta_qp() {
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

void SliceDecoder::chroma_qp_offset() {
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

void SliceDecoder::set_qp(int delta) {
  const int offset = tools_.qp_bd_offset[0];
  qp_ = (predicted_qp_ + delta + 52 + 2 * offset) % (52 + offset) - offset;
  scaled_qp_[0] = qp_ + offset;
  if (tools_.chroma != 0) {
    scaled_qp_[1] = chroma_qp(slice_.cb_qp_offset + cu_cb_qp_offset_);
    scaled_qp_[2] = chroma_qp(slice_.cr_qp_offset + cu_cr_qp_offset_);
  }
}

// Qp'Cb or Qp'Cr (clause 8.6.1, table 8-10).
int SliceDecoder::chroma_qp(int offset) const {
  static constexpr int kTable[14] = {29, 30, 31, 32, 33, 33, 34, 34, 35, 35, 36, 36, 37, 37};
  const int index = clamp_to(qp_ + offset, -tools_.qp_bd_offset[1], 57);
  int qp = index;
  if (tools_.chroma != 1) {
    qp = smaller(index, 51);
  } else if (index >= 30) {
    qp = index > 43 ? index - 6 : kTable[index - 30];
  }
  return qp + tools_.qp_bd_offset[1];
}

// --- Analysis -----------------------------------------------------------------------------------------------------

// Information read so far: shifts of the window, less what is still open in the range.
double SliceDecoder::bits_so_far() const {
  return static_cast<double>(cabac_.bits_read()) - __builtin_log2(static_cast<double>(cabac_.range()));
}

void SliceDecoder::count_slowly(int group) {
  const double bits = bits_so_far();
  picture_.on_bits(*picture_.analysis, group, bits - counted_);
  counted_ = bits;
}

// An object holds 8 KB of coefficients and residuals: one on the stack of a thread is fine.
static void decode_substream(PictureState& picture, int index) {
  SliceDecoder decoder(picture, index);
  decoder.decode();
}

extern const SliceKernels slice_kernels{decode_substream};

}  // namespace flexor::FLEXOR_ISA
