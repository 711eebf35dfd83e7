// SPDX-License-Identifier: Apache-2.0
// blocks.h for code that runs on a GPU: the same keys, bits, hash and order. It includes nothing, so that NVRTC can
// compile it without a toolkit.
#pragma once

namespace flexor {

using i32 = int;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

constexpr int kAxes = 4;
constexpr int kBlockVoxels = 64;
constexpr i64 kNoKey = -1;
constexpr u32 kNoBlock = 0xFFFFFFFFu;

// As VoxelFrame of sparse_index.h.
struct Frame {
  i64 first[kAxes], bits[kAxes], batches, unused[3];
};

// Parameters of a launch, by value: VoxelRelation, and bounds that both belong to the range.
struct Relation {
  i64 kernel[kAxes], stride[kAxes], padding[kAxes], dilation[kAxes], transposed;
};
struct Range {
  i64 first[kAxes], last[kAxes];
};

__device__ inline i64 floor_div(i64 a, i64 b) { return a / b - (a % b < 0); }  // b > 0

// log2 of a block's extent along an axis, of a set with so many axes.
__device__ inline int block_shift(int dims, int axis) {
  return dims == 3 ? (axis ? 2 : 0) : dims == 4 ? 1 + axis / 2 : dims == 2 ? (axis < 2 ? 0 : 3) : axis == 3 ? 6 : 0;
}

struct Blocks {
  Frame frame;
  int shift[kAxes];

  __device__ Blocks(int dims, const Frame* f) : frame(*f) {
    for (int a = 0; a < kAxes; ++a) shift[a] = block_shift(dims, a);
  }

  __device__ int bit_of(const i64* at) const {
    int bit = 0;
    for (int a = 0; a < kAxes; ++a) bit = (bit << shift[a]) | static_cast<int>(at[a] & ((i64{1} << shift[a]) - 1));
    return bit;
  }

  // The voxel with this bit of the block with this key; gives the batch.
  __device__ i64 voxel_of(i64 key, int bit, i64* at) const {
    for (int a = kAxes - 1; a >= 0; --a) {
      const i64 block = (key & ((i64{1} << frame.bits[a]) - 1)) + frame.first[a];
      at[a] = block * (i64{1} << shift[a]) + (bit & ((1 << shift[a]) - 1));
      key >>= frame.bits[a];
      bit >>= shift[a];
    }
    return key;
  }

  // Of the block at these block coordinates; kNoKey where the frame ends before it.
  __device__ i64 key_of(i64 batch, const i64* block) const {
    i64 key = batch;
    for (int a = 0; a < kAxes; ++a) {
      const i64 field = block[a] - frame.first[a];
      if (field < 0 || field >> frame.bits[a] != 0) return kNoKey;
      key = (key << frame.bits[a]) | field;
    }
    return key;
  }

  __device__ i64 key_at(i64 batch, const i64* at) const {
    i64 block[kAxes];
    for (int a = 0; a < kAxes; ++a) block[a] = at[a] >> shift[a];
    return key_of(batch, block);
  }

  // Bits of the fields interleaved, the last axis lowest, fields that have ended left out; the batch on top.
  __device__ u64 morton(i64 key) const {
    u64 field[kAxes];
    for (int a = kAxes - 1; a >= 0; --a) {
      field[a] = static_cast<u64>(key) & ((u64{1} << frame.bits[a]) - 1);
      key >>= frame.bits[a];
    }
    u64 code = 0;
    int to = 0;
#pragma unroll 1
    for (int level = 0; level < 63; ++level)
      for (int a = kAxes - 1; a >= 0; --a)
        if (level < frame.bits[a]) code |= ((field[a] >> level) & 1) << to++;
    return to < 64 ? code | static_cast<u64>(key) << to : code;
  }
};

__device__ inline u64 hash_of(i64 key) { return static_cast<u64>(key) * 0x9E3779B97F4A7C15u >> 32; }
__device__ inline u32 bits_below(u64 mask, int bit) { return static_cast<u32>(__popcll(mask & ((u64{1} << bit) - 1))); }

// The slot of a key in a growing set of blocks, made if it is not there. The set has room.
__device__ inline u64 claim_slot(i64* keys, i64 n_slots, i64 key) {
  const u64 last = static_cast<u64>(n_slots - 1);
  for (u64 s = hash_of(key);; ++s) {
    i64* slot = keys + (s & last);
    i64 found = *static_cast<volatile i64*>(slot);
    if (found == kNoKey)
      found =
          static_cast<i64>(atomicCAS(reinterpret_cast<u64*>(slot), static_cast<u64>(kNoKey), static_cast<u64>(key)));
    if (found == kNoKey || found == key) return s & last;
  }
}

// Puts a block into the slots that find_block reads. Whatever the order of threads, they end as if blocks had come one
// after another: a block gives way to an earlier one and looks on from there.
__device__ inline void place_block(u32* slots, i64 n_slots, i64 key, u32 block) {
  const u64 last = static_cast<u64>(n_slots - 1);
  for (u64 s = hash_of(key); block != kNoBlock; ++s) {
    const u32 found = atomicMin(slots + (s & last), block);
    if (found > block) block = found;
  }
}

// A finished index.
struct Index {
  const i64* keys;
  const u64* masks;
  const i32* bases;
  const u32* slots;
  i64 n_slots;

  __device__ u32 find_block(i64 key) const {
    const u64 last = static_cast<u64>(n_slots - 1);
    for (u64 s = hash_of(key);; ++s) {
      const u32 block = slots[s & last];
      if (block == kNoBlock || keys[block] == key) return block;
    }
  }
};

}  // namespace flexor
