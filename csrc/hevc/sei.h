// SPDX-License-Identifier: Apache-2.0
// Supplemental enhancement information (H.265 clause 7.3.5 and annex D): the hash of the decoded picture.
#pragma once
#include <cstdint>
#include <vector>

#include "hevc/bit_reader.h"

namespace flexor::hevc {

enum class HashMethod { kMd5 = 0, kCrc = 1, kChecksum = 2 };

struct PictureHash {
  HashMethod method = HashMethod::kMd5;
  int planes = 0;
  uint8_t digest[3][16] = {};  // 16, 2 or 4 bytes are used
};

inline int digest_bytes(HashMethod method) {
  return method == HashMethod::kMd5 ? 16 : method == HashMethod::kCrc ? 2 : 4;
}

// sei_rbsp(): appends the picture hashes in it; other messages are passed over. Throws StreamError.
void parse_sei(BitReader& reader, std::vector<PictureHash>& hashes);

}  // namespace flexor::hevc
