// SPDX-License-Identifier: Apache-2.0
// A picture while it is encoded: the decoder's state of what is reconstructed, and the decisions that will be written.
#pragma once
#include "hevc/picture_state.h"

namespace flexor::hevc {

// What is known of a 4x4 luma unit's transform block.
enum UnitFlags : uint16_t {
  kUnitLog2 = 7,       // log2 of the luma transform block's size
  kUnitCbf = 1 << 3,   // luma; Cb one to the left, Cr two; the second blocks of 4:2:2 three and four
  kUnitSkip = 1 << 8,  // transform_skip_flag, in the same order
};

constexpr int cbf_bit(int component, int second) { return kUnitCbf << (component + (second != 0 ? 2 : 0)); }
constexpr int skip_bit(int component, int second) { return kUnitSkip << (component + (second != 0 ? 2 : 0)); }

struct ByteSink {
  uint8_t* data;
  size_t size, capacity;
  void (*reserve)(ByteSink&, size_t more);
  void* owner;
};

// How hard to try.
struct SearchEffort {
  int candidates_small, candidates_large;  // luma modes of a full cost: 4x4 and 8x8 blocks, larger ones
  int split_candidates;                    // of these, tried with divided transform blocks
  int transform_depth;                     // how often a transform block may be divided
  int chroma_candidates;                   // 1: as luma; 5: all
  bool coarse_modes;                       // not all directions are tried
  bool nxn, largest_block;                 // four 4x4 predictions; 64x64 blocks
  bool rate_distortion_levels;             // RDOQ
  double early_split;                      // undivided blocks cheaper than this many lambda a sample are not divided
};

struct EncoderState {
  PictureState picture;  // reconstruction, modes, edges, SAO
  SliceTools slice;
  SearchEffort effort;
  double lambda;            // of a luma SSE a bit
  double chroma_weight[3];  // of a component's SSE
  bool lossless;
  const uint16_t* original[3];
  ptrdiff_t original_stride[3];

  uint16_t* units;         // per 4x4 luma unit: UnitFlags
  uint8_t* chroma_coded;   // per 4x4 luma unit: intra_chroma_pred_mode
  uint8_t* nxn;            // per minimum coding block
  int16_t* levels[3];      // as the planes of samples
  int8_t* scales[2];       // per 4x4 luma unit: of cross-component prediction, Cb and Cr
  int16_t* luma_residual;  // as the plane of luma, where cross-component prediction is used
  const int32_t* entropy;  // [model ^ bin]: cost of a bin in 1 / 32768 bit
  ContextState* row_contexts;
};

struct EncoderKernels {
  void (*search_row)(EncoderState&, int ctb_row);  // decides and reconstructs a row of CTBs
  // Writes rows as one substream; with wavefronts, that of one row.
  void (*write_rows)(EncoderState&, int first_row, int rows, ByteSink&);
};

}  // namespace flexor::hevc

namespace flexor {
FLEXOR_DECLARE_KERNELS(hevc::EncoderKernels, encoder_kernels)
}
