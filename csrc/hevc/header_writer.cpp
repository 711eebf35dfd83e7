// SPDX-License-Identifier: Apache-2.0
#include "hevc/header_writer.h"

namespace flexor::hevc {
namespace {

class BitWriter {
 public:
  void u(uint32_t value, int count) {
    for (int bit = count - 1; bit >= 0; --bit) {
      if (used_ == 0) bytes_.push_back(0);
      bytes_.back() = static_cast<uint8_t>(bytes_.back() | ((value >> bit & 1) << (7 - used_)));
      used_ = (used_ + 1) & 7;
    }
  }
  void flag(bool value) { u(value, 1); }
  void ue(uint32_t value) {
    int length = 0;
    while ((value + 1) >> (length + 1) != 0) ++length;
    u(0, length);
    u(value + 1, length + 1);
  }
  void ue(int value) { ue(static_cast<uint32_t>(value)); }
  void se(int value) { ue(value > 0 ? 2 * value - 1 : -2 * value); }
  // A one, then zeros to the byte's end: rbsp_trailing_bits(), byte_alignment().
  std::vector<uint8_t> finish() {
    u(1, 1);
    while (used_ != 0) u(0, 1);
    return std::move(bytes_);
  }

 private:
  std::vector<uint8_t> bytes_;
  int used_ = 0;  // bits of the last byte
};

bool has_residual_tools(const SequenceParameters& sps) {
  return sps.persistent_rice_adaptation_enabled_flag || sps.transform_skip_rotation_enabled_flag ||
         sps.implicit_rdpcm_enabled_flag;
}

// profile_tier_level() of one sub-layer (clause 7.3.3): Main, Main 10, or a format range extensions profile, whose
// constraint flags say what the stream keeps to (table A.2).
void write_profile(BitWriter& writer, const SequenceParameters& sps) {
  const int profile = sps.profile_tier_level.general_profile_idc;
  writer.u(0, 2);
  writer.flag(sps.profile_tier_level.general_tier_flag);
  writer.u(static_cast<uint32_t>(profile), 5);
  writer.u(sps.profile_tier_level.general_profile_compatibility_flags, 32);
  writer.flag(true);   // progressive_source_flag
  writer.flag(false);  // interlaced_source_flag
  writer.flag(true);   // non_packed_constraint_flag
  writer.flag(true);   // frame_only_constraint_flag
  if (profile == 4) {
    const int depth = sps.bit_depth_luma > sps.bit_depth_chroma ? sps.bit_depth_luma : sps.bit_depth_chroma;
    writer.flag(depth <= 12);
    writer.flag(depth <= 10);
    writer.flag(depth <= 8 && (sps.chroma_format_idc != 2 || has_residual_tools(sps)));
    // The profiles for less than 4:4:4 have none of these tools.
    const bool tools = has_residual_tools(sps);
    writer.flag(sps.chroma_format_idc <= 2 && !tools);
    writer.flag(sps.chroma_format_idc <= 1 && !tools);
    writer.flag(sps.chroma_format_idc == 0 && !tools);
    writer.flag(true);   // intra_constraint_flag
    writer.flag(false);  // one_picture_only_constraint_flag
    writer.flag(true);   // lower_bit_rate_constraint_flag
    writer.u(0, 32);
    writer.u(0, 2);
  } else {
    writer.u(0, 32);
    writer.u(0, 11);
  }
  writer.flag(false);  // general_inbld_flag, or reserved
  writer.u(static_cast<uint32_t>(sps.profile_tier_level.general_level_idc), 8);
}

void write_usability(BitWriter& writer, const VideoUsability& vui) {
  writer.flag(false);  // aspect_ratio_info_present_flag
  writer.flag(false);  // overscan_info_present_flag
  writer.flag(true);   // video_signal_type_present_flag
  writer.u(static_cast<uint32_t>(vui.video_format), 3);
  writer.flag(vui.video_full_range_flag);
  writer.flag(true);  // colour_description_present_flag
  writer.u(static_cast<uint32_t>(vui.colour_primaries), 8);
  writer.u(static_cast<uint32_t>(vui.transfer_characteristics), 8);
  writer.u(static_cast<uint32_t>(vui.matrix_coeffs), 8);
  writer.flag(false);  // chroma_loc_info_present_flag
  writer.flag(false);  // neutral_chroma_indication_flag
  writer.flag(false);  // field_seq_flag
  writer.flag(false);  // frame_field_info_present_flag
  writer.flag(false);  // default_display_window_flag
  writer.flag(vui.vui_timing_info_present_flag);
  if (vui.vui_timing_info_present_flag) {
    writer.u(vui.vui_num_units_in_tick, 32);
    writer.u(vui.vui_time_scale, 32);
    writer.flag(false);  // vui_poc_proportional_to_timing_flag
    writer.flag(false);  // vui_hrd_parameters_present_flag
  }
  writer.flag(false);  // bitstream_restriction_flag
}

int ceil_log2(int value) {
  int bits = 0;
  while (1 << bits < value) ++bits;
  return bits;
}

}  // namespace

void append_nal(std::vector<uint8_t>& stream, int nal_unit_type, const std::vector<uint8_t>& rbsp) {
  const uint8_t start[] = {0, 0, 0, 1, static_cast<uint8_t>(nal_unit_type << 1), 1};
  stream.insert(stream.end(), start, start + sizeof start);
  int zeros = 0;
  for (const uint8_t byte : rbsp) {
    if (zeros >= 2 && byte <= 3) {
      stream.push_back(3);
      zeros = 0;
    }
    stream.push_back(byte);
    zeros = byte == 0 ? zeros + 1 : 0;
  }
}

std::vector<uint8_t> write_video_parameters(const SequenceParameters& sps) {
  BitWriter writer;
  writer.u(static_cast<uint32_t>(sps.sps_video_parameter_set_id), 4);
  writer.flag(true);  // vps_base_layer_internal_flag
  writer.flag(true);  // vps_base_layer_available_flag
  writer.u(0, 6);     // vps_max_layers_minus1
  writer.u(0, 3);     // vps_max_sub_layers_minus1
  writer.flag(true);  // vps_temporal_id_nesting_flag
  writer.u(0xffff, 16);
  write_profile(writer, sps);
  writer.flag(true);  // vps_sub_layer_ordering_info_present_flag
  writer.ue(sps.sps_max_dec_pic_buffering_minus1);
  writer.ue(0);
  writer.ue(0);
  writer.u(0, 6);  // vps_max_layer_id
  writer.ue(0);    // vps_num_layer_sets_minus1
  writer.flag(false);
  writer.flag(false);
  return writer.finish();
}

std::vector<uint8_t> write_sequence_parameters(const SequenceParameters& sps) {
  BitWriter writer;
  writer.u(static_cast<uint32_t>(sps.sps_video_parameter_set_id), 4);
  writer.u(0, 3);     // sps_max_sub_layers_minus1
  writer.flag(true);  // sps_temporal_id_nesting_flag
  write_profile(writer, sps);
  writer.ue(sps.sps_seq_parameter_set_id);
  writer.ue(sps.chroma_format_idc);
  if (sps.chroma_format_idc == 3) writer.flag(false);
  writer.ue(sps.width);
  writer.ue(sps.height);
  const bool cropped = (sps.crop_left | sps.crop_right | sps.crop_top | sps.crop_bottom) != 0;
  writer.flag(cropped);
  if (cropped) {
    writer.ue(sps.crop_left >> sps.sub_width_log2);
    writer.ue(sps.crop_right >> sps.sub_width_log2);
    writer.ue(sps.crop_top >> sps.sub_height_log2);
    writer.ue(sps.crop_bottom >> sps.sub_height_log2);
  }
  writer.ue(sps.bit_depth_luma - 8);
  writer.ue(sps.bit_depth_chroma - 8);
  writer.ue(sps.log2_max_pic_order_cnt_lsb_minus4);
  writer.flag(true);  // sps_sub_layer_ordering_info_present_flag
  writer.ue(sps.sps_max_dec_pic_buffering_minus1);
  writer.ue(sps.sps_max_num_reorder_pics);
  writer.ue(sps.sps_max_latency_increase_plus1);
  writer.ue(sps.min_cb_log2 - 3);
  writer.ue(sps.ctb_log2 - sps.min_cb_log2);
  writer.ue(sps.min_tb_log2 - 2);
  writer.ue(sps.max_tb_log2 - sps.min_tb_log2);
  writer.ue(sps.max_transform_hierarchy_depth_inter);
  writer.ue(sps.max_transform_hierarchy_depth_intra);
  writer.flag(false);  // scaling_list_enabled_flag
  writer.flag(false);  // amp_enabled_flag
  writer.flag(sps.sample_adaptive_offset_enabled_flag);
  writer.flag(false);  // pcm_enabled_flag
  writer.ue(0);        // num_short_term_ref_pic_sets
  writer.flag(false);  // long_term_ref_pics_present_flag
  writer.flag(false);  // sps_temporal_mvp_enabled_flag
  writer.flag(sps.strong_intra_smoothing_enabled_flag);
  writer.flag(sps.vui_parameters_present_flag);
  if (sps.vui_parameters_present_flag) write_usability(writer, sps.vui);
  const bool extended = has_residual_tools(sps);
  writer.flag(extended);  // sps_extension_present_flag
  if (extended) {
    writer.flag(true);  // sps_range_extension_flag
    writer.u(0, 7);     // the other extensions
    writer.flag(sps.transform_skip_rotation_enabled_flag);
    writer.flag(false);  // transform_skip_context_enabled_flag
    writer.flag(sps.implicit_rdpcm_enabled_flag);
    writer.flag(false);  // explicit_rdpcm_enabled_flag
    writer.flag(false);  // extended_precision_processing_flag
    writer.flag(false);  // intra_smoothing_disabled_flag
    writer.flag(false);  // high_precision_offsets_enabled_flag
    writer.flag(sps.persistent_rice_adaptation_enabled_flag);
    writer.flag(false);  // cabac_bypass_alignment_enabled_flag
  }
  return writer.finish();
}

std::vector<uint8_t> write_picture_parameters(const PictureParameters& pps) {
  BitWriter writer;
  writer.ue(pps.pps_pic_parameter_set_id);
  writer.ue(pps.pps_seq_parameter_set_id);
  writer.flag(false);  // dependent_slice_segments_enabled_flag
  writer.flag(false);  // output_flag_present_flag
  writer.u(0, 3);      // num_extra_slice_header_bits
  writer.flag(pps.sign_data_hiding_enabled_flag);
  writer.flag(false);  // cabac_init_present_flag
  writer.ue(0);
  writer.ue(0);
  writer.se(pps.init_qp_minus26);
  writer.flag(false);  // constrained_intra_pred_flag
  writer.flag(pps.transform_skip_enabled_flag);
  writer.flag(false);  // cu_qp_delta_enabled_flag
  writer.se(pps.pps_cb_qp_offset);
  writer.se(pps.pps_cr_qp_offset);
  writer.flag(false);  // pps_slice_chroma_qp_offsets_present_flag
  writer.flag(false);  // weighted_pred_flag
  writer.flag(false);  // weighted_bipred_flag
  writer.flag(pps.transquant_bypass_enabled_flag);
  writer.flag(false);  // tiles_enabled_flag
  writer.flag(pps.entropy_coding_sync_enabled_flag);
  writer.flag(pps.pps_loop_filter_across_slices_enabled_flag);
  writer.flag(pps.deblocking_filter_control_present_flag);
  if (pps.deblocking_filter_control_present_flag) {
    writer.flag(false);  // deblocking_filter_override_enabled_flag
    writer.flag(pps.pps_deblocking_filter_disabled_flag);
    if (!pps.pps_deblocking_filter_disabled_flag) {
      writer.se(pps.pps_beta_offset_div2);
      writer.se(pps.pps_tc_offset_div2);
    }
  }
  writer.flag(false);                         // pps_scaling_list_data_present_flag
  writer.flag(false);                         // lists_modification_present_flag
  writer.ue(0);                               // log2_parallel_merge_level_minus2
  writer.flag(false);                         // slice_segment_header_extension_present_flag
  writer.flag(pps.pps_range_extension_flag);  // pps_extension_present_flag
  if (pps.pps_range_extension_flag) {
    writer.flag(true);
    writer.u(0, 7);  // the other extensions
    if (pps.transform_skip_enabled_flag) writer.ue(pps.log2_max_transform_skip_size - 2);
    writer.flag(pps.cross_component_prediction_enabled_flag);
    writer.flag(false);  // chroma_qp_offset_list_enabled_flag
    writer.ue(pps.log2_sao_offset_scale_luma);
    writer.ue(pps.log2_sao_offset_scale_chroma);
  }
  return writer.finish();
}

std::vector<uint8_t> write_slice_header(const SliceHeader& header, const SequenceParameters& sps,
                                        const PictureParameters& pps, const std::vector<uint32_t>& entry_points) {
  BitWriter writer;
  writer.flag(true);   // first_slice_segment_in_pic_flag
  writer.flag(false);  // no_output_of_prior_pics_flag
  writer.ue(pps.pps_pic_parameter_set_id);
  writer.ue(static_cast<int>(kSliceI));
  if (sps.sample_adaptive_offset_enabled_flag) {
    writer.flag(header.slice_sao_luma_flag);
    if (sps.chroma_array_type != 0) writer.flag(header.slice_sao_chroma_flag);
  }
  writer.se(header.slice_qp - 26 - pps.init_qp_minus26);
  if (pps.pps_loop_filter_across_slices_enabled_flag &&
      (header.slice_sao_luma_flag || header.slice_sao_chroma_flag || !header.slice_deblocking_filter_disabled_flag)) {
    writer.flag(header.slice_loop_filter_across_slices_enabled_flag);
  }
  if (pps.entropy_coding_sync_enabled_flag) {
    writer.ue(static_cast<int>(entry_points.size()));
    if (!entry_points.empty()) {
      uint32_t largest = 0;
      for (const uint32_t size : entry_points) largest = size > largest ? size : largest;
      const int bits = ceil_log2(static_cast<int>(largest) + 1) + 1;
      writer.ue(bits - 1);
      for (const uint32_t size : entry_points) writer.u(size - 1, bits);
    }
  }
  return writer.finish();
}

std::vector<uint8_t> write_picture_hash(const std::vector<Digest>& md5) {
  BitWriter writer;
  writer.u(132, 8);  // payload type: decoded picture hash
  writer.u(static_cast<uint32_t>(1 + 16 * md5.size()), 8);
  writer.u(0, 8);  // hash_type: MD5
  for (const Digest& digest : md5)
    for (const uint8_t byte : digest) writer.u(byte, 8);
  return writer.finish();
}

}  // namespace flexor::hevc
