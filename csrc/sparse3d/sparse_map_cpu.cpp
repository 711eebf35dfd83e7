// SPDX-License-Identifier: Apache-2.0
// Which input voxel lies under which tap of which output voxel. An output block's surroundings are laid out as a small
// dense grid of input ranks; every tap then reads it at one distance.
#include "core/tasks.h"
#include "sparse3d/block_tree.h"
#include "sparse3d/sparse_index_kernels.h"

namespace flexor::FLEXOR_ISA {
namespace {

constexpr int64_t kMostCells = 1 << 15;  // of the dense grid
constexpr int64_t kMostAlong = 256;      // input blocks that a grid meets along an axis
constexpr int64_t kWaveBytes = 1 << 22;  // of lists that are gathered before they are joined
constexpr int64_t kMostTilesAtOnce = 256;
constexpr int kFewVoxels = 6;                   // of a block, that are quicker one by one
constexpr int64_t kListPitch = kTileRows + 16;  // whole vectors are written behind a list's end

// Along an axis, in positions u: an input at u = in * in_scale, what a tap reads at u = out * out_scale + offset + tap
// * step.
struct Plan {
  int64_t in_scale[4], out_scale[4], offset[4], step[4], kernel[4];
  int64_t low[4], span[4], pitch[4];  // of the grid: it begins at out block * extent * out_scale + low
  int64_t cells = 1, taps;
  bool dense = true;
  bool planes;            // 4x4x4 voxels of a block are side by side
  int32_t voxel[64];      // cell of an output voxel at tap 0
  int32_t neighbour[64];  // cell of an input voxel from its block's first
  uint64_t only[4][64];   // bits of a block with this coordinate along this axis

  Plan(const MapParams& p, const Blocks& blocks) {
    const VoxelRelation& r = p.relation;
    taps = r.kernel[0] * r.kernel[1] * r.kernel[2] * r.kernel[3];
    for (int a = 3; a >= 0; --a) {
      in_scale[a] = r.transposed ? r.stride[a] : 1;
      out_scale[a] = r.transposed ? 1 : r.stride[a];
      offset[a] = r.transposed ? r.padding[a] : -r.padding[a];
      step[a] = r.transposed ? -r.dilation[a] : r.dilation[a];
      kernel[a] = r.kernel[a];
      const int64_t reach = (kernel[a] - 1) * step[a];
      low[a] = offset[a] + smaller<int64_t>(reach, 0);
      span[a] = (blocks.extent(a) - 1) * out_scale[a] + (reach < 0 ? -reach : reach) + 1;
      pitch[a] = cells;
      dense = dense && span[a] <= kMostAlong;  // a block has at least one position
      if (dense) cells *= span[a];
      dense = dense && cells <= kMostCells;
    }
    for (int bit = 0; bit < 64 && dense; ++bit) {
      int64_t out = 0, in = 0;
      for (int a = 0; a < 4; ++a) {
        out += (blocks.in_block(bit, a) * out_scale[a] + offset[a] - low[a]) * pitch[a];
        in += blocks.in_block(bit, a) * in_scale[a] * pitch[a];
      }
      voxel[bit] = static_cast<int32_t>(out);
      neighbour[bit] = static_cast<int32_t>(in);
    }
    planes = blocks.extent(1) == 4 && blocks.extent(2) == 4 && blocks.extent(3) == 4 && blocks.extent(0) == 1 &&
             out_scale[1] == 1 && out_scale[2] == 1 && out_scale[3] == 1;
    for (int a = 0; a < 4; ++a)
      for (int64_t c = 0; c < blocks.extent(a); ++c) {
        only[a][c] = 0;
        for (int bit = 0; bit < 64; ++bit)
          if (blocks.in_block(bit, a) == c) only[a][c] |= uint64_t{1} << bit;
      }
  }

