// SPDX-License-Identifier: Apache-2.0
// Indices and maps of sparse convolution on a GPU: what needs atomics or a hash. Sorting and sums between these kernels
// are PyTorch's (pycore/flexor/_cuda/sparse_index.py). Results are those of sparse_index_cpu.cpp, bit by bit.
#include "sparse3d/voxel_blocks.cuh"

namespace flexor {

__device__ inline i64 global_thread() { return static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; }

// One thread a voxel: collects the blocks and their occupancy, and keeps where each voxel went.
template <class I>
__device__ void voxel_blocks(const I* indices, i64 rows, i32 dims, const Frame* frame, i64* set_keys, u64* set_masks,
                             i64 n_slots, u32* slot_of, unsigned char* bit_of) {
  const i64 i = global_thread();
  if (i >= rows) return;
  const Blocks blocks(dims, frame);
  const I* voxel = indices + i * (1 + dims);
  i64 at[kAxes];
  for (int a = 0; a < kAxes; ++a) at[a] = a < kAxes - dims ? 0 : voxel[1 + a - kAxes + dims];
  const u64 slot = claim_slot(set_keys, n_slots, blocks.key_at(voxel[0], at));
  const int bit = blocks.bit_of(at);
  atomicOr(set_masks + slot, u64{1} << bit);
  slot_of[i] = static_cast<u32>(slot);
  bit_of[i] = static_cast<unsigned char>(bit);
}

// Where an output or an input lies, given the other; false where there is none.
__device__ inline bool relate(const Relation& r, bool multiply, const i64* from, const i64* tap, i64* to) {
  for (int a = 0; a < kAxes; ++a) {
    const i64 reach = tap[a] * r.dilation[a] - r.padding[a];
    if (multiply) {
      to[a] = from[a] * r.stride[a] + reach;
      continue;
    }
    to[a] = floor_div(from[a] - reach, r.stride[a]);
    if (to[a] * r.stride[a] + reach != from[a]) return false;
  }
  return true;
}

// The next tap, row-major.
__device__ inline void advance(const Relation& r, i64* tap) {
  for (int a = kAxes - 1; a >= 0; --a) {
    if (++tap[a] < r.kernel[a]) return;
    tap[a] = 0;
  }
}

template <class I>
__device__ void write_voxels(const i64* keys, const u64* masks, const i32* bases, const Frame* frame, i32 dims,
                             I* indices) {
  const u64 mask = masks[blockIdx.x];
  const int bit = static_cast<int>(threadIdx.x);
  if ((mask >> bit & 1) == 0) return;
  const Blocks blocks(dims, frame);
  i64 at[kAxes];
  const i64 batch = blocks.voxel_of(keys[blockIdx.x], bit, at);
  I* voxel = indices + (bases[blockIdx.x] + static_cast<i64>(bits_below(mask, bit))) * (1 + dims);
  voxel[0] = static_cast<I>(batch);
  for (int a = 0; a < kAxes; ++a)
    if (a >= kAxes - dims) voxel[1 + a - kAxes + dims] = static_cast<I>(at[a]);
}

// Blocks of inputs around one block of outputs, looked up once for all its voxels where they are few.
constexpr int kMostAround = 256;

struct Around {
  i64 first[kAxes], count[kAxes], total;

  __device__ Around(const Relation& r, bool multiply, const Blocks& blocks, const i64* corner) {
    total = 1;
    for (int a = 0; a < kAxes; ++a) {
      const i64 end = corner[a] + (i64{1} << blocks.shift[a]) - 1, reach = (r.kernel[a] - 1) * r.dilation[a];
      const i64 low =
          multiply ? corner[a] * r.stride[a] - r.padding[a] : floor_div(corner[a] + r.padding[a] - reach, r.stride[a]);
      const i64 high = multiply ? end * r.stride[a] - r.padding[a] + reach : floor_div(end + r.padding[a], r.stride[a]);
      first[a] = low >> blocks.shift[a];
      count[a] = (high >> blocks.shift[a]) - first[a] + 1;
      total = total > kMostAround || count[a] > kMostAround ? kMostAround + 1 : total * count[a];
    }
  }

  __device__ bool few() const { return total <= kMostAround; }

  __device__ void block_at(i64 place, i64* block) const {
    for (int a = kAxes - 1; a >= 0; --a) {
      block[a] = first[a] + place % count[a];
      place /= count[a];
    }
  }

  __device__ i64 place_of(const Blocks& blocks, const i64* at) const {
    i64 place = 0;
    for (int a = 0; a < kAxes; ++a) place = place * count[a] + (at[a] >> blocks.shift[a]) - first[a];
    return place;
  }
};

}  // namespace flexor

using namespace flexor;  // kernels keep plain names, by which they are found

