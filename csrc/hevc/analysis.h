// SPDX-License-Identifier: Apache-2.0
// What `flexor hevc info` wants to know of a picture beyond its samples.
#pragma once
#include <cstdint>
#include <vector>

namespace flexor::hevc {

// Groups of syntax elements whose bits are counted (information content: minus log2 of each bin's probability).
enum SyntaxGroup : int {
  kBitsSao,
  kBitsQuadtree,  // split_cu_flag, part_mode, split_transform_flag, cu_transquant_bypass_flag
  kBitsLumaMode,
  kBitsChromaMode,
  kBitsCodedFlags,  // cbf_luma, cbf_cb, cbf_cr
  kBitsQp,          // cu_qp_delta, cu_chroma_qp_offset
  kBitsLastPosition,
  kBitsSignificance,  // coded_sub_block_flag, sig_coeff_flag
  kBitsLevels,        // greater1, greater2, remaining
  kBitsSigns,
  kBitsTransformSkip,  // transform_skip_flag, cross_comp_pred()
  kBitsPcm,
  kBitsEnd,  // end_of_slice_segment_flag and the like
  kSyntaxGroups
};

enum BlockFlags : int {
  kBlockNxN = 1,
  kBlockBypass = 2,
  kBlockPcm = 4,
  kBlockNearest = 8,  // of the first prediction block; the next three bits: of the others
};

enum TransformFlags : int {
  kTransformCoded = 1,
  kTransformSkipped = 2,
  kTransformRdpcm = 4,
  kTransformCrossComponent = 8,
  kTransformRotated = 16,
  kTransformSignHidden = 32,
};

struct CodingBlock {
  int16_t x, y;
  uint8_t log2_size, flags;
  int8_t qp;
  uint8_t chroma_mode;
  uint8_t luma_modes[4];  // one, or four of NxN
};

struct TransformBlock {
  int16_t x, y;  // in samples of its component
  uint8_t log2_size, component, flags;
};

struct Analysis {
  double bits[kSyntaxGroups] = {};
  std::vector<CodingBlock> coding_blocks;
  std::vector<TransformBlock> transform_blocks;
  std::vector<uint8_t> sao_types;  // per CTB: three components, 0 none, 1 band, 2 edge
};

}  // namespace flexor::hevc
