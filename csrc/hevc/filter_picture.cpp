// SPDX-License-Identifier: Apache-2.0
#include "hevc/filter_picture.h"

#include <algorithm>
#include <cstring>

#include "core/parallel.h"

namespace flexor::hevc {
namespace {

// Table 8-12.
constexpr uint8_t kBeta[52] = {0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  6,  7,
                               8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 22, 24, 26, 28, 30, 32,
                               34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 54, 56, 58, 60, 62, 64};
constexpr uint8_t kTc[54] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,  1,  1,  1,  1,  1,  1,  1,  1,
                             2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 5, 5, 6, 6, 7, 8, 9, 10, 11, 13, 14, 16, 18, 20, 22, 24};

// What lies on the two sides of an edge segment; Bs is 2 on every edge of an intra picture.
struct Sides {
  int qp;  // qPL
  uint8_t keep_p, keep_q;
};

Sides sides(const PictureState& picture, int x_p, int y_p, int x_q, int y_q) {
  const int log2_size = picture.tools.min_cb_log2;
  const ptrdiff_t p = (y_p >> log2_size) * picture.blocks_stride + (x_p >> log2_size);
  const ptrdiff_t q = (y_q >> log2_size) * picture.blocks_stride + (x_q >> log2_size);
  return {(picture.qp[p] + picture.qp[q] + 1) >> 1, picture.unfiltered[p], picture.unfiltered[q]};
}

EdgeSegment luma_segment(const PictureState& picture, const SliceTools& slice, const Sides& sides) {
  const int shift = picture.tools.bit_depth[0] - 8;
  const int beta = kBeta[std::clamp(sides.qp + slice.beta_offset, 0, 51)];
  const int tc = kTc[std::clamp(sides.qp + 2 + slice.tc_offset, 0, 53)];
  return {static_cast<int16_t>(beta << shift), static_cast<int16_t>(tc << shift), sides.keep_p, sides.keep_q};
}

EdgeSegment chroma_segment(const PictureState& picture, const SliceTools& slice, const Sides& sides, int qp_offset) {
  const int qp = chroma_qp_of_index(picture.tools.chroma, sides.qp + qp_offset);
  const int tc = kTc[std::clamp(qp + 2 + slice.tc_offset, 0, 53)];
  return {0, static_cast<int16_t>(tc << (picture.tools.bit_depth[1] - 8)), sides.keep_p, sides.keep_q};
}

constexpr EdgeSegment kNoEdge = {0, 0, 0, 0};

}  // namespace

PictureFilter::PictureFilter(PictureState& picture) : picture_(picture), tools_(picture.tools) {
  for (int component = 0; component < (tools_.chroma == 0 ? 1 : 3); ++component) {
    kept_[component].resize(2 * static_cast<size_t>(tools_.height_ctbs) *
                            static_cast<size_t>(picture.stride[component]));
  }
}

void PictureFilter::columns(int row) {
  const int ctb = 1 << tools_.ctb_log2;
  const int y0 = row << tools_.ctb_log2, y1 = std::min(y0 + ctb, tools_.height);
  const int components = tools_.chroma == 0 ? 1 : 3;
  const int chroma_grid = 8 << tools_.sub_width_log2;
  for (int x = 8; x < tools_.width; x += 8) {
    const uint8_t* const flags = picture_.vertical_edges + (y0 >> 2) * picture_.units_stride + (x >> 3);
    const SliceTools* const slice = picture_.slice[row * tools_.width_ctbs + (x >> tools_.ctb_log2)];
    EdgeSegment luma[16], cb[16], cr[16];
    int segments = 0;
    bool any = false;
    for (int y = y0; y < y1; y += 4, ++segments) {
      luma[segments] = cb[segments] = cr[segments] = kNoEdge;
      if (slice == nullptr || !flags[segments * picture_.units_stride]) continue;
      any = true;
      const Sides here = sides(picture_, x - 1, y, x, y);
      luma[segments] = luma_segment(picture_, *slice, here);
      if (components == 3 && x % chroma_grid == 0) {
        cb[segments] = chroma_segment(picture_, *slice, here, tools_.pps_cb_qp_offset);
        cr[segments] = chroma_segment(picture_, *slice, here, tools_.pps_cr_qp_offset);
      }
    }
    if (!any) continue;
    picture_.loop_filter.luma_columns(picture_.samples[0] + y0 * picture_.stride[0] + x, picture_.stride[0], segments,
                                      luma, tools_.bit_depth[0]);
    if (components == 1 || x % chroma_grid != 0) continue;
    for (int component = 1; component < 3; ++component) {
      const ptrdiff_t stride = picture_.stride[component];
      picture_.loop_filter.chroma_columns(
          picture_.samples[component] + (y0 >> tools_.sub_height_log2) * stride + (x >> tools_.sub_width_log2), stride,
          segments, 4 >> tools_.sub_height_log2, component == 1 ? cb : cr, tools_.bit_depth[1]);
    }
  }
}

