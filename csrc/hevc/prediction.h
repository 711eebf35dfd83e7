// SPDX-License-Identifier: Apache-2.0
// What a block may be predicted from, and the prediction (H.265 clauses 6.4.1, 8.4.2, 8.4.4.2; the nearest-neighbour
// extension: docs/hevc_nearest.md): shared by all that decode or encode slice data.
#pragma once
#include <cstring>

#include "hevc/nearest_extension.h"
#include "hevc/picture_state.h"
#include "intra/intra_angles.h"

namespace flexor::FLEXOR_ISA {

using namespace hevc;

inline int smaller(int a, int b) { return a < b ? a : b; }
inline int larger(int a, int b) { return a > b ? a : b; }
inline int clamp_to(int value, int low, int high) { return value < low ? low : value > high ? high : value; }
inline void fill(uint16_t* samples, int count, uint16_t value) {
  for (int i = 0; i < count; ++i) samples[i] = value;
}

// A coding tree block among its neighbours.
struct CtbPlace {
  int rs, x, y;                         // raster address; luma samples
  int column, row_rs;                   // column in its tile, and the address of the first CTB of that row of the tile
  bool left, top, top_left, top_right;  // available: same slice, same tile, decoded
  bool filter_left, filter_top;         // deblocking may cross that side
};

inline CtbPlace place_ctb(const PictureState& picture, const SliceTools& slice, int ts) {
  const PictureTools& tools = picture.tools;
  const int rs = picture.ts_to_rs[ts], width = tools.width_ctbs;
  const int column = rs % width, row = rs / width;
  const int tile_left = picture.tile_left[rs];
  const auto same_slice = [&](int other) {
    return picture.slice[other] != nullptr && picture.slice[other]->slice_address == slice.slice_address;
  };
  const auto same_tile = [&](int other) { return picture.tile_id[picture.rs_to_ts[other]] == picture.tile_id[ts]; };
  const bool tile_has_left = column > tile_left, tile_has_top = row > picture.tile_top[rs];
  CtbPlace place;
  place.rs = rs;
  place.x = column << tools.ctb_log2;
  place.y = row << tools.ctb_log2;
  place.column = column - tile_left;
  place.row_rs = rs - place.column;
  place.left = tile_has_left && same_slice(rs - 1);
  place.top = tile_has_top && same_slice(rs - width);
  place.top_left = tile_has_left && tile_has_top && same_slice(rs - width - 1);
  place.top_right = tile_has_top && column + 1 < picture.tile_right[rs] && same_slice(rs - width + 1);
  const auto crosses = [&](int other) {
    return (slice.across_slices || same_slice(other)) && (tools.across_tiles || same_tile(other));
  };
  place.filter_left = column > 0 && crosses(rs - 1);
  place.filter_top = row > 0 && crosses(rs - width);
  return place;
}

// Threads: the row above must be as far as this CTB looks, the CTB to the left done.
inline void wait_for_neighbours(PictureState& picture, const CtbPlace& place) {
  const int needed = place.column + (place.top_right ? 2 : place.top ? 1 : 0);
  if (place.top || place.top_left || place.top_right) {
    picture.wait(picture, place.row_rs - picture.tools.width_ctbs, needed);
  }
  if (place.left) picture.wait(picture, place.row_rs, place.column);
}

// Nothing of a CTB is deblocked until a block says so.
inline void clear_edges(PictureState& picture, const CtbPlace& place) {
  const int units = 1 << (picture.tools.ctb_log2 - 2);
  uint8_t* vertical = picture.vertical_edges + (place.y >> 2) * picture.units_stride + (place.x >> 3);
  for (int i = 0; i < units; ++i, vertical += picture.units_stride)
    memset(vertical, 0, static_cast<size_t>(units >> 1));
  uint8_t* horizontal = picture.horizontal_edges + (place.y >> 3) * picture.units_stride + (place.x >> 2);
  for (int i = 0; i < units >> 1; ++i, horizontal += picture.units_stride) {
    memset(horizontal, 0, static_cast<size_t>(units));
  }
}

// The left and the top edge of a transform block that lie on the 8x8 grid.
inline void mark_edges(PictureState& picture, const CtbPlace& place, int x, int y, int log2_size) {
  const int units = 1 << (log2_size - 2);
  if ((x & 7) == 0 && (x != place.x || place.filter_left)) {
    uint8_t* edge = picture.vertical_edges + (y >> 2) * picture.units_stride + (x >> 3);
    for (int unit = 0; unit < units; ++unit, edge += picture.units_stride) *edge = 1;
  }
  if ((y & 7) == 0 && (y != place.y || place.filter_top)) {
    memset(picture.horizontal_edges + (y >> 3) * picture.units_stride + (x >> 2), 1, static_cast<size_t>(units));
  }
}

// candModeList of clause 8.4.2.
inline void most_probable_modes(const PictureState& picture, const CtbPlace& place, int x, int y, int candidates[3]) {
  const uint8_t* const here = picture.luma_mode + (y >> 2) * picture.units_stride + (x >> 2);
  const int left = x != place.x || place.left ? here[-1] : +kIntraDc;
  const int top = y != place.y ? here[-picture.units_stride] : +kIntraDc;  // not from the row of CTBs above
  if (left == top && left >= 2) {
    candidates[0] = left;
    candidates[1] = 2 + ((left + 29) & 31);
    candidates[2] = 2 + ((left - 1) & 31);
  } else if (left == top) {
    candidates[0] = kIntraPlanar;
    candidates[1] = kIntraDc;
    candidates[2] = kIntraVertical;
  } else {
    candidates[0] = left;
    candidates[1] = top;
    candidates[2] = left != kIntraPlanar && top != kIntraPlanar ? kIntraPlanar
                    : left != kIntraDc && top != kIntraDc       ? kIntraDc
                                                                : kIntraVertical;
  }
}

// Tables 8-2 and 8-3: the chroma mode of intra_chroma_pred_mode.
inline int derive_chroma_mode(const PictureTools& tools, int coded, int luma) {
  static constexpr int kModes[4] = {kIntraPlanar, kIntraVertical, kIntraHorizontal, kIntraDc};
  int mode = luma;
  if (coded < 4) mode = kModes[coded] == luma ? 34 : kModes[coded];
  return tools.chroma == 2 ? tools.chroma_mode_422[mode] : mode;
}

// Qp'Cb or Qp'Cr (clause 8.6.1, table 8-10) of a luma QP and the offsets of picture, slice and coding unit.
inline int chroma_qp(const PictureTools& tools, int qp_luma, int offset) {
  const int index = clamp_to(qp_luma + offset, -tools.qp_bd_offset[1], 57);
  return chroma_qp_of_index(tools.chroma, index) + tools.qp_bd_offset[1];
}

// Whether a mode's direction meets samples between two: all angles but 0, 32 and -32.
inline bool is_fractional(int mode) { return mode > 2 && mode < 34 && mode != 10 && mode != 18 && mode != 26; }

// Residuals of these modes are differences between neighbours where there is no transform (clause 8.6.8).
inline bool has_rdpcm(const PictureTools& tools, int mode) {
  return tools.implicit_rdpcm && (mode == kIntraHorizontal || mode == kIntraVertical);
}

// The context of intra_nearest_flag: what prevails to the left and above.
inline int nearest_context(const PictureState& picture, const CtbPlace& place, int x, int y) {
  const uint8_t* const here = picture.nearest + (y >> 2) * picture.units_stride + (x >> 2);
  const int left = x != place.x || place.left ? here[-1] : +kNoChoice;
  const int top = y != place.y || place.top ? here[-picture.units_stride] : +kNoChoice;
  const int balance = (left == kNearestSample) - (left == kBilinear) + (top == kNearestSample) - (top == kBilinear);
  return kNearestFlag + (balance < 0 ? 0 : balance == 0 ? 1 : 2);
}

// The neighbours of one block, plain and smoothed.
class BlockBorder {
 public:
  // Clause 8.4.4.2.2 with its substitution.
  void read(const PictureState& picture, const CtbPlace& place, int component, int x, int y, int log2_size);
  void predict(const PictureState& picture, uint16_t* block, ptrdiff_t stride, int mode, bool nearest, bool lossless);
  const uint16_t* plain() const { return samples_[0] + kIntraSlack; }

