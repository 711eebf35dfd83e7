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
  initialise_contexts(contexts_, slice_.slice_qp);  // others may go on from those of CTBs that are given up
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
      memset(&picture_.sao[ctb_.rs], 0, sizeof(SaoParameters));
    }
    coding_quadtree(ctb_.x, ctb_.y, tools.ctb_log2, 0);
    const bool last = cabac_.terminate();
    count(kBitsEnd);
    if (error_ || cabac_.exhausted()) return false;

    if (tools.wavefront && ctb_.column == 1) picture_.row_contexts[ctb_.row_rs] = contexts_;
    picture_.publish(picture_, ctb_.row_rs, ctb_.column + 1);
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
  ctb_ = place_ctb(picture_, slice_, ts);
  wait_for_neighbours(picture_, ctb_);
  clear_edges(picture_, ctb_);
}

// Clause 9.3.1, and the luma QP that clause 8.6.1 begins with.
void SliceDecoder::start_contexts(int ts, bool first) {
  const bool new_tile = ts == 0 || picture_.tile_id[ts] != picture_.tile_id[ts - 1];
  const bool new_segment = first && substream_.begins_segment;
  if (new_tile || (tools_.wavefront && ctb_.column == 0)) {
    if (!new_tile && ctb_.top_right) {
      contexts_ = picture_.row_contexts[ctb_.rs - tools_.width_ctbs];
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
    memset(&picture_.sao[ctb_.rs], 0, sizeof(SaoParameters));
    const int size = 1 << tools.ctb_log2;
    const int width = smaller(size, tools.width - ctb_.x), height = smaller(size, tools.height - ctb_.y);
    for (int component = 0; component < (tools.chroma == 0 ? 1 : 3); ++component) {
      const int sub_x = component > 0 ? tools.sub_width_log2 : 0, sub_y = component > 0 ? tools.sub_height_log2 : 0;
      const uint16_t grey = static_cast<uint16_t>(1 << (tools.bit_depth[component > 0] - 1));
      const ptrdiff_t stride = picture_.stride[component];
      uint16_t* row = picture_.samples[component] + (ctb_.y >> sub_y) * stride + (ctb_.x >> sub_x);
      for (int y = 0; y < height >> sub_y; ++y, row += stride) {
        for (int x = 0; x < width >> sub_x; ++x) row[x] = grey;
      }
    }
    for (int y = 0; y < height; y += 4) {
      memset(picture_.luma_mode + ((ctb_.y + y) >> 2) * picture_.units_stride + (ctb_.x >> 2), kIntraDc,
             static_cast<size_t>(width >> 2));
    }
    const int block = 1 << tools.min_cb_log2;
    for (int y = 0; y < height; y += block) {
      const ptrdiff_t row =
          ((ctb_.y + y) >> tools.min_cb_log2) * picture_.blocks_stride + (ctb_.x >> tools.min_cb_log2);
      const size_t blocks = static_cast<size_t>(width >> tools.min_cb_log2);
      memset(picture_.depth + row, 0, blocks);
      memset(picture_.qp + row, slice_.slice_qp, blocks);
      memset(picture_.unfiltered + row, 1, blocks);
    }
    if (tools.wavefront && ctb_.column == 1) picture_.row_contexts[ctb_.row_rs] = contexts_;
    picture_.publish(picture_, ctb_.row_rs, ctb_.column + 1);
  }
}

// --- Sample adaptive offset ---------------------------------------------------------------------------------------

void SliceDecoder::sao() {
  SaoParameters& sao = picture_.sao[ctb_.rs];
  if (ctb_.left && cabac_.bin(contexts_.model[kSaoMerge])) {
    sao = picture_.sao[ctb_.rs - 1];
  } else if (ctb_.top && cabac_.bin(contexts_.model[kSaoMerge])) {
    sao = picture_.sao[ctb_.rs - tools_.width_ctbs];
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
