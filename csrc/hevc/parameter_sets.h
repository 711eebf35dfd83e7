// SPDX-License-Identifier: Apache-2.0
// Sequence and picture parameter sets (H.265 clauses 7.3.2, 7.4.3 and annex E). Fields have the names of the standard;
// every value is checked when it is read, so that what comes after may trust them.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "hevc/bit_reader.h"

namespace flexor::hevc {

constexpr int kMaxVps = 16, kMaxSps = 16, kMaxPps = 64;
constexpr int kMaxSubLayers = 7;
constexpr int kMaxDpbPictures = 16;

struct ProfileTierLevel {
  int general_profile_space = 0, general_profile_idc = 0;
  bool general_tier_flag = false;
  uint32_t general_profile_compatibility_flags = 0;  // flag j is bit 31 - j
  int general_level_idc = 0;                         // 30 times the level
};

// ScalingFactor[sizeId][matrixId], row after row: factor[..][y * n + x], n = 4 << sizeId.
struct ScalingList {
  uint8_t factor[4][6][1024];
};

// A short-term reference picture set as derived in clause 7.4.8: deltas of POC, nearest first.
struct ReferencePictureSet {
  int num_negative_pics = 0, num_positive_pics = 0;
  int delta_poc_s0[kMaxDpbPictures] = {}, delta_poc_s1[kMaxDpbPictures] = {};
  bool used_by_curr_pic_s0[kMaxDpbPictures] = {}, used_by_curr_pic_s1[kMaxDpbPictures] = {};
  int num_delta_pocs() const { return num_negative_pics + num_positive_pics; }
};

struct VideoUsability {
  int sar_width = 0, sar_height = 0;  // 0: not specified
  int video_format = 5;
  bool video_full_range_flag = false;
  int colour_primaries = 2, transfer_characteristics = 2, matrix_coeffs = 2;  // 2: not specified
  int chroma_sample_loc_type_top_field = 0, chroma_sample_loc_type_bottom_field = 0;
  bool frame_field_info_present_flag = false;
  bool vui_timing_info_present_flag = false;
  uint32_t vui_num_units_in_tick = 0, vui_time_scale = 0;
};

struct SequenceParameters {
  int sps_video_parameter_set_id = 0;
  int sps_max_sub_layers_minus1 = 0;
  bool sps_temporal_id_nesting_flag = false;
  ProfileTierLevel profile_tier_level;
  int sps_seq_parameter_set_id = 0;
  int chroma_format_idc = 1;
  bool separate_colour_plane_flag = false;
  int pic_width_in_luma_samples = 0, pic_height_in_luma_samples = 0;
  int log2_max_pic_order_cnt_lsb_minus4 = 0;
  int sps_max_dec_pic_buffering_minus1 = 0;  // these three of the highest sub-layer
  int sps_max_num_reorder_pics = 0;
  uint32_t sps_max_latency_increase_plus1 = 0;
  int max_transform_hierarchy_depth_inter = 0, max_transform_hierarchy_depth_intra = 0;
  bool scaling_list_enabled_flag = false;
  bool amp_enabled_flag = false;
  bool sample_adaptive_offset_enabled_flag = false;
  bool pcm_enabled_flag = false;
  bool pcm_loop_filter_disabled_flag = false;
  std::vector<ReferencePictureSet> st_ref_pic_sets;  // num_short_term_ref_pic_sets
  bool long_term_ref_pics_present_flag = false;
  std::vector<int> lt_ref_pic_poc_lsb_sps;  // num_long_term_ref_pics_sps
  std::vector<bool> used_by_curr_pic_lt_sps_flag;
  bool sps_temporal_mvp_enabled_flag = false;
  bool strong_intra_smoothing_enabled_flag = false;
  bool vui_parameters_present_flag = false;
  VideoUsability vui;

  bool sps_range_extension_flag = false;
  bool sps_multilayer_extension_flag = false;
  bool sps_3d_extension_flag = false;
  bool sps_scc_extension_flag = false;
  bool transform_skip_rotation_enabled_flag = false;
  bool transform_skip_context_enabled_flag = false;
  bool implicit_rdpcm_enabled_flag = false;
  bool explicit_rdpcm_enabled_flag = false;
  bool extended_precision_processing_flag = false;
  bool intra_smoothing_disabled_flag = false;
  bool high_precision_offsets_enabled_flag = false;
  bool persistent_rice_adaptation_enabled_flag = false;
  bool cabac_bypass_alignment_enabled_flag = false;

