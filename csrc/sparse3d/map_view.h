// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "core/cpu.h"
#include "core/tensor.h"

namespace flexor {

// Pairs of (input, output) voxels under each tap. Those of tile t (outputs of rank 256t to 256t + 255) and tap k are
// [offsets[t * taps + k], offsets[t * taps + k + 1]).
struct MapView {
  int64_t n_out, n_in, taps, tiles, pairs;
  const int32_t* out_order;  // [n_out], row of a rank
  const int32_t* in_order;   // [n_in]
  const int32_t* in_rows;    // [pairs], ranks; checked as they are read
  const uint8_t* places;     // [pairs], output rank within its tile
  const int64_t* offsets;    // [tiles * taps + 1], checked

  explicit operator bool() const { return offsets != nullptr; }
};

}  // namespace flexor
