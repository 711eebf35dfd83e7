// SPDX-License-Identifier: Apache-2.0
#include "hevc/sei.h"

namespace flexor::hevc {
namespace {

constexpr uint32_t kDecodedPictureHash = 132;
constexpr uint32_t kMasteringDisplay = 137;
constexpr uint32_t kContentLight = 144;

// payloadType and payloadSize: bytes of 255 add up with the last one.
uint32_t parse_sum(BitReader& reader, const char* name) {
  uint32_t sum = 0;
  for (;;) {
    const uint32_t byte = reader.bits(8);
    sum += byte;  // of at most as many bytes as a NAL unit has
    if (byte != 255) break;
  }
  reader.trace(name, sum);
  return sum;
}

void parse_hash(BitReader& reader, uint32_t size, std::vector<PictureHash>& hashes) {
  if (size == 0) return;
  const uint32_t type = reader.u("hash_type", 8);
  if (type > 2) return;
  PictureHash hash;
  hash.method = static_cast<HashMethod>(type);
  const int bytes = digest_bytes(hash.method);
  hash.planes = static_cast<int>(size - 1) / bytes;
  if ((hash.planes != 1 && hash.planes != 3) || hash.planes * bytes + 1 != static_cast<int>(size))
    throw StreamError("a decoded picture hash has " + std::to_string(size) + " bytes");
  static constexpr const char* kNames[] = {"picture_md5", "picture_crc", "picture_checksum"};
  for (int plane = 0; plane < hash.planes; ++plane)
    for (int i = 0; i < bytes; ++i) hash.digest[plane][i] = static_cast<uint8_t>(reader.u(kNames[type], 8));
  hashes.push_back(hash);
}

void parse_mastering_display(BitReader& reader) {
  for (int i = 0; i < 3; ++i) {
    reader.u("display_primaries_x", 16);
    reader.u("display_primaries_y", 16);
  }
  reader.u("white_point_x", 16);
  reader.u("white_point_y", 16);
  reader.u("max_display_mastering_luminance", 32);
  reader.u("min_display_mastering_luminance", 32);
}

}  // namespace

void parse_sei(BitReader& reader, std::vector<PictureHash>& hashes) {
  do {
    const uint32_t type = parse_sum(reader, "payloadType");
    const uint32_t size = parse_sum(reader, "payloadSize");
    if (size > reader.bits_left() / 8) throw StreamError("a supplemental enhancement message is cut off");
    const size_t end = reader.position() + size_t{size} * 8;
    if (type == kDecodedPictureHash) parse_hash(reader, size, hashes);
    if (type == kMasteringDisplay && size == 24) parse_mastering_display(reader);
    if (type == kContentLight && size == 4) {
      reader.u("max_content_light_level", 16);
      reader.u("max_pic_average_light_level", 16);
    }
    reader.skip(end - reader.position());
  } while (reader.more_rbsp_data());
}

}  // namespace flexor::hevc
