// SPDX-License-Identifier: Apache-2.0
// The hashes of a decoded plane (H.265 clause D.3.19): MD5 (RFC 1321), CRC (polynomial 0x1021) and checksum.
#pragma once
#include <array>

#include "hevc/coded_picture.h"
#include "hevc/sei.h"

namespace flexor::hevc {

using Digest = std::array<uint8_t, 16>;  // as in the SEI message: 16, 2 or 4 bytes, the rest 0

Digest hash_plane(HashMethod method, const Plane& plane, int bit_depth);

}  // namespace flexor::hevc
