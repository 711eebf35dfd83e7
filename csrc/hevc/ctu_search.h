// SPDX-License-Identifier: Apache-2.0
// Decides how a coding tree unit is coded: quadtree, modes, transform blocks and levels by rate and distortion. The
// decision in force stands in the picture's own samples, maps and levels; an alternative that must wait is kept aside.
#pragma once
#include "hevc/block_coder.h"

namespace flexor::FLEXOR_ISA {

// The decision for a square block: what search writes, to be kept and put back.
class KeptBlock {
 public:
  enum What { kLuma = 1, kChroma = 2, kAll = 3 };
  void keep(EncoderState& state, int x, int y, int log2_size, What what) { copy<true>(state, x, y, log2_size, what); }
  void put_back(EncoderState& state, int x, int y, int log2_size, What what) {
    copy<false>(state, x, y, log2_size, what);
  }

 private:
  template <bool kKeep, class T>
  static void move_rows(T* kept, T* picture, ptrdiff_t stride, int width, int height) {
    for (int row = 0; row < height; ++row, kept += width, picture += stride) {
      if (kKeep) {
        memcpy(kept, picture, sizeof(T) * static_cast<size_t>(width));
      } else {
        memcpy(picture, kept, sizeof(T) * static_cast<size_t>(width));
      }
    }
  }
  template <bool kKeep>
  void copy(EncoderState& state, int x, int y, int log2_size, What what);

  alignas(64) uint16_t samples_[3][64 * 64];
  alignas(64) int16_t levels_[3][64 * 64];
  uint16_t units_[256];
  alignas(64) int16_t luma_residual_[64 * 64];
  uint8_t luma_mode_[256], chroma_coded_[256], nearest_[256];
  int8_t scales_[2][256];
  uint8_t depth_[64], nxn_[64];
};

template <bool kKeep>
void KeptBlock::copy(EncoderState& state, int x, int y, int log2_size, What what) {
  PictureState& picture = state.picture;
  const PictureTools& tools = picture.tools;
  const int n = 1 << log2_size, units = n >> 2, blocks = n >> tools.min_cb_log2;
  for (int c = 0; c < (tools.chroma == 0 ? 1 : 3); ++c) {
    if (!(what & (c == 0 ? kLuma : kChroma))) continue;
    const int sub_x = c > 0 ? tools.sub_width_log2 : 0, sub_y = c > 0 ? tools.sub_height_log2 : 0;
    const ptrdiff_t at = (y >> sub_y) * picture.stride[c] + (x >> sub_x);
    move_rows<kKeep>(samples_[c], picture.samples[c] + at, picture.stride[c], n >> sub_x, n >> sub_y);
    move_rows<kKeep>(levels_[c], state.levels[c] + at, picture.stride[c], n >> sub_x, n >> sub_y);
  }
  const ptrdiff_t unit = (y >> 2) * picture.units_stride + (x >> 2);
  if (tools.cross_component) {
    const ptrdiff_t at = y * picture.stride[0] + x;
    if (what & kLuma) move_rows<kKeep>(luma_residual_, state.luma_residual + at, picture.stride[0], n, n);
    for (int c = 0; c < 2; ++c)
      move_rows<kKeep>(scales_[c], state.scales[c] + unit, picture.units_stride, units, units);
  }
  move_rows<kKeep>(units_, state.units + unit, picture.units_stride, units, units);
  move_rows<kKeep>(luma_mode_, picture.luma_mode + unit, picture.units_stride, units, units);
  move_rows<kKeep>(chroma_coded_, state.chroma_coded + unit, picture.units_stride, units, units);
  if (picture.nearest != nullptr) {
    move_rows<kKeep>(nearest_, picture.nearest + unit, picture.units_stride, units, units);
  }
  if (what != kAll) return;
  const ptrdiff_t block = (y >> tools.min_cb_log2) * picture.blocks_stride + (x >> tools.min_cb_log2);
  move_rows<kKeep>(depth_, picture.depth + block, picture.blocks_stride, blocks, blocks);
  move_rows<kKeep>(nxn_, state.nxn + block, picture.blocks_stride, blocks, blocks);
}

class CtuSearch {
 public:
  CtuSearch(EncoderState& state, KeptBlock* kept)
      : state_(state), picture_(state.picture), tools_(state.picture.tools), kept_(kept) {}
  void run(int ts, ContextState& contexts);