  FLEXOR_INLINE int64_t tap_cell(int64_t t0, int64_t t1, int64_t t2, int64_t t3) const {
    return t0 * step[0] * pitch[0] + t1 * step[1] * pitch[1] + t2 * step[2] * pitch[2] + t3 * step[3] * pitch[3];
  }
};

// Pairs of one tile, before they are joined: [taps][kListPitch].
struct Lists {
  int32_t* in_rows;
  uint8_t* places;
  int32_t* counts;
};

// Input blocks that a grid meets along an axis, by the nodes of the tree that they are in.
struct Along {
  int64_t nodes;
  int64_t key[kMostAlong];        // of a node
  int64_t begin[kMostAlong + 1];  // its first block here
  uint64_t number[kMostAlong];    // of a block in its node
  uint64_t voxels[kMostAlong];    // of a block that are in the grid
  int64_t cell[kMostAlong];       // of its first voxel
};

struct Mapper {
  const MapParams& p;
  const Blocks out_blocks, in_blocks;
  const Plan plan;
  const BlockTree tree;

  explicit Mapper(const MapParams& params)
      : p(params),
        out_blocks(params.output.dims, params.output.frame),
        in_blocks(params.input.dims, params.input.frame),
        plan(params, out_blocks),
        tree(params.input, in_blocks) {}

  // Bits of the input block at this coordinate whose positions lie in [begin, begin + span).
  FLEXOR_INLINE uint64_t within(int a, int64_t block, int64_t begin) const {
    const int64_t base = in_blocks.start(a, block), s = plan.in_scale[a];
    const int64_t from = larger<int64_t>(ceil_of(begin, s) - base, 0);
    const int64_t to = smaller(floor_div(begin + plan.span[a] - 1, s) - base, in_blocks.extent(a) - 1);
    uint64_t bits = 0;
    for (int64_t c = from; c <= to; ++c) bits |= plan.only[a][c];
    return bits;
  }
  FLEXOR_INLINE static int64_t ceil_of(int64_t a, int64_t b) { return -floor_div(-a, b); }

  // Which input blocks an output block's grid meets, axis by axis.
  void meet(int64_t batch, const int64_t* block, Along* along) const {
    int64_t key_bits = 0;
    for (int a = 3; a >= 0; --a) {
      const int64_t begin = out_blocks.start(a, block[a]) * plan.out_scale[a] + plan.low[a];
      const int64_t s = plan.in_scale[a], frame = in_blocks.frame.first[a];
      const int64_t first = larger(ceil_of(begin, s) >> in_blocks.shift[a], frame);
      const int64_t last = smaller(floor_div(begin + plan.span[a] - 1, s) >> in_blocks.shift[a],
                                   frame + (int64_t{1} << in_blocks.frame.bits[a]) - 1);
      Along& to = along[a];
      int64_t count = 0;
      to.nodes = 0;
      for (int64_t at = first; at <= last; ++at) {
        const uint64_t voxels = within(a, at, begin);
        if (voxels == 0) continue;
        const int64_t node = tree.node_part(a, at - frame);
        if (to.nodes == 0 || to.key[to.nodes - 1] != node) {
          to.key[to.nodes] = node;
          to.begin[to.nodes++] = count;
        }
        to.number[count] = tree.number_part(a, at - frame);
        to.voxels[count] = voxels;
        to.cell[count++] = (in_blocks.start(a, at) * s - begin) * plan.pitch[a];
      }
      to.begin[to.nodes] = count;
      key_bits += in_blocks.frame.bits[a];
    }
    for (int64_t i = 0; i < along[0].nodes; ++i)
      along[0].key[i] += static_cast<int64_t>(static_cast<uint64_t>(batch) << key_bits);
  }

  // Writes the ranks of the inputs around an output block into the grid.
  void lay_out(int64_t batch, const int64_t* block, int32_t* grid) const {
    __builtin_memset(grid, 0xff, static_cast<size_t>(plan.cells) * 4);
    Along along[4];
    meet(batch, block, along);
    int64_t n[4];
    for (n[0] = 0; n[0] < along[0].nodes; ++n[0])
      for (n[1] = 0; n[1] < along[1].nodes; ++n[1])
        for (n[2] = 0; n[2] < along[2].nodes; ++n[2])
          for (n[3] = 0; n[3] < along[3].nodes; ++n[3]) {
            const int64_t key = along[0].key[n[0]] + along[1].key[n[1]] + along[2].key[n[2]] + along[3].key[n[3]];
            if (const BlockTree::Node* node = tree.find(key)) lay_out_node(*node, along, n, grid);
          }
  }

