// SPDX-License-Identifier: Apache-2.0
// slice_segment_header() (H.265 clauses 7.3.6 and 7.4.7).
#pragma once
#include <cstdint>
#include <vector>

#include "hevc/nal.h"
#include "hevc/parameter_sets.h"

namespace flexor::hevc {

enum SliceType { kSliceB = 0, kSliceP = 1, kSliceI = 2 };

struct SliceHeader {
  bool first_slice_segment_in_pic_flag = false;
  bool no_output_of_prior_pics_flag = false;
  int slice_pic_parameter_set_id = 0;
  bool dependent_slice_segment_flag = false;
  int slice_segment_address = 0;  // raster scan, of this segment's first CTB

  // Of the slice: a dependent segment takes them from the segment before.
  int slice_type = kSliceI;
  bool pic_output_flag = true;
  int colour_plane_id = 0;
  int slice_pic_order_cnt_lsb = 0;
  bool slice_temporal_mvp_enabled_flag = false;
  bool slice_sao_luma_flag = false, slice_sao_chroma_flag = false;
  int slice_qp_delta = 0;
  int slice_cb_qp_offset = 0, slice_cr_qp_offset = 0;
  bool cu_chroma_qp_offset_enabled_flag = false;
  bool slice_deblocking_filter_disabled_flag = false;  // the PPS's values where the slice does not override them
  int slice_beta_offset_div2 = 0, slice_tc_offset_div2 = 0;
  bool slice_loop_filter_across_slices_enabled_flag = false;

  // Derived.
  int slice_qp = 26;      // SliceQpY
  int slice_address = 0;  // SliceAddrRs: of the slice's first CTB
};

// The elements before those that need the parameter sets.
SliceHeader parse_slice_start(BitReader& reader, int nal_unit_type);

// All the rest, up to the slice data; `header` comes from parse_slice_start. previous: the segment before, which a
// dependent segment continues, or null. pps is activated. Throws StreamError.
void parse_slice_header(BitReader& reader, int nal_unit_type, const SequenceParameters& sps,
                        const PictureParameters& pps, const SliceHeader* previous, SliceHeader& header,
                        std::vector<uint32_t>& entry_point_offsets);

}  // namespace flexor::hevc
