// SPDX-License-Identifier: Apache-2.0
// Video usability information and hypothetical reference decoder parameters (H.265 annex E).
#include "hevc/parameter_sets.h"

namespace flexor::hevc {
namespace {

constexpr uint32_t kAnyUe = UINT32_MAX - 1;

void parse_sub_layer_hrd(BitReader& reader, int cpb_count, bool sub_pictures) {
  for (int i = 0; i < cpb_count; ++i) {
    reader.ue("bit_rate_value_minus1", kAnyUe);
    reader.ue("cpb_size_value_minus1", kAnyUe);
    if (sub_pictures) {
      reader.ue("cpb_size_du_value_minus1", kAnyUe);
      reader.ue("bit_rate_du_value_minus1", kAnyUe);
    }
    reader.flag("cbr_flag");
  }
}

void parse_sample_aspect_ratio(BitReader& reader, VideoUsability& vui) {
  // Table E.1.
  static constexpr uint8_t kRatios[17][2] = {{0, 0},   {1, 1},    {12, 11}, {10, 11}, {16, 11}, {40, 33},
                                             {24, 11}, {20, 11},  {32, 11}, {80, 33}, {18, 11}, {15, 11},
                                             {64, 33}, {160, 99}, {4, 3},   {3, 2},   {2, 1}};
  const int idc = static_cast<int>(reader.u("aspect_ratio_idc", 8));
  if (idc == 255) {
    vui.sar_width = static_cast<int>(reader.u("sar_width", 16));
    vui.sar_height = static_cast<int>(reader.u("sar_height", 16));
  } else if (idc <= 16) {
    vui.sar_width = kRatios[idc][0];
    vui.sar_height = kRatios[idc][1];
  }
}

void parse_video_signal(BitReader& reader, VideoUsability& vui) {
  vui.video_format = static_cast<int>(reader.u("video_format", 3));
  vui.video_full_range_flag = reader.flag("video_full_range_flag");
  if (reader.flag("colour_description_present_flag")) {
    vui.colour_primaries = static_cast<int>(reader.u("colour_primaries", 8));
    vui.transfer_characteristics = static_cast<int>(reader.u("transfer_characteristics", 8));
    vui.matrix_coeffs = static_cast<int>(reader.u("matrix_coeffs", 8));
  }
}

void parse_timing(BitReader& reader, VideoUsability& vui, int max_sub_layers_minus1) {
  vui.vui_num_units_in_tick = reader.u("vui_num_units_in_tick", 32);
  vui.vui_time_scale = reader.u("vui_time_scale", 32);
  if (reader.flag("vui_poc_proportional_to_timing_flag")) reader.ue("vui_num_ticks_poc_diff_one_minus1", kAnyUe);
  if (reader.flag("vui_hrd_parameters_present_flag")) parse_hypothetical_decoder(reader, true, max_sub_layers_minus1);
}

void parse_bitstream_restriction(BitReader& reader) {
  reader.flag("tiles_fixed_structure_flag");
  reader.flag("motion_vectors_over_pic_boundaries_flag");
  reader.flag("restricted_ref_pic_lists_flag");
  reader.ue("min_spatial_segmentation_idc", 4095);
  reader.ue("max_bytes_per_pic_denom", 16);
  reader.ue("max_bits_per_min_cu_denom", 16);
  reader.ue("log2_max_mv_length_horizontal", 16);
  reader.ue("log2_max_mv_length_vertical", 16);
}

}  // namespace

void parse_hypothetical_decoder(BitReader& reader, bool common, int max_sub_layers_minus1) {
  bool nal = false, vcl = false, sub_pictures = false;
  if (common) {
    nal = reader.flag("nal_hrd_parameters_present_flag");
    vcl = reader.flag("vcl_hrd_parameters_present_flag");
    if (nal || vcl) {
      sub_pictures = reader.flag("sub_pic_hrd_params_present_flag");
      if (sub_pictures) {
        reader.u("tick_divisor_minus2", 8);
        reader.u("du_cpb_removal_delay_increment_length_minus1", 5);
        reader.flag("sub_pic_cpb_params_in_pic_timing_sei_flag");
        reader.u("dpb_output_delay_du_length_minus1", 5);
      }
      reader.u("bit_rate_scale", 4);
      reader.u("cpb_size_scale", 4);
      if (sub_pictures) reader.u("cpb_size_du_scale", 4);
      reader.u("initial_cpb_removal_delay_length_minus1", 5);
      reader.u("au_cpb_removal_delay_length_minus1", 5);
      reader.u("dpb_output_delay_length_minus1", 5);
    }
  }
  for (int i = 0; i <= max_sub_layers_minus1; ++i) {
    const bool fixed_general = reader.flag("fixed_pic_rate_general_flag");
    const bool fixed = fixed_general || reader.flag("fixed_pic_rate_within_cvs_flag");
    bool low_delay = false;
    if (fixed) {
      reader.ue("elemental_duration_in_tc_minus1", 2047);
    } else {
      low_delay = reader.flag("low_delay_hrd_flag");
    }
    const int cpb_count = low_delay ? 1 : reader.ue("cpb_cnt_minus1", 31) + 1;
    if (nal) parse_sub_layer_hrd(reader, cpb_count, sub_pictures);
    if (vcl) parse_sub_layer_hrd(reader, cpb_count, sub_pictures);
  }
}

void parse_video_usability(BitReader& reader, SequenceParameters& sps) {
  VideoUsability& vui = sps.vui;
  if (reader.flag("aspect_ratio_info_present_flag")) parse_sample_aspect_ratio(reader, vui);
  if (reader.flag("overscan_info_present_flag")) reader.flag("overscan_appropriate_flag");
  if (reader.flag("video_signal_type_present_flag")) parse_video_signal(reader, vui);
  if (reader.flag("chroma_loc_info_present_flag")) {
    vui.chroma_sample_loc_type_top_field = reader.ue("chroma_sample_loc_type_top_field", 5);
    vui.chroma_sample_loc_type_bottom_field = reader.ue("chroma_sample_loc_type_bottom_field", 5);
  }
  reader.flag("neutral_chroma_indication_flag");
  reader.flag("field_seq_flag");
  vui.frame_field_info_present_flag = reader.flag("frame_field_info_present_flag");
  if (reader.flag("default_display_window_flag")) {  // a hint for displays, not a part of decoding
    reader.ue("def_disp_win_left_offset", kAnyUe);
    reader.ue("def_disp_win_right_offset", kAnyUe);
    reader.ue("def_disp_win_top_offset", kAnyUe);
    reader.ue("def_disp_win_bottom_offset", kAnyUe);
  }
  vui.vui_timing_info_present_flag = reader.flag("vui_timing_info_present_flag");
  if (vui.vui_timing_info_present_flag) parse_timing(reader, vui, sps.sps_max_sub_layers_minus1);
  if (reader.flag("bitstream_restriction_flag")) parse_bitstream_restriction(reader);
}

}  // namespace flexor::hevc