  struct Found {
    int32_t* cell;
    uint64_t voxels;
    int64_t block;
  };

  FLEXOR_INLINE void lay_out_node(const BlockTree::Node& node, const Along* along, const int64_t* n,
                                  int32_t* grid) const {
    Found found[65];  // whether a block is there is hard to predict: each is noted, and the next takes its place if not
    int count = 0;
    const auto for_axis = [&](int a, auto&& visit) __attribute__((always_inline)) {
      for (int64_t i = along[a].begin[n[a]]; i < along[a].begin[n[a] + 1]; ++i)
        visit(along[a].number[i], along[a].voxels[i], along[a].cell[i]);
    };
    for_axis(0, [&](uint64_t n0, uint64_t v0, int64_t c0) __attribute__((always_inline)) {
      for_axis(1, [&](uint64_t n1, uint64_t v1, int64_t c1) __attribute__((always_inline)) {
        for_axis(2, [&](uint64_t n2, uint64_t v2, int64_t c2) __attribute__((always_inline)) {
          for_axis(3, [&](uint64_t n3, uint64_t v3, int64_t c3) __attribute__((always_inline)) {
            const int number = static_cast<int>(n0 | n1 | n2 | n3);
            found[count] = {grid + c0 + c1 + c2 + c3, v0 & v1 & v2 & v3, node.first + bits_below(node.mask, number)};
            count += static_cast<int>(node.mask >> number & 1);
          });
        });
      });
    });
    for (int i = 0; i < count; ++i) {
      const uint64_t mask = static_cast<uint64_t>(p.input.masks[found[i].block]);
      const int32_t base = p.input.bases[found[i].block];
      for (uint64_t left = mask & found[i].voxels; left != 0; left &= left - 1) {
        const int bit = __builtin_ctzll(left);
        found[i].cell[plan.neighbour[bit]] = base + bits_below(mask, bit);
      }
    }
  }

  // Appends the pairs of some voxels of one block: bits, the first of which has this place in the tile.
  void list_dense(uint64_t bits, int place, const int32_t* grid, const Lists& lists) const {
    int32_t cells[64];
    int count = 0;
    for (; bits != 0; bits &= bits - 1) cells[count++] = plan.voxel[__builtin_ctzll(bits)];
    int64_t tap = 0;
    for (int64_t t0 = 0; t0 < plan.kernel[0]; ++t0)
      for (int64_t t1 = 0; t1 < plan.kernel[1]; ++t1)
        for (int64_t t2 = 0; t2 < plan.kernel[2]; ++t2)
          for (int64_t t3 = 0; t3 < plan.kernel[3]; ++t3, ++tap) {
            const int32_t* from = grid + plan.tap_cell(t0, t1, t2, t3);
            int32_t* rows = lists.in_rows + tap * kListPitch;
            uint8_t* places = lists.places + tap * kListPitch;
            int32_t n = lists.counts[tap];
            for (int v = 0; v < count; ++v) {
              const int32_t row = from[cells[v]];
              rows[n] = row;
              places[n] = static_cast<uint8_t>(place + v);
              n += row >= 0;
            }
            lists.counts[tap] = n;
          }
  }

#if FLEXOR_ISA_avx512
  // The same sixteen voxels at a time, for 4x4x4 blocks whose voxels are side by side in the grid.
  void list_planes(uint64_t bits, int place, const int32_t* grid, const Lists& lists) const {
    struct Plane {
      const int32_t* cells;
      __mmask16 voxels;
      __m512i places;
    } planes[4];
    int count = 0;
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int z = 0; z < 4; ++z, bits >>= 16) {
      const __mmask16 voxels = static_cast<__mmask16>(bits);
      if (voxels == 0) continue;
      const __m512i numbers = _mm512_add_epi32(lanes, _mm512_set1_epi32(place));
      planes[count++] = {grid + plan.voxel[16 * z], voxels, _mm512_maskz_expand_epi32(voxels, numbers)};
      place += __builtin_popcount(voxels);
    }
    const int64_t line = plan.pitch[2];
    int64_t tap = 0;
    for (int64_t t1 = 0; t1 < plan.kernel[1]; ++t1)
      for (int64_t t2 = 0; t2 < plan.kernel[2]; ++t2)
        for (int64_t t3 = 0; t3 < plan.kernel[3]; ++t3, ++tap) {
          const int64_t cell = plan.tap_cell(0, t1, t2, t3);
          int32_t* rows = lists.in_rows + tap * kListPitch;
          uint8_t* places = lists.places + tap * kListPitch;
          int32_t n = lists.counts[tap];
          for (int i = 0; i < count; ++i) {
            const int32_t* from = planes[i].cells + cell;
            __m512i row = _mm512_castsi128_si512(load<__m128i>(from));
            row = _mm512_inserti32x4(row, load<__m128i>(from + line), 1);
            row = _mm512_inserti32x4(row, load<__m128i>(from + 2 * line), 2);
            row = _mm512_inserti32x4(row, load<__m128i>(from + 3 * line), 3);
            const __mmask16 there = _mm512_mask_cmpge_epi32_mask(planes[i].voxels, row, _mm512_setzero_si512());
            store(rows + n, _mm512_maskz_compress_epi32(there, row));
            store(places + n, _mm512_maskz_cvtepi32_epi8(0xffff, _mm512_maskz_compress_epi32(there, planes[i].places)));
            n += __builtin_popcount(there);
          }
          lists.counts[tap] = n;
        }
  }
#endif