 private:
  const uint16_t* for_mode(const PictureState& picture, int mode);
  void predict_by_sad(const PictureState& picture, uint16_t* block, ptrdiff_t stride, const uint16_t* border, int mode);
  void predict_by_boundary(uint16_t* block, ptrdiff_t stride, const uint16_t* border, int mode, int threshold) const;

  int component_ = 0, log2_size_ = 0;
  bool smoothed_ = false;
  alignas(64) uint16_t samples_[2][4 * 32 + 1 + 2 * kIntraSlack];
};

inline void BlockBorder::read(const PictureState& picture, const CtbPlace& place, int component, int x, int y,
                              int log2_size) {
  const PictureTools& tools = picture.tools;
  const int n = 1 << log2_size, ctb = 1 << tools.ctb_log2;
  const bool chroma = component != 0;
  const int sub_x = chroma ? tools.sub_width_log2 : 0, sub_y = chroma ? tools.sub_height_log2 : 0;
  const ptrdiff_t stride = picture.stride[component];
  const uint16_t* const block = picture.samples[component] + y * stride + x;
  component_ = component;
  log2_size_ = log2_size;
  smoothed_ = false;

  // How many samples of each side are available. Bottom left and top right are squares of the quadtree as a whole:
  // their first sample decides.
  const int luma_x = x << sub_x, luma_y = y << sub_y;
  const bool at_left = luma_x == place.x, at_top = luma_y == place.y;
  const auto z_order = [&](int other_x, int other_y) {
    return picture.z_order[((other_y & (ctb - 1)) >> 2) * 16 + ((other_x & (ctb - 1)) >> 2)];
  };
  const int z = z_order(luma_x, luma_y);
  const bool left = at_left ? place.left : true;
  const bool top = at_top ? place.top : true;
  const bool corner = at_left ? (at_top ? place.top_left : place.left) : (at_top ? place.top : true);
  const int next_x = luma_x + (n << sub_x), next_y = luma_y + (n << sub_y);
  int below = 0, beyond = 0;
  if (left && next_y < tools.height && next_y < place.y + ctb) {
    if (at_left || z_order(luma_x - 1, next_y) < z) below = smaller(n, (tools.height - next_y) >> sub_y);
  }
  if (next_x < tools.width) {  // a slice may begin just there: top right without top
    const bool in_ctb = next_x < place.x + ctb;
    if (at_top ? (in_ctb ? top : place.top_right) : (in_ctb && z_order(next_x, luma_y - 1) < z)) {
      beyond = smaller(n, (tools.width - next_x) >> sub_x);
    }
  }

  // What is missing repeats the sample before it, from the bottom left on.
  uint16_t* const border = samples_[0] + kIntraSlack;
  if (!left && !top && !corner && beyond == 0) {
    fill(border, 4 * n + 1, static_cast<uint16_t>(1 << (tools.bit_depth[chroma] - 1)));
    return;
  }
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

inline const uint16_t* BlockBorder::for_mode(const PictureState& picture, int mode) {
  const PictureTools& tools = picture.tools;
  const bool chroma = component_ != 0;
  const uint16_t* const border = plain();
  if ((chroma && tools.chroma != 3) || tools.no_smoothing || !intra_smooths(log2_size_, mode)) return border;
  uint16_t* const smoothed = samples_[1] + kIntraSlack;
  if (smoothed_) return smoothed;
  smoothed_ = true;
  if (tools.strong_smoothing && !chroma && log2_size_ == 5 &&
      intra_is_straight(border, log2_size_, tools.bit_depth[0])) {
    picture.intra.smooth_strong(smoothed, border, log2_size_);
  } else {
    picture.intra.smooth(smoothed, border, log2_size_);
  }
  return smoothed;
}

// Implicit variant: nearest where a block's two predictions differ by more than threshold / 16 a sample.
inline void BlockBorder::predict_by_sad(const PictureState& picture, uint16_t* block, ptrdiff_t stride,
                                        const uint16_t* border, int mode) {
  const int n = 1 << log2_size_, bit_depth = picture.tools.bit_depth[component_ != 0];
  alignas(64) uint16_t nearest[32 * 32];
  picture.intra.predict(block, stride, border, log2_size_, mode, false, false, bit_depth);
  picture.intra.predict(nearest, n, border, log2_size_, mode, true, false, bit_depth);
  int sum = 0;
  for (int y = 0; y < n; ++y) {
    for (int x = 0; x < n; ++x) {
      const int difference = nearest[y * n + x] - block[y * stride + x];
      sum += difference < 0 ? -difference : difference;
    }
  }
  if (16 * sum <= picture.tools.nearest_threshold * n * n) return;
  for (int y = 0; y < n; ++y) memcpy(block + y * stride, nearest + y * n, sizeof(uint16_t) * static_cast<size_t>(n));
}

// Implicit variant: nearest where the two samples that a direction meets differ by more than the threshold.
inline void BlockBorder::predict_by_boundary(uint16_t* block, ptrdiff_t stride, const uint16_t* border, int mode,
                                             int threshold) const {
  const int n = 1 << log2_size_, angle = kIntraAngles[mode];
  const bool vertical = mode >= kFirstVerticalMode;
  const int along = vertical ? 1 : -1;  // the main side in the border line, from the corner
  const uint16_t* const corner = border + 2 * n;
  int line[3 * 32 + 1];
  int* const reference = line + 32;
  for (int i = 0; i <= 2 * n; ++i) reference[i] = corner[along * i];
  if (angle < 0) {
    const int inverse = kIntraInverseAngles[mode - 11];
    for (int i = -1; i >= n * angle >> 5; --i) reference[i] = corner[-along * ((-i * inverse + 128) >> 8)];
  }
  for (int y = 0; y < n; ++y) {
    const int whole = (y + 1) * angle >> 5, part = (y + 1) * angle & 31;
    for (int x = 0; x < n; ++x) {
      const int a = reference[x + whole + 1], b = part != 0 ? reference[x + whole + 2] : a;
      const int gap = a < b ? b - a : a - b;
      const int value = gap > threshold ? (part >= 16 ? b : a) : ((32 - part) * a + part * b + 16) >> 5;
      block[vertical ? y * stride + x : x * stride + y] = static_cast<uint16_t>(value);
    }
  }
}

// nearest: the block's intra_nearest_flag, in streams that have it.
inline void BlockBorder::predict(const PictureState& picture, uint16_t* block, ptrdiff_t stride, int mode, bool nearest,
                                 bool lossless) {
  const PictureTools& tools = picture.tools;
  const bool chroma = component_ != 0;
  const uint16_t* const border = for_mode(picture, mode);
  if (__builtin_expect(tools.nearest_variant >= NearestExtension::kSad, 0) && is_fractional(mode)) {
    if (tools.nearest_variant == NearestExtension::kSad) return predict_by_sad(picture, block, stride, border, mode);
    return predict_by_boundary(block, stride, border, mode, tools.nearest_threshold);
  }
  const bool unfiltered_edge = tools.no_edge_filters || (has_rdpcm(tools, mode) && lossless);
  const bool edge_filter = !chroma && log2_size_ < 5 && !unfiltered_edge;
  picture.intra.predict(block, stride, border, log2_size_, mode, nearest && is_fractional(mode), edge_filter,
                        tools.bit_depth[chroma]);
}

}  // namespace flexor::FLEXOR_ISA
