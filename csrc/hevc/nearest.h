// SPDX-License-Identifier: Apache-2.0
// The parameter set of the nearest-neighbour extension (docs/hevc_nearest.md): a NAL unit of a type that H.265 leaves
// open, so that other decoders discard it with the slices that need it.
#pragma once
#include <cstdint>
#include <vector>

#include "hevc/nearest_extension.h"

namespace flexor::hevc {

std::vector<uint8_t> write_nearest(const NearestExtension& nearest);
// False where the unit is somebody else's. Throws Unsupported for a later version, StreamError for bad values.
bool parse_nearest(const std::vector<uint8_t>& rbsp, NearestExtension& nearest);

}  // namespace flexor::hevc