  // Derived.
  int chroma_array_type = 1;
  int width = 0, height = 0;  // coded luma samples
  int min_cb_log2 = 3, ctb_log2 = 4, min_tb_log2 = 2, max_tb_log2 = 2;
  int width_ctbs = 0, height_ctbs = 0;
  int sub_width_log2 = 0, sub_height_log2 = 0;  // of chroma; 0 where there is none
  int bit_depth_luma = 8, bit_depth_chroma = 8;
  int qp_bd_offset_luma = 0, qp_bd_offset_chroma = 0;
  int pcm_bit_depth_luma = 8, pcm_bit_depth_chroma = 8;
  int min_pcm_log2 = 3, max_pcm_log2 = 3;
  int crop_left = 0, crop_right = 0, crop_top = 0, crop_bottom = 0;  // luma samples
  ScalingList scaling_list{};                                        // if scaling_list_enabled_flag
};

struct PictureParameters {
  int pps_pic_parameter_set_id = 0, pps_seq_parameter_set_id = 0;
  bool dependent_slice_segments_enabled_flag = false;
  bool output_flag_present_flag = false;
  int num_extra_slice_header_bits = 0;
  bool sign_data_hiding_enabled_flag = false;
  bool cabac_init_present_flag = false;
  int num_ref_idx_l0_default_active_minus1 = 0, num_ref_idx_l1_default_active_minus1 = 0;
  int init_qp_minus26 = 0;
  bool constrained_intra_pred_flag = false;
  bool transform_skip_enabled_flag = false;
  bool cu_qp_delta_enabled_flag = false;
  int diff_cu_qp_delta_depth = 0;
  int pps_cb_qp_offset = 0, pps_cr_qp_offset = 0;
  bool pps_slice_chroma_qp_offsets_present_flag = false;
  bool weighted_pred_flag = false, weighted_bipred_flag = false;
  bool transquant_bypass_enabled_flag = false;
  bool tiles_enabled_flag = false;
  bool entropy_coding_sync_enabled_flag = false;
  int num_tile_columns_minus1 = 0, num_tile_rows_minus1 = 0;
  bool uniform_spacing_flag = true;
  std::vector<int> column_width_minus1, row_height_minus1;  // where spacing is not uniform; the last is derived
  bool loop_filter_across_tiles_enabled_flag = true;
  bool pps_loop_filter_across_slices_enabled_flag = false;
  bool deblocking_filter_control_present_flag = false;
  bool deblocking_filter_override_enabled_flag = false;
  bool pps_deblocking_filter_disabled_flag = false;
  int pps_beta_offset_div2 = 0, pps_tc_offset_div2 = 0;
  bool pps_scaling_list_data_present_flag = false;
  bool lists_modification_present_flag = false;
  int log2_parallel_merge_level_minus2 = 0;
  bool slice_segment_header_extension_present_flag = false;

  bool pps_range_extension_flag = false;
  bool pps_multilayer_extension_flag = false;
  bool pps_3d_extension_flag = false;
  bool pps_scc_extension_flag = false;
  int log2_max_transform_skip_size = 2;
  bool cross_component_prediction_enabled_flag = false;
  bool chroma_qp_offset_list_enabled_flag = false;
  int diff_cu_chroma_qp_offset_depth = 0;
  int chroma_qp_offset_list_len_minus1 = 0;
  int cb_qp_offset_list[6] = {}, cr_qp_offset_list[6] = {};
  int log2_sao_offset_scale_luma = 0, log2_sao_offset_scale_chroma = 0;

  // Derived by activate().
  int min_cu_qp_delta_log2 = 0;
  int min_cu_chroma_qp_offset_log2 = 0;
  std::vector<int> column_boundaries, row_boundaries;  // in CTBs, from 0 to the picture's size
  std::vector<int> ctb_addr_rs_to_ts, ctb_addr_ts_to_rs;
  std::vector<int> tile_id;    // of a CTB's tile-scan address
  ScalingList scaling_list{};  // the one in force if sps.scaling_list_enabled_flag
};

// The RBSP without its NAL unit header. They throw StreamError, or Unsupported where the syntax after is not known.
std::shared_ptr<const SequenceParameters> parse_sequence_parameters(BitReader& reader);
std::shared_ptr<const PictureParameters> parse_picture_parameters(BitReader& reader);
void parse_video_parameters(BitReader& reader);  // nothing in it is needed to decode: read to be shown

// A copy of `pps` with what depends on its SPS checked and derived. Throws StreamError, or Unsupported where a picture
// of these parameter sets is beyond this decoder.
std::shared_ptr<const PictureParameters> activate(const PictureParameters& pps, const SequenceParameters& sps);

// Their parts.
ProfileTierLevel parse_profile_tier_level(BitReader& reader, int max_sub_layers_minus1);
void parse_scaling_list(BitReader& reader, ScalingList& list);
void set_default_scaling_list(ScalingList& list);  // tables 7-5 and 7-6
void parse_video_usability(BitReader& reader, SequenceParameters& sps);
void parse_hypothetical_decoder(BitReader& reader, bool common, int max_sub_layers_minus1);  // hrd_parameters()

// st_ref_pic_set(): the next one of an SPS that has `sets` so far, or that of a slice header.
ReferencePictureSet parse_reference_picture_set(BitReader& reader, const std::vector<ReferencePictureSet>& sets,
                                                bool in_slice_header);

inline int ceil_log2(uint32_t value) {
  int bits = 0;
  while (bits < 32 && (uint64_t{1} << bits) < value) ++bits;
  return bits;
}

}  // namespace flexor::hevc
