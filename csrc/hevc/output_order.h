// SPDX-License-Identifier: Apache-2.0
// The order in which pictures leave the decoder: the "bumping" of H.265 clause C.5.2. Intra pictures are never waited
// for as references, so that the decoded picture buffer holds only what waits for its turn.
#pragma once
#include <deque>
#include <memory>
#include <vector>

#include "hevc/output_picture.h"

namespace flexor::hevc {

class OutputOrder {
 public:
  using Entry = std::shared_ptr<OutputPicture>;

  // Before a picture is added. begins_sequence: an IRAP picture with NoRaslOutputFlag; drop: NoOutputOfPriorPicsFlag.
  void begin_picture(const SequenceParameters& sps, bool begins_sequence, bool drop);
  void add(Entry picture, const SequenceParameters& sps);
  void flush();
  // Pictures whose turn has come.
  std::deque<Entry>& ready() { return ready_; }

 private:
  struct Waiting {
    Entry picture;
    uint64_t latency = 0;  // PicLatencyCount
  };

  bool too_many(const SequenceParameters& sps) const;
  void bump();

  std::vector<Waiting> waiting_;
  std::deque<Entry> ready_;
};

}  // namespace flexor::hevc
