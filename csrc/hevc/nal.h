// SPDX-License-Identifier: Apache-2.0
// Network abstraction layer units (H.265 clauses 7.3.1 and 7.4.2, annex B): found in a stream, unwrapped.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "hevc/stream_error.h"

namespace flexor::hevc {

// Table 7-1, as far as this decoder cares.
enum NalUnitType {
  kNalRadlN = 6,
  kNalRaslN = 8,
  kNalRaslR = 9,
  kNalBlaWLp = 16,
  kNalIdrWRadl = 19,
  kNalIdrNLp = 20,
  kNalCra = 21,
  kNalReservedIrap23 = 23,
  kNalVps = 32,
  kNalSps = 33,
  kNalPps = 34,
  kNalAud = 35,
  kNalEos = 36,
  kNalEob = 37,
  kNalPrefixSei = 39,
  kNalSuffixSei = 40,
  kNalNearestSlice = 48,  // unspecified in H.265: ours, docs/hevc_nearest.md
  kNalNearestParameters = 49,
};

inline bool is_slice(int type) { return type <= kNalRaslR || (type >= kNalBlaWLp && type <= kNalCra); }
inline bool is_irap(int type) { return type >= kNalBlaWLp && type <= kNalReservedIrap23; }
inline bool is_idr(int type) { return type == kNalIdrWRadl || type == kNalIdrNLp; }
inline bool is_rasl(int type) { return type == kNalRaslN || type == kNalRaslR; }
inline bool is_leading(int type) { return type >= kNalRadlN && type <= kNalRaslR; }
inline bool is_sub_layer_non_reference(int type) { return type < kNalBlaWLp && type % 2 == 0; }
// Those that, after the last slice of a picture, begin the next access unit (clause 7.4.2.4.4).
inline bool begins_access_unit(int type) {
  return (type >= kNalVps && type <= kNalAud) || type == kNalPrefixSei || (type >= 41 && type <= 44) ||
         (type >= 48 && type <= 55);
}

struct NalUnit {
  int nal_unit_type = 0, nuh_layer_id = 0, temporal_id = 0;
  std::vector<uint8_t> rbsp;    // without the header and the emulation prevention bytes
  std::vector<size_t> removed;  // how many bytes of the RBSP come before each emulation prevention byte
};

// Throws StreamError if the header is broken.
NalUnit unwrap(const uint8_t* data, size_t size);

// Where substreams that begin `offsets` bytes after each other begin in an RBSP's slice data: offsets count emulation
// prevention bytes, positions do not. header: bytes of the RBSP before the slice data. Positions are clamped to the
// slice data: encoders that write a slice a row name the rows after the slice too.
std::vector<size_t> substream_positions(const NalUnit& nal, size_t header, const std::vector<uint32_t>& offsets);

struct RawNal {
  const uint8_t* data = nullptr;
  size_t size = 0;
};

// Cuts a stream, fed in pieces, into NAL units. Memory: the unit that is being gathered.
class NalSplitter {
 public:
  // length_size 0: start codes (annex B). 1, 2, 4: each unit comes after its length.
  explicit NalSplitter(int length_size) : length_size_(length_size) {}

  void append(const uint8_t* data, size_t size);
  // The next whole unit, good until the next call. Throws StreamError once no more units can be found.
  bool next(RawNal& nal);
  // After the last piece: what is left; another stream may follow. cut_off: it should have been longer.
  bool rest(RawNal& nal, bool& cut_off);
  size_t take_skipped() { return std::exchange(skipped_, 0); }  // bytes other than 0 before the first start code

 private:
  bool next_start_code(RawNal& nal);
  bool next_length(RawNal& nal);
  size_t find_start_code(size_t from) const;

  const int length_size_;
  std::vector<uint8_t> buffer_;
  size_t begin_ = 0;      // of the unit
  size_t scanned_ = 0;    // no start code begins before
  bool started_ = false;  // a start code was seen
  size_t skipped_ = 0;
};

// HEVCDecoderConfigurationRecord (ISO/IEC 14496-15), the "extradata" of containers.
struct DecoderConfiguration {
  int length_size = 4;
  std::vector<RawNal> parameter_sets;  // into the record
};
DecoderConfiguration parse_configuration(const uint8_t* data, size_t size);  // throws StreamError

}  // namespace flexor::hevc
