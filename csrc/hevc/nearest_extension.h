// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

namespace flexor::hevc {

// The nearest-neighbour extension (docs/hevc_nearest.md): which angular prediction takes the nearer sample.
struct NearestExtension {
  enum Variant { kOff = 0, kExplicit = 1, kSad = 2, kBoundary = 3 };
  int variant = kOff;
  int threshold = 0;          // of the implicit variants, for 8 bits
  bool edge_filters = false;  // those of DC, horizontal and vertical prediction
};
// How a block is predicted where streams say it: a mode that is not fractional leaves no choice.
enum NearestChoice : uint8_t { kNoChoice = 0, kBilinear = 1, kNearestSample = 2 };
constexpr int kDefaultNearestThreshold[4] = {0, 0, 48, 24};

}  // namespace flexor::hevc
