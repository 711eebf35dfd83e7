// SPDX-License-Identifier: Apache-2.0
// Writes the decisions of EncoderState as coding tree syntax (H.265 clauses 7.3.8.2 to 7.3.8.12). Coder is CabacWriter,
// or BitCounter for what they would cost.
#pragma once
#include "hevc/cabac_encoder.h"
#include "hevc/prediction.h"
#include "hevc/rice_parameter.h"
#include "hevc/scans.h"

namespace flexor::FLEXOR_ISA {

template <class Coder>
class SyntaxWriter {
 public:
  SyntaxWriter(EncoderState& state, const CtbPlace& place, Coder& coder)
      : state_(state), picture_(state.picture), tools_(state.picture.tools), place_(place), coder_(coder) {}

  void sao();
  void coding_quadtree(int x, int y, int log2_size, int depth);
  void split_flag(int x, int y, int log2_size, int depth, bool split);
  void coding_unit(int x, int y, int log2_size);
  void prediction_modes(int x, int y, int log2_size, bool nxn);
  void luma_modes(int x, int y, int log2_size, bool nxn);
  void chroma_mode(int coded);
  void residual(const int16_t* levels, ptrdiff_t stride, int component, int log2_size, int mode, bool skip);

 private:
  struct Cbf {
    int cb, cr;  // bit 0: the first block, bit 1: the second of 4:2:2
  };
  void transform_tree(int x, int y, int x_base, int y_base, int log2_size, int depth, bool nxn, Cbf parent);
  void transform_unit(int x, int y, int x_base, int y_base, int log2_size);
  void chroma_residual(int x, int y, int chroma_log2, uint16_t unit, int mode);
  void cross_component(int component, int scale);
  void last_position(int prefix_x, int prefix_y, int component, int log2_size);
  uint16_t unit_at(int x, int y) const { return state_.units[(y >> 2) * picture_.units_stride + (x >> 2)]; }
  Cbf chroma_cbf(int x, int y, int log2_size) const;

