// SPDX-License-Identifier: Apache-2.0
#include "hevc/nearest.h"

#include <algorithm>
#include <string>

#include "hevc/stream_error.h"

namespace flexor::hevc {
namespace {

// 5c0f6d9a-1e83-4b27-a954-7d31c842f60b
constexpr uint8_t kUuid[16] = {0x5c, 0x0f, 0x6d, 0x9a, 0x1e, 0x83, 0x4b, 0x27,
                               0xa9, 0x54, 0x7d, 0x31, 0xc8, 0x42, 0xf6, 0x0b};
constexpr uint8_t kVersion = 2;

}  // namespace

std::vector<uint8_t> write_nearest(const NearestExtension& nearest) {
  std::vector<uint8_t> rbsp(kUuid, kUuid + sizeof kUuid);
  rbsp.push_back(kVersion);
  rbsp.push_back(static_cast<uint8_t>(nearest.variant));
  rbsp.push_back(static_cast<uint8_t>(nearest.threshold));
  rbsp.push_back(static_cast<uint8_t>(nearest.edge_filters));
  rbsp.push_back(0x80);  // rbsp_trailing_bits()
  return rbsp;
}

bool parse_nearest(const std::vector<uint8_t>& rbsp, NearestExtension& nearest) {
  constexpr size_t kBytes = sizeof kUuid + 4;
  if (rbsp.size() < sizeof kUuid || !std::equal(kUuid, kUuid + sizeof kUuid, rbsp.begin())) return false;
  if (rbsp.size() < sizeof kUuid + 2) throw StreamError("the nearest-neighbour parameter set ends early");
  const int version = rbsp[16], variant = rbsp[17];
  if (version != kVersion)
    throw Unsupported("the stream has version " + std::to_string(version) +
                      " of the nearest-neighbour extension; this flexor knows version " + std::to_string(kVersion));
  if (rbsp.size() < kBytes) throw StreamError("the nearest-neighbour parameter set ends early");
  if (variant < NearestExtension::kExplicit || variant > NearestExtension::kBoundary)
    throw StreamError("the nearest-neighbour variant must be 1 to 3, got " + std::to_string(variant));
  nearest.variant = variant;
  nearest.threshold = rbsp[18];
  nearest.edge_filters = rbsp[19] != 0;
  return true;
}

}  // namespace flexor::hevc