void PictureFilter::rows(int row) {
  const int y0 = std::max(row << tools_.ctb_log2, 8);
  const int y1 = std::min((row + 1) << tools_.ctb_log2, tools_.height);
  const int components = tools_.chroma == 0 ? 1 : 3;
  const int chroma_grid = 8 << tools_.sub_height_log2;
  const int segments = tools_.width >> 2;
  std::vector<EdgeSegment> edges(3 * static_cast<size_t>(segments));
  EdgeSegment* const luma = edges.data();
  EdgeSegment* const cb = luma + segments;
  EdgeSegment* const cr = cb + segments;
  const int ctb_segments_log2 = tools_.ctb_log2 - 2;
  for (int y = y0; y < y1; y += 8) {
    const bool with_chroma = components == 3 && y % chroma_grid == 0;
    const uint8_t* const flags = picture_.horizontal_edges + (y >> 3) * picture_.units_stride;
    bool any = false;
    for (int s = 0; s < segments; ++s) {
      luma[s] = cb[s] = cr[s] = kNoEdge;
      if (!flags[s]) continue;
      const SliceTools* const slice = picture_.slice[row * tools_.width_ctbs + (s >> ctb_segments_log2)];
      any = true;
      const Sides here = sides(picture_, 4 * s, y - 1, 4 * s, y);
      luma[s] = luma_segment(picture_, *slice, here);
      if (with_chroma) {
        cb[s] = chroma_segment(picture_, *slice, here, tools_.pps_cb_qp_offset);
        cr[s] = chroma_segment(picture_, *slice, here, tools_.pps_cr_qp_offset);
      }
    }
    if (!any) continue;
    picture_.loop_filter.luma_rows(picture_.samples[0] + y * picture_.stride[0], picture_.stride[0], segments, luma,
                                   tools_.bit_depth[0]);
    if (!with_chroma) continue;
    for (int component = 1; component < 3; ++component) {
      const ptrdiff_t stride = picture_.stride[component];
      picture_.loop_filter.chroma_rows(picture_.samples[component] + (y >> tools_.sub_height_log2) * stride, stride,
                                       segments, 4 >> tools_.sub_width_log2, component == 1 ? cb : cr,
                                       tools_.bit_depth[1]);
    }
  }
}

// --- Sample adaptive offset ---------------------------------------------------------------------------------------

void PictureFilter::keep(int row) {
  for (int component = 0; component < (tools_.chroma == 0 ? 1 : 3); ++component) {
    const int sub_y = component > 0 ? tools_.sub_height_log2 : 0;
    const ptrdiff_t stride = picture_.stride[component];
    const int y0 = (row << tools_.ctb_log2) >> sub_y;
    const int y1 = std::min((row + 1) << tools_.ctb_log2, tools_.height) >> sub_y;
    const size_t bytes = sizeof(uint16_t) * static_cast<size_t>(stride);
    std::memcpy(kept_line(component, row, false), picture_.samples[component] + y0 * stride, bytes);
    std::memcpy(kept_line(component, row, true), picture_.samples[component] + (y1 - 1) * stride, bytes);
  }
}