  // The same through the hash, for kernels whose surroundings are too large to lay out.
  void list_singly(int64_t batch, const int64_t* block, uint64_t bits, int place, const Lists& lists) const {
    for (; bits != 0; bits &= bits - 1, ++place) {
      const int out_bit = __builtin_ctzll(bits);
      int64_t u[4], at[4], in_block[4];
      for (int a = 0; a < 4; ++a)
        u[a] = (out_blocks.start(a, block[a]) + out_blocks.in_block(out_bit, a)) * plan.out_scale[a] + plan.offset[a];
      for (int64_t tap = 0; tap < plan.taps; ++tap) {
        bool there = true;
        int64_t rest = tap;
        for (int a = 3; a >= 0; --a) {
          const int64_t position = u[a] + rest % plan.kernel[a] * plan.step[a];
          rest /= plan.kernel[a];
          there = there && position % plan.in_scale[a] == 0;
          at[a] = position / plan.in_scale[a];
          in_block[a] = at[a] >> in_blocks.shift[a];
        }
        const int64_t key = there ? in_blocks.key_of(batch, in_block) : -1;
        if (key < 0) continue;
        const int32_t found = find_block(p.input, key);
        if (found < 0) continue;
        const uint64_t mask = static_cast<uint64_t>(p.input.masks[found]);
        const int bit = in_blocks.bit_of(at);
        if ((mask >> bit & 1) == 0) continue;
        const int64_t n = tap * kListPitch + lists.counts[tap]++;
        lists.in_rows[n] = p.input.bases[found] + bits_below(mask, bit);
        lists.places[n] = static_cast<uint8_t>(place);
      }
    }
  }

  int64_t block_of_rank(int64_t rank) const {  // the last whose base is at most rank
    int64_t low = 0, high = p.output.blocks;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (p.output.bases[middle] <= rank ? low : high) = middle;
    }
    return low;
  }