extern "C" {

__global__ void sparse_voxel_blocks_i32(const i32* indices, i64 rows, i32 dims, const Frame* frame, i64* set_keys,
                                        u64* set_masks, i64 n_slots, u32* slot_of, unsigned char* bit_of) {
  voxel_blocks(indices, rows, dims, frame, set_keys, set_masks, n_slots, slot_of, bit_of);
}

__global__ void sparse_voxel_blocks_i64(const i64* indices, i64 rows, i32 dims, const Frame* frame, i64* set_keys,
                                        u64* set_masks, i64 n_slots, u32* slot_of, unsigned char* bit_of) {
  voxel_blocks(indices, rows, dims, frame, set_keys, set_masks, n_slots, slot_of, bit_of);
}

// One thread a block: where it comes on the curve.
__global__ void sparse_block_codes(const i64* keys, i64 count, i32 dims, const Frame* frame, u64* codes) {
  const i64 i = global_thread();
  if (i < count) codes[i] = Blocks(dims, frame).morton(keys[i]);
}

// One thread a block, in their order: its key, mask and size out of the set, and its place in the hash. The set is left
// with the block's number in place of its key.
__global__ void sparse_collect_blocks(const i64* slot_of_block, i64 count, i64* set_keys, const u64* set_masks,
                                      i64* keys, u64* masks, i32* sizes, u32* slots, i64 n_slots) {
  const i64 block = global_thread();
  if (block >= count) return;
  const i64 from = slot_of_block[block];
  const i64 key = set_keys[from];
  keys[block] = key;
  masks[block] = set_masks[from];
  sizes[block] = __popcll(set_masks[from]);
  set_keys[from] = block;
  place_block(slots, n_slots, key, static_cast<u32>(block));
}

// One thread a voxel: its rank, given what the two kernels above have left.
__global__ void sparse_voxel_ranks(const u32* slot_of, const unsigned char* bit_of, i64 rows, const i64* block_of_slot,
                                   const u64* masks, const i32* bases, i32* order) {
  const i64 i = global_thread();
  if (i >= rows) return;
  const i64 block = block_of_slot[slot_of[i]];
  order[bases[block] + static_cast<i64>(bits_below(masks[block], bit_of[i]))] = static_cast<i32>(i);
}

// One CUDA block a block of inputs, one thread a voxel: collects the blocks of every output that an input reaches.
__global__ void sparse_reached_blocks(const i64* keys, const u64* masks, const Frame* frame, i32 dims,
                                      Relation relation, Range range, const Frame* out_frame, i64* set_keys,
                                      u64* set_masks, i64 n_slots) {
  const int bit = static_cast<int>(threadIdx.x);
  if ((masks[blockIdx.x] >> bit & 1) == 0) return;
  const Blocks out_blocks(dims, out_frame);
  i64 at[kAxes], tap[kAxes] = {}, to[kAxes];
  const i64 batch = Blocks(dims, frame).voxel_of(keys[blockIdx.x], bit, at);
  i64 last_key = kNoKey;
  u64 slot = 0;
  for (i64 k = relation.kernel[0] * relation.kernel[1] * relation.kernel[2] * relation.kernel[3]; k > 0; --k) {
    bool there = relate(relation, relation.transposed != 0, at, tap, to);
    for (int a = 0; a < kAxes; ++a) there = there && to[a] >= range.first[a] && to[a] <= range.last[a];
    advance(relation, tap);
    if (!there) continue;
    const i64 key = out_blocks.key_at(batch, to);
    if (key != last_key) slot = claim_slot(set_keys, n_slots, key), last_key = key;
    atomicOr(set_masks + slot, u64{1} << out_blocks.bit_of(to));
  }
}

// One CUDA block a block, one thread a voxel: its coordinates.
__global__ void sparse_write_voxels_i32(const i64* keys, const u64* masks, const i32* bases, const Frame* frame,
                                        i32 dims, i32* indices) {
  write_voxels(keys, masks, bases, frame, dims, indices);
}

__global__ void sparse_write_voxels_i64(const i64* keys, const u64* masks, const i32* bases, const Frame* frame,
                                        i32 dims, i64* indices) {
  write_voxels(keys, masks, bases, frame, dims, indices);
}

// One CUDA block a block of outputs, one thread a voxel: the input row behind each of its taps.
__global__ void sparse_neighbours(const i64* out_keys, const u64* out_masks, const i32* out_bases, const i32* out_order,
                                  const Frame* out_frame, Index input, const i32* in_order, const Frame* in_frame,
                                  i32 dims, Relation relation, i32 taps, i32* neighbours, u32* row_masks) {
  __shared__ u32 around[kMostAround];
  const Blocks out_blocks(dims, out_frame), in_blocks(dims, in_frame);
  const bool multiply = relation.transposed == 0;
  const i64 out_key = out_keys[blockIdx.x];
  i64 at[kAxes], to[kAxes], tap[kAxes] = {};
  const i64 batch = out_blocks.voxel_of(out_key, 0, at);
  const Around near(relation, multiply, out_blocks, at);
  for (i64 place = threadIdx.x; near.few() && place < near.total; place += blockDim.x) {
    near.block_at(place, to);
    const i64 key = in_blocks.key_of(batch, to);
    around[place] = key == kNoKey ? kNoBlock : input.find_block(key);
  }
  __syncthreads();

  const u64 out_mask = out_masks[blockIdx.x];
  const int bit = static_cast<int>(threadIdx.x);
  if ((out_mask >> bit & 1) == 0) return;
  out_blocks.voxel_of(out_key, bit, at);
  const i64 row = out_order[out_bases[blockIdx.x] + static_cast<i64>(bits_below(out_mask, bit))];
  u32 word = 0;
  for (i32 k = 0; k < taps; ++k) {
    i32 found = -1;
    if (relate(relation, multiply, at, tap, to)) {
      const i64 key = near.few() ? 0 : in_blocks.key_at(batch, to);
      const u32 block = near.few()      ? around[near.place_of(in_blocks, to)]
                        : key == kNoKey ? kNoBlock
                                        : input.find_block(key);
      if (block != kNoBlock) {
        const u64 mask = input.masks[block];
        const int in_bit = in_blocks.bit_of(to);
        if (mask >> in_bit & 1) found = in_order[input.bases[block] + static_cast<i64>(bits_below(mask, in_bit))];
      }
    }
    advance(relation, tap);
    neighbours[row * taps + k] = found;
    word |= static_cast<u32>(found >= 0) << (k & 31);
    if ((k & 31) == 31 || k == taps - 1) {
      row_masks[row * ((taps + 31) / 32) + k / 32] = word;
      word = 0;
    }
  }
}

}  // extern "C"