void PictureFilter::offsets(int row) {
  const int first_ctb = row * tools_.width_ctbs;
  for (int component = 0; component < (tools_.chroma == 0 ? 1 : 3); ++component) {
    bool any = false;
    for (int i = 0; i < tools_.width_ctbs; ++i) any |= picture_.sao[first_ctb + i].type[component] != 0;
    if (!any) continue;
    const int sub_x = component > 0 ? tools_.sub_width_log2 : 0, sub_y = component > 0 ? tools_.sub_height_log2 : 0;
    const ptrdiff_t stride = picture_.stride[component];
    const int y0 = (row << tools_.ctb_log2) >> sub_y;
    const int y1 = std::min((row + 1) << tools_.ctb_log2, tools_.height) >> sub_y;
    const int height = y1 - y0, width = tools_.width >> sub_x;

    // The row as it was before, with a line above and below it. 32 samples stand to the left of each line.
    constexpr int kMargin = 32;
    const ptrdiff_t in_stride = stride + 2 * kMargin;
    uint16_t* const buffer = static_cast<uint16_t*>(
        thread_workspace(sizeof(uint16_t) * static_cast<size_t>(in_stride) * static_cast<size_t>(height + 2)));
    uint16_t* const in = buffer + in_stride + kMargin;
    const auto copy_line = [&](int y, const uint16_t* line) {
      uint16_t* const out = in + y * in_stride;
      std::memcpy(out, line, sizeof(uint16_t) * static_cast<size_t>(width));
      out[-1] = out[0];
      out[width] = out[width - 1];
    };
    for (int y = 0; y < height; ++y) copy_line(y, picture_.samples[component] + (y0 + y) * stride);
    copy_line(-1, row > 0 ? kept_line(component, row - 1, true) : in);
    copy_line(height,
              row + 1 < tools_.height_ctbs ? kept_line(component, row + 1, false) : in + (height - 1) * in_stride);
    for (int i = 0; i < tools_.width_ctbs; ++i) {
      if (picture_.sao[first_ctb + i].type[component] == 0) continue;
      const int x0 = (i << tools_.ctb_log2) >> sub_x;
      const int x1 = std::min((i + 1) << tools_.ctb_log2, tools_.width) >> sub_x;
      offset_ctb(component, first_ctb + i, in + x0, in_stride, x1 - x0, height);
    }
  }
}

void PictureFilter::offset_ctb(int component, int ctb_rs, const uint16_t* in, ptrdiff_t in_stride, int width,
                               int height) {
  const SaoParameters& sao = picture_.sao[ctb_rs];
  const int bit_depth = tools_.bit_depth[component > 0];
  const int x0 = ((ctb_rs % tools_.width_ctbs) << tools_.ctb_log2) >> (component > 0 ? tools_.sub_width_log2 : 0);
  const int y0 = ((ctb_rs / tools_.width_ctbs) << tools_.ctb_log2) >> (component > 0 ? tools_.sub_height_log2 : 0);
  const ptrdiff_t stride = picture_.stride[component];
  uint16_t* const out = picture_.samples[component] + y0 * stride + x0;
  const int16_t* const offset = sao.offset[component];
  if (sao.type[component] == 1) {
    int16_t band[32] = {};
    for (int k = 0; k < 4; ++k) band[(k + sao.band_or_class[component]) & 31] = offset[k];
    picture_.loop_filter.sao_band(out, stride, in, in_stride, width, height, band, bit_depth);
  } else {
    const int16_t by_edge[5] = {0, offset[0], offset[1], offset[2], offset[3]};
    picture_.loop_filter.sao_edge(out, stride, in, in_stride, width, height, sao.band_or_class[component], by_edge,
                                  bit_depth);
    restore_border(component, ctb_rs, out, in, in_stride, width, height);
  }
  if (tools_.transquant_bypass || tools_.pcm_unfiltered) {
    restore_unfiltered(component, ctb_rs, out, in, in_stride, width, height);
  }
}

