// SPDX-License-Identifier: Apache-2.0
// From a stream's bytes to pictures in output order: parameter sets, access units, picture order (H.265
// clauses 7.4.2.4, 8.1 to 8.3, C.5.2). Data errors never throw: they become damage of a picture, or a problem where no
// picture is left to carry it.
#pragma once
#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "hevc/nal.h"
#include "hevc/output_order.h"
#include "hevc/output_picture.h"

namespace flexor::hevc {

struct StreamOptions {
  int threads = 1;
  bool verify = true;
  bool skip_inter = false;  // leave inter pictures out instead of stopping at the first
  int length_size = 0;      // 0: annex B; 1, 2, 4: NAL units come after their lengths
  bool inspect = false;     // keep every syntax element of the headers, and an Analysis of every picture
};

struct Problem {
  bool unsupported = false;  // the data may be right; nothing after is decoded
  std::string message;
};

// A NAL unit as `flexor hevc info` shows it.
struct TracedUnit final : SyntaxTrace {
  NalUnit nal;  // without its bytes
  size_t bytes = 0;
  int64_t picture = -1;  // of a slice, in decoding order
  std::vector<std::pair<std::string, int64_t>> elements;

  void element(const char* name, int64_t value) override { elements.emplace_back(name, value); }
};

class StreamDecoder {
 public:
  explicit StreamDecoder(const StreamOptions& options)
      : options_(options), splitter_(options.length_size), pool_(options.threads) {}

  // A container's parameter sets, each a NAL unit.
  void add_parameter_sets(const std::vector<RawNal>& units);
  // Decodes the pictures that have become complete; not prompt: once there is one for every thread. finish() decodes
  // the rest. They throw std::bad_alloc.
  void feed(const uint8_t* data, size_t size, bool prompt);
  void finish();

  std::vector<std::shared_ptr<OutputPicture>> take_pictures();
  std::vector<Problem> take_problems() { return std::exchange(problems_, {}); }
  std::vector<TracedUnit> take_units() { return std::exchange(units_, {}); }

 private:
  template <class T>
  struct Stored {
    std::vector<uint8_t> rbsp;
    std::shared_ptr<const T> parsed;
  };
  struct Parameters {
    std::shared_ptr<const SequenceParameters> sps;
    std::shared_ptr<const PictureParameters> parsed, pps;  // as read; activated
  };
  struct Gathered {  // the picture whose slices are being read
    std::shared_ptr<OutputPicture> picture;
    Parameters parameters;
    int nal_unit_type = 0;
    int last_address = 0;  // tile scan, of its last segment
    SliceHeader previous;  // the segment before
  };

  void read_units();
  void read_unit(const RawNal& raw);
  void dispatch(NalUnit& nal, SyntaxTrace* trace);
  void read_parameter_set(NalUnit& nal, SyntaxTrace* trace);
  void read_sei(const NalUnit& nal, SyntaxTrace* trace);
  void read_slice(NalUnit& nal, bool nearest, SyntaxTrace* trace);
  void read_nearest(const NalUnit& nal);
  Parameters find_parameters(int pps_id);
  bool continues(const NalUnit& nal, const SliceHeader& header, const Parameters& parameters) const;
  void begin_picture(const NalUnit& nal, const SliceHeader& header, const Parameters& parameters);
  void add_segment(NalUnit& nal, const SliceHeader& header, size_t header_bytes, const std::vector<uint32_t>& offsets);
  void finish_picture();
  void decode_batch();
  int64_t order_count(const NalUnit& nal, const SliceHeader& header, const SequenceParameters& sps, bool resets);
  void report(const std::string& message, bool unsupported = false);

  const StreamOptions options_;
  NalSplitter splitter_;
  FramePool pool_;
  std::array<Stored<SequenceParameters>, kMaxSps> sps_;
  std::array<Stored<PictureParameters>, kMaxPps> pps_;
  Parameters active_;
  std::unique_ptr<Gathered> gathered_;
  std::vector<PictureHash> prefix_hashes_;
  NearestExtension nearest_;  // as the stream's parameter set last said
  OutputOrder order_;
  std::vector<std::shared_ptr<OutputPicture>> batch_;  // complete, to be decoded

  int64_t next_number_ = 0;
  int64_t previous_order_count_ = 0;  // of prevTid0Pic
  bool sequence_ended_ = true;        // at the start, and after an end of sequence
  bool skip_rasl_ = true;             // their leading pictures' references come before the stream's start
  bool slice_dropped_ = false;        // the last slice has no picture, knowingly
  bool picture_announced_ = false;    // by parameter sets or SEI
  bool stopped_ = false;

  std::vector<Problem> problems_;
  std::vector<TracedUnit> units_;
};

}  // namespace flexor::hevc
