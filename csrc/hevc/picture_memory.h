// SPDX-License-Identifier: Apache-2.0
// The memory behind a PictureState, laid out from the parameter sets: what decoding and encoding a picture share.
#pragma once
#include <atomic>
#include <exception>
#include <vector>

#include "hevc/coded_picture.h"
#include "hevc/picture_state.h"

namespace flexor::hevc {

SliceTools slice_tools(const SliceHeader& header, const PictureParameters& pps);

// Thrown where a row waits for one that will not come.
struct GivenUp final : std::exception {};

class PictureMemory {
 public:
  // The parameter sets and the frame must outlive it.
  PictureMemory(const SequenceParameters& sps, const PictureParameters& pps, const NearestExtension& nearest,
                Frame& frame, int threads);
  virtual ~PictureMemory() = default;
  PictureMemory(const PictureMemory&) = delete;
  PictureMemory& operator=(const PictureMemory&) = delete;

  // Ends every wait, those to come too, with GivenUp.
  void give_up() { given_up_.store(true, std::memory_order_relaxed); }
  bool given_up() const { return given_up_.load(std::memory_order_relaxed); }

  PictureState state = {};

 protected:
  // CTBs done in a row of a tile.
  virtual void publish(int row_rs, int count);
  virtual void wait_substream(int) {}

  const int threads_;
  std::vector<const SliceTools*> slice_of_ctb_;
  std::vector<SaoParameters> sao_;

 private:
  static PictureMemory& of(PictureState& picture) { return *static_cast<PictureMemory*>(picture.progress); }
  void wait(int row_rs, int count) const;

  std::vector<uint8_t> bytes_;
  std::vector<int> tile_bounds_;
  std::vector<ContextState> row_contexts_;
  std::vector<std::atomic<int>> progress_;
  std::atomic<bool> given_up_{false};
};

}  // namespace flexor::hevc
