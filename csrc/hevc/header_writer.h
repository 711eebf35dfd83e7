// SPDX-License-Identifier: Apache-2.0
// Parameter sets, slice headers and SEI as NAL units (H.265 clauses 7.3.1 to 7.3.6, annex D), from the structures that
// the parsers fill.
#pragma once
#include <cstdint>
#include <vector>

#include "hevc/picture_hash.h"
#include "hevc/slice_header.h"

namespace flexor::hevc {

// Appends a NAL unit in Annex B form: start code, header, emulation prevention.
void append_nal(std::vector<uint8_t>& stream, int nal_unit_type, const std::vector<uint8_t>& rbsp);

std::vector<uint8_t> write_video_parameters(const SequenceParameters& sps);
std::vector<uint8_t> write_sequence_parameters(const SequenceParameters& sps);
std::vector<uint8_t> write_picture_parameters(const PictureParameters& pps);
// Of an IDR picture in one slice; entry points are the sizes of all substreams but the last, emulation prevention bytes
// counted by the caller. Ends byte aligned: slice data follow.
std::vector<uint8_t> write_slice_header(const SliceHeader& header, const SequenceParameters& sps,
                                        const PictureParameters& pps, const std::vector<uint32_t>& entry_points);
std::vector<uint8_t> write_picture_hash(const std::vector<Digest>& md5);

}  // namespace flexor::hevc
