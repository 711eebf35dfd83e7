// SPDX-License-Identifier: Apache-2.0
#include "hevc/output_picture.h"

#include <cstring>
#include <utility>

#include "hevc/loop_filter.h"
#include "hevc/picture_decoder.h"
#include "hevc/picture_hash.h"
#include "hevc/threads.h"

namespace flexor::hevc {
namespace {

constexpr size_t kMaxDamageText = 400;

const char* hash_name(HashMethod method) {
  return method == HashMethod::kMd5 ? "md5" : method == HashMethod::kCrc ? "crc" : "checksum";
}

void verify_hashes(OutputPicture& picture, const Frame& frame, int threads) {
  static constexpr const char* kPlanes[] = {"luma", "Cb", "Cr"};
  Digest by_method[3][3];  // a hostile stream may repeat its SEI a thousand times: each is computed once
  bool computed[3] = {};
  for (const PictureHash& hash : picture.hashes) {
    picture.verified = hash_name(hash.method);
    if (hash.planes != frame.plane_count) {
      picture.add_damage(std::string("the ") + picture.verified + " SEI is for " + std::to_string(hash.planes) +
                         " planes, the picture has " + std::to_string(frame.plane_count));
      continue;
    }
    Digest* const digests = by_method[static_cast<int>(hash.method)];
    if (!std::exchange(computed[static_cast<int>(hash.method)], true)) {
      run_tasks(threads, frame.plane_count, [&](int plane) {
        const int bit_depth = plane == 0 ? picture.sps->bit_depth_luma : picture.sps->bit_depth_chroma;
        digests[plane] = hash_plane(hash.method, frame.planes[plane], bit_depth);
      });
    }
    for (int plane = 0; plane < frame.plane_count; ++plane)
      if (std::memcmp(digests[plane].data(), hash.digest[plane], static_cast<size_t>(digest_bytes(hash.method))) != 0)
        picture.add_damage(std::string("the ") + kPlanes[plane] + " samples do not match the stream's " +
                           picture.verified);
  }
}

void crop(OutputPicture& picture, const Frame& frame) {
  const SequenceParameters& sps = *picture.sps;
  const bool narrow = sps.bit_depth_luma == 8 && (frame.plane_count == 1 || sps.bit_depth_chroma == 8);
  for (int i = 0; i < frame.plane_count; ++i) {
    const Plane& plane = frame.planes[i];
    const int shift_x = i == 0 ? 0 : sps.sub_width_log2, shift_y = i == 0 ? 0 : sps.sub_height_log2;
    OutputPlane out;
    out.width = plane.width - ((sps.crop_left + sps.crop_right) >> shift_x);
    out.height = plane.height - ((sps.crop_top + sps.crop_bottom) >> shift_y);
    out.bytes = narrow ? 1 : 2;
    const size_t row_bytes = static_cast<size_t>(out.width) * static_cast<size_t>(out.bytes);
    out.samples = std::make_unique<SharedBuffer>(row_bytes * static_cast<size_t>(out.height));
    const uint16_t* in = plane.samples + (sps.crop_top >> shift_y) * plane.stride + (sps.crop_left >> shift_x);
    uint8_t* to = out.samples->as<uint8_t>();
    for (int y = 0; y < out.height; ++y, in += plane.stride, to += row_bytes) {
      if (narrow) {
        FLEXOR_KERNELS(loop_filter_kernels).narrow(to, in, out.width);
      } else {
        std::memcpy(to, in, row_bytes);
      }
    }
    picture.planes.push_back(std::move(out));
  }
}

}  // namespace

void OutputPicture::add_damage(const std::string& reason) {
  if (damage.size() > kMaxDamageText || damage.find(reason) != std::string::npos) return;
  damage += damage.empty() ? reason : "; " + reason;
}

void decode_output(OutputPicture& picture, FramePool& pool, int threads, bool verify) {
  Frame frame(*picture.sps, &pool);
  decode_picture(picture.coded, frame, threads, picture.analysis.get());
  picture.coded = {};
  if (frame.damaged) picture.add_damage("slice data are missing or cannot be decoded");
  if (verify) verify_hashes(picture, frame, threads);
  crop(picture, frame);
}

}  // namespace flexor::hevc
