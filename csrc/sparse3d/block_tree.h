// SPDX-License-Identifier: Apache-2.0
// Blocks of 64 blocks. The Morton order keeps the blocks of each together, so a mask of those that are there says
// which block has which number; a hash finds the few that an output block's surroundings meet.
#pragma once
#include "sparse3d/blocks.h"

namespace flexor::FLEXOR_ISA {

class BlockTree {
 public:
  BlockTree(const IndexView& index, const Blocks& blocks)
      : nodes_(static_cast<size_t>(index.blocks) * sizeof(Node)), slots_(static_cast<size_t>(slots_for(index)) * 4) {
    int low = 0;
    for (int a = 3; a >= 0; --a) {
      first_bit_[a] = low;
      low += static_cast<int>(index.frame.bits[a]);
      shift_[a] = smaller<int64_t>(blocks.shift[a], index.frame.bits[a]);
      inside_ |= ((int64_t{1} << shift_[a]) - 1) << first_bit_[a];
      for (int64_t c = 0; c < int64_t{1} << blocks.shift[a]; ++c) number_[a][c] = number_along(blocks, a, c);
    }
    last_slot_ = static_cast<uint64_t>(slots_for(index)) - 1;
    int32_t* slots = slots_.as<int32_t>();
    for (uint64_t s = 0; s <= last_slot_; ++s) slots[s] = -1;
    Node* nodes = nodes_.as<Node>();
    int32_t count = 0;
    for (int64_t b = 0; b < index.blocks; ++b) {
      const int64_t key = index.keys[b] & ~inside_;
      if (count == 0 || nodes[count - 1].key != key) {
        nodes[count] = Node{key, 0, static_cast<int32_t>(b)};
        uint64_t s = hash_of(key) >> 32;
        while (slots[s & last_slot_] >= 0) ++s;
        slots[s & last_slot_] = count++;
      }
      uint64_t number = 0;
      for (int a = 0; a < 4; ++a)
        number |= number_[a][index.keys[b] >> first_bit_[a] & ((int64_t{1} << shift_[a]) - 1)];
      nodes[count - 1].mask |= uint64_t{1} << number;
    }
  }

  struct Node {
    int64_t key;
    uint64_t mask;  // of the numbers that have a block
    int32_t first;  // of those blocks
  };

  // The node with this key, which has no bits of places inside a node; null if there is none.
  FLEXOR_INLINE const Node* find(int64_t key) const {
    const int32_t* slots = slots_.as<int32_t>();
    for (uint64_t s = hash_of(key) >> 32;; ++s) {
      const int32_t node = slots[s & last_slot_];
      if (node < 0) return nullptr;
      if (nodes_.as<Node>()[node].key == key) return nodes_.as<Node>() + node;
    }
  }

  // Along an axis: a field's part of a node's key, and of a block's number in its node.
  FLEXOR_INLINE int64_t node_part(int a, int64_t field) const {
    return (field >> shift_[a] << shift_[a]) << first_bit_[a];
  }
  FLEXOR_INLINE uint64_t number_part(int a, int64_t field) const {
    return number_[a][field & ((int64_t{1} << shift_[a]) - 1)];
  }

 private:
  static int64_t slots_for(const IndexView& index) { return index.n_slots; }

  // Bits of c where the Morton order has them: level by level, the last axis lowest.
  static uint64_t number_along(const Blocks& blocks, int axis, int64_t c) {
    uint64_t number = 0;
    int to = 0;
    for (int level = 0; level < 6; ++level)
      for (int a = 3; a >= 0; --a) {
        if (level >= blocks.shift[a]) continue;
        if (a == axis) number |= static_cast<uint64_t>(c >> level & 1) << to;
        ++to;
      }
    return number;
  }

  const SharedBuffer nodes_, slots_;
  int first_bit_[4];
  int64_t shift_[4];
  int64_t inside_ = 0;  // bits of a key that tell blocks of one node apart
  uint64_t number_[4][64];
  uint64_t last_slot_;
};

}  // namespace flexor::FLEXOR_ISA