  void list_tile(int64_t tile, const Lists& lists) const {
    for (int64_t tap = 0; tap < plan.taps; ++tap) lists.counts[tap] = 0;
    int32_t* grid = plan.dense ? static_cast<int32_t*>(thread_workspace(static_cast<size_t>(plan.cells) * 4)) : nullptr;
    const int64_t begin = tile * kTileRows, end = smaller(begin + kTileRows, p.output.rows);
    for (int64_t b = block_of_rank(begin); b < p.output.blocks && p.output.bases[b] < end; ++b) {
      const int64_t base = p.output.bases[b];
      uint64_t bits = static_cast<uint64_t>(p.output.masks[b]);
      int64_t rank = base;
      for (; rank < begin; ++rank) bits &= bits - 1;
      for (int64_t over = p.output.bases[b + 1] - end; over > 0; --over)
        bits &= ~(uint64_t{1} << (63 - __builtin_clzll(bits)));
      int64_t block[4];
      const int64_t batch = out_blocks.decode(p.output.keys[b], block);
      const int place = static_cast<int>(rank - begin);
      if (plan.dense) {
        lay_out(batch, block, grid);
#if FLEXOR_ISA_avx512
        if (plan.planes && __builtin_popcountll(bits) > kFewVoxels) list_planes(bits, place, grid, lists);
        else
#endif
          list_dense(bits, place, grid, lists);
      } else {
        list_singly(batch, block, bits, place, lists);
      }
    }
  }
};

template <class T>
T* grown(T* old, int64_t used, int64_t* capacity, int64_t wanted) {
  if (wanted <= *capacity) return old;
  *capacity = larger(wanted, *capacity + *capacity / 2);
  T* data = static_cast<T*>(allocate(static_cast<size_t>(*capacity) * sizeof(T)));
  if (used > 0) __builtin_memcpy(data, old, static_cast<size_t>(used) * sizeof(T));
  release(old);
  return data;
}

}  // namespace

void sparse_map(const MapParams& p, MapResult& result) {
  const Mapper mapper(p);
  const int64_t taps = mapper.plan.taps, tiles = ceil_div(p.output.rows, kTileRows), tile_pairs = taps * kListPitch;
  result.offsets = static_cast<int64_t*>(allocate(static_cast<size_t>(tiles * taps + 1) * 8));
  result.offsets[0] = 0;
  const int64_t at_once = smaller(tiles, larger<int64_t>(1, smaller(kWaveBytes / (tile_pairs * 5), kMostTilesAtOnce)));
  const SharedBuffer rows(static_cast<size_t>(at_once * tile_pairs) * 4);
  const SharedBuffer places(static_cast<size_t>(at_once * tile_pairs));
  const SharedBuffer counts(static_cast<size_t>(at_once * taps) * 4);
  auto lists = [&](int64_t t) {
    return Lists{rows.as<int32_t>() + t * tile_pairs, places.as<uint8_t>() + t * tile_pairs,
                 counts.as<int32_t>() + t * taps};
  };
  int64_t row_capacity = 0, place_capacity = 0;
  for (int64_t first = 0; first < tiles; first += at_once) {
    const int64_t wave = smaller(at_once, tiles - first);
    parallel_for(wave, [&](int64_t t) { mapper.list_tile(first + t, lists(t)); });
    int64_t* offset = result.offsets + first * taps;
    for (int64_t i = 0; i < wave * taps; ++i) offset[i + 1] = offset[i] + counts.as<int32_t>()[i];
    // Room for the tiles to come, at the rate of those seen.
    const int64_t used = result.pairs, needed = offset[wave * taps];
    const int64_t guess = first + wave == tiles ? needed : needed / (first + wave) * tiles + needed / 8;
    result.in_rows = grown(result.in_rows, used, &row_capacity, needed > row_capacity ? guess : needed);
    result.places = grown(result.places, used, &place_capacity, needed > place_capacity ? guess : needed);
    parallel_for(wave, [&](int64_t t) {
      const Lists list = lists(t);
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t to = offset[t * taps + tap];
        const size_t n = static_cast<size_t>(list.counts[tap]);
        if (n == 0) continue;
        __builtin_memcpy(result.in_rows + to, list.in_rows + tap * kListPitch, n * 4);
        __builtin_memcpy(result.places + to, list.places + tap * kListPitch, n);
      }
    });
    result.pairs = needed;
  }
}

}  // namespace flexor::FLEXOR_ISA
