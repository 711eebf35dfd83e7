// SPDX-License-Identifier: Apache-2.0
// Video parameter sets, and profile, tier and level (H.265 clauses 7.3.2.1 and 7.3.3).
#include "hevc/parameter_sets.h"

namespace flexor::hevc {
namespace {

constexpr uint32_t kAnyUe = UINT32_MAX - 1;

// 43 bits whose meaning hangs on the profile.
void parse_profile_constraints(BitReader& reader, const ProfileTierLevel& ptl) {
  const auto is_profile = [&ptl](int first, int last) {
    for (int idc = first; idc <= last; ++idc)
      if (ptl.general_profile_idc == idc || (ptl.general_profile_compatibility_flags >> (31 - idc)) & 1) return true;
    return false;
  };
  if (is_profile(4, 11)) {
    for (const char* name :
         {"general_max_12bit_constraint_flag", "general_max_10bit_constraint_flag", "general_max_8bit_constraint_flag",
          "general_max_422chroma_constraint_flag", "general_max_420chroma_constraint_flag",
          "general_max_monochrome_constraint_flag", "general_intra_constraint_flag",
          "general_one_picture_only_constraint_flag", "general_lower_bit_rate_constraint_flag"})
      reader.flag(name);
    reader.skip(34);
  } else if (is_profile(2, 2)) {
    reader.skip(7);
    reader.flag("general_one_picture_only_constraint_flag");
    reader.skip(35);
  } else {
    reader.skip(43);
  }
}

void parse_timing(BitReader& reader, int layer_sets, int max_sub_layers_minus1) {
  reader.u("vps_num_units_in_tick", 32);
  reader.u("vps_time_scale", 32);
  if (reader.flag("vps_poc_proportional_to_timing_flag")) reader.ue("vps_num_ticks_poc_diff_one_minus1", kAnyUe);
  const int count = reader.ue("vps_num_hrd_parameters", layer_sets);
  for (int i = 0; i < count; ++i) {
    reader.ue("hrd_layer_set_idx", layer_sets - 1);
    const bool common = i == 0 || reader.flag("cprms_present_flag");
    parse_hypothetical_decoder(reader, common, max_sub_layers_minus1);
  }
}

int parse_layer_sets(BitReader& reader) {
  const int max_layer_id = static_cast<int>(reader.u("vps_max_layer_id", 6));
  const int sets = reader.ue("vps_num_layer_sets_minus1", 1023);
  for (int i = 1; i <= sets; ++i)
    for (int j = 0; j <= max_layer_id; ++j) reader.flag("layer_id_included_flag");
  return sets + 1;
}

}  // namespace

ProfileTierLevel parse_profile_tier_level(BitReader& reader, int max_sub_layers_minus1) {
  ProfileTierLevel ptl;
  ptl.general_profile_space = static_cast<int>(reader.u("general_profile_space", 2));
  ptl.general_tier_flag = reader.flag("general_tier_flag");
  ptl.general_profile_idc = static_cast<int>(reader.u("general_profile_idc", 5));
  ptl.general_profile_compatibility_flags = reader.u("general_profile_compatibility_flags", 32);
  reader.flag("general_progressive_source_flag");
  reader.flag("general_interlaced_source_flag");
  reader.flag("general_non_packed_constraint_flag");
  reader.flag("general_frame_only_constraint_flag");
  parse_profile_constraints(reader, ptl);
  reader.skip(1);  // general_inbld_flag or reserved
  ptl.general_level_idc = static_cast<int>(reader.u("general_level_idc", 8));

  bool profile_present[kMaxSubLayers] = {}, level_present[kMaxSubLayers] = {};
  for (int i = 0; i < max_sub_layers_minus1; ++i) {
    profile_present[i] = reader.flag("sub_layer_profile_present_flag");
    level_present[i] = reader.flag("sub_layer_level_present_flag");
  }
  if (max_sub_layers_minus1 > 0) reader.skip(static_cast<size_t>(8 - max_sub_layers_minus1) * 2);
  for (int i = 0; i < max_sub_layers_minus1; ++i) {
    if (profile_present[i]) {
      reader.u("sub_layer_profile_space", 2);
      reader.flag("sub_layer_tier_flag");
      reader.u("sub_layer_profile_idc", 5);
      reader.u("sub_layer_profile_compatibility_flags", 32);
      reader.skip(48);
    }
    if (level_present[i]) reader.u("sub_layer_level_idc", 8);
  }
  return ptl;
}

void parse_video_parameters(BitReader& reader) {
  reader.u("vps_video_parameter_set_id", 4);
  reader.flag("vps_base_layer_internal_flag");
  reader.flag("vps_base_layer_available_flag");
  reader.u("vps_max_layers_minus1", 6);
  const int max_sub_layers_minus1 = static_cast<int>(reader.u("vps_max_sub_layers_minus1", 3));
  if (max_sub_layers_minus1 >= kMaxSubLayers) throw StreamError("vps_max_sub_layers_minus1 must be 0 to 6, got 7");
  reader.flag("vps_temporal_id_nesting_flag");
  reader.u("vps_reserved_0xffff_16bits", 16);
  parse_profile_tier_level(reader, max_sub_layers_minus1);
  const bool each = reader.flag("vps_sub_layer_ordering_info_present_flag");
  for (int i = each ? 0 : max_sub_layers_minus1; i <= max_sub_layers_minus1; ++i) {
    reader.ue("vps_max_dec_pic_buffering_minus1", kAnyUe);
    reader.ue("vps_max_num_reorder_pics", kAnyUe);
    reader.ue("vps_max_latency_increase_plus1", kAnyUe);
  }
  const int layer_sets = parse_layer_sets(reader);
  if (reader.flag("vps_timing_info_present_flag")) parse_timing(reader, layer_sets, max_sub_layers_minus1);
  reader.flag("vps_extension_flag");
}

}  // namespace flexor::hevc
