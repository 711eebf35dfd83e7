// SPDX-License-Identifier: Apache-2.0
// Sequence parameter sets (H.265 clauses 7.3.2.2, 7.3.7, 7.4.3.2 and 7.4.8).
#include <algorithm>
#include <string>

#include "hevc/parameter_sets.h"

namespace flexor::hevc {
namespace {

// MaxLumaPs of table A.8. Encoders write levels that are too low, so what 4096x2176 takes is always allowed; without a
// level, that of level 6.2.
int64_t max_luma_samples(int level_idc) {
  if (level_idc == 0) return 35651584;
  if (level_idc <= 156) return 8912896;
  if (level_idc <= 186) return 35651584;
  if (level_idc <= 189) return 80216064;
  return 142606336;
}

void check(bool right, const std::string& message) {
  if (!right) throw StreamError(message);
}

void check_size(const SequenceParameters& sps) {
  const int64_t limit = max_luma_samples(sps.profile_tier_level.general_level_idc);
  const int64_t w = sps.width, h = sps.height, side = std::max<int64_t>(limit, 35651584) * 8;
  check(w > 0 && h > 0 && w * h <= limit && w * w <= side && h * h <= side,
        "the picture size " + std::to_string(w) + "x" + std::to_string(h) + " is beyond the " + std::to_string(limit) +
            " samples of level_idc " + std::to_string(sps.profile_tier_level.general_level_idc));
  const int min_cb = 1 << sps.min_cb_log2;
  check(w % min_cb == 0 && h % min_cb == 0, "the picture size " + std::to_string(w) + "x" + std::to_string(h) +
                                                " must be a multiple of MinCbSizeY " + std::to_string(min_cb));
  check(sps.crop_left + sps.crop_right < w && sps.crop_top + sps.crop_bottom < h,
        "the conformance window leaves nothing of the picture");
}

void parse_format(BitReader& reader, SequenceParameters& sps) {
  sps.chroma_format_idc = reader.ue("chroma_format_idc", 3);
  if (sps.chroma_format_idc == 3) sps.separate_colour_plane_flag = reader.flag("separate_colour_plane_flag");
  sps.chroma_array_type = sps.separate_colour_plane_flag ? 0 : sps.chroma_format_idc;
  sps.sub_width_log2 = sps.chroma_format_idc == 1 || sps.chroma_format_idc == 2 ? 1 : 0;
  sps.sub_height_log2 = sps.chroma_format_idc == 1 ? 1 : 0;
  sps.width = sps.pic_width_in_luma_samples = reader.ue("pic_width_in_luma_samples", 1 << 16);
  sps.height = sps.pic_height_in_luma_samples = reader.ue("pic_height_in_luma_samples", 1 << 16);
  if (reader.flag("conformance_window_flag")) {
    const int limit = 1 << 15;
    sps.crop_left = reader.ue("conf_win_left_offset", limit) << sps.sub_width_log2;
    sps.crop_right = reader.ue("conf_win_right_offset", limit) << sps.sub_width_log2;
    sps.crop_top = reader.ue("conf_win_top_offset", limit) << sps.sub_height_log2;
    sps.crop_bottom = reader.ue("conf_win_bottom_offset", limit) << sps.sub_height_log2;
  }
  sps.bit_depth_luma = reader.ue("bit_depth_luma_minus8", 8) + 8;
  sps.bit_depth_chroma = reader.ue("bit_depth_chroma_minus8", 8) + 8;
  sps.qp_bd_offset_luma = 6 * (sps.bit_depth_luma - 8);
  sps.qp_bd_offset_chroma = 6 * (sps.bit_depth_chroma - 8);
}

void parse_ordering(BitReader& reader, SequenceParameters& sps) {
  const bool each = reader.flag("sps_sub_layer_ordering_info_present_flag");
  for (int i = each ? 0 : sps.sps_max_sub_layers_minus1; i <= sps.sps_max_sub_layers_minus1; ++i) {
    sps.sps_max_dec_pic_buffering_minus1 = reader.ue("sps_max_dec_pic_buffering_minus1", kMaxDpbPictures - 1);
    sps.sps_max_num_reorder_pics = reader.ue("sps_max_num_reorder_pics", kMaxDpbPictures - 1);
    sps.sps_max_latency_increase_plus1 = reader.ue("sps_max_latency_increase_plus1", UINT32_MAX - 1);
  }
}

void parse_block_sizes(BitReader& reader, SequenceParameters& sps) {
  sps.min_cb_log2 = reader.ue("log2_min_luma_coding_block_size_minus3", 3) + 3;
  sps.ctb_log2 = sps.min_cb_log2 + reader.ue("log2_diff_max_min_luma_coding_block_size", 3);
  check(sps.ctb_log2 >= 4 && sps.ctb_log2 <= 6, "CtbLog2SizeY must be 4 to 6, got " + std::to_string(sps.ctb_log2));
  sps.min_tb_log2 = reader.ue("log2_min_luma_transform_block_size_minus2", 3) + 2;
  sps.max_tb_log2 = sps.min_tb_log2 + reader.ue("log2_diff_max_min_luma_transform_block_size", 3);
  check(sps.min_tb_log2 < sps.min_cb_log2 && sps.max_tb_log2 <= std::min(sps.ctb_log2, 5),
        "transform blocks of " + std::to_string(1 << sps.min_tb_log2) + " to " + std::to_string(1 << sps.max_tb_log2) +
            " do not fit coding blocks of " + std::to_string(1 << sps.min_cb_log2) + " to " +
            std::to_string(1 << sps.ctb_log2));
  const int max_depth = sps.ctb_log2 - sps.min_tb_log2;
  sps.max_transform_hierarchy_depth_inter = reader.ue("max_transform_hierarchy_depth_inter", max_depth);
  sps.max_transform_hierarchy_depth_intra = reader.ue("max_transform_hierarchy_depth_intra", max_depth);
  sps.width_ctbs = (sps.width + (1 << sps.ctb_log2) - 1) >> sps.ctb_log2;
  sps.height_ctbs = (sps.height + (1 << sps.ctb_log2) - 1) >> sps.ctb_log2;
}

void parse_pcm(BitReader& reader, SequenceParameters& sps) {
  sps.pcm_bit_depth_luma = static_cast<int>(reader.u("pcm_sample_bit_depth_luma_minus1", 4)) + 1;
  sps.pcm_bit_depth_chroma = static_cast<int>(reader.u("pcm_sample_bit_depth_chroma_minus1", 4)) + 1;
  check(sps.pcm_bit_depth_luma <= sps.bit_depth_luma && sps.pcm_bit_depth_chroma <= sps.bit_depth_chroma,
        "PCM samples have more bits than the picture");
  sps.min_pcm_log2 = reader.ue("log2_min_pcm_luma_coding_block_size_minus3", 2) + 3;
  sps.max_pcm_log2 = sps.min_pcm_log2 + reader.ue("log2_diff_max_min_pcm_luma_coding_block_size", 2);
  check(sps.min_pcm_log2 >= std::min(sps.min_cb_log2, 5) && sps.max_pcm_log2 <= std::min(sps.ctb_log2, 5),
        "PCM blocks of " + std::to_string(1 << sps.min_pcm_log2) + " to " + std::to_string(1 << sps.max_pcm_log2) +
            " do not fit the coding blocks");
  sps.pcm_loop_filter_disabled_flag = reader.flag("pcm_loop_filter_disabled_flag");
}

void parse_reference_pictures(BitReader& reader, SequenceParameters& sps) {
  const int sets = reader.ue("num_short_term_ref_pic_sets", 64);
  for (int i = 0; i < sets; ++i)
    sps.st_ref_pic_sets.push_back(parse_reference_picture_set(reader, sps.st_ref_pic_sets, false));
  sps.long_term_ref_pics_present_flag = reader.flag("long_term_ref_pics_present_flag");
  if (!sps.long_term_ref_pics_present_flag) return;
  const int pictures = reader.ue("num_long_term_ref_pics_sps", 32);
  for (int i = 0; i < pictures; ++i) {
    sps.lt_ref_pic_poc_lsb_sps.push_back(
        static_cast<int>(reader.u("lt_ref_pic_poc_lsb_sps", sps.log2_max_pic_order_cnt_lsb_minus4 + 4)));
    sps.used_by_curr_pic_lt_sps_flag.push_back(reader.flag("used_by_curr_pic_lt_sps_flag"));
  }
}

void parse_range_extension(BitReader& reader, SequenceParameters& sps) {
  sps.transform_skip_rotation_enabled_flag = reader.flag("transform_skip_rotation_enabled_flag");
  sps.transform_skip_context_enabled_flag = reader.flag("transform_skip_context_enabled_flag");
  sps.implicit_rdpcm_enabled_flag = reader.flag("implicit_rdpcm_enabled_flag");
  sps.explicit_rdpcm_enabled_flag = reader.flag("explicit_rdpcm_enabled_flag");
  sps.extended_precision_processing_flag = reader.flag("extended_precision_processing_flag");
  sps.intra_smoothing_disabled_flag = reader.flag("intra_smoothing_disabled_flag");
  sps.high_precision_offsets_enabled_flag = reader.flag("high_precision_offsets_enabled_flag");
  sps.persistent_rice_adaptation_enabled_flag = reader.flag("persistent_rice_adaptation_enabled_flag");
  sps.cabac_bypass_alignment_enabled_flag = reader.flag("cabac_bypass_alignment_enabled_flag");
}

void parse_extensions(BitReader& reader, SequenceParameters& sps) {
  sps.sps_range_extension_flag = reader.flag("sps_range_extension_flag");
  sps.sps_multilayer_extension_flag = reader.flag("sps_multilayer_extension_flag");
  sps.sps_3d_extension_flag = reader.flag("sps_3d_extension_flag");
  sps.sps_scc_extension_flag = reader.flag("sps_scc_extension_flag");
  reader.u("sps_extension_4bits", 4);  // what follows them is ignored, as clause 7.4.3.2 asks
  if (sps.sps_range_extension_flag) parse_range_extension(reader, sps);
  if (sps.sps_multilayer_extension_flag) reader.flag("inter_view_mv_vert_constraint_flag");
  if (sps.sps_3d_extension_flag)
    throw Unsupported("the stream uses the 3D extension of HEVC (sps_3d_extension_flag 1); flexor does not decode it");
  if (sps.sps_scc_extension_flag)
    throw Unsupported(
        "the stream uses the screen content extension of HEVC (sps_scc_extension_flag 1); flexor decodes "
        "the Main, Main 10, Main Still Picture and format range (RExt) profiles");
}

void parse_tools(BitReader& reader, SequenceParameters& sps) {
  sps.scaling_list_enabled_flag = reader.flag("scaling_list_enabled_flag");
  if (sps.scaling_list_enabled_flag) {
    if (reader.flag("sps_scaling_list_data_present_flag")) {
      parse_scaling_list(reader, sps.scaling_list);
    } else {
      set_default_scaling_list(sps.scaling_list);
    }
  }
  sps.amp_enabled_flag = reader.flag("amp_enabled_flag");
  sps.sample_adaptive_offset_enabled_flag = reader.flag("sample_adaptive_offset_enabled_flag");
  sps.pcm_enabled_flag = reader.flag("pcm_enabled_flag");
  if (sps.pcm_enabled_flag) parse_pcm(reader, sps);
}

// Clause 7.4.8, equations 7-61 and 7-62: the set is another one moved by delta_rps, with pictures left out.
ReferencePictureSet predict_set(BitReader& reader, const ReferencePictureSet& from) {
  const bool negative = reader.flag("delta_rps_sign");
  const int magnitude = reader.ue("abs_delta_rps_minus1", 32767) + 1;
  const int delta = negative ? -magnitude : magnitude;
  const int count = from.num_delta_pocs();
  bool used[kMaxDpbPictures + 1] = {}, kept[kMaxDpbPictures + 1] = {};
  for (int j = 0; j <= count; ++j) {
    used[j] = reader.flag("used_by_curr_pic_flag");
    kept[j] = used[j] || reader.flag("use_delta_flag");
  }

  ReferencePictureSet set;
  const auto add = [&](int poc, int j, bool before) {
    if (!kept[j] || (before ? poc >= 0 : poc <= 0)) return;
    check(set.num_delta_pocs() < kMaxDpbPictures, "a reference picture set has more than 16 pictures");
    int& n = before ? set.num_negative_pics : set.num_positive_pics;
    (before ? set.delta_poc_s0 : set.delta_poc_s1)[n] = poc;
    (before ? set.used_by_curr_pic_s0 : set.used_by_curr_pic_s1)[n++] = used[j];
  };
  const auto add_before = [&](int j, bool before) { add(from.delta_poc_s0[j] + delta, j, before); };
  const auto add_after = [&](int j, bool before) {
    add(from.delta_poc_s1[j] + delta, from.num_negative_pics + j, before);
  };
  for (int j = from.num_positive_pics - 1; j >= 0; --j) add_after(j, true);
  add(delta, count, true);
  for (int j = 0; j < from.num_negative_pics; ++j) add_before(j, true);
  for (int j = from.num_negative_pics - 1; j >= 0; --j) add_before(j, false);
  add(delta, count, false);
  for (int j = 0; j < from.num_positive_pics; ++j) add_after(j, false);
  return set;
}

}  // namespace

ReferencePictureSet parse_reference_picture_set(BitReader& reader, const std::vector<ReferencePictureSet>& sets,
                                                bool in_slice_header) {
  if (!sets.empty() && reader.flag("inter_ref_pic_set_prediction_flag")) {
    const int known = static_cast<int>(sets.size());
    const int back = in_slice_header ? reader.ue("delta_idx_minus1", known - 1) + 1 : 1;
    return predict_set(reader, sets[static_cast<size_t>(known - back)]);
  }
  ReferencePictureSet set;
  set.num_negative_pics = reader.ue("num_negative_pics", kMaxDpbPictures);
  set.num_positive_pics = reader.ue("num_positive_pics", kMaxDpbPictures - set.num_negative_pics);
  int poc = 0;
  for (int i = 0; i < set.num_negative_pics; ++i) {
    set.delta_poc_s0[i] = poc -= reader.ue("delta_poc_s0_minus1", 32767) + 1;
    set.used_by_curr_pic_s0[i] = reader.flag("used_by_curr_pic_s0_flag");
  }
  poc = 0;
  for (int i = 0; i < set.num_positive_pics; ++i) {
    set.delta_poc_s1[i] = poc += reader.ue("delta_poc_s1_minus1", 32767) + 1;
    set.used_by_curr_pic_s1[i] = reader.flag("used_by_curr_pic_s1_flag");
  }
  return set;
}

std::shared_ptr<const SequenceParameters> parse_sequence_parameters(BitReader& reader) {
  auto out = std::make_shared<SequenceParameters>();
  SequenceParameters& sps = *out;
  sps.sps_video_parameter_set_id = static_cast<int>(reader.u("sps_video_parameter_set_id", 4));
  sps.sps_max_sub_layers_minus1 = static_cast<int>(reader.u("sps_max_sub_layers_minus1", 3));
  check(sps.sps_max_sub_layers_minus1 < kMaxSubLayers, "sps_max_sub_layers_minus1 must be 0 to 6, got 7");
  sps.sps_temporal_id_nesting_flag = reader.flag("sps_temporal_id_nesting_flag");
  sps.profile_tier_level = parse_profile_tier_level(reader, sps.sps_max_sub_layers_minus1);
  sps.sps_seq_parameter_set_id = reader.ue("sps_seq_parameter_set_id", kMaxSps - 1);
  parse_format(reader, sps);
  sps.log2_max_pic_order_cnt_lsb_minus4 = reader.ue("log2_max_pic_order_cnt_lsb_minus4", 12);
  parse_ordering(reader, sps);
  parse_block_sizes(reader, sps);
  check_size(sps);
  parse_tools(reader, sps);
  parse_reference_pictures(reader, sps);
  sps.sps_temporal_mvp_enabled_flag = reader.flag("sps_temporal_mvp_enabled_flag");
  sps.strong_intra_smoothing_enabled_flag = reader.flag("strong_intra_smoothing_enabled_flag");
  sps.vui_parameters_present_flag = reader.flag("vui_parameters_present_flag");
  if (sps.vui_parameters_present_flag) parse_video_usability(reader, sps);
  if (reader.flag("sps_extension_present_flag")) parse_extensions(reader, sps);
  return out;
}

}  // namespace flexor::hevc
