// SPDX-License-Identifier: Apache-2.0
// A picture while it is decoded: plain data that kernels of every instruction set may touch.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/cpu.h"
#include "hevc/contexts.h"
#include "hevc/loop_filter.h"
#include "hevc/transform.h"
#include "intra/intra_kernels.h"

namespace flexor::hevc {

struct Analysis;
struct CodingBlock;
struct TransformBlock;

// Table 8-10: QpC of the index qPi. Internal linkage: kernels of every instruction set have their own.
static inline int chroma_qp_of_index(int chroma_type, int index) {
  constexpr int kTable[14] = {29, 30, 31, 32, 33, 33, 34, 34, 35, 35, 36, 36, 37, 37};
  if (chroma_type != 1) return index < 51 ? index : 51;
  return index < 30 ? index : index > 43 ? index - 6 : kTable[index - 30];
}

struct SaoParameters {
  uint8_t type[3];  // 0 none, 1 band, 2 edge
  uint8_t band_or_class[3];
  int16_t offset[3][4];  // SaoOffsetVal[1..4]
};

// Of one slice segment: what its header, its PPS and its SPS say, as the slice data need it.
struct SliceTools {
  int slice_address;
  int slice_qp;
  int cb_qp_offset, cr_qp_offset;  // of the picture and the slice together
  bool sao_luma, sao_chroma;
  bool chroma_qp_offsets;  // cu_chroma_qp_offset_enabled_flag
  bool deblocking, across_slices;
  bool dependent;
  int beta_offset, tc_offset;  // in units of QP
};

// Of a picture.
struct PictureTools {
  int width, height;  // luma samples
  int width_ctbs, height_ctbs;
  int chroma;  // ChromaArrayType
  int sub_width_log2, sub_height_log2;
  int bit_depth[2];  // luma, chroma
  int qp_bd_offset[2];
  int ctb_log2, min_cb_log2, min_tb_log2, max_tb_log2, max_transform_depth;
  int min_qp_delta_log2, min_chroma_qp_offset_log2;
  int max_transform_skip_log2;
  int pcm_bit_depth[2], min_pcm_log2, max_pcm_log2;
  bool pcm, pcm_unfiltered;
  bool strong_smoothing, no_smoothing;
  bool transquant_bypass, transform_skip, sign_hiding, qp_delta;
  bool transform_skip_rotation, transform_skip_context, implicit_rdpcm, cross_component, persistent_rice;
  int nearest_variant, nearest_threshold;  // NearestExtension; the threshold for this bit depth
  bool no_edge_filters;                    // of it too
  bool bypass_alignment, extended_precision;
  int transform_range_log2[2];  // CoeffMinY is -2 to this power
  bool wavefront;
  bool across_tiles;
  int chroma_qp_offsets;  // entries in the lists
  int8_t cb_qp_offset_list[6], cr_qp_offset_list[6];
  int pps_cb_qp_offset, pps_cr_qp_offset;
  int sao_scale_log2[2];
  const uint8_t (*scaling)[6][1024];  // ScalingFactor, or null: flat
  const uint8_t* chroma_mode_422;     // table 8-3
};

// One unit of CTBs that is parsed in one go: a substream, or a slice segment where it has no entry points.
struct Substream {
  const uint8_t* data;
  const uint8_t* end;
  const SliceTools* slice;
  int owned_ts;           // tile-scan addresses: grey from here
  int first_ts, last_ts;  // to here, decoded; last_ts is exclusive
  bool begins_segment;    // its first CTB is the segment's first
  bool ends_segment;      // end_of_slice_segment_flag is expected within
  bool damaged;
  ContextState exit_contexts;  // for a dependent slice segment after it
  int exit_qp;
};

struct PictureState {
  PictureTools tools;
  IntraKernels intra;
  TransformKernels transform;
  LoopFilterKernels loop_filter;

  uint16_t* samples[3];
  ptrdiff_t stride[3];

  // Maps of the picture.
  int units_stride;           // 4x4 units in a row of whole CTBs
  uint8_t* luma_mode;         // per 4x4 unit: IntraPredModeY
  uint8_t* nearest;           // per 4x4 unit: NearestChoice; with explicit nearest only
  uint8_t* depth;             // per minimum coding block: CtDepth
  int8_t* qp;                 // per minimum coding block: QpY
  uint8_t* unfiltered;        // per minimum coding block: lossless, or PCM that is not to be filtered
  int blocks_stride;          // minimum coding blocks in a row of whole CTBs
  uint8_t* vertical_edges;    // per 4 rows and 8 columns, unit (y >> 2) * units_stride + (x >> 3): left edge filtered
  uint8_t* horizontal_edges;  // per 8 rows and 4 columns, unit (y >> 3) * units_stride + (x >> 2): top edge filtered

  // Per CTB, raster scan.
  const SliceTools** slice;  // null: not covered by any slice
  SaoParameters* sao;
  const int* rs_to_ts;
  const int* ts_to_rs;
  const int* tile_id;     // by tile-scan address
  const int* tile_left;   // first CTB column of the CTB's tile, by raster address
  const int* tile_right;  // one past its last column
  const int* tile_top;
  ContextState* row_contexts;  // after the second CTB of a row of a tile, by raster address of the row's first CTB
  const uint8_t* z_order;      // 16 x 16: z-scan number of a 4x4 unit in its CTB

  // Progress, for the threads that wait: CTBs done in a row of a tile, by raster address of the row's first CTB.
  void (*publish)(PictureState&, int row_rs, int count);
  void (*wait)(PictureState&, int row_rs, int count);
  void (*wait_substream)(PictureState&, int substream);
  void* progress;

  Substream* substreams;

  Analysis* analysis;  // may be null
  void (*on_coding_block)(Analysis&, const CodingBlock&);
  void (*on_transform_block)(Analysis&, const TransformBlock&);
  void (*on_bits)(Analysis&, int group, double bits);
};

struct SliceKernels {
  // Decodes substream `index`. Whatever it owns and could not decode is grey.
  void (*decode)(PictureState&, int index);
};

}  // namespace flexor::hevc

namespace flexor {
FLEXOR_DECLARE_KERNELS(hevc::SliceKernels, slice_kernels)
}
