// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace flexor::hevc {

// The nearest-neighbour extension (docs/hevc_nearest.md): which angular prediction takes the nearer sample.
struct NearestExtension {
  enum Variant { kOff = 0, kExplicit = 1, kSad = 2, kBoundary = 3 };
  int variant = kOff;
  int threshold = 0;  // of the implicit variants, for 8 bits
};
constexpr int kDefaultNearestThreshold[4] = {0, 0, 32, 16};

}  // namespace flexor::hevc
