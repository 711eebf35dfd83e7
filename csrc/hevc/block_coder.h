// SPDX-License-Identifier: Apache-2.0
// One transform block of the encoder: predicted, transformed, quantized and reconstructed in the ways the syntax has,
// the cheapest of which stays in the picture.
#pragma once
#include "hevc/forward_transform.h"
#include "hevc/quantizer.h"
#include "hevc/syntax_writer.h"

namespace flexor::FLEXOR_ISA {

// What a mode's bits say in the search: the mode, with kNearest where its block has intra_nearest_flag.
constexpr int kNearest = 64, kModeMask = 63;

struct Block {
  int component, second;  // second: the lower one of 4:2:2
  int x, y, log2_size;    // in its plane
  int unit_x, unit_y;     // the luma unit that carries its flags
  int candidate;          // mode, kNearest
  int depth;              // of the transform tree
  bool from_luma;         // intra_chroma_pred_mode is 4: cross-component prediction may be used
};

inline double sse(const uint16_t* a, ptrdiff_t a_stride, const uint16_t* b, ptrdiff_t b_stride, int width, int height) {
  int64_t sum = 0;
  for (int y = 0; y < height; ++y, a += a_stride, b += b_stride) {
    int64_t row = 0;
    for (int x = 0; x < width; ++x) {
      const int32_t d = a[x] - b[x];
      row += d * d;
    }
    sum += row;
  }
  return static_cast<double>(sum);
}

class BlockCoder {
 public:
  BlockCoder(EncoderState& state, const CtbPlace& place)
      : state_(state), picture_(state.picture), tools_(state.picture.tools), place_(place) {}

  // The cost of the best way: weighted distortion, and the bits of its coefficients and its flags.
  double run(const Block& block, const ContextState& contexts);

 private:
  void predict();
  int scale_from_luma() const;
  double scale_bits(int scale) const;
  void subtract_luma(int scale);
  void try_lossless(int scale);
  void try_levels(int scale);
  void try_transform(int scale, bool skip, double fixed_cost);
  void try_rdpcm(int scale, double fixed_cost);
  bool rotates() const { return tools_.transform_skip_rotation && block_.log2_size == 2; }
  int skipped_residual(int level) const;
  double rough_bits(int level, int position) const;
  void try_coded(int scale, bool skip, double fixed_cost);
  void rebuild(const int16_t* levels, bool skip);
  void take(double cost, int scale, int flags, const int16_t* levels, const uint16_t* samples, const int16_t* residual);
  void commit();
  double residual_bits(const int16_t* levels, bool skip) {
    ContextState trial = *contexts_;
    BitCounter counter(state_.entropy, trial);
    SyntaxWriter<BitCounter>(state_, place_, counter)
        .residual(levels, n_, block_.component, block_.log2_size, mode_, skip);
    return counter.bits();
  }
  double flag_bits(int cbf) const {
    const int context = block_.component > 0 ? kCbfChroma + block_.depth : kCbfLuma + (block_.depth == 0);
    return state_.entropy[contexts_->model[context] ^ cbf] / 32768.0;
  }
  size_t samples() const { return static_cast<size_t>(n_) * static_cast<size_t>(n_); }

  EncoderState& state_;
  PictureState& picture_;
  const PictureTools& tools_;
  const CtbPlace& place_;
  BlockBorder border_;

  Block block_ = {};
  const ContextState* contexts_ = nullptr;
  int n_ = 0, mode_ = 0, bit_depth_ = 8, qp_ = 0;
  double weight_ = 1;
  const uint16_t* original_ = nullptr;
  ptrdiff_t original_stride_ = 0;