 private:
  void mark(int x, int y, int log2_size);
  double quadtree(int x, int y, int log2_size, int depth, ContextState& contexts);
  double coding_unit(int x, int y, int log2_size, int depth, bool nxn, const ContextState& contexts);
  double luma_part(int x, int y, int log2_size, int depth, int cu_log2, const ContextState& contexts);
  int rough_modes(int x, int y, int log2_size, const int most_probable[3], int wanted, int* modes);
  double luma_tree(int x, int y, int log2_size, int depth, int most_depth, int mode, const ContextState& contexts);
  double luma_block(int x, int y, int log2_size, int depth, int mode, const ContextState& contexts);
  double chroma(int x, int y, int log2_size, bool nxn, const ContextState& contexts);
  double chroma_tree(int x, int y, int log2_size, int coded, const ContextState& contexts);

  ptrdiff_t unit_at(int x, int y) const { return (y >> 2) * picture_.units_stride + (x >> 2); }
  template <class T>
  void set_units(T* map, int x, int y, int log2_size, T value) {
    const int units = 1 << (log2_size - 2);
    T* row = map + unit_at(x, y);
    for (int i = 0; i < units; ++i, row += picture_.units_stride) {
      for (int k = 0; k < units; ++k) row[k] = value;
    }
  }
  template <class F>
  double bits_of(const ContextState& contexts, F&& write) {
    ContextState trial = contexts;
    BitCounter counter(state_.entropy, trial);
    SyntaxWriter<BitCounter> writer(state_, place_, counter);
    write(writer, counter);
    return counter.bits();
  }

