// SPDX-License-Identifier: Apache-2.0
// Blocks of 64 voxels: their keys, their order, and the hash that finds them.
#pragma once
#include "core/parallel.h"
#include "core/simd.h"
#include "sparse3d/sparse_index.h"

namespace flexor::FLEXOR_ISA {

// log2 of a block's extent along each of the four axes, for 1 to 4 of them in use.
constexpr int kBlockShift[5][4] = {{0, 0, 0, 0}, {0, 0, 0, 6}, {0, 0, 3, 3}, {0, 2, 2, 2}, {1, 1, 2, 2}};

FLEXOR_INLINE int bits_below(uint64_t mask, int bit) { return __builtin_popcountll(mask & ((uint64_t{1} << bit) - 1)); }
FLEXOR_INLINE uint64_t hash_of(int64_t key) { return static_cast<uint64_t>(key) * 0x9E3779B97F4A7C15u; }

FLEXOR_INLINE int64_t floor_div(int64_t a, int64_t b) { return b == 1 ? a : a / b - (a % b < 0); }  // b > 0

// The geometry of the blocks of one index.
struct Blocks {
  VoxelFrame frame;
  int shift[4];      // log2 of extents
  int bit_shift[4];  // of an axis within a voxel's bit number

  Blocks(int dims, const VoxelFrame& f) : frame(f) {
    for (int a = 3, below = 0; a >= 0; --a) {
      shift[a] = kBlockShift[dims][a];
      bit_shift[a] = below;
      below += shift[a];
    }
  }

  FLEXOR_INLINE int64_t extent(int a) const { return int64_t{1} << shift[a]; }
  // The first coordinate of a block, which may be negative.
  FLEXOR_INLINE int64_t start(int a, int64_t block) const {
    return static_cast<int64_t>(static_cast<uint64_t>(block) << shift[a]);
  }

  FLEXOR_INLINE int bit_of(const int64_t* c) const {
    int bit = 0;
    for (int a = 0; a < 4; ++a) bit |= static_cast<int>(c[a] & (extent(a) - 1)) << bit_shift[a];
    return bit;
  }
  FLEXOR_INLINE int64_t in_block(int bit, int a) const { return (bit >> bit_shift[a]) & (extent(a) - 1); }

  // Of the block at these block coordinates; -1 outside the frame.
  FLEXOR_INLINE int64_t key_of(int64_t batch, const int64_t* block) const {
    uint64_t key = static_cast<uint64_t>(batch);
    for (int a = 0; a < 4; ++a) {
      const int64_t field = block[a] - frame.first[a];
      if (field < 0 || field >> frame.bits[a] != 0) return -1;
      key = (key << frame.bits[a]) | static_cast<uint64_t>(field);
    }
    return static_cast<int64_t>(key);
  }

  FLEXOR_INLINE int64_t decode(int64_t key, int64_t* block) const {  // gives the batch
    for (int a = 3; a >= 0; --a) {
      block[a] = (key & ((int64_t{1} << frame.bits[a]) - 1)) + frame.first[a];
      key >>= frame.bits[a];
    }
    return key;
  }

  // Bits of the fields interleaved, the last axis lowest, fields that have ended left out; the batch on top.
  uint64_t morton(int64_t key) const {
    uint64_t field[4];
    int64_t levels = 0;
    for (int a = 3; a >= 0; --a) {
      field[a] = static_cast<uint64_t>(key) & ((uint64_t{1} << frame.bits[a]) - 1);
      key >>= frame.bits[a];
      levels = larger(levels, frame.bits[a]);
    }
    uint64_t code = 0;
    int to = 0;
    for (int64_t level = 0; level < levels; ++level)
      for (int a = 3; a >= 0; --a)
        if (level < frame.bits[a]) code |= ((field[a] >> level) & 1) << to++;
    return to == 0 ? static_cast<uint64_t>(key) : code | static_cast<uint64_t>(key) << to;
  }
};

// The block with this key in an index, or -1.
FLEXOR_INLINE int32_t find_block(const IndexView& index, int64_t key) {
  const uint64_t last = static_cast<uint64_t>(index.n_slots - 1);
  for (uint64_t s = hash_of(key) >> 32;; ++s) {
    const int32_t block = index.slots[s & last];
    if (block < 0 || index.keys[block] == key) return block;
  }
}

// A set of blocks that grows: keys and masks in order of arrival.
struct BlockSet {
  int64_t* keys = nullptr;
  uint64_t* masks = nullptr;
  int32_t* slots = nullptr;
  int64_t count = 0, n_slots = 0;

  ~BlockSet() {
    release(keys);
    release(masks);
    release(slots);
  }

  FLEXOR_INLINE int32_t insert(int64_t key) {
    if (2 * count >= n_slots) grow();
    const uint64_t last = static_cast<uint64_t>(n_slots - 1);
    uint64_t s = hash_of(key) >> 32;
    for (;; ++s) {
      const int32_t block = slots[s & last];
      if (block < 0) break;
      if (keys[block] == key) return block;
    }
    keys[count] = key;
    masks[count] = 0;
    slots[s & last] = static_cast<int32_t>(count);
    return static_cast<int32_t>(count++);
  }

 private:
  void grow() {
    const int64_t size = n_slots == 0 ? 1024 : 4 * n_slots;
    int64_t* new_keys = static_cast<int64_t*>(allocate(static_cast<size_t>(size) * 4));
    for (int64_t i = 0; i < count; ++i) new_keys[i] = keys[i];
    release(keys);
    keys = new_keys;
    uint64_t* new_masks = static_cast<uint64_t*>(allocate(static_cast<size_t>(size) * 4));
    for (int64_t i = 0; i < count; ++i) new_masks[i] = masks[i];
    release(masks);
    masks = new_masks;
    int32_t* new_slots = static_cast<int32_t*>(allocate(static_cast<size_t>(size) * 4));
    release(slots);
    slots = new_slots;
    n_slots = size;
    fill_slots(keys, count, slots, n_slots);
  }

 public:
  static void fill_slots(const int64_t* keys, int64_t count, int32_t* slots, int64_t n_slots) {
    const uint64_t last = static_cast<uint64_t>(n_slots - 1);
    for (int64_t s = 0; s < n_slots; ++s) slots[s] = -1;
    for (int64_t i = 0; i < count; ++i) {
      uint64_t s = hash_of(keys[i]) >> 32;
      while (slots[s & last] >= 0) ++s;
      slots[s & last] = static_cast<int32_t>(i);
    }
  }
};

// Key-value pairs into ascending order of keys, equal ones staying as they come; both arrays are used.
struct Keyed {
  uint64_t key;
  int64_t value;
};
inline Keyed* radix_sort(Keyed* from, Keyed* to, int64_t count) {
  uint64_t varying = 0;
  for (int64_t i = 1; i < count; ++i) varying |= from[i].key ^ from[0].key;
  for (int shift = 0; shift < 64; shift += 8) {
    if (((varying >> shift) & 255) == 0) continue;
    int64_t start[257] = {};
    for (int64_t i = 0; i < count; ++i) ++start[((from[i].key >> shift) & 255) + 1];
    for (int b = 0; b < 256; ++b) start[b + 1] += start[b];
    for (int64_t i = 0; i < count; ++i) to[start[(from[i].key >> shift) & 255]++] = from[i];
    Keyed* swap = from;
    from = to;
    to = swap;
  }
  return from;
}

}  // namespace flexor::FLEXOR_ISA
