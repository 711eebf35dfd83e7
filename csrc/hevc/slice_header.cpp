// SPDX-License-Identifier: Apache-2.0
#include "hevc/slice_header.h"

#include <string>

namespace flexor::hevc {
namespace {

int count_used(const ReferencePictureSet& set) {
  int used = 0;
  for (int i = 0; i < set.num_negative_pics; ++i) used += set.used_by_curr_pic_s0[i];
  for (int i = 0; i < set.num_positive_pics; ++i) used += set.used_by_curr_pic_s1[i];
  return used;
}

int parse_long_term(BitReader& reader, const SequenceParameters& sps) {
  const int known = static_cast<int>(sps.lt_ref_pic_poc_lsb_sps.size());
  const int from_sps = known > 0 ? reader.ue("num_long_term_sps", kMaxDpbPictures) : 0;
  const int count = from_sps + reader.ue("num_long_term_pics", kMaxDpbPictures);
  int used = 0;
  for (int i = 0; i < count; ++i) {
    if (i < from_sps) {
      const uint32_t index = known > 1 ? reader.u("lt_idx_sps", ceil_log2(static_cast<uint32_t>(known))) : 0;
      if (index >= static_cast<uint32_t>(known)) throw StreamError("lt_idx_sps is beyond the pictures of the SPS");
      used += sps.used_by_curr_pic_lt_sps_flag[index];
    } else {
      reader.u("poc_lsb_lt", sps.log2_max_pic_order_cnt_lsb_minus4 + 4);
      used += reader.flag("used_by_curr_pic_lt_flag");
    }
    if (reader.flag("delta_poc_msb_present_flag")) reader.ue("delta_poc_msb_cycle_lt", UINT32_MAX - 1);
  }
  return used;
}

// The reference pictures, which an intra slice lists too; returns NumPicTotalCurr.
int parse_references(BitReader& reader, const SequenceParameters& sps, SliceHeader& header) {
  int pictures = 0;
  header.slice_pic_order_cnt_lsb =
      static_cast<int>(reader.u("slice_pic_order_cnt_lsb", sps.log2_max_pic_order_cnt_lsb_minus4 + 4));
  const uint32_t sets = static_cast<uint32_t>(sps.st_ref_pic_sets.size());
  if (!reader.flag("short_term_ref_pic_set_sps_flag")) {
    pictures = count_used(parse_reference_picture_set(reader, sps.st_ref_pic_sets, true));
  } else {
    const uint32_t index = sets > 1 ? reader.u("short_term_ref_pic_set_idx", ceil_log2(sets)) : 0;
    if (index >= sets) throw StreamError("short_term_ref_pic_set_idx is beyond the sets of the SPS");
    pictures = count_used(sps.st_ref_pic_sets[index]);
  }
  if (sps.long_term_ref_pics_present_flag) pictures += parse_long_term(reader, sps);
  if (sps.sps_temporal_mvp_enabled_flag)
    header.slice_temporal_mvp_enabled_flag = reader.flag("slice_temporal_mvp_enabled_flag");
  return pictures;
}

void parse_weights(BitReader& reader, const SequenceParameters& sps, const int* active, int lists) {
  reader.ue("luma_log2_weight_denom", 7);
  const bool chroma = sps.chroma_array_type != 0;
  if (chroma) reader.se("delta_chroma_log2_weight_denom", -7, 7);
  static constexpr const char* kNames[2][6] = {{"luma_weight_l0_flag", "chroma_weight_l0_flag", "delta_luma_weight_l0",
                                                "luma_offset_l0", "delta_chroma_weight_l0", "delta_chroma_offset_l0"},
                                               {"luma_weight_l1_flag", "chroma_weight_l1_flag", "delta_luma_weight_l1",
                                                "luma_offset_l1", "delta_chroma_weight_l1", "delta_chroma_offset_l1"}};
  constexpr int kAny = 1 << 20;
  for (int list = 0; list < lists; ++list) {
    const char* const* names = kNames[list];
    bool luma_weight[kMaxDpbPictures] = {}, chroma_weight[kMaxDpbPictures] = {};
    for (int i = 0; i < active[list]; ++i) luma_weight[i] = reader.flag(names[0]);
    for (int i = 0; chroma && i < active[list]; ++i) chroma_weight[i] = reader.flag(names[1]);
    for (int i = 0; i < active[list]; ++i) {
      if (luma_weight[i]) {
        reader.se(names[2], -128, 127);
        reader.se(names[3], -kAny, kAny);
      }
      for (int j = 0; chroma_weight[i] && j < 2; ++j) {
        reader.se(names[4], -128, 127);
        reader.se(names[5], -kAny, kAny);
      }
    }
  }
}

// Of P and B slices: read to be shown, not decoded.
void parse_prediction(BitReader& reader, const SequenceParameters& sps, const PictureParameters& pps,
                      const SliceHeader& header, int pictures) {
  const bool bidirectional = header.slice_type == kSliceB;
  int active[2] = {pps.num_ref_idx_l0_default_active_minus1 + 1, pps.num_ref_idx_l1_default_active_minus1 + 1};
  if (reader.flag("num_ref_idx_active_override_flag")) {
    active[0] = reader.ue("num_ref_idx_l0_active_minus1", 14) + 1;
    if (bidirectional) active[1] = reader.ue("num_ref_idx_l1_active_minus1", 14) + 1;
  }
  if (pps.lists_modification_present_flag && pictures > 1) {
    const int bits = ceil_log2(static_cast<uint32_t>(pictures));
    if (reader.flag("ref_pic_list_modification_flag_l0"))
      for (int i = 0; i < active[0]; ++i) reader.u("list_entry_l0", bits);
    if (bidirectional && reader.flag("ref_pic_list_modification_flag_l1"))
      for (int i = 0; i < active[1]; ++i) reader.u("list_entry_l1", bits);
  }
  if (bidirectional) reader.flag("mvd_l1_zero_flag");
  if (pps.cabac_init_present_flag) reader.flag("cabac_init_flag");
  if (header.slice_temporal_mvp_enabled_flag) {
    const bool from_l0 = !bidirectional || reader.flag("collocated_from_l0_flag");
    if (active[from_l0 ? 0 : 1] > 1) reader.ue("collocated_ref_idx", active[from_l0 ? 0 : 1] - 1);
  }
  if (bidirectional ? pps.weighted_bipred_flag : pps.weighted_pred_flag)
    parse_weights(reader, sps, active, bidirectional ? 2 : 1);
  reader.ue("five_minus_max_num_merge_cand", 4);
}

void parse_quantization(BitReader& reader, const SequenceParameters& sps, const PictureParameters& pps,
                        SliceHeader& header) {
  header.slice_qp_delta = reader.se("slice_qp_delta", -128, 127);
  header.slice_qp = 26 + pps.init_qp_minus26 + header.slice_qp_delta;
  if (header.slice_qp < -sps.qp_bd_offset_luma || header.slice_qp > 51)
    throw StreamError("SliceQpY must be " + std::to_string(-sps.qp_bd_offset_luma) + " to 51, got " +
                      std::to_string(header.slice_qp));
  if (pps.pps_slice_chroma_qp_offsets_present_flag) {
    header.slice_cb_qp_offset = reader.se("slice_cb_qp_offset", -12 - pps.pps_cb_qp_offset, 12 - pps.pps_cb_qp_offset);
    header.slice_cr_qp_offset = reader.se("slice_cr_qp_offset", -12 - pps.pps_cr_qp_offset, 12 - pps.pps_cr_qp_offset);
  }
  if (pps.chroma_qp_offset_list_enabled_flag)
    header.cu_chroma_qp_offset_enabled_flag = reader.flag("cu_chroma_qp_offset_enabled_flag");
}

void parse_filters(BitReader& reader, const PictureParameters& pps, SliceHeader& header) {
  header.slice_deblocking_filter_disabled_flag = pps.pps_deblocking_filter_disabled_flag;
  header.slice_beta_offset_div2 = pps.pps_beta_offset_div2;
  header.slice_tc_offset_div2 = pps.pps_tc_offset_div2;
  if (pps.deblocking_filter_override_enabled_flag && reader.flag("deblocking_filter_override_flag")) {
    header.slice_deblocking_filter_disabled_flag = reader.flag("slice_deblocking_filter_disabled_flag");
    if (!header.slice_deblocking_filter_disabled_flag) {
      header.slice_beta_offset_div2 = reader.se("slice_beta_offset_div2", -6, 6);
      header.slice_tc_offset_div2 = reader.se("slice_tc_offset_div2", -6, 6);
    }
  }
  header.slice_loop_filter_across_slices_enabled_flag = pps.pps_loop_filter_across_slices_enabled_flag;
  if (pps.pps_loop_filter_across_slices_enabled_flag &&
      (header.slice_sao_luma_flag || header.slice_sao_chroma_flag || !header.slice_deblocking_filter_disabled_flag))
    header.slice_loop_filter_across_slices_enabled_flag = reader.flag("slice_loop_filter_across_slices_enabled_flag");
}

void parse_independent(BitReader& reader, int nal_unit_type, const SequenceParameters& sps,
                       const PictureParameters& pps, SliceHeader& header) {
  for (int i = 0; i < pps.num_extra_slice_header_bits; ++i) reader.flag("slice_reserved_flag");
  header.slice_type = reader.ue("slice_type", 2);
  if (is_irap(nal_unit_type) && header.slice_type != kSliceI)
    throw StreamError("a picture of an intra NAL unit type has an inter slice");
  if (pps.output_flag_present_flag) header.pic_output_flag = reader.flag("pic_output_flag");
  if (sps.separate_colour_plane_flag) header.colour_plane_id = static_cast<int>(reader.u("colour_plane_id", 2));
  int pictures = 0;
  if (!is_idr(nal_unit_type)) pictures = parse_references(reader, sps, header);
  if (sps.sample_adaptive_offset_enabled_flag) {
    header.slice_sao_luma_flag = reader.flag("slice_sao_luma_flag");
    if (sps.chroma_array_type != 0) header.slice_sao_chroma_flag = reader.flag("slice_sao_chroma_flag");
  }
  if (header.slice_type != kSliceI) parse_prediction(reader, sps, pps, header, pictures);
  parse_quantization(reader, sps, pps, header);
  parse_filters(reader, pps, header);
}

void parse_entry_points(BitReader& reader, const SequenceParameters& sps, const PictureParameters& pps,
                        std::vector<uint32_t>& offsets) {
  const int columns = pps.num_tile_columns_minus1 + 1, rows = pps.num_tile_rows_minus1 + 1;
  const int substreams = !pps.entropy_coding_sync_enabled_flag ? columns * rows : columns * sps.height_ctbs;
  const int count = reader.ue("num_entry_point_offsets", substreams - 1);
  if (count == 0) return;
  const int bits = reader.ue("offset_len_minus1", 31) + 1;
  for (int i = 0; i < count; ++i) {
    const uint32_t minus1 = reader.u("entry_point_offset_minus1", bits);
    offsets.push_back(minus1 == UINT32_MAX ? minus1 : minus1 + 1);  // beyond any slice either way
  }
}

}  // namespace

SliceHeader parse_slice_start(BitReader& reader, int nal_unit_type) {
  SliceHeader header;
  header.first_slice_segment_in_pic_flag = reader.flag("first_slice_segment_in_pic_flag");
  if (is_irap(nal_unit_type)) header.no_output_of_prior_pics_flag = reader.flag("no_output_of_prior_pics_flag");
  header.slice_pic_parameter_set_id = reader.ue("slice_pic_parameter_set_id", kMaxPps - 1);
  return header;
}

void parse_slice_header(BitReader& reader, int nal_unit_type, const SequenceParameters& sps,
                        const PictureParameters& pps, const SliceHeader* previous, SliceHeader& header,
                        std::vector<uint32_t>& entry_point_offsets) {
  if (!header.first_slice_segment_in_pic_flag) {
    const int ctbs = sps.width_ctbs * sps.height_ctbs;
    const bool dependent = pps.dependent_slice_segments_enabled_flag && reader.flag("dependent_slice_segment_flag");
    const int address = static_cast<int>(reader.u("slice_segment_address", ceil_log2(static_cast<uint32_t>(ctbs))));
    if (address == 0 || address >= ctbs)
      throw StreamError("slice_segment_address must be 1 to " + std::to_string(ctbs - 1) + ", got " +
                        std::to_string(address));
    if (dependent) {
      if (previous == nullptr) throw StreamError("the slice that a dependent slice segment continues is missing");
      const SliceHeader start = header;
      header = *previous;
      header.first_slice_segment_in_pic_flag = false;
      header.no_output_of_prior_pics_flag = start.no_output_of_prior_pics_flag;
      header.slice_pic_parameter_set_id = start.slice_pic_parameter_set_id;
    }
    header.dependent_slice_segment_flag = dependent;
    header.slice_segment_address = address;
  }
  if (!header.dependent_slice_segment_flag) {
    header.slice_address = header.slice_segment_address;
    parse_independent(reader, nal_unit_type, sps, pps, header);
  }
  entry_point_offsets.clear();
  if (pps.tiles_enabled_flag || pps.entropy_coding_sync_enabled_flag)
    parse_entry_points(reader, sps, pps, entry_point_offsets);
  if (pps.slice_segment_header_extension_present_flag)
    reader.skip(static_cast<size_t>(reader.ue("slice_segment_header_extension_length", 256)) * 8);
  reader.byte_alignment();
}

}  // namespace flexor::hevc
