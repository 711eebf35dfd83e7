// SPDX-License-Identifier: Apache-2.0
// What the parts of the decoder hand to each other: a coded picture goes in, a frame of samples comes out.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "core/parallel.h"
#include "hevc/nearest_extension.h"
#include "hevc/parameter_sets.h"
#include "hevc/slice_header.h"

namespace flexor::hevc {

struct SliceSegment {
  SliceHeader header;              // a dependent segment carries the fields of the slice it belongs to
  std::vector<uint8_t> data;       // slice_segment_data() without emulation prevention bytes
  std::vector<size_t> substreams;  // where each substream begins in data; the first is 0
};

struct CodedPicture {
  std::shared_ptr<const SequenceParameters> sps;
  std::shared_ptr<const PictureParameters> pps;
  std::vector<SliceSegment> segments;  // in decoding order
  NearestExtension nearest;
};

// Samples of any bit depth take 16 bits. Planes are padded to whole coding tree blocks.
struct Plane {
  uint16_t* samples = nullptr;  // 64-byte aligned
  ptrdiff_t stride = 0;         // in samples
  int width = 0, height = 0;    // of the coded picture, before the conformance window
};

// Memory of frames that are done with, for the next ones: fresh memory costs as much as filtering it.
class FramePool {
 public:
  explicit FramePool(int most) : most_(static_cast<size_t>(most)) {}
  std::unique_ptr<SharedBuffer> take(size_t bytes);  // throws std::bad_alloc
  void give_back(std::unique_ptr<SharedBuffer> memory, size_t bytes) noexcept;

 private:
  const size_t most_;
  std::mutex lock_;
  size_t bytes_ = 0;  // of each
  std::vector<std::unique_ptr<SharedBuffer>> free_;
};

struct Frame {
  explicit Frame(const SequenceParameters& sps, FramePool* pool = nullptr);  // throws std::bad_alloc
  ~Frame();
  Frame(const Frame&) = delete;
  Frame& operator=(const Frame&) = delete;

  Plane planes[3];  // monochrome: one
  int plane_count = 1;
  bool damaged = false;  // a part could not be decoded

 private:
  FramePool* const pool_;
  size_t bytes_ = 0;
  std::unique_ptr<SharedBuffer> memory_;
};

}  // namespace flexor::hevc
