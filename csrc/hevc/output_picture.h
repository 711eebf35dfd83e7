// SPDX-License-Identifier: Apache-2.0
// A picture from its slices to the planes that the caller gets.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "hevc/analysis.h"
#include "hevc/coded_picture.h"
#include "hevc/sei.h"

namespace flexor::hevc {

// Cropped to the conformance window; rows without gaps; one byte a sample if all bit depths are 8, else two.
struct OutputPlane {
  std::unique_ptr<SharedBuffer> samples;
  int width = 0, height = 0, bytes = 1;
};

struct OutputPicture {
  // What is gathered of it.
  CodedPicture coded;  // empty once decoded
  std::vector<PictureHash> hashes;
  int64_t number = 0;       // in decoding order
  int64_t order_count = 0;  // PicOrderCntVal
  int nal_unit_type = 0;
  bool inter = false;  // some slice is: nothing is decoded
  bool output = true;  // PicOutputFlag

  // What is made of it.
  std::shared_ptr<const SequenceParameters> sps;
  std::vector<OutputPlane> planes;
  const char* verified = nullptr;  // the hash that the samples were compared with
  std::string damage;              // empty: none is known
  std::unique_ptr<Analysis> analysis;

  void add_damage(const std::string& reason);
};

// Decodes the slices, verifies the hashes, crops, and lets go of the rest. Throws std::bad_alloc.
void decode_output(OutputPicture& picture, FramePool& pool, int threads, bool verify);

}  // namespace flexor::hevc
