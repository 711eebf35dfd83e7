// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "core/cpu.h"
#include "core/tensor.h"

namespace flexor {

// Where voxels lie: 64-voxel blocks with occupancy bits, sorted along a Morton curve and found through a hash.
// A voxel's rank is its row in that order: bases[block] + popcount(masks[block] below its bit).
//
// Coordinates have four axes here, those that a set lacks being 0 and in front. A block's key packs the batch and
// the block's coordinates, counted from the frame's first block, into fields of frame.bits[].
struct VoxelFrame {
  int64_t first[4];  // block coordinates that key fields count from
  int64_t bits[4];   // of the fields
  int64_t batches;   // 1 + the largest batch number
  int64_t unused[3];
};

// At most this many bits in a key.
constexpr int kKeyBits = 63;

struct IndexView {
  int dims;              // spatial axes, 1 to 4
  int64_t rows;          // voxels
  int64_t blocks;        // M
  int64_t n_slots;       // a power of two
  const int64_t* keys;   // [M], packed
  const int64_t* masks;  // [M]
  const int32_t* bases;  // [M + 1]
  const int32_t* slots;  // [n_slots], block or -1
  VoxelFrame frame;
};

// Arrays are owned by whoever receives this, from core/parallel.h's allocate.
struct IndexResult {
  enum Status : int32_t { ok, duplicate, out_of_range, too_wide, negative_batch };
  Status status = ok;
  int64_t row = 0, other_row = 0;  // of the first trouble
  int64_t rows = 0, blocks = 0, n_slots = 0;
  int32_t* order = nullptr;
  int64_t* keys = nullptr;
  int64_t* masks = nullptr;
  int32_t* bases = nullptr;
  int32_t* slots = nullptr;
  VoxelFrame frame{};
  void* indices = nullptr;  // [rows, 1 + dims] of int32 or int64, for an index that was made
};

struct VoxelBounds {
  bool given;
  int64_t lower[4], upper[4];  // upper exclusive; of four axes
};

struct IndexParams {
  TensorView indices;  // [N, 1 + D] int32 or int64
  int64_t batches;     // negative: measured
  VoxelBounds bounds;
};

// in = out * stride - padding + tap * dilation, or with transposed the roles of in and out exchanged; four axes.
struct VoxelRelation {
  int64_t kernel[4], stride[4], padding[4], dilation[4];
  bool transposed;
};

struct OutputIndexParams {
  IndexView input;
  VoxelRelation relation;
  VoxelBounds bounds;  // of the output
  bool wide;           // int64 coordinates
};

struct MapParams {
  IndexView output, input;
  VoxelRelation relation;
};

constexpr int kTileRows = 256;  // output rows whose pairs are listed together

struct MapResult {
  int64_t pairs = 0;
  int32_t* in_rows = nullptr;  // [pairs], ranks
  uint8_t* places = nullptr;   // [pairs], output rank within its tile
  int64_t* offsets = nullptr;  // [tiles * taps + 1]
};

struct SparseIndexKernels {
  void (*index)(const IndexParams&, IndexResult&);
  void (*output_index)(const OutputIndexParams&, IndexResult&);
  void (*map)(const MapParams&, MapResult&);
};

FLEXOR_DECLARE_KERNELS(SparseIndexKernels, sparse_index_kernels)

}  // namespace flexor
