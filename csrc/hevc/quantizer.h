// SPDX-License-Identifier: Apache-2.0
// From coefficients to levels: each level, each sub-block's flag and the last position chosen by rate and distortion,
// then the parities that hide signs. What a level costs is read off the contexts as they stand when the block begins.
#pragma once
#include "hevc/encoder_state.h"
#include "hevc/prediction.h"
#include "hevc/scans.h"
#include "hevc/syntax_writer.h"

namespace flexor::FLEXOR_ISA {

static constexpr int kQuantScale[6] = {26214, 23302, 20560, 18396, 16384, 14564};

class Quantizer {
 public:
  Quantizer(const EncoderState& state, const ContextState& contexts) : state_(state), contexts_(contexts) {}

  // Levels of a dense block; returns how many are not zero. qp is Qp' of the component.
  int run(int16_t* levels, const int16_t* coefficients, int component, int log2_size, int mode, int qp, bool skip);

 private:
  int32_t cost(int context, int bin) const { return state_.entropy[contexts_.model[context] ^ bin]; }
  double level_bits(int level, int base, int set, int greater1_context, int rice, bool flagged, bool second) const;
  int plain(int16_t* levels, const int16_t* coefficients, int count);
  void hide_signs(int16_t* levels, const int16_t* coefficients, int log2_size, int scan_index, int last_sub_block);

  static constexpr double kBit = 1.0 / 32768;

