// SPDX-License-Identifier: Apache-2.0
// How coeff_abs_level_remaining is binarised from one level to the next (H.265 clause 9.3.3.11).
#pragma once
#include <cstdint>

namespace flexor::FLEXOR_ISA {

// cRiceParam within a sub-block, and StatCoeff, which its first remaining level moves.
struct RiceParameter {
  RiceParameter(bool persists, uint8_t before)
      : value(persists ? before >> 2 : 0), statistic(before), persistent(persists) {}

  void follow(int64_t level, int64_t remaining) {
    if (level > int64_t{3} << value) {
      // Above 28 only in damaged data.
      if (persistent ? value < 28 : value < 4) ++value;
    }
    if (!persistent || !first_) return;
    first_ = false;
    const int half = statistic >> 2;
    if (remaining >= int64_t{3} << half) {
      ++statistic;
    } else if (2 * remaining < int64_t{1} << half && statistic > 0) {
      --statistic;
    }
  }

  int value;
  uint8_t statistic;
  bool persistent;

 private:
  bool first_ = true;
};

// sbType: which StatCoeff is that of a block.
inline int rice_statistic_of(int component, bool untransformed) { return (component == 0 ? 2 : 0) + untransformed; }

}  // namespace flexor::FLEXOR_ISA