  EncoderState& state_;
  PictureState& picture_;
  const PictureTools& tools_;
  const CtbPlace& place_;
  Coder& coder_;
};

template <class Coder>
void SyntaxWriter<Coder>::sao() {
  const SaoParameters& sao = picture_.sao[place_.rs];
  const auto same = [&](const SaoParameters& other) { return memcmp(&sao, &other, sizeof sao) == 0; };
  if (place_.left) {
    const bool merge = same(picture_.sao[place_.rs - 1]);
    coder_.bin(kSaoMerge, merge);
    if (merge) return;
  }
  if (place_.top) {
    const bool merge = same(picture_.sao[place_.rs - tools_.width_ctbs]);
    coder_.bin(kSaoMerge, merge);
    if (merge) return;
  }
  for (int component = 0; component < (tools_.chroma == 0 ? 1 : 3); ++component) {
    const int type = sao.type[component];
    if (component < 2) {
      coder_.bin(kSaoType, type != 0);
      if (type != 0) coder_.bypass(type == 2, 1);
    }
    if (type == 0) continue;
    const int largest = (1 << (smaller(tools_.bit_depth[component > 0], 10) - 5)) - 1;
    for (int i = 0; i < 4; ++i) {
      const int offset = sao.offset[component][i], size = offset < 0 ? -offset : offset;
      for (int k = 0; k < size; ++k) coder_.bypass(1, 1);
      if (size < largest) coder_.bypass(0, 1);
    }
    if (type == 1) {
      for (int i = 0; i < 4; ++i) {
        if (sao.offset[component][i] != 0) coder_.bypass(sao.offset[component][i] < 0, 1);
      }
      coder_.bypass(sao.band_or_class[component], 5);
    } else if (component < 2) {
      coder_.bypass(sao.band_or_class[component], 2);
    }
  }
}

template <class Coder>
void SyntaxWriter<Coder>::split_flag(int x, int y, int log2_size, int depth, bool split) {
  const int size = 1 << log2_size;
  if (log2_size == tools_.min_cb_log2 || x + size > tools_.width || y + size > tools_.height) return;
  const uint8_t* const here =
      picture_.depth + (y >> tools_.min_cb_log2) * picture_.blocks_stride + (x >> tools_.min_cb_log2);
  const bool left = x != place_.x || place_.left, top = y != place_.y || place_.top;
  coder_.bin(kSplitCu + (left && here[-1] > depth) + (top && here[-picture_.blocks_stride] > depth), split);
}

template <class Coder>
void SyntaxWriter<Coder>::coding_quadtree(int x, int y, int log2_size, int depth) {
  const int half = 1 << (log2_size - 1);
  const bool split =
      picture_.depth[(y >> tools_.min_cb_log2) * picture_.blocks_stride + (x >> tools_.min_cb_log2)] > depth;
  split_flag(x, y, log2_size, depth, split);
  if (!split) return coding_unit(x, y, log2_size);
  for (int part = 0; part < 4; ++part) {
    const int part_x = x + (part & 1) * half, part_y = y + (part >> 1) * half;
    if (part_x < tools_.width && part_y < tools_.height) coding_quadtree(part_x, part_y, log2_size - 1, depth + 1);
  }
}

template <class Coder>
void SyntaxWriter<Coder>::coding_unit(int x, int y, int log2_size) {
  const bool nxn = state_.nxn[(y >> tools_.min_cb_log2) * picture_.blocks_stride + (x >> tools_.min_cb_log2)];
  if (tools_.transquant_bypass) coder_.bin(kTransquantBypass, state_.lossless);
  if (log2_size == tools_.min_cb_log2) coder_.bin(kPartMode, !nxn);
  prediction_modes(x, y, log2_size, nxn);
  transform_tree(x, y, x, y, log2_size, 0, nxn, {0, 0});
}

template <class Coder>
void SyntaxWriter<Coder>::luma_modes(int x, int y, int log2_size, bool nxn) {
  const int parts = nxn ? 4 : 1, part_log2 = nxn ? log2_size - 1 : log2_size;
  int candidates[4][3], modes[4], index[4];
  for (int part = 0; part < parts; ++part) {
    const int part_x = x + ((part & 1) << part_log2), part_y = y + ((part >> 1) << part_log2);
    modes[part] = picture_.luma_mode[(part_y >> 2) * picture_.units_stride + (part_x >> 2)];
    most_probable_modes(picture_, place_, part_x, part_y, candidates[part]);
    index[part] = -1;
    for (int i = 0; i < 3; ++i) {
      if (candidates[part][i] == modes[part]) index[part] = i;
    }
    coder_.bin(kPrevIntraLuma, index[part] >= 0);
  }
  for (int part = 0; part < parts; ++part) {
    if (index[part] >= 0) {
      coder_.bypass(index[part] == 0 ? 0u : index[part] == 1 ? 2u : 3u, index[part] == 0 ? 1 : 2);
    } else {
      int coded = modes[part];
      for (int candidate : candidates[part]) coded -= modes[part] > candidate;
      coder_.bypass(static_cast<uint32_t>(coded), 5);
    }
    if (tools_.nearest_variant == NearestExtension::kExplicit && is_fractional(modes[part])) {
      const int part_x = x + ((part & 1) << part_log2), part_y = y + ((part >> 1) << part_log2);
      const uint8_t choice = picture_.nearest[(part_y >> 2) * picture_.units_stride + (part_x >> 2)];
      coder_.bin(nearest_context(picture_, place_, part_x, part_y), choice == kNearestSample);
    }
  }
}

template <class Coder>
void SyntaxWriter<Coder>::chroma_mode(int coded) {
  coder_.bin(kIntraChroma, coded != 4);
  if (coded != 4) coder_.bypass(static_cast<uint32_t>(coded), 2);
}

template <class Coder>
void SyntaxWriter<Coder>::prediction_modes(int x, int y, int log2_size, bool nxn) {
  luma_modes(x, y, log2_size, nxn);
  if (tools_.chroma == 0) return;
  const int parts = nxn && tools_.chroma == 3 ? 4 : 1, half = 1 << (log2_size - 1);
  for (int part = 0; part < parts; ++part) {
    const int part_x = x + (part & 1) * half, part_y = y + (part >> 1) * half;
    chroma_mode(state_.chroma_coded[(part_y >> 2) * picture_.units_stride + (part_x >> 2)]);
  }
}

// Of all transform blocks in a square; blocks that come with the last of four 4x4 count where they are written.
template <class Coder>
typename SyntaxWriter<Coder>::Cbf SyntaxWriter<Coder>::chroma_cbf(int x, int y, int log2_size) const {
  const uint16_t unit = unit_at(x, y);
  const int unit_log2 = unit & kUnitLog2;
  if (unit_log2 >= log2_size || log2_size == 2 || (log2_size == 3 && unit_log2 == 2 && tools_.chroma != 3)) {
    return {((unit & cbf_bit(1, 0)) != 0) | ((unit & cbf_bit(1, 1)) != 0) << 1,
            ((unit & cbf_bit(2, 0)) != 0) | ((unit & cbf_bit(2, 1)) != 0) << 1};
  }
  const int half = 1 << (log2_size - 1);
  Cbf all = {0, 0};
  for (int part = 0; part < 4; ++part) {
    const Cbf cbf = chroma_cbf(x + (part & 1) * half, y + (part >> 1) * half, log2_size - 1);
    all.cb |= cbf.cb != 0;
    all.cr |= cbf.cr != 0;
  }
  return all;
}

template <class Coder>
void SyntaxWriter<Coder>::transform_tree(int x, int y, int x_base, int y_base, int log2_size, int depth, bool nxn,
                                         Cbf parent) {
  const bool must_split = log2_size > tools_.max_tb_log2 || (nxn && depth == 0);
  const bool split = (unit_at(x, y) & kUnitLog2) < log2_size;
  if (!must_split && log2_size > tools_.min_tb_log2 && depth < tools_.max_transform_depth + nxn) {
    coder_.bin(kSplitTransform + 5 - log2_size, split);
  }
  Cbf cbf = parent;
  if (tools_.chroma != 0 && (log2_size > 2 || tools_.chroma == 3)) {
    cbf = chroma_cbf(x, y, log2_size);
    const bool two = tools_.chroma == 2 && (!split || log2_size == 3);
    if (depth == 0 || parent.cb != 0) {
      coder_.bin(kCbfChroma + depth, two ? cbf.cb & 1 : cbf.cb != 0);
      if (two) coder_.bin(kCbfChroma + depth, cbf.cb >> 1);
    }
    if (depth == 0 || parent.cr != 0) {
      coder_.bin(kCbfChroma + depth, two ? cbf.cr & 1 : cbf.cr != 0);
      if (two) coder_.bin(kCbfChroma + depth, cbf.cr >> 1);
    }
  }
  if (split) {
    const int half = 1 << (log2_size - 1);
    for (int part = 0; part < 4; ++part) {
      transform_tree(x + (part & 1) * half, y + (part >> 1) * half, x, y, log2_size - 1, depth + 1, nxn, cbf);
    }
    return;
  }
  coder_.bin(kCbfLuma + (depth == 0), (unit_at(x, y) & cbf_bit(0, 0)) != 0);
  transform_unit(x, y, x_base, y_base, log2_size);
}

template <class Coder>
void SyntaxWriter<Coder>::transform_unit(int x, int y, int x_base, int y_base, int log2_size) {
  const uint16_t unit = unit_at(x, y);
  const ptrdiff_t place = (y >> 2) * picture_.units_stride + (x >> 2);
  const int luma = picture_.luma_mode[place];
  if (unit & cbf_bit(0, 0)) {
    residual(state_.levels[0] + y * picture_.stride[0] + x, picture_.stride[0], 0, log2_size, luma,
             unit & skip_bit(0, 0));
  }
  if (tools_.chroma == 0) return;
  if (tools_.chroma == 3 || log2_size > 2) {
    const int mode = derive_chroma_mode(tools_, state_.chroma_coded[place], luma);
    chroma_residual(x, y, tools_.chroma == 3 ? log2_size : log2_size - 1, unit, mode);
  } else if (x != x_base && y != y_base) {
    const ptrdiff_t base = (y_base >> 2) * picture_.units_stride + (x_base >> 2);
    const int mode = derive_chroma_mode(tools_, state_.chroma_coded[base], picture_.luma_mode[base]);
    chroma_residual(x_base, y_base, 2, unit_at(x_base, y_base), mode);
  }
}

template <class Coder>
void SyntaxWriter<Coder>::cross_component(int component, int scale) {
  const int base = kResScaleAbs + 4 * (component - 1), size = scale < 0 ? -scale : scale;
  const int log2_plus1 = size == 0 ? 0 : 32 - __builtin_clz(static_cast<unsigned>(size));
  for (int i = 0; i < log2_plus1; ++i) coder_.bin(base + i, 1);
  if (log2_plus1 < 4) coder_.bin(base + log2_plus1, 0);
  if (size != 0) coder_.bin(kResScaleSign + component - 1, scale < 0);
}

template <class Coder>
void SyntaxWriter<Coder>::chroma_residual(int x, int y, int chroma_log2, uint16_t unit, int mode) {
  const ptrdiff_t place = (y >> 2) * picture_.units_stride + (x >> 2);
  const bool scaled = tools_.cross_component && (unit & cbf_bit(0, 0)) && state_.chroma_coded[place] == 4;
  for (int component = 1; component < 3; ++component) {
    if (scaled) cross_component(component, state_.scales[component - 1][place]);
    for (int second = 0; second < (tools_.chroma == 2 ? 2 : 1); ++second) {
      if (!(unit & cbf_bit(component, second))) continue;
      const ptrdiff_t stride = picture_.stride[component];
      const int16_t* const levels = state_.levels[component] +
                                    ((y >> tools_.sub_height_log2) + (second << chroma_log2)) * stride +
                                    (x >> tools_.sub_width_log2);
      residual(levels, stride, component, chroma_log2, mode, unit & skip_bit(component, second));
    }
  }
}

// How last_sig_coeff_*_prefix says a position, and what follows.
inline int last_prefix(int position) {
  if (position < 4) return position;
  const int log2 = 31 - __builtin_clz(static_cast<unsigned>(position));
  return 2 * log2 + ((position >> (log2 - 1)) & 1);
}

template <class Coder>
void SyntaxWriter<Coder>::last_position(int last_x, int last_y, int component, int log2_size) {
  const int offset = component == 0 ? 3 * (log2_size - 2) + ((log2_size - 1) >> 2) : 15;
  const int shift = component == 0 ? (log2_size + 1) >> 2 : log2_size - 2;
  const int limit = 2 * log2_size - 1;
  const int prefix_x = last_prefix(last_x), prefix_y = last_prefix(last_y);
  for (int i = 0; i < prefix_x; ++i) coder_.bin(kLastX + offset + (i >> shift), 1);
  if (prefix_x < limit) coder_.bin(kLastX + offset + (prefix_x >> shift), 0);
  for (int i = 0; i < prefix_y; ++i) coder_.bin(kLastY + offset + (i >> shift), 1);
  if (prefix_y < limit) coder_.bin(kLastY + offset + (prefix_y >> shift), 0);
  for (int axis = 0; axis < 2; ++axis) {
    const int prefix = axis == 0 ? prefix_x : prefix_y, position = axis == 0 ? last_x : last_y;
    if (prefix < 4) continue;
    const int bits = (prefix >> 1) - 1;
    coder_.bypass(static_cast<uint32_t>(position) & ((1u << bits) - 1), bits);
  }
}

// coeff_abs_level_remaining.
template <class Coder>
void write_remaining(Coder& coder, int value, int rice) {
  if (value < 4 << rice) {
    const int prefix = value >> rice;
    coder.bypass((1u << (prefix + 1)) - 2, prefix + 1);
    coder.bypass(static_cast<uint32_t>(value) & ((1u << rice) - 1), rice);
    return;
  }
  value -= 3 << rice;
  int length = rice;
  while (value >= 1 << length) {
    value -= 1 << length;
    ++length;
  }
  const int prefix = 3 + length - rice;
  coder.bypass(0xffffffffu, prefix);
  coder.bypass(0, 1);
  coder.bypass(static_cast<uint32_t>(value), length);
}

template <class Coder>
void SyntaxWriter<Coder>::residual(const int16_t* levels, ptrdiff_t stride, int component, int log2_size, int mode,
                                   bool skip) {
  const bool chroma = component != 0;
  if (tools_.transform_skip && !state_.lossless && log2_size <= tools_.max_transform_skip_log2) {
    coder_.bin(kTransformSkip + chroma, skip);
  }
  const int scan_index = scan_of(tools_.chroma, component, log2_size, mode);
  const Scan& sub_blocks = kScans.scan[scan_index][log2_size - 2];
  const Scan& within = kScans.scan[scan_index][2];
  const int count = 1 << (2 * (log2_size - 2));

  uint64_t coded = 0;  // coded sub-blocks, a bit a scan position
  for (int i = 0; i < count; ++i) {
    const int16_t* const sub = levels + (sub_blocks.y[i] << 2) * stride + (sub_blocks.x[i] << 2);
    uint64_t any = 0;
    for (int y = 0; y < 4; ++y) {
      uint64_t row;
      memcpy(&row, sub + y * stride, sizeof row);
      any |= row;
    }
    coded |= static_cast<uint64_t>(any != 0) << i;
  }
  const int last_sub_block = 63 - __builtin_clzll(coded);
  uint8_t coded_rows[9] = {};
  int greater1_context = 1;
  const int size_offset = significance_offset(component, log2_size, scan_index);
  const bool hides = tools_.sign_hiding && !state_.lossless && !(skip && has_rdpcm(tools_, mode));
  uint8_t& statistic = coder_.contexts().rice_statistic[rice_statistic_of(component, skip || state_.lossless)];

  for (int i = last_sub_block; i >= 0; --i) {
    const int x_sub = sub_blocks.x[i], y_sub = sub_blocks.y[i];
    const int right = (coded_rows[y_sub] >> (x_sub + 1)) & 1, below = (coded_rows[y_sub + 1] >> x_sub) & 1;
    const bool here = (coded >> i) & 1;
    const int16_t* const sub = levels + (y_sub << 2) * stride + (x_sub << 2);
    int start = 15;
    if (i == last_sub_block) {
      while (sub[within.y[start] * stride + within.x[start]] == 0) --start;
      int last_x = (x_sub << 2) + within.x[start], last_y = (y_sub << 2) + within.y[start];
      if (scan_index == 2) {
        last_position(last_y, last_x, component, log2_size);
      } else {
        last_position(last_x, last_y, component, log2_size);
      }
    } else if (i > 0) {
      coder_.bin(kCodedSubBlock + 2 * chroma + (right | below), here);
      if (!here) continue;
    }
    coded_rows[y_sub] = static_cast<uint8_t>(coded_rows[y_sub] | (1 << x_sub));

    const uint8_t* const pattern = kSignificanceContexts.context[scan_index][log2_size == 2 ? 4 : right | (below << 1)];
    const int set_offset = kSignificant + (chroma ? 27 : 0) + size_offset + (!chroma && log2_size > 2 && i > 0 ? 3 : 0);
    int found[16], positions[16], total = 0;
    for (int n = start; n >= 0; --n) {
      const int level = sub[within.y[n] * stride + within.x[n]];
      const bool is_last = i == last_sub_block && n == start;
      const bool inferred = n == 0 && i > 0 && i < last_sub_block && total == 0;
      if (!is_last && !inferred) {
        const int context = n == 0 && i == 0 ? kSignificant + (chroma ? 27 : 0) : set_offset + pattern[n];
        coder_.bin(context, level != 0);
      }
      if (level != 0) {
        positions[total] = n;
        found[total++] = level;
      }
    }
    if (total == 0) continue;

    int set = i == 0 || chroma ? 0 : 2;
    if (greater1_context == 0) ++set;
    greater1_context = 1;
    int first_greater = -1;
    for (int k = 0; k < total && k < 8; ++k) {
      const int size = found[k] < 0 ? -found[k] : found[k];
      coder_.bin(kGreater1 + (chroma ? 16 : 0) + 4 * set + greater1_context, size > 1);
      if (size > 1) {
        greater1_context = 0;
        if (first_greater < 0) first_greater = k;
      } else if (greater1_context > 0 && greater1_context < 3) {
        ++greater1_context;
      }
    }
    if (first_greater >= 0) {
      const int size = found[first_greater] < 0 ? -found[first_greater] : found[first_greater];
      coder_.bin(kGreater2 + (chroma ? 4 : 0) + set, size > 2);
    }
    const bool hidden = hides && positions[0] - positions[total - 1] > 3;
    uint32_t signs = 0;
    for (int k = 0; k < total - hidden; ++k) signs = (signs << 1) | (found[k] < 0);
    coder_.bypass(signs, total - hidden);
    RiceParameter rice(tools_.persistent_rice, statistic);
    for (int k = 0; k < total; ++k) {
      const int size = found[k] < 0 ? -found[k] : found[k];
      const int base = k >= 8 ? 1 : k == first_greater ? 3 : 2;
      if (size < base) continue;
      write_remaining(coder_, size - base, rice.value);
      rice.follow(size, size - base);
    }
    statistic = rice.statistic;
  }
}

}  // namespace flexor::FLEXOR_ISA
