// SPDX-License-Identifier: Apache-2.0
// Slice segment data: coding tree units in decoding order, their contexts and SAO (H.265 clauses 7.3.8.1 to 7.3.8.3).
#include "hevc/coding_quadtree.h"
#include "hevc/reconstruction.h"
#include "hevc/residual_coding.h"
#include "hevc/transform_tree.h"
#include "hevc/wide_residual.h"

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
