// SPDX-License-Identifier: Apache-2.0
// residual_coding() (H.265 clauses 7.3.8.11, 9.3.4.2.4 to 9.3.4.2.7) and the scaling of its levels (8.6.4.1).
#pragma once
#include "hevc/rice_parameter.h"
#include "hevc/scans.h"
#include "hevc/slice_decoder.h"

namespace flexor::FLEXOR_ISA {

inline int SliceDecoder::last_position_prefix(uint8_t* models, int component, int log2_size) {
  const int offset = component == 0 ? 3 * (log2_size - 2) + ((log2_size - 1) >> 2) : 15;
  const int shift = component == 0 ? (log2_size + 1) >> 2 : log2_size - 2;
  const int limit = 2 * log2_size - 1;
  int prefix = 0;
  while (prefix < limit && cabac_.bin(models[offset + (prefix >> shift)])) ++prefix;
  return prefix;
}

// coeff_abs_level_remaining (clauses 9.3.3.11 and 9.3.3.12); range_log2 limits the prefix of extended precision.
inline int64_t SliceDecoder::remaining_level(int rice, int range_log2) {
  const int longest = tools_.extended_precision ? 32 - range_log2 : 32;
  int prefix = 0;
  while (prefix < longest && cabac_.bypass()) ++prefix;
  if (prefix <= 3) return (static_cast<int64_t>(prefix) << rice) + cabac_.bypass_long(rice);
  int suffix = prefix - 3 + rice;
  if (tools_.extended_precision && prefix == longest) suffix = range_log2;
  if (suffix > 32) {  // no coefficient is that large
    error_ = true;
    return 0;
  }
  return (((int64_t{1} << (prefix - 3)) + 2) << rice) + cabac_.bypass_long(suffix);
}

inline void SliceDecoder::residual_coding(int component, int log2_size, int mode) {
  const PictureTools& tools = tools_;
  uint8_t* const models = contexts_.model;
  const bool chroma = component != 0;
  skipped_ = false;
  if (tools.transform_skip && !bypass_ && log2_size <= tools.max_transform_skip_log2) {
    skipped_ = cabac_.bin(models[kTransformSkip + chroma]);
    count(kBitsTransformSkip);
  }

  int last_x = last_position_prefix(models + kLastX, component, log2_size);
  int last_y = last_position_prefix(models + kLastY, component, log2_size);
  if (last_x > 3) {
    const int bits = (last_x >> 1) - 1;
    last_x = ((2 + (last_x & 1)) << bits) + static_cast<int>(cabac_.bypass(bits));
  }
  if (last_y > 3) {
    const int bits = (last_y >> 1) - 1;
    last_y = ((2 + (last_y & 1)) << bits) + static_cast<int>(cabac_.bypass(bits));
  }
  count(kBitsLastPosition);

  const int scan_index = scan_of(tools.chroma, component, log2_size, mode);
  if (scan_index == 2) {
    const int swapped = last_x;
    last_x = last_y;
    last_y = swapped;
  }
  const Scan& sub_blocks = kScans.scan[scan_index][log2_size - 2];
  const Scan& within = kScans.scan[scan_index][2];
  const int sub_log2 = log2_size - 2;
  const int last_sub_block = sub_blocks.rank[((last_y >> 2) << sub_log2) + (last_x >> 2)];
  const int last_in_sub_block = within.rank[((last_y & 3) << 2) + (last_x & 3)];

  const bool untransformed = skipped_ || bypass_;
  uint8_t* const significant = models + kSignificant + (chroma ? 27 : 0);
  const bool one_context = tools.transform_skip_context && untransformed;
  const int size_offset = significance_offset(component, log2_size, scan_index);

  const bool hides = tools.sign_hiding && !bypass_ && !(skipped_ && has_rdpcm(tools, mode));
  uint8_t& statistic = contexts_.rice_statistic[rice_statistic_of(component, untransformed)];

  // Scaling: (level * factor * levelScale << (qP / 6) + rounding) >> bdShift.
  const int qp = scaled_qp_[component];
  const int range_log2 = tools.transform_range_log2[chroma];
  const int64_t limit = int64_t{1} << range_log2;
  const int shift = tools.bit_depth[chroma] + log2_size + 10 - range_log2;
  const int64_t rounding = int64_t{1} << (shift - 1);
  const int64_t step = static_cast<int64_t>(kLevelScale[qp % 6]) << (qp / 6);
  const uint8_t* const factors =
      tools.scaling != nullptr && !(skipped_ && log2_size > 2) ? tools.scaling[log2_size - 2][component] : nullptr;

  uint8_t coded_rows[9] = {};  // coded_sub_block_flag, a bit a column
  int greater1_context = 1;    // of the sub-block before; 0: it had a level above 1
  int max_x = 0, max_y = 0;
  sign_hidden_ = false;

  for (int i = last_sub_block; i >= 0; --i) {
    const int x_sub = sub_blocks.x[i], y_sub = sub_blocks.y[i];
    const int right = (coded_rows[y_sub] >> (x_sub + 1)) & 1;
    const int below = (coded_rows[y_sub + 1] >> x_sub) & 1;
    bool infer_first = false;
    if (i < last_sub_block && i > 0) {
      if (!cabac_.bin(models[kCodedSubBlock + 2 * chroma + (right | below)])) continue;
      infer_first = true;
    }
    coded_rows[y_sub] = static_cast<uint8_t>(coded_rows[y_sub] | (1 << x_sub));

    // The significant positions of the sub-block, last first.
    uint8_t found[16];
    int total = 0;
    int n = 15;
    if (i == last_sub_block) {
      found[total++] = static_cast<uint8_t>(last_in_sub_block);
      n = last_in_sub_block - 1;
    }
    if (one_context) {
      uint8_t& model = models[kSignificant + (chroma ? 43 : 42)];
      for (; n > 0; --n) {
        if (cabac_.bin(model)) found[total++] = static_cast<uint8_t>(n);
      }
      if (n == 0 && (!(infer_first && total == 0) ? cabac_.bin(model) : 1)) found[total++] = 0;
    } else {
      const uint8_t* const pattern =
          kSignificanceContexts.context[scan_index][log2_size == 2 ? 4 : right | (below << 1)];
      const int offset = size_offset + (!chroma && log2_size > 2 && i > 0 ? 3 : 0);
      uint8_t* const set = significant + offset;
      for (; n > 0; --n) {
        found[total] = static_cast<uint8_t>(n);
        total += cabac_.bin(set[pattern[n]]);
      }
      if (n == 0) {
        if (infer_first && total == 0) {
          found[total++] = 0;
        } else if (cabac_.bin(i == 0 ? significant[0] : set[pattern[0]])) {
          found[total++] = 0;
        }
      }
    }
    count(kBitsSignificance);
    if (total == 0) continue;

    // Levels above 1 and 2.
    int set = (i == 0 || chroma) ? 0 : 2;
    if (greater1_context == 0) ++set;
    greater1_context = 1;
    uint8_t* const greater1 = models + kGreater1 + (chroma ? 16 : 0) + 4 * set;
    const int flagged = total < 8 ? total : 8;
    int first_greater = -1;
    uint32_t above = 0;  // coeff_abs_level_greater1_flag, a bit a level
    for (int k = 0; k < flagged; ++k) {
      if (cabac_.bin(greater1[greater1_context])) {
        above |= 1u << k;
        greater1_context = 0;
        if (first_greater < 0) first_greater = k;
      } else if (greater1_context > 0 && greater1_context < 3) {
        ++greater1_context;
      }
    }
    int greater2 = 0;
    if (first_greater >= 0) greater2 = cabac_.bin(models[kGreater2 + (chroma ? 4 : 0) + set]);
    count(kBitsLevels);
    if (tools.bypass_alignment && (total > 8 || greater2 || (above & (above - 1)) != 0)) cabac_.align();

    const bool hidden = hides && found[0] - found[total - 1] > 3;
    sign_hidden_ |= hidden;
    const int sign_bits = total - hidden;
    uint32_t signs = cabac_.bypass(sign_bits) << (16 - sign_bits);
    count(kBitsSigns);

    RiceParameter rice(tools.persistent_rice, statistic);
    int64_t sum = 0;
    const int x0 = x_sub << 2, y0 = y_sub << 2;
    if (x0 > max_x) max_x = x0;
    if (y0 > max_y) max_y = y0;
    for (int k = 0; k < total; ++k) {
      int64_t level = 1;
      bool more = true;
      if (k < 8) {
        level += (above >> k) & 1;
        if (k == first_greater) {
          level += greater2;
          more = greater2;
        } else {
          more = (above >> k) & 1;
        }
      }
      if (more) {
        const int64_t rest = remaining_level(rice.value, range_log2);
        level += rest;
        rice.follow(level, rest);
      }
      sum += level;
      bool negative = signs & 0x8000;
      signs <<= 1;
      if (hidden && k == total - 1) negative = sum & 1;
      level = negative ? -level : level;
      const int position = ((y0 + within.y[found[k]]) << log2_size) + x0 + within.x[found[k]];
      level = level < -limit ? -limit : level >= limit ? limit - 1 : level;
      if (!bypass_) {
        const int64_t factor = factors != nullptr ? factors[position] : 16;
        level = (level * factor * step + rounding) >> shift;
        level = level < -limit ? -limit : level >= limit ? limit - 1 : level;
      }
      if (__builtin_expect(tools.extended_precision, 0)) {
        wide_.coefficients[position] = static_cast<int32_t>(level);
      } else {
        coefficients_[position] = static_cast<int16_t>(level);
      }
    }
    statistic = rice.statistic;
    count(kBitsLevels);
  }
  nonzero_width_ = max_x + 4;
  nonzero_height_ = max_y + 4;
}

}  // namespace flexor::FLEXOR_ISA
