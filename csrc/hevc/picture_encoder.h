// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

#include "hevc/coded_picture.h"

namespace flexor::hevc {

enum class Preset { kFast, kMedium, kBest };

// The nearest-neighbour extension: how it is decided that a block is predicted by it (docs/hevc_nearest.md).
enum class Nearest { kOff, kExplicit, kSad, kBoundary };

struct EncoderOptions {
  int width = 0, height = 0;  // of the pictures
  int chroma_format = 1;      // chroma_format_idc
  int bit_depth = 8;
  int qp = 32;
  bool lossless = false;
  Preset preset = Preset::kMedium;
  Nearest nearest = Nearest::kOff;
  int nearest_threshold = -1;     // of the implicit ones; -1: the default
  bool edge_filters = false;      // of prediction, with the extension; without it they are always on
  bool range_extensions = false;  // residual tools of the 4:4:4 profiles
  bool hash = true;               // a decoded picture hash SEI with every picture
  VideoUsability usability;
};

struct SourcePlane {
  const void* samples;
  ptrdiff_t stride;  // in samples
  int bytes;         // 1 or 2 a sample
};

// Encodes pictures one by one, each an IDR picture; the first has the parameter sets before it.
class PictureEncoder {
 public:
  explicit PictureEncoder(const EncoderOptions& options);
  // The picture's NAL units in Annex B form. Does not depend on the number of threads. May be called by several threads
  // for different pictures.
  std::vector<uint8_t> encode(const SourcePlane planes[3], int threads) const;
  std::vector<uint8_t> parameter_sets() const;
  const SequenceParameters& sps() const { return *sps_; }

 private:
  EncoderOptions options_;
  std::shared_ptr<const SequenceParameters> sps_;
  std::shared_ptr<const PictureParameters> pps_;
};

}  // namespace flexor::hevc
