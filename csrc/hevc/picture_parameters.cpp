// SPDX-License-Identifier: Apache-2.0
// Picture parameter sets (H.265 clauses 7.3.2.3 and 7.4.3.3) and what they mean with their SPS (clause 6.5.1).
#include <algorithm>
#include <string>

#include "hevc/parameter_sets.h"

namespace flexor::hevc {
namespace {

constexpr int kMaxTiles = 1 << 13;  // a side; activate() has the picture's limit

void parse_tiles(BitReader& reader, PictureParameters& pps) {
  pps.num_tile_columns_minus1 = reader.ue("num_tile_columns_minus1", kMaxTiles);
  pps.num_tile_rows_minus1 = reader.ue("num_tile_rows_minus1", kMaxTiles);
  pps.uniform_spacing_flag = reader.flag("uniform_spacing_flag");
  if (!pps.uniform_spacing_flag) {
    for (int i = 0; i < pps.num_tile_columns_minus1; ++i)
      pps.column_width_minus1.push_back(reader.ue("column_width_minus1", kMaxTiles));
    for (int i = 0; i < pps.num_tile_rows_minus1; ++i)
      pps.row_height_minus1.push_back(reader.ue("row_height_minus1", kMaxTiles));
  }
  pps.loop_filter_across_tiles_enabled_flag = reader.flag("loop_filter_across_tiles_enabled_flag");
}

void parse_deblocking(BitReader& reader, PictureParameters& pps) {
  pps.deblocking_filter_override_enabled_flag = reader.flag("deblocking_filter_override_enabled_flag");
  pps.pps_deblocking_filter_disabled_flag = reader.flag("pps_deblocking_filter_disabled_flag");
  if (!pps.pps_deblocking_filter_disabled_flag) {
    pps.pps_beta_offset_div2 = reader.se("pps_beta_offset_div2", -6, 6);
    pps.pps_tc_offset_div2 = reader.se("pps_tc_offset_div2", -6, 6);
  }
}

void parse_range_extension(BitReader& reader, PictureParameters& pps) {
  if (pps.transform_skip_enabled_flag)
    pps.log2_max_transform_skip_size = reader.ue("log2_max_transform_skip_block_size_minus2", 3) + 2;
  pps.cross_component_prediction_enabled_flag = reader.flag("cross_component_prediction_enabled_flag");
  pps.chroma_qp_offset_list_enabled_flag = reader.flag("chroma_qp_offset_list_enabled_flag");
  if (pps.chroma_qp_offset_list_enabled_flag) {
    pps.diff_cu_chroma_qp_offset_depth = reader.ue("diff_cu_chroma_qp_offset_depth", 3);
    pps.chroma_qp_offset_list_len_minus1 = reader.ue("chroma_qp_offset_list_len_minus1", 5);
    for (int i = 0; i <= pps.chroma_qp_offset_list_len_minus1; ++i) {
      pps.cb_qp_offset_list[i] = reader.se("cb_qp_offset_list", -12, 12);
      pps.cr_qp_offset_list[i] = reader.se("cr_qp_offset_list", -12, 12);
    }
  }
  pps.log2_sao_offset_scale_luma = reader.ue("log2_sao_offset_scale_luma", 6);
  pps.log2_sao_offset_scale_chroma = reader.ue("log2_sao_offset_scale_chroma", 6);
}

void parse_extensions(BitReader& reader, PictureParameters& pps) {
  pps.pps_range_extension_flag = reader.flag("pps_range_extension_flag");
  pps.pps_multilayer_extension_flag = reader.flag("pps_multilayer_extension_flag");
  pps.pps_3d_extension_flag = reader.flag("pps_3d_extension_flag");
  pps.pps_scc_extension_flag = reader.flag("pps_scc_extension_flag");
  reader.u("pps_extension_4bits", 4);
  if (pps.pps_range_extension_flag) parse_range_extension(reader, pps);
  if (pps.pps_scc_extension_flag)
    throw Unsupported(
        "the stream uses the screen content extension of HEVC (pps_scc_extension_flag 1); flexor decodes "
        "the Main, Main 10, Main Still Picture and format range (RExt) profiles");
  // The multilayer and 3D extensions say nothing about the base layer, and are last.
}

void parse_quantization(BitReader& reader, PictureParameters& pps) {
  pps.init_qp_minus26 = reader.se("init_qp_minus26", -26 - 6 * 8, 25);
  pps.constrained_intra_pred_flag = reader.flag("constrained_intra_pred_flag");
  pps.transform_skip_enabled_flag = reader.flag("transform_skip_enabled_flag");
  pps.cu_qp_delta_enabled_flag = reader.flag("cu_qp_delta_enabled_flag");
  if (pps.cu_qp_delta_enabled_flag) pps.diff_cu_qp_delta_depth = reader.ue("diff_cu_qp_delta_depth", 3);
  pps.pps_cb_qp_offset = reader.se("pps_cb_qp_offset", -12, 12);
  pps.pps_cr_qp_offset = reader.se("pps_cr_qp_offset", -12, 12);
  pps.pps_slice_chroma_qp_offsets_present_flag = reader.flag("pps_slice_chroma_qp_offsets_present_flag");
}

void check_supported(const SequenceParameters& sps) {
  const int depth = std::max(sps.bit_depth_luma, sps.bit_depth_chroma);
  if (depth > 12)
    throw Unsupported("the stream has " + std::to_string(depth) + " bits a sample; flexor decodes 8 to 12");
  if (sps.separate_colour_plane_flag)
    throw Unsupported(
        "the stream codes its colour planes apart (separate_colour_plane_flag 1), which flexor does not "
        "decode; encode it as 4:4:4 with separate_colour_plane_flag 0");
}

void check_range(const char* name, int value, int min, int max) {
  if (value < min || value > max)
    throw StreamError(std::string(name) + " must be " + std::to_string(min) + " to " + std::to_string(max) +
                      " with this SPS, got " + std::to_string(value));
}

// Where the tiles begin and, last, where they end, in CTBs (equations 6-3 and 6-4).
std::vector<int> boundaries(const char* what, int count, int size, bool uniform, const std::vector<int>& minus1) {
  if (count > size)
    throw StreamError(std::to_string(count) + " tile " + what + "s do not fit a picture of " + std::to_string(size) +
                      " CTBs");
  std::vector<int> bounds{0};
  for (int i = 0; i + 1 < count; ++i) {
    const int next = uniform ? (i + 1) * size / count : bounds.back() + minus1[static_cast<size_t>(i)] + 1;
    if (next >= size) throw StreamError(std::string("the tile ") + what + "s are larger than the picture");
    bounds.push_back(next);
  }
  bounds.push_back(size);
  return bounds;
}

// Equations 6-7 to 6-9.
void order_ctbs(PictureParameters& pps, const SequenceParameters& sps) {
  const size_t count = static_cast<size_t>(sps.width_ctbs) * static_cast<size_t>(sps.height_ctbs);
  pps.ctb_addr_rs_to_ts.resize(count);
  pps.ctb_addr_ts_to_rs.resize(count);
  pps.tile_id.resize(count);
  int ts = 0, tile = 0;
  for (size_t row = 0; row + 1 < pps.row_boundaries.size(); ++row) {
    for (size_t column = 0; column + 1 < pps.column_boundaries.size(); ++column, ++tile) {
      for (int y = pps.row_boundaries[row]; y < pps.row_boundaries[row + 1]; ++y) {
        for (int x = pps.column_boundaries[column]; x < pps.column_boundaries[column + 1]; ++x, ++ts) {
          const int rs = y * sps.width_ctbs + x;
          pps.ctb_addr_rs_to_ts[static_cast<size_t>(rs)] = ts;
          pps.ctb_addr_ts_to_rs[static_cast<size_t>(ts)] = rs;
          pps.tile_id[static_cast<size_t>(ts)] = tile;
        }
      }
    }
  }
}

}  // namespace

std::shared_ptr<const PictureParameters> parse_picture_parameters(BitReader& reader) {
  auto out = std::make_shared<PictureParameters>();
  PictureParameters& pps = *out;
  pps.pps_pic_parameter_set_id = reader.ue("pps_pic_parameter_set_id", kMaxPps - 1);
  pps.pps_seq_parameter_set_id = reader.ue("pps_seq_parameter_set_id", kMaxSps - 1);
  pps.dependent_slice_segments_enabled_flag = reader.flag("dependent_slice_segments_enabled_flag");
  pps.output_flag_present_flag = reader.flag("output_flag_present_flag");
  pps.num_extra_slice_header_bits = static_cast<int>(reader.u("num_extra_slice_header_bits", 3));
  pps.sign_data_hiding_enabled_flag = reader.flag("sign_data_hiding_enabled_flag");
  pps.cabac_init_present_flag = reader.flag("cabac_init_present_flag");
  pps.num_ref_idx_l0_default_active_minus1 = reader.ue("num_ref_idx_l0_default_active_minus1", 14);
  pps.num_ref_idx_l1_default_active_minus1 = reader.ue("num_ref_idx_l1_default_active_minus1", 14);
  parse_quantization(reader, pps);
  pps.weighted_pred_flag = reader.flag("weighted_pred_flag");
  pps.weighted_bipred_flag = reader.flag("weighted_bipred_flag");
  pps.transquant_bypass_enabled_flag = reader.flag("transquant_bypass_enabled_flag");
  pps.tiles_enabled_flag = reader.flag("tiles_enabled_flag");
  pps.entropy_coding_sync_enabled_flag = reader.flag("entropy_coding_sync_enabled_flag");
  if (pps.tiles_enabled_flag) parse_tiles(reader, pps);
  pps.pps_loop_filter_across_slices_enabled_flag = reader.flag("pps_loop_filter_across_slices_enabled_flag");
  pps.deblocking_filter_control_present_flag = reader.flag("deblocking_filter_control_present_flag");
  if (pps.deblocking_filter_control_present_flag) parse_deblocking(reader, pps);
  pps.pps_scaling_list_data_present_flag = reader.flag("pps_scaling_list_data_present_flag");
  if (pps.pps_scaling_list_data_present_flag) parse_scaling_list(reader, pps.scaling_list);
  pps.lists_modification_present_flag = reader.flag("lists_modification_present_flag");
  pps.log2_parallel_merge_level_minus2 = reader.ue("log2_parallel_merge_level_minus2", 4);
  pps.slice_segment_header_extension_present_flag = reader.flag("slice_segment_header_extension_present_flag");
  if (reader.flag("pps_extension_present_flag")) parse_extensions(reader, pps);
  return out;
}

std::shared_ptr<const PictureParameters> activate(const PictureParameters& parsed, const SequenceParameters& sps) {
  check_supported(sps);
  auto out = std::make_shared<PictureParameters>(parsed);
  PictureParameters& pps = *out;
  const int cb_depth = sps.ctb_log2 - sps.min_cb_log2;
  check_range("init_qp_minus26", pps.init_qp_minus26, -26 - sps.qp_bd_offset_luma, 25);
  check_range("diff_cu_qp_delta_depth", pps.diff_cu_qp_delta_depth, 0, cb_depth);
  check_range("diff_cu_chroma_qp_offset_depth", pps.diff_cu_chroma_qp_offset_depth, 0, cb_depth);
  // Encoders write more than MaxTbLog2SizeY here, and offset scales beyond BitDepth - 10: harmless, and decoded by all.
  check_range("Log2MaxTransformSkipSize", pps.log2_max_transform_skip_size, 2, 5);
  if (sps.chroma_array_type != 3 && pps.cross_component_prediction_enabled_flag)
    throw StreamError("cross_component_prediction_enabled_flag is for 4:4:4 only");
  if (sps.chroma_array_type == 0 && pps.chroma_qp_offset_list_enabled_flag)
    throw StreamError("chroma_qp_offset_list_enabled_flag needs chroma");
  pps.min_cu_qp_delta_log2 = sps.ctb_log2 - pps.diff_cu_qp_delta_depth;
  pps.min_cu_chroma_qp_offset_log2 = sps.ctb_log2 - pps.diff_cu_chroma_qp_offset_depth;
  if (!pps.pps_scaling_list_data_present_flag) pps.scaling_list = sps.scaling_list;
  pps.column_boundaries = boundaries("column", pps.num_tile_columns_minus1 + 1, sps.width_ctbs,
                                     pps.uniform_spacing_flag, pps.column_width_minus1);
  pps.row_boundaries =
      boundaries("row", pps.num_tile_rows_minus1 + 1, sps.height_ctbs, pps.uniform_spacing_flag, pps.row_height_minus1);
  order_ctbs(pps, sps);
  return out;
}

}  // namespace flexor::hevc