  EncoderState& state_;
  PictureState& picture_;
  const PictureTools& tools_;
  KeptBlock* const kept_;  // one for each log2 size, 2 to 6, twice
  CtbPlace place_ = {};
  BlockCoder coder_{state_, place_};
  BlockBorder border_;
  bool nxn_ = false;
};

inline void CtuSearch::run(int ts, ContextState& contexts) {
  place_ = place_ctb(picture_, state_.slice, ts);
  quadtree(place_.x, place_.y, tools_.ctb_log2, 0, contexts);
  clear_edges(picture_, place_);
  if (state_.slice.deblocking) mark(place_.x, place_.y, tools_.ctb_log2);
}

inline void CtuSearch::mark(int x, int y, int log2_size) {
  if (x >= tools_.width || y >= tools_.height) return;
  const int half = 1 << (log2_size - 1);
  const bool inside = x + 2 * half <= tools_.width && y + 2 * half <= tools_.height;
  const ptrdiff_t block = (y >> tools_.min_cb_log2) * picture_.blocks_stride + (x >> tools_.min_cb_log2);
  const bool split = !inside || picture_.depth[block] > tools_.ctb_log2 - log2_size ||
                     (state_.units[unit_at(x, y)] & kUnitLog2) < log2_size;
  if (!split || log2_size == 2) return mark_edges(picture_, place_, x, y, log2_size);
  for (int part = 0; part < 4; ++part) mark(x + (part & 1) * half, y + (part >> 1) * half, log2_size - 1);
}

// The cost of the best way to code a block, split_cu_flag included; contexts move on as they would when it is written.
inline double CtuSearch::quadtree(int x, int y, int log2_size, int depth, ContextState& contexts) {
  const int n = 1 << log2_size;
  const bool fits = x + n <= tools_.width && y + n <= tools_.height;
  const bool whole = fits && (log2_size < 6 || state_.effort.largest_block);
  const bool may_split = log2_size > tools_.min_cb_log2;
  ContextState whole_contexts = contexts, split_contexts = contexts;
  double whole_cost = 1e300;
  if (whole) {
    BitCounter counter(state_.entropy, whole_contexts);
    SyntaxWriter<BitCounter> writer(state_, place_, counter);
    writer.split_flag(x, y, log2_size, depth, false);
    double distortion = coding_unit(x, y, log2_size, depth, false, whole_contexts);
    const ContextState before = whole_contexts;
    writer.coding_unit(x, y, log2_size);
    whole_cost = distortion + state_.lambda * counter.bits();
    if (!may_split && state_.effort.nxn && tools_.min_tb_log2 < log2_size) {
      KeptBlock& kept = kept_[14];
      kept.keep(state_, x, y, log2_size, KeptBlock::kAll);
      ContextState parts_contexts = before;
      BitCounter parts_counter(state_.entropy, parts_contexts);
      SyntaxWriter<BitCounter> parts_writer(state_, place_, parts_counter);
      distortion = coding_unit(x, y, log2_size, depth, true, parts_contexts);
      parts_writer.coding_unit(x, y, log2_size);
      // The flag before is the same for both.
      const double flag =
          state_.lambda * bits_of(contexts, [&](auto& w, auto&) { w.split_flag(x, y, log2_size, depth, false); });
      const double parts_cost = distortion + state_.lambda * parts_counter.bits() + flag;
      if (parts_cost < whole_cost) {
        whole_cost = parts_cost;
        whole_contexts = parts_contexts;
      } else {
        kept.put_back(state_, x, y, log2_size, KeptBlock::kAll);
      }
    }
    if (!may_split || whole_cost < state_.effort.early_split * state_.lambda * n * n) {
      contexts = whole_contexts;
      return whole_cost;
    }
  }
  KeptBlock& kept = kept_[2 * log2_size + 1];
  if (whole) kept.keep(state_, x, y, log2_size, KeptBlock::kAll);
  double split_cost = 0;
  {
    BitCounter counter(state_.entropy, split_contexts);
    SyntaxWriter<BitCounter>(state_, place_, counter).split_flag(x, y, log2_size, depth, true);
    split_cost = state_.lambda * counter.bits();
  }
  for (int part = 0; part < 4 && split_cost < whole_cost; ++part) {
    const int part_x = x + (part & 1) * (n >> 1), part_y = y + (part >> 1) * (n >> 1);
    if (part_x < tools_.width && part_y < tools_.height) {
      split_cost += quadtree(part_x, part_y, log2_size - 1, depth + 1, split_contexts);
    }
  }
  if (split_cost < whole_cost) {
    contexts = split_contexts;
    return split_cost;
  }
  kept.put_back(state_, x, y, log2_size, KeptBlock::kAll);
  contexts = whole_contexts;
  return whole_cost;
}

// Decides a coding unit of one prediction, or of four; returns its distortion.
inline double CtuSearch::coding_unit(int x, int y, int log2_size, int depth, bool nxn, const ContextState& contexts) {
  const int blocks = 1 << (log2_size - tools_.min_cb_log2);
  const ptrdiff_t first = (y >> tools_.min_cb_log2) * picture_.blocks_stride + (x >> tools_.min_cb_log2);
  for (int row = 0; row < blocks; ++row) {
    memset(picture_.depth + first + row * picture_.blocks_stride, depth, static_cast<size_t>(blocks));
    memset(state_.nxn + first + row * picture_.blocks_stride, nxn, static_cast<size_t>(blocks));
  }
  nxn_ = nxn;
  double distortion = 0;
  const int part_log2 = nxn ? log2_size - 1 : log2_size;
  for (int part = 0; part < (nxn ? 4 : 1); ++part) {
    distortion +=
        luma_part(x + ((part & 1) << part_log2), y + ((part >> 1) << part_log2), part_log2, nxn, log2_size, contexts);
  }
  if (tools_.chroma != 0) distortion += chroma(x, y, log2_size, nxn, contexts);
  return distortion;
}

// The candidates with the least SATD and mode bits, best first.
inline int CtuSearch::rough_modes(int x, int y, int log2_size, const int most_probable[3], int wanted, int* modes) {
  const int block_log2 = smaller(log2_size, 5), n = 1 << block_log2;
  const double root = __builtin_sqrt(state_.lambda);
  const bool with_nearest = tools_.nearest_variant == NearestExtension::kExplicit;
  double costs[128];
  alignas(64) uint16_t prediction[32 * 32];
  alignas(64) int16_t residual[32 * 32];
  border_.read(picture_, place_, 0, x, y, block_log2);
  const uint16_t* const original = state_.original[0] + y * state_.original_stride[0] + x;
  for (double& cost : costs) cost = 1e300;
  const auto measure = [&](int candidate) {
    const int mode = candidate & kModeMask;
    if (costs[candidate] < 1e299 || mode > 34) return;
    border_.predict(picture_, prediction, n, mode, candidate >= kNearest, state_.lossless);
    for (int row = 0; row < n; ++row) {
      for (int k = 0; k < n; ++k) {
        residual[row * n + k] =
            static_cast<int16_t>(original[row * state_.original_stride[0] + k] - prediction[row * n + k]);
      }
    }
    const bool probable = mode == most_probable[0] || mode == most_probable[1] || mode == most_probable[2];
    const double bits = (mode == most_probable[0] ? 2 : probable ? 3 : 6) + (candidate >= kNearest ? 1 : 0);
    int rough = satd(residual, block_log2, tools_.bit_depth[0]);
    if (block_log2 <= 3 && tools_.transform_skip) {
      // A few samples that are far off cost little where the transform is skipped.
      int sum = 0;
      for (int i = 0; i < n * n; ++i) sum += residual[i] < 0 ? -residual[i] : residual[i];
      rough = smaller(rough, sum + sum / 2);
      if (block_log2 == 2 && has_rdpcm(tools_, mode)) {
        const int before = mode == kIntraVertical ? 4 : 1;
        int steps = 0;
        for (int i = 0; i < 16; ++i) {
          const bool first = mode == kIntraVertical ? i < 4 : i % 4 == 0;
          const int step = residual[i] - (first ? 0 : residual[i - before]);
          steps += step < 0 ? -step : step;
        }
        rough = smaller(rough, steps + steps / 2);
      }
    }
    costs[candidate] = rough + root * bits;
  };
  if (state_.effort.coarse_modes) {
    // Every fourth direction, then those beside the best.
    for (int mode : {0, 1, 2, 6, 10, 14, 18, 22, 26, 30, 34}) measure(mode);
    for (int i = 0; i < 3; ++i) measure(most_probable[i]);
    for (int step : {2, 1}) {
      int best = 2;
      for (int mode = 3; mode < 35; ++mode) best = costs[mode] < costs[best] ? mode : best;
      if (best - step >= 2) measure(best - step);
      measure(best + step);
    }
  } else {
    for (int mode = 0; mode < 35; ++mode) measure(mode);
  }
  int count = 0;
  while (count < wanted) {
    int best = -1;
    for (int candidate = 0; candidate < 128; ++candidate) {
      if (costs[candidate] < 1e299 && (best < 0 || costs[candidate] < costs[best])) best = candidate;
    }
    if (best < 0) break;
    modes[count++] = best;
    costs[best] = 1e300;
  }
  for (int i = 0; i < 3; ++i) {
    bool there = false;
    for (int k = 0; k < count; ++k) there |= (modes[k] & kModeMask) == most_probable[i];
    if (!there) modes[count++] = most_probable[i];
  }
  if (!with_nearest) return count;
  // Each direction between samples is tried both ways, and those that are best by the nearer sample too.
  const int bilinear = count;
  for (int i = 0; i < bilinear; ++i) {
    if (is_fractional(modes[i])) modes[count++] = modes[i] | kNearest;
  }
  for (int mode = 0; mode < 35; ++mode) {
    if (is_fractional(mode)) measure(mode | kNearest);
  }
  for (int i = bilinear; i < count; ++i) costs[modes[i]] = 1e300;
  for (int more = 0; more < (wanted + 1) / 2; ++more) {
    int best = -1;
    for (int candidate = kNearest; candidate < 128; ++candidate) {
      if (costs[candidate] < 1e299 && (best < 0 || costs[candidate] < costs[best])) best = candidate;
    }
    if (best < 0) break;
    modes[count++] = best;
    costs[best] = 1e300;
  }
  return count;
}

// The mode and transform blocks of one prediction.
inline double CtuSearch::luma_part(int x, int y, int log2_size, int depth, int cu_log2, const ContextState& contexts) {
  int most_probable[3], modes[40];
  most_probable_modes(picture_, place_, x, y, most_probable);
  const SearchEffort& effort = state_.effort;
  const int wanted = log2_size <= 3 ? effort.candidates_small : effort.candidates_large;
  const int count = rough_modes(x, y, log2_size, most_probable, wanted, modes);
  const auto set_mode = [&](int candidate) {
    set_units(picture_.luma_mode, x, y, log2_size, static_cast<uint8_t>(candidate & kModeMask));
    if (picture_.nearest == nullptr) return;
    const uint8_t choice = candidate >= kNearest ? kNearestSample : is_fractional(candidate) ? kBilinear : kNoChoice;
    set_units(picture_.nearest, x, y, log2_size, choice);
  };
  const auto mode_bits = [&](int candidate) {
    const int mode = candidate & kModeMask;
    return bits_of(contexts, [&](auto&, auto& counter) {
      if (tools_.nearest_variant == NearestExtension::kExplicit && is_fractional(mode)) {
        counter.bin(nearest_context(picture_, place_, x, y), candidate >= kNearest);
      }
      const bool probable = mode == most_probable[0] || mode == most_probable[1] || mode == most_probable[2];
      counter.bin(kPrevIntraLuma, probable);
      counter.bypass(0, !probable ? 5 : mode == most_probable[0] ? 1 : 2);
    });
  };
  const int most_depth = tools_.max_transform_depth + depth;
  double costs[40];
  double best = 1e300;
  KeptBlock& kept = kept_[2 * log2_size + (cu_log2 == log2_size ? 0 : 1)];
  for (int i = 0; i < count; ++i) {
    set_mode(modes[i]);
    costs[i] = state_.lambda * mode_bits(modes[i]) + luma_tree(x, y, log2_size, depth, depth, modes[i], contexts);
    if (costs[i] < best) {
      best = costs[i];
      kept.keep(state_, x, y, log2_size, KeptBlock::kLuma);
    }
  }
  // Divided transform blocks, for the best of them.
  if (most_depth > depth && log2_size > tools_.min_tb_log2) {
    for (int trial = 0; trial < effort.split_candidates; ++trial) {
      int next = -1;
      for (int i = 0; i < count; ++i) {
        if (costs[i] < 1e299 && (next < 0 || costs[i] < costs[next])) next = i;
      }
      if (next < 0 || costs[next] > best * 1.05) break;
      costs[next] = 1e300;
      set_mode(modes[next]);
      const double cost =
          state_.lambda * mode_bits(modes[next]) + luma_tree(x, y, log2_size, depth, most_depth, modes[next], contexts);
      if (cost < best) {
        best = cost;
        kept.keep(state_, x, y, log2_size, KeptBlock::kLuma);
      }
    }
  }
  kept.put_back(state_, x, y, log2_size, KeptBlock::kLuma);
  const ptrdiff_t at = y * picture_.stride[0] + x;
  const int n = 1 << log2_size;
  return sse(picture_.samples[0] + at, picture_.stride[0], state_.original[0] + y * state_.original_stride[0] + x,
             state_.original_stride[0], n, n);
}

// The cost of a luma transform tree with blocks divided at most to most_depth.
inline double CtuSearch::luma_tree(int x, int y, int log2_size, int depth, int most_depth, int mode,
                                   const ContextState& contexts) {
  const bool must_split = log2_size > tools_.max_tb_log2;
  const bool may_split = !must_split && depth < most_depth && log2_size > tools_.min_tb_log2;
  const bool has_flag = !must_split && log2_size > tools_.min_tb_log2 && depth < tools_.max_transform_depth + nxn_;
  const auto flag_cost = [&](int split) {
    return has_flag ? state_.lambda * state_.entropy[contexts.model[kSplitTransform + 5 - log2_size] ^ split] / 32768.0
                    : 0;
  };
  double whole = 1e300;
  KeptBlock& kept = kept_[14 + log2_size];
  if (!must_split) {
    whole = luma_block(x, y, log2_size, depth, mode, contexts) + flag_cost(0);
    if (!may_split) return whole;
    kept.keep(state_, x, y, log2_size, KeptBlock::kLuma);
  }
  const int half = 1 << (log2_size - 1);
  double split = flag_cost(1);
  for (int part = 0; part < 4 && split < whole; ++part) {
    split +=
        luma_tree(x + (part & 1) * half, y + (part >> 1) * half, log2_size - 1, depth + 1, most_depth, mode, contexts);
  }
  if (split < whole) return split;
  kept.put_back(state_, x, y, log2_size, KeptBlock::kLuma);
  return whole;
}

inline double CtuSearch::luma_block(int x, int y, int log2_size, int depth, int mode, const ContextState& contexts) {
  set_units(state_.units, x, y, log2_size, static_cast<uint16_t>(log2_size));
  return coder_.run({0, 0, x, y, log2_size, x, y, mode, depth, false}, contexts);
}

// The chroma modes of a coding unit, with the transform blocks luma has; returns their weighted distortion.
inline double CtuSearch::chroma(int x, int y, int log2_size, bool nxn, const ContextState& contexts) {
  const int parts = nxn && tools_.chroma == 3 ? 4 : 1;
  const int part_log2 = parts == 4 ? log2_size - 1 : log2_size;
  double distortion = 0;
  for (int part = 0; part < parts; ++part) {
    const int part_x = x + ((part & 1) << part_log2), part_y = y + ((part >> 1) << part_log2);
    KeptBlock& kept = kept_[2 * log2_size + (parts == 4 ? 1 : 0)];
    double best = 1e300;
    int tried = 0, best_coded = 4;
    for (int coded : {4, 0, 1, 2, 3}) {
      if (tried++ == state_.effort.chroma_candidates) break;
      set_units(state_.chroma_coded, part_x, part_y, part_log2, static_cast<uint8_t>(coded));
      const double bits = bits_of(contexts, [&](auto& writer, auto&) { writer.chroma_mode(coded); });
      const double cost = state_.lambda * bits + chroma_tree(part_x, part_y, part_log2, coded, contexts);
      if (cost < best) {
        best = cost;
        best_coded = coded;
        if (state_.effort.chroma_candidates > 1) kept.keep(state_, part_x, part_y, part_log2, KeptBlock::kChroma);
      }
    }
    if (state_.effort.chroma_candidates > 1) kept.put_back(state_, part_x, part_y, part_log2, KeptBlock::kChroma);
    set_units(state_.chroma_coded, part_x, part_y, part_log2, static_cast<uint8_t>(best_coded));
    const int width = (1 << part_log2) >> tools_.sub_width_log2, height = (1 << part_log2) >> tools_.sub_height_log2;
    for (int c = 1; c < 3; ++c) {
      const int at_x = part_x >> tools_.sub_width_log2, at_y = part_y >> tools_.sub_height_log2;
      distortion +=
          state_.chroma_weight[c] * sse(picture_.samples[c] + at_y * picture_.stride[c] + at_x, picture_.stride[c],
                                        state_.original[c] + at_y * state_.original_stride[c] + at_x,
                                        state_.original_stride[c], width, height);
    }
  }
  return distortion;
}

inline double CtuSearch::chroma_tree(int x, int y, int log2_size, int coded, const ContextState& contexts) {
  const int unit_log2 = state_.units[unit_at(x, y)] & kUnitLog2;
  const bool together = tools_.chroma != 3 && log2_size == 3 && unit_log2 == 2;  // four 4x4 luma blocks
  if (unit_log2 < log2_size && !together) {
    const int half = 1 << (log2_size - 1);
    double cost = 0;
    for (int part = 0; part < 4; ++part) {
      cost += chroma_tree(x + (part & 1) * half, y + (part >> 1) * half, log2_size - 1, coded, contexts);
    }
    return cost;
  }
  int mode = derive_chroma_mode(tools_, coded, picture_.luma_mode[unit_at(x, y)]);
  const bool nearest = picture_.nearest != nullptr && picture_.nearest[unit_at(x, y)] == kNearestSample;
  if (coded == 4 && nearest && is_fractional(mode)) mode |= kNearest;
  const int chroma_log2 = tools_.chroma == 3 ? log2_size : log2_size - 1;
  double cost = 0;
  for (int component = 1; component < 3; ++component) {
    for (int second = 0; second < (tools_.chroma == 2 ? 2 : 1); ++second) {
      cost +=
          coder_.run({component, second, x >> tools_.sub_width_log2,
                      (y >> tools_.sub_height_log2) + (second << chroma_log2), chroma_log2, x, y, mode, 0, coded == 4},
                     contexts);
    }
  }
  return cost;
}

}  // namespace flexor::FLEXOR_ISA