  struct Best {
    double cost;
    int scale, flags;
    alignas(64) int16_t levels[1024];
    alignas(64) uint16_t samples[1024];
    alignas(64) int16_t residual[1024];  // of luma, for cross-component prediction
  } best_;
  alignas(64) uint16_t prediction_[1024], rebuilt_[1024];
  alignas(64) int16_t difference_[1024];  // original minus prediction
  alignas(64) int16_t target_[1024];      // that, less what comes from luma
  alignas(64) int16_t from_luma_[1024];
  alignas(64) int16_t coefficients_[1024], levels_[1024], scaled_[1024], back_[1024];
};

inline double BlockCoder::run(const Block& block, const ContextState& contexts) {
  block_ = block;
  contexts_ = &contexts;
  n_ = 1 << block.log2_size;
  mode_ = block.candidate & kModeMask;
  const bool chroma = block.component != 0;
  bit_depth_ = tools_.bit_depth[chroma];
  weight_ = state_.chroma_weight[block.component];
  qp_ = chroma ? chroma_qp(tools_, state_.slice.slice_qp,
                           block.component == 1 ? state_.slice.cb_qp_offset : state_.slice.cr_qp_offset)
               : state_.slice.slice_qp + tools_.qp_bd_offset[0];
  original_stride_ = state_.original_stride[block.component];
  original_ = state_.original[block.component] + block.y * original_stride_ + block.x;
  predict();
  best_.cost = 1e300;
  const uint16_t unit = state_.units[(block.unit_y >> 2) * picture_.units_stride + (block.unit_x >> 2)];
  const bool may_scale = chroma && tools_.cross_component && block.from_luma && (unit & cbf_bit(0, 0));
  const int scale = may_scale ? scale_from_luma() : 0;
  for (int trial = 0; trial <= (scale != 0); ++trial) {
    const int tried = trial == 0 ? 0 : scale;
    subtract_luma(tried);
    const double bits = may_scale ? scale_bits(tried) : 0;
    const double before = best_.cost;
    if (before < 1e299) best_.cost -= state_.lambda * bits;
    if (state_.lossless) {
      try_lossless(tried);
    } else {
      try_levels(tried);
    }
    best_.cost = best_.cost + state_.lambda * bits;
  }
  commit();
  return best_.cost;
}

inline void BlockCoder::predict() {
  border_.read(picture_, place_, block_.component, block_.x, block_.y, block_.log2_size);
  border_.predict(picture_, prediction_, n_, mode_, block_.candidate >= kNearest, state_.lossless);
  for (int row = 0; row < n_; ++row) {
    for (int k = 0; k < n_; ++k) {
      difference_[row * n_ + k] =
          static_cast<int16_t>(original_[row * original_stride_ + k] - prediction_[row * n_ + k]);
    }
  }
}

// The eighths of the luma residual that are nearest to a chroma difference: 0, 1, 2, 4 or 8 of either sign.
inline int BlockCoder::scale_from_luma() const {
  const int16_t* const luma = state_.luma_residual + block_.y * picture_.stride[0] + block_.x;
  int64_t product = 0, square = 0;
  for (int row = 0; row < n_; ++row) {
    for (int k = 0; k < n_; ++k) {
      const int32_t value = luma[row * picture_.stride[0] + k];
      product += value * difference_[row * n_ + k];
      square += value * value;
    }
  }
  if (square == 0) return 0;
  const double ratio = 8.0 * static_cast<double>(product) / static_cast<double>(square);
  const double size = ratio < 0 ? -ratio : ratio;
  const int scale = size < 0.5 ? 0 : size < 1.5 ? 1 : size < 3 ? 2 : size < 6 ? 4 : 8;
  return ratio < 0 ? -scale : scale;
}

inline double BlockCoder::scale_bits(int scale) const {
  const int base = kResScaleAbs + 4 * (block_.component - 1), size = scale < 0 ? -scale : scale;
  const auto cost = [&](int context, int bin) { return state_.entropy[contexts_->model[context] ^ bin] / 32768.0; };
  if (size == 0) return cost(base, 0);
  const int log2_plus1 = 32 - __builtin_clz(static_cast<unsigned>(size));
  double bits = cost(kResScaleSign + block_.component - 1, scale < 0);
  for (int i = 0; i < log2_plus1; ++i) bits += cost(base + i, 1);
  return log2_plus1 < 4 ? bits + cost(base + log2_plus1, 0) : bits;
}

inline void BlockCoder::subtract_luma(int scale) {
  if (scale == 0) {
    memset(from_luma_, 0, sizeof(int16_t) * samples());
    memcpy(target_, difference_, sizeof(int16_t) * samples());
    return;
  }
  const int16_t* const luma = state_.luma_residual + block_.y * picture_.stride[0] + block_.x;
  for (int row = 0; row < n_; ++row) {
    for (int k = 0; k < n_; ++k) {
      const int value = (scale * luma[row * picture_.stride[0] + k]) >> 3;
      from_luma_[row * n_ + k] = static_cast<int16_t>(value);
      target_[row * n_ + k] = static_cast<int16_t>(difference_[row * n_ + k] - value);
    }
  }
}

inline void BlockCoder::take(double cost, int scale, int flags, const int16_t* levels, const uint16_t* samples_taken,
                             const int16_t* residual) {
  best_.cost = cost;
  best_.scale = scale;
  best_.flags = flags;
  memcpy(best_.levels, levels, sizeof(int16_t) * samples());
  memcpy(best_.samples, samples_taken, sizeof(uint16_t) * samples());
  if (block_.component == 0 && tools_.cross_component) memcpy(best_.residual, residual, sizeof(int16_t) * samples());
}

inline void BlockCoder::try_lossless(int scale) {
  bool any = false;
  for (size_t i = 0; i < samples(); ++i) any |= target_[i] != 0;
  const double bits = flag_bits(any) + (any ? residual_bits(target_, false) : 0);
  if (state_.lambda * bits >= best_.cost) return;
  memcpy(rebuilt_, prediction_, sizeof(uint16_t) * samples());
  picture_.transform.add(rebuilt_, n_, difference_, block_.log2_size, bit_depth_);
  take(state_.lambda * bits, scale, any ? cbf_bit(block_.component, block_.second) : 0, target_, rebuilt_, target_);
}

inline void BlockCoder::try_levels(int scale) {
  memcpy(rebuilt_, prediction_, sizeof(uint16_t) * samples());
  if (scale != 0) picture_.transform.add(rebuilt_, n_, from_luma_, block_.log2_size, bit_depth_);
  const double without =
      weight_ * sse(rebuilt_, n_, original_, original_stride_, n_, n_) + state_.lambda * flag_bits(0);
  if (without < best_.cost) {
    memset(levels_, 0, sizeof(int16_t) * samples());
    take(without, scale, 0, levels_, rebuilt_, levels_);
  }
  forward_transform(coefficients_, target_, block_.log2_size, block_.component == 0 && block_.log2_size == 2,
                    bit_depth_);
  try_transform(scale, false, flag_bits(1));
  if (tools_.transform_skip && block_.log2_size <= tools_.max_transform_skip_log2) {
    if (has_rdpcm(tools_, mode_)) return try_rdpcm(scale, flag_bits(1));
    forward_skip(coefficients_, target_, block_.log2_size, bit_depth_);
    if (rotates()) picture_.transform.rotate(coefficients_, block_.log2_size);
    try_transform(scale, true, flag_bits(1));
  }
}

inline void BlockCoder::try_transform(int scale, bool skip, double flag) {
  Quantizer quantizer(state_, *contexts_);
  if (quantizer.run(levels_, coefficients_, block_.component, block_.log2_size, mode_, qp_, skip) == 0) return;
  try_coded(scale, skip, flag);
}

// What levels_ are worth.
inline void BlockCoder::try_coded(int scale, bool skip, double flag) {
  rebuild(levels_, skip);
  const double distortion = weight_ * sse(rebuilt_, n_, original_, original_stride_, n_, n_);
  if (distortion >= best_.cost) return;
  const double cost = distortion + state_.lambda * (flag + residual_bits(levels_, skip));
  if (cost >= best_.cost) return;
  const int flags = cbf_bit(block_.component, block_.second) | (skip ? skip_bit(block_.component, block_.second) : 0);
  take(cost, scale, flags, levels_, rebuilt_, back_);
}

// Of a level of a 4x4 block without transform, before anything is known of its neighbours.
inline double BlockCoder::rough_bits(int level, int position) const {
  const bool chroma = block_.component != 0;
  const int significant = kSignificant + (chroma ? 27 : 0) + kSignificanceContexts.whole[position];
  const auto cost = [&](int context, int bin) { return state_.entropy[contexts_->model[context] ^ bin] / 32768.0; };
  double bits = cost(significant, level != 0);
  if (level == 0) return bits;
  bits += 1 + cost(kGreater1 + (chroma ? 16 : 0) + 1, level > 1);
  if (level > 1) bits += cost(kGreater2 + (chroma ? 4 : 0), level > 2);
  const int rice =
      tools_.persistent_rice ? contexts_->rice_statistic[rice_statistic_of(block_.component, true)] >> 2 : 0;
  return level > 2 ? bits + remaining_bits(level - 3, rice) : bits;
}

// Without transform, each sample's residual less that of the one before it along the mode's direction, as the decoder
// will have it (clause 8.6.8).
inline void BlockCoder::try_rdpcm(int scale, double flag) {
  const bool vertical = mode_ == kIntraVertical;
  const int along = vertical ? n_ : 1, across = vertical ? 1 : n_, last = n_ * n_ - 1;
  const int shift = 15 - bit_depth_ - block_.log2_size, qbits = 14 + qp_ / 6 + shift;
  const int64_t quant_scale = kQuantScale[qp_ % 6];
  const double lambda = state_.lambda / weight_;
  bool any = false;
  for (int line = 0; line < n_; ++line) {
    int before = 0;
    for (int i = 0; i < n_; ++i) {
      const int place = line * across + i * along, position = rotates() ? last - place : place;
      const int wanted = target_[place] - before, size = wanted < 0 ? -wanted : wanted;
      const int most = static_cast<int>(
          (static_cast<int64_t>(size) * (1 << shift) * quant_scale + (int64_t{1} << (qbits - 1))) >> qbits);
      double best = 1e300;
      int best_level = 0, best_residual = 0;
      for (int level = smaller(most, 32767); level >= 0 && level >= most - 1; --level) {
        const int residual = skipped_residual(wanted < 0 ? -level : level);
        const double off = wanted - residual;
        const double cost = off * off + lambda * rough_bits(level, position);
        if (cost < best) {
          best = cost;
          best_level = level;
          best_residual = residual;
        }
      }
      levels_[position] = static_cast<int16_t>(wanted < 0 ? -best_level : best_level);
      any |= best_level != 0;
      before = clamp_to(before + best_residual, -32768, 32767);
    }
  }
  if (any) try_coded(scale, true, flag);
}

// Of a level where the transform is skipped (clauses 8.6.4.1 and 8.6.4.2).
inline int BlockCoder::skipped_residual(int level) const {
  const int64_t step = static_cast<int64_t>(kLevelScale[qp_ % 6] * 16) << (qp_ / 6);
  const int shift = bit_depth_ + block_.log2_size - 5, skip_shift = 20 - bit_depth_;
  const int64_t value = (level * step + (int64_t{1} << (shift - 1))) >> shift;
  const int scaled = static_cast<int>(value < -32768 ? -32768 : value > 32767 ? 32767 : value);
  return clamp_to((scaled * (1 << (5 + block_.log2_size)) + (1 << (skip_shift - 1))) >> skip_shift, -32768, 32767);
}

// What a decoder makes of levels (clause 8.6).
inline void BlockCoder::rebuild(const int16_t* levels, bool skip) {
  const int log2_size = block_.log2_size;
  const int shift = bit_depth_ + log2_size - 5;
  const int64_t rounding = int64_t{1} << (shift - 1);
  const int64_t step = static_cast<int64_t>(kLevelScale[qp_ % 6] * 16) << (qp_ / 6);
  int width = 0, height = 0;
  for (int row = 0; row < n_; ++row) {
    for (int k = 0; k < n_; ++k) {
      const int64_t level = levels[row * n_ + k];
      const int64_t value = (level * step + rounding) >> shift;
      scaled_[row * n_ + k] = static_cast<int16_t>(value < -32768 ? -32768 : value > 32767 ? 32767 : value);
      if (level != 0) {
        width = larger(width, k + 1);
        height = row + 1;
      }
    }
  }
  if (skip) {
    if (rotates()) picture_.transform.rotate(scaled_, log2_size);
    picture_.transform.skip(back_, scaled_, log2_size, bit_depth_);
    if (has_rdpcm(tools_, mode_)) picture_.transform.accumulate(back_, log2_size, mode_ == kIntraVertical);
  } else if (block_.component == 0 && log2_size == 2) {
    picture_.transform.dst(back_, scaled_, bit_depth_);
  } else {
    picture_.transform.dct(back_, scaled_, log2_size, width, height, bit_depth_);
  }
  memcpy(rebuilt_, prediction_, sizeof(uint16_t) * samples());
  for (size_t i = 0; i < samples(); ++i) {
    scaled_[i] = static_cast<int16_t>(clamp_to(back_[i] + from_luma_[i], -32768, 32767));
  }
  picture_.transform.add(rebuilt_, n_, scaled_, log2_size, bit_depth_);
}

inline void BlockCoder::commit() {
  const ptrdiff_t stride = picture_.stride[block_.component];
  const ptrdiff_t at = block_.y * stride + block_.x;
  const size_t bytes = sizeof(int16_t) * static_cast<size_t>(n_);
  for (int row = 0; row < n_; ++row) {
    memcpy(picture_.samples[block_.component] + at + row * stride, best_.samples + row * n_, bytes);
    memcpy(state_.levels[block_.component] + at + row * stride, best_.levels + row * n_, bytes);
    if (block_.component == 0 && tools_.cross_component) {
      memcpy(state_.luma_residual + at + row * stride, best_.residual + row * n_, bytes);
    }
  }
  const ptrdiff_t unit = (block_.unit_y >> 2) * picture_.units_stride + (block_.unit_x >> 2);
  if (block_.component > 0) state_.scales[block_.component - 1][unit] = static_cast<int8_t>(best_.scale);
  const uint16_t clear =
      static_cast<uint16_t>(~(cbf_bit(block_.component, block_.second) | skip_bit(block_.component, block_.second)));
  const int units = block_.component > 0 ? 1 : 1 << (block_.log2_size - 2);
  for (int row = 0; row < units; ++row) {
    for (int k = 0; k < units; ++k) {
      uint16_t& flags = state_.units[unit + row * picture_.units_stride + k];
      flags = static_cast<uint16_t>((flags & clear) | best_.flags);
    }
  }
}

}  // namespace flexor::FLEXOR_ISA