  const EncoderState& state_;
  const ContextState& contexts_;
  int component_ = 0;
  double to_error_ = 0;  // of squared scaled differences to SSE
  double lambda_ = 0;
  int qbits_ = 0;
  int scale_ = 0;
  // What decides the bits of another level at a scan position, as the contexts stood there.
  struct Moment {
    float flag;  // bits of sig_coeff_flag 1 less those of 0
    int8_t set, greater1_context, rice, base;
    bool flagged, second;
  };
  double bits_at(int at, int level) const {
    const Moment& m = moments_[at];
    return level == 0 ? 0
                      : level_bits(level, m.base, m.set, m.greater1_context, m.rice, m.flagged, m.second) +
                            static_cast<double>(m.flag);
  }
  Moment moments_[1024];
};

inline double remaining_bits(int value, int rice) {
  if (value < 4 << rice) return (value >> rice) + 1 + rice;
  value -= 3 << rice;
  int length = rice;
  while (value >= 1 << length) {
    value -= 1 << length;
    ++length;
  }
  return 3 + length - rice + 1 + length;
}

// Of a level above 0, with its sign.
inline double Quantizer::level_bits(int level, int base, int set, int greater1_context, int rice, bool flagged,
                                    bool second) const {
  const int chroma = component_ != 0;
  double bits = 1;
  if (flagged) {
    const int context = kGreater1 + (chroma ? 16 : 0) + 4 * set + greater1_context;
    bits += cost(context, level > 1) * kBit;
    if (level > 1 && second) bits += cost(kGreater2 + (chroma ? 4 : 0) + set, level > 2) * kBit;
  }
  if (level >= base) bits += remaining_bits(level - base, rice);
  return bits;
}

inline int Quantizer::plain(int16_t* levels, const int16_t* coefficients, int count) {
  const int64_t rounding = (int64_t{171} << qbits_) >> 9;
  int total = 0;
  for (int i = 0; i < count; ++i) {
    const int c = coefficients[i];
    const int64_t scaled = static_cast<int64_t>(c < 0 ? -c : c) * scale_;
    const int level = static_cast<int>((scaled + rounding) >> qbits_);
    total += level != 0;
    levels[i] = static_cast<int16_t>(c < 0 ? -level : level);
  }
  return total;
}

inline int Quantizer::run(int16_t* levels, const int16_t* coefficients, int component, int log2_size, int mode, int qp,
                          bool skip) {
  const PictureTools& tools = state_.picture.tools;
  const int bit_depth = tools.bit_depth[component > 0];
  const int count = 1 << (2 * log2_size);
  const bool chroma = component != 0;
  component_ = component;
  const int transform_shift = 15 - bit_depth - log2_size;
  qbits_ = 14 + qp / 6 + transform_shift;
  scale_ = kQuantScale[qp % 6];
  if (!state_.effort.rate_distortion_levels) return plain(levels, coefficients, count);

  // Nothing that rounds to 1: nothing at all.
  int largest = 0;
  for (int i = 0; i < count; ++i) {
    const int c = coefficients[i];
    largest = larger(largest, c < 0 ? -c : c);
  }
  if (static_cast<int64_t>(largest) * scale_ + (int64_t{1} << (qbits_ - 1)) >> qbits_ == 0) return 0;
  lambda_ = state_.lambda / state_.chroma_weight[component];
  const double per_step = 1.0 / (scale_ * static_cast<double>(1 << transform_shift));
  to_error_ = per_step * per_step;
  const int scan_index = scan_of(tools.chroma, component, log2_size, mode);
  const Scan& sub_blocks = kScans.scan[scan_index][log2_size - 2];
  const Scan& within = kScans.scan[scan_index][2];
  const int sub_count = 1 << (2 * (log2_size - 2));
  const int size_offset = significance_offset(component, log2_size, scan_index);
  const int significant = kSignificant + (chroma ? 27 : 0);
  memset(levels, 0, sizeof(int16_t) * static_cast<size_t>(count));

  double cost_of[1024];       // of a coefficient as it is coded, by scan position
  double zero_error[1024];    // its squared error where it is 0
  double significance[1024];  // its lambda times the bits of sig_coeff_flag as coded
  double sub_block_cost[64];
  double everything_zero = 0, total_cost = 0;
  int last_found = -1;
  uint8_t coded_rows[9] = {};
  int greater1_context = 1;
  int last_sub_block = -1;
  uint8_t statistic = contexts_.rice_statistic[rice_statistic_of(component, skip)];

  for (int i = sub_count - 1; i >= 0; --i) {
    const int x_sub = sub_blocks.x[i], y_sub = sub_blocks.y[i];
    const int16_t* const sub = coefficients + ((y_sub << 2) << log2_size) + (x_sub << 2);
    sub_block_cost[i] = 0;
    int64_t scaled[16];
    int maxima[16];
    bool any = false;
    double zeros = 0;
    for (int n = 0; n < 16; ++n) {
      const int c = sub[(within.y[n] << log2_size) + within.x[n]];
      scaled[n] = static_cast<int64_t>(c < 0 ? -c : c) * scale_;
      maxima[n] = static_cast<int>((scaled[n] + (int64_t{1} << (qbits_ - 1))) >> qbits_);
      any |= maxima[n] != 0;
      zero_error[16 * i + n] = static_cast<double>(scaled[n]) * static_cast<double>(scaled[n]) * to_error_;
      zeros += zero_error[16 * i + n];
    }
    everything_zero += zeros;
    if (last_found < 0 && !any) {
      total_cost += zeros;
      continue;
    }
    const int right = (coded_rows[y_sub] >> (x_sub + 1)) & 1, below = (coded_rows[y_sub + 1] >> x_sub) & 1;
    const uint8_t* const pattern = kSignificanceContexts.context[scan_index][log2_size == 2 ? 4 : right | (below << 1)];
    const int set_offset = significant + size_offset + (!chroma && log2_size > 2 && i > 0 ? 3 : 0);
    const int before_context = greater1_context;
    int set = i == 0 || chroma ? 0 : 2;
    if (greater1_context == 0) ++set;
    int context = 1, seen = 0;
    RiceParameter rice(tools.persistent_rice, statistic);
    bool second = true;  // greater2 is still to come
    int nonzero = 0, beyond_first = 0;
    double sub_cost = 0, sub_significance = 0;
    int16_t* const out = levels + ((y_sub << 2) << log2_size) + (x_sub << 2);
    for (int n = 15; n >= 0; --n) {
      const int at = 16 * i + n;
      if (last_found < 0 && maxima[n] == 0) {
        total_cost += zero_error[at];
        continue;
      }
      const bool is_last = last_found < 0;
      if (is_last) {
        last_found = at;
        last_sub_block = i;
      }
      const int sig_context = n == 0 && i == 0 ? significant : set_offset + pattern[n];
      const double sig_zero = is_last ? 0 : lambda_ * kBit * cost(sig_context, 0);
      const double sig_one = is_last ? 0 : lambda_ * kBit * cost(sig_context, 1);
      const bool flagged = seen < 8;
      const int base = flagged ? (second ? 3 : 2) : 1;
      int best_level = 0;
      double best = is_last || maxima[n] > 2 ? 1e300 : zero_error[at] + sig_zero;
      for (int level = maxima[n]; level >= 1 && level >= maxima[n] - 1; --level) {
        const double off = static_cast<double>(scaled[n] - (static_cast<int64_t>(level) << qbits_));
        const double bits = level_bits(level, base, set, context, rice.value, flagged, second);
        const double candidate = off * off * to_error_ + sig_one + lambda_ * bits;
        if (candidate < best) {
          best = candidate;
          best_level = level;
        }
      }
      cost_of[at] = best;
      significance[at] = best_level != 0 ? sig_one : sig_zero;
      moments_[at] = {static_cast<float>((sig_one - sig_zero) / lambda_),
                      static_cast<int8_t>(set),
                      static_cast<int8_t>(context),
                      static_cast<int8_t>(rice.value),
                      static_cast<int8_t>(base),
                      flagged,
                      second};
      sub_cost += best;
      sub_significance += significance[at];
      out[(within.y[n] << log2_size) + within.x[n]] = static_cast<int16_t>(best_level);
      if (best_level == 0) continue;
      ++nonzero;
      if (n != 0) ++beyond_first;
      if (best_level >= base) rice.follow(best_level, best_level - base);
      if (flagged) {
        if (best_level > 1) {
          context = 0;
          second = false;
        } else if (context > 0 && context < 3) {
          ++context;
        }
      }
      ++seen;
    }
    if (i < last_sub_block && i > 0) {
      const int flag_context = kCodedSubBlock + 2 * chroma + (right | below);
      const double flag_zero = lambda_ * kBit * cost(flag_context, 0),
                   flag_one = lambda_ * kBit * cost(flag_context, 1);
      // A first position alone needs no flag of its own.
      if (nonzero > 0 && beyond_first == 0) {
        sub_cost -= significance[16 * i];
        cost_of[16 * i] -= significance[16 * i];
        significance[16 * i] = 0;
      }
      if (nonzero == 0 || zeros + flag_zero < sub_cost + flag_one) {
        for (int n = 0; n < 16; ++n) {
          out[(within.y[n] << log2_size) + within.x[n]] = 0;
          cost_of[16 * i + n] = zero_error[16 * i + n];
          significance[16 * i + n] = 0;
        }
        sub_block_cost[i] = flag_zero;
        total_cost += zeros + flag_zero;
        greater1_context = before_context;
        continue;
      }
      sub_block_cost[i] = flag_one;
    }
    total_cost += sub_cost + sub_block_cost[i];
    statistic = rice.statistic;
    coded_rows[y_sub] = static_cast<uint8_t>(coded_rows[y_sub] | (1 << x_sub));
    if (nonzero > 0) greater1_context = context;
  }
  if (last_found < 0) return 0;

  // Where to end: each nonzero level down to the first that is above 1 may be the last.
  const int offset = !chroma ? 3 * (log2_size - 2) + ((log2_size - 1) >> 2) : 15;
  const int shift = !chroma ? (log2_size + 1) >> 2 : log2_size - 2;
  double axis_bits[2][10];
  for (int axis = 0; axis < 2; ++axis) {
    double ones = 0;
    for (int prefix = 0; prefix <= 2 * log2_size - 1; ++prefix) {
      const int at = (axis == 0 ? kLastX : kLastY) + offset + (prefix >> shift);
      const double tail = prefix >= 4 ? (prefix >> 1) - 1 : 0;
      axis_bits[axis][prefix] = ones + (prefix < 2 * log2_size - 1 ? cost(at, 0) * kBit : 0) + tail;
      if (prefix < 2 * log2_size - 1) ones += cost(at, 1) * kBit;
    }
  }
  const int cbf_context = chroma ? kCbfChroma : kCbfLuma + 1;
  double best = everything_zero + lambda_ * kBit * cost(cbf_context, 0);
  int best_last = -1;
  double running = total_cost + lambda_ * kBit * cost(cbf_context, 1);
  bool done = false;
  for (int i = last_sub_block; i >= 0 && !done; --i) {
    running -= sub_block_cost[i];
    const int16_t* const out = levels + ((sub_blocks.y[i] << 2) << log2_size) + (sub_blocks.x[i] << 2);
    for (int n = 15; n >= 0; --n) {
      const int at = 16 * i + n;
      if (at > last_found) continue;
      const int level = out[(within.y[n] << log2_size) + within.x[n]];
      if (level != 0) {
        int x = (sub_blocks.x[i] << 2) + within.x[n], y = (sub_blocks.y[i] << 2) + within.y[n];
        if (scan_index == 2) {
          const int other = x;
          x = y;
          y = other;
        }
        const double end = lambda_ * (axis_bits[0][last_prefix(x)] + axis_bits[1][last_prefix(y)]);
        const double candidate = running + end - significance[at];
        if (candidate < best) {
          best = candidate;
          best_last = at;
        }
        if (level > 1) {
          done = true;
          break;
        }
      }
      running += zero_error[at] - cost_of[at];
    }
  }
  int nonzero = 0;
  for (int i = last_sub_block; i >= 0; --i) {
    const ptrdiff_t start = ((sub_blocks.y[i] << 2) << log2_size) + (sub_blocks.x[i] << 2);
    for (int n = 15; n >= 0; --n) {
      const ptrdiff_t place = start + (within.y[n] << log2_size) + within.x[n];
      if (16 * i + n > best_last) {
        levels[place] = 0;
      } else if (levels[place] != 0) {
        ++nonzero;
        if (coefficients[place] < 0) levels[place] = static_cast<int16_t>(-levels[place]);
      }
    }
  }
  if (nonzero > 1 && tools.sign_hiding) hide_signs(levels, coefficients, log2_size, scan_index, best_last >> 4);
  return nonzero;
}

// Makes the parity of each sub-block whose levels span more than 3 positions that of its hidden sign, by the change of
// one level that costs least.
inline void Quantizer::hide_signs(int16_t* levels, const int16_t* coefficients, int log2_size, int scan_index,
                                  int last_sub_block) {
  const Scan& sub_blocks = kScans.scan[scan_index][log2_size - 2];
  const Scan& within = kScans.scan[scan_index][2];
  bool is_last = true;
  for (int i = last_sub_block; i >= 0; --i) {
    const ptrdiff_t start = ((sub_blocks.y[i] << 2) << log2_size) + (sub_blocks.x[i] << 2);
    int lowest = -1, highest = -1, sum = 0;
    for (int n = 0; n < 16; ++n) {
      const int level = levels[start + (within.y[n] << log2_size) + within.x[n]];
      if (level == 0) continue;
      if (lowest < 0) lowest = n;
      highest = n;
      sum += level;
    }
    if (lowest < 0) continue;
    const bool in_last = is_last;
    is_last = false;
    if (highest - lowest < 4) continue;
    const bool negative = levels[start + (within.y[lowest] << log2_size) + within.x[lowest]] < 0;
    if ((sum & 1) == negative) continue;
    double best = 1e300;
    ptrdiff_t best_place = -1;
    int best_change = 0;
    for (int n = in_last ? highest : 15; n >= 0; --n) {
      const ptrdiff_t place = start + (within.y[n] << log2_size) + within.x[n];
      const int c = coefficients[place];
      const int size = levels[place] < 0 ? -levels[place] : levels[place];
      const int at = 16 * i + n;
      const double scaled = static_cast<double>(c < 0 ? -c : c) * scale_;
      const double step = static_cast<double>(int64_t{1} << qbits_);
      const double here = bits_at(at, size);
      const double now = scaled - size * step;
      const double up = now - step, down = now + step;
      const auto consider = [&](double off, double bits, int change) {
        const double rise = (off * off - now * now) * to_error_ + lambda_ * (bits - here);
        if (rise < best) {
          best = rise;
          best_place = place;
          best_change = change;
        }
      };
      if (size == 0) {
        // A new level below the lowest becomes the one whose sign is hidden.
        if (n < lowest && (c < 0) != negative) continue;
        if (size < 32767) consider(up, bits_at(at, size + 1), 1);
        continue;
      }
      if (size < 32767) consider(up, bits_at(at, size + 1), 1);
      const bool ends = n == lowest || n == highest;
      if (size > 1 || !ends) consider(down, bits_at(at, size - 1), -1);
    }
    if (best_place < 0) continue;
    const int size = (levels[best_place] < 0 ? -levels[best_place] : levels[best_place]) + best_change;
    levels[best_place] = static_cast<int16_t>(coefficients[best_place] < 0 ? -size : size);
  }
}

}  // namespace flexor::FLEXOR_ISA