// Whether samples of the CTB at (dx, dy) may decide over those of this one.
bool PictureFilter::crosses(int ctb_rs, int dx, int dy) const {
  const int x = ctb_rs % tools_.width_ctbs + dx, y = ctb_rs / tools_.width_ctbs + dy;
  if (x < 0 || y < 0 || x >= tools_.width_ctbs || y >= tools_.height_ctbs) return false;
  const int other = y * tools_.width_ctbs + x;
  const SliceTools* const slice = picture_.slice[ctb_rs];
  const SliceTools* const other_slice = picture_.slice[other];
  if (slice == nullptr || other_slice == nullptr) return false;
  const int ts = picture_.rs_to_ts[ctb_rs], other_ts = picture_.rs_to_ts[other];
  if (!tools_.across_tiles && picture_.tile_id[ts] != picture_.tile_id[other_ts]) return false;
  if (slice->slice_address == other_slice->slice_address) return true;
  return other_ts < ts ? slice->across_slices : other_slice->across_slices;
}

// Edge offsets at the border of a CTB beyond which they may not look.
void PictureFilter::restore_border(int component, int ctb_rs, uint16_t* out, const uint16_t* in, ptrdiff_t in_stride,
                                   int width, int height) {
  bool allowed[3][3];
  bool all = true;
  for (int dy = -1; dy <= 1; ++dy) {
    for (int dx = -1; dx <= 1; ++dx) {
      allowed[dy + 1][dx + 1] = (dx == 0 && dy == 0) || crosses(ctb_rs, dx, dy);
      all &= allowed[dy + 1][dx + 1];
    }
  }
  if (all) return;
  static constexpr int kStepX[4] = {1, 0, 1, -1}, kStepY[4] = {0, 1, 1, 1};
  const int direction = picture_.sao[ctb_rs].band_or_class[component];
  const int step_x = kStepX[direction], step_y = kStepY[direction];
  const ptrdiff_t stride = picture_.stride[component];
  const auto side = [](int position, int size) { return position < 0 ? 0 : position >= size ? 2 : 1; };
  const auto visit = [&](int x, int y) {
    const bool first = allowed[side(y - step_y, height)][side(x - step_x, width)];
    const bool second = allowed[side(y + step_y, height)][side(x + step_x, width)];
    if (!first || !second) out[y * stride + x] = in[y * in_stride + x];
  };
  for (int x = 0; x < width; ++x) {
    visit(x, 0);
    visit(x, height - 1);
  }
  for (int y = 0; y < height; ++y) {
    visit(0, y);
    visit(width - 1, y);
  }
}

// Lossless blocks and PCM keep their samples.
void PictureFilter::restore_unfiltered(int component, int ctb_rs, uint16_t* out, const uint16_t* in,
                                       ptrdiff_t in_stride, int width, int height) {
  const int sub_x = component > 0 ? tools_.sub_width_log2 : 0, sub_y = component > 0 ? tools_.sub_height_log2 : 0;
  const int blocks_log2 = tools_.ctb_log2 - tools_.min_cb_log2;
  const int block_width = (1 << tools_.min_cb_log2) >> sub_x, block_height = (1 << tools_.min_cb_log2) >> sub_y;
  const uint8_t* const blocks = picture_.unfiltered +
                                ((ctb_rs / tools_.width_ctbs) << blocks_log2) * picture_.blocks_stride +
                                ((ctb_rs % tools_.width_ctbs) << blocks_log2);
  const ptrdiff_t stride = picture_.stride[component];
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; x += block_width) {
      if (!blocks[y / block_height * picture_.blocks_stride + x / block_width]) continue;
      std::memcpy(out + y * stride + x, in + y * in_stride + x, sizeof(uint16_t) * static_cast<size_t>(block_width));
    }
  }
}

}  // namespace flexor::hevc
