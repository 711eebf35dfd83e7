// SPDX-License-Identifier: Apache-2.0
// The context variables of an I slice and their initial values (H.265 tables 9-5 to 9-37, initType 0).
#pragma once
#include <cstdint>

namespace flexor::hevc {

// Where each syntax element's contexts begin.
enum Context : int {
  kSaoMerge = 0,
  kSaoType = kSaoMerge + 1,
  kSplitCu = kSaoType + 1,
  kTransquantBypass = kSplitCu + 3,
  kPartMode = kTransquantBypass + 1,
  kPrevIntraLuma = kPartMode + 1,
  kIntraChroma = kPrevIntraLuma + 1,
  kSplitTransform = kIntraChroma + 1,
  kCbfLuma = kSplitTransform + 3,
  kCbfChroma = kCbfLuma + 2,
  kLastX = kCbfChroma + 5,
  kLastY = kLastX + 18,
  kCodedSubBlock = kLastY + 18,
  kSignificant = kCodedSubBlock + 4,  // 27 luma, 15 chroma, then one each with transform_skip_context
  kGreater1 = kSignificant + 44,      // 16 luma, 8 chroma
  kGreater2 = kGreater1 + 24,         // 4 luma, 2 chroma
  kTransformSkip = kGreater2 + 6,     // luma, chroma
  kCuQpDelta = kTransformSkip + 2,
  kChromaQpOffsetFlag = kCuQpDelta + 2,
  kChromaQpOffsetIdx = kChromaQpOffsetFlag + 1,
  kResScaleAbs = kChromaQpOffsetIdx + 1,  // 4 for Cb, 4 for Cr
  kResScaleSign = kResScaleAbs + 8,
  kNearestFlag = kResScaleSign + 2,  // of the nearest-neighbour extension
  kContexts = kNearestFlag + 3
};

constexpr uint8_t kContextInit[kContexts] = {
    153,                                                                                      // sao_merge_*_flag
    200,                                                                                      // sao_type_idx_*
    139, 141, 157,                                                                            // split_cu_flag
    154,                                                                                      // transquant bypass
    184,                                                                                      // part_mode
    184,                                                                                      // prev_intra_luma_*
    63,                                                                                       // intra_chroma_*
    153, 138, 138,                                                                            // split_transform_flag
    111, 141,                                                                                 // cbf_luma
    94,  138, 182, 154, 154,                                                                  // cbf_cb, cbf_cr
    110, 110, 124, 125, 140, 153, 125, 127, 140, 109, 111, 143, 127, 111, 79,  108, 123, 63,  // last x
    110, 110, 124, 125, 140, 153, 125, 127, 140, 109, 111, 143, 127, 111, 79,  108, 123, 63,  // last y
    91,  171, 134, 141,                                                                       // coded_sub_block_flag
    111, 111, 125, 110, 110, 94,  124, 108, 124, 107, 125, 141, 179, 153, 125,                // sig_coeff_flag, luma
    107, 125, 141, 179, 153, 125, 107, 125, 141, 179, 153, 125,                               //
    140, 139, 182, 182, 152, 136, 152, 136, 153, 136, 139, 111, 136, 139, 111,                // chroma
    141, 111,                                                                                 // without transform
    140, 92,  137, 138, 140, 152, 138, 139, 153, 74,  149, 92,  139, 107, 122, 152,           // greater1, luma
    140, 179, 166, 182, 140, 227, 122, 197,                                                   // chroma
    138, 153, 136, 167, 152, 152,                                                             // greater2
    139, 139,                                                                                 // transform_skip_flag
    154, 154,                                                                                 // cu_qp_delta_abs
    154, 154,                                                                                 // cu_chroma_qp_offset_*
    154, 154, 154, 154, 154, 154, 154, 154, 154, 154,                                         // cross_comp_pred()
    152, 154, 156};                                                                           // intra_nearest_flag

// What synchronisation and dependent slice segments carry over (clause 9.3.2.4).
struct ContextState {
  uint8_t model[kContexts];   // (pStateIdx << 1) | valMps
  uint8_t rice_statistic[4];  // StatCoeff
};

static inline void initialise_contexts(ContextState& state, int slice_qp) {
  const int qp = slice_qp < 0 ? 0 : slice_qp > 51 ? 51 : slice_qp;
  for (int i = 0; i < kContexts; ++i) {
    const int slope = (kContextInit[i] >> 4) * 5 - 45;
    const int offset = ((kContextInit[i] & 15) << 3) - 16;
    int value = ((slope * qp) >> 4) + offset;
    value = value < 1 ? 1 : value > 126 ? 126 : value;
    state.model[i] = static_cast<uint8_t>(value < 64 ? (63 - value) << 1 : ((value - 64) << 1) | 1);
  }
  for (uint8_t& statistic : state.rice_statistic) statistic = 0;
}

}  // namespace flexor::hevc
