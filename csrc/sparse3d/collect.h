// SPDX-License-Identifier: Apache-2.0
// From blocks met in any order to an index: chunks of the input each keep a set of their own, the sets are merged
// and sorted. What comes out depends on the voxels alone.
#pragma once
#include "core/tasks.h"
#include "sparse3d/blocks.h"

namespace flexor::FLEXOR_ISA {

constexpr int kMostChunks = 32;  // each may hold every block

struct Chunks {
  int64_t items, count;
  explicit Chunks(int64_t n, int64_t least = 32768) : items(n) {
    count = n / least < 1 ? 1 : n / least > kMostChunks ? kMostChunks : n / least;
  }
  FLEXOR_INLINE int64_t begin(int64_t chunk) const { return items / count * chunk + smaller(chunk, items % count); }
};

// The frame of blocks between bounds (upper exclusive). False where a key would not fit.
inline bool make_frame(int dims, const int64_t* lower, const int64_t* upper, int64_t batches, VoxelFrame* frame) {
  int total = 0;
  *frame = VoxelFrame{};
  for (int a = 0; a < 4; ++a) {
    const int shift = kBlockShift[dims][a];
    frame->first[a] = lower[a] >> shift;
    const uint64_t span =
        upper[a] > lower[a] ? static_cast<uint64_t>((upper[a] - 1) >> shift) - static_cast<uint64_t>(lower[a] >> shift)
                            : 0;
    while (frame->bits[a] < 63 && span >> frame->bits[a] != 0) ++frame->bits[a];
    total += static_cast<int>(frame->bits[a]);
  }
  frame->batches = batches;
  for (int64_t b = batches - 1; b > 0; b >>= 1) ++total;
  return total <= kKeyBits;
}

// Merges the sets into result's blocks, in order. global[chunk][i] becomes the block of the chunk's i-th.
inline void merge_sets(BlockSet* sets, int64_t count, const Blocks& blocks, int32_t** global, IndexResult& result) {
  BlockSet all;
  for (int64_t c = 0; c < count; ++c) {
    if (sets[c].count == 0) continue;
    global[c] = static_cast<int32_t*>(allocate(static_cast<size_t>(sets[c].count) * 4));
    for (int64_t i = 0; i < sets[c].count; ++i) {
      const int32_t block = all.insert(sets[c].keys[i]);
      all.masks[block] |= sets[c].masks[i];
      global[c][i] = block;
    }
  }
  const int64_t m = all.count;
  const SharedBuffer keyed(static_cast<size_t>(m) * 2 * sizeof(Keyed)), places(static_cast<size_t>(m) * 4);
  Keyed* pairs = keyed.as<Keyed>();
  for (int64_t i = 0; i < m; ++i) pairs[i] = Keyed{blocks.morton(all.keys[i]), i};
  const Keyed* sorted = radix_sort(pairs, pairs + m, m);

  result.blocks = m;
  for (result.n_slots = 2; result.n_slots < 2 * m;) result.n_slots *= 2;
  result.keys = static_cast<int64_t*>(allocate(static_cast<size_t>(m) * 8));
  result.masks = static_cast<int64_t*>(allocate(static_cast<size_t>(m) * 8));
  result.bases = static_cast<int32_t*>(allocate(static_cast<size_t>(m + 1) * 4));
  result.slots = static_cast<int32_t*>(allocate(static_cast<size_t>(result.n_slots) * 4));
  int32_t* place = places.as<int32_t>();
  int64_t rows = 0;
  for (int64_t i = 0; i < m; ++i) {
    const int64_t from = sorted[i].value;
    place[from] = static_cast<int32_t>(i);
    result.keys[i] = all.keys[from];
    result.masks[i] = static_cast<int64_t>(all.masks[from]);
    result.bases[i] = static_cast<int32_t>(rows);
    rows += __builtin_popcountll(all.masks[from]);
  }
  result.bases[m] = static_cast<int32_t>(rows);
  result.rows = rows;
  BlockSet::fill_slots(result.keys, m, result.slots, result.n_slots);
  for (int64_t c = 0; c < count; ++c)
    for (int64_t i = 0; i < sets[c].count; ++i) global[c][i] = place[global[c][i]];
}

// Block numbers of each chunk's blocks, freed together.
struct GlobalNumbers {
  int32_t* of[kMostChunks] = {};
  ~GlobalNumbers() {
    for (int32_t* numbers : of) release(numbers);
  }
};

}  // namespace flexor::FLEXOR_ISA
