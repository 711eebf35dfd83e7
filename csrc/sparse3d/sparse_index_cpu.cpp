// SPDX-License-Identifier: Apache-2.0
#include "sparse3d/collect.h"
#include "sparse3d/sparse_index_kernels.h"

namespace flexor::FLEXOR_ISA {
namespace {

template <class I, int D>
struct Coordinates {  // rows of (batch, axes...), as four axes
  static constexpr int dims = D;
  const I* p;
  int64_t row, column;

  explicit Coordinates(const TensorView& view)
      : p(static_cast<const I*>(view.data)), row(view.stride[0]), column(view.stride[1]) {}

  FLEXOR_INLINE int64_t batch(int64_t i) const { return p[i * row]; }
  FLEXOR_INLINE void site(int64_t i, int64_t* at) const {
    for (int a = 0; a < 4; ++a) at[a] = 0;
    for (int d = 0; d < dims; ++d) at[4 - dims + d] = p[i * row + (1 + d) * column];
  }
};

struct Span {
  int64_t lower[4], upper[4], batches, least_batch;
};

template <class C>
Span measure(const C& c, int64_t n) {
  const Chunks chunks(n);
  Span each[kMostChunks];
  parallel_for(chunks.count, [&](int64_t chunk) {
    Span s{{INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX}, {INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN}, 0, 0};
    for (int64_t i = chunks.begin(chunk); i < chunks.begin(chunk + 1); ++i) {
      int64_t at[4];
      c.site(i, at);
      for (int a = 0; a < 4; ++a) {
        s.lower[a] = smaller(s.lower[a], at[a]);
        s.upper[a] = larger(s.upper[a], at[a]);
      }
      s.batches = larger(s.batches, c.batch(i) + 1);
      s.least_batch = smaller(s.least_batch, c.batch(i));
    }
    each[chunk] = s;
  });
  Span all = each[0];
  for (int64_t k = 1; k < chunks.count; ++k) {
    for (int a = 0; a < 4; ++a) {
      all.lower[a] = smaller(all.lower[a], each[k].lower[a]);
      all.upper[a] = larger(all.upper[a], each[k].upper[a]);
    }
    all.batches = larger(all.batches, each[k].batches);
    all.least_batch = smaller(all.least_batch, each[k].least_batch);
  }
  return all;
}

// The two rows of the first voxel that is there twice.
template <class C>
void find_duplicate(const C& c, int64_t n, const Blocks& blocks, const IndexView& index, IndexResult& result) {
  const SharedBuffer first(static_cast<size_t>(index.bases[index.blocks]) * 8);
  int64_t* seen = first.as<int64_t>();
  for (int64_t r = 0; r < index.bases[index.blocks]; ++r) seen[r] = -1;
  for (int64_t i = 0; i < n; ++i) {
    int64_t at[4], block[4];
    c.site(i, at);
    for (int a = 0; a < 4; ++a) block[a] = at[a] >> blocks.shift[a];
    const int32_t found = find_block(index, blocks.key_of(c.batch(i), block));
    const int bit = blocks.bit_of(at);
    int64_t& row = seen[index.bases[found] + bits_below(static_cast<uint64_t>(index.masks[found]), bit)];
    if (row >= 0) {
      result.status = IndexResult::duplicate;
      result.row = row;
      result.other_row = i;
      return;
    }
    row = i;
  }
}

template <class C>
void index_rows(const IndexParams& p, IndexResult& result) {
  const C c(p.indices);
  const int64_t n = p.indices.size[0];
  Span span{{0, 0, 0, 0}, {0, 0, 0, 0}, 1, 0};
  if (n > 0) span = measure(c, n);
  else if (p.bounds.given)
    for (int a = 0; a < 4; ++a) span.upper[a] = p.bounds.lower[a];
  const bool outside = span.least_batch < 0 || (p.batches >= 0 && span.batches > p.batches);
  bool fits = true;
  for (int a = 0; a < 4 && n > 0; ++a)
    fits = fits && (!p.bounds.given || (span.lower[a] >= p.bounds.lower[a] && span.upper[a] < p.bounds.upper[a]));
  if (n > 0 && (outside || !fits)) {
    result.status = span.least_batch < 0 ? IndexResult::negative_batch : IndexResult::out_of_range;
    for (int64_t i = 0; i < n; ++i) {
      int64_t at[4];
      c.site(i, at);
      bool bad = c.batch(i) < 0 || (p.batches >= 0 && c.batch(i) >= p.batches);
      for (int a = 0; a < 4 && p.bounds.given; ++a)
        bad = bad || at[a] < p.bounds.lower[a] || at[a] >= p.bounds.upper[a];
      if (bad) {
        result.row = i;
        return;
      }
    }
  }
  // The frame begins with the bounds, so that the order is the same for every part of a scene; it ends with the voxels.
  int64_t upper[4];
  for (int a = 0; a < 4; ++a) {
    if (p.bounds.given) span.lower[a] = p.bounds.lower[a];
    if (static_cast<uint64_t>(span.upper[a]) - static_cast<uint64_t>(span.lower[a]) > uint64_t{1} << 62) {
      result.status = IndexResult::too_wide;
      return;
    }
    upper[a] = span.upper[a] + (span.upper[a] != INT64_MAX);
  }
  if (!make_frame(c.dims, span.lower, upper, span.batches, &result.frame)) {
    result.status = IndexResult::too_wide;
    return;
  }

  const Blocks blocks(c.dims, result.frame);
  const Chunks chunks(n);
  BlockSet sets[kMostChunks];
  GlobalNumbers global;
  const SharedBuffer block_of(static_cast<size_t>(n) * 4), bit_of(static_cast<size_t>(n));
  int32_t* of = block_of.as<int32_t>();
  uint8_t* bits = bit_of.as<uint8_t>();
  parallel_for(chunks.count, [&](int64_t chunk) {
    BlockSet& set = sets[chunk];
    int64_t last_key = -1;
    int32_t last = -1;
    for (int64_t i = chunks.begin(chunk); i < chunks.begin(chunk + 1); ++i) {
      int64_t at[4], block[4];
      c.site(i, at);
      for (int a = 0; a < 4; ++a) block[a] = at[a] >> blocks.shift[a];
      const int64_t key = blocks.key_of(c.batch(i), block);
      if (key != last_key) last = set.insert(key), last_key = key;
      const int bit = blocks.bit_of(at);
      set.masks[last] |= uint64_t{1} << bit;
      of[i] = last;
      bits[i] = static_cast<uint8_t>(bit);
    }
  });
  merge_sets(sets, chunks.count, blocks, global.of, result);
  if (result.rows != n) {
    const IndexView view{c.dims,       result.rows,  result.blocks, result.n_slots, result.keys,
                         result.masks, result.bases, result.slots,  result.frame};
    find_duplicate(c, n, blocks, view, result);
    return;
  }
  result.order = static_cast<int32_t*>(allocate(static_cast<size_t>(n) * 4));
  parallel_for(chunks.count, [&](int64_t chunk) {
    for (int64_t i = chunks.begin(chunk); i < chunks.begin(chunk + 1); ++i) {
      const int32_t block = global.of[chunk][of[i]];
      result.order[result.bases[block] + bits_below(static_cast<uint64_t>(result.masks[block]), bits[i])] =
          static_cast<int32_t>(i);
    }
  });
}

template <class I>
void index_axes(const IndexParams& p, IndexResult& result) {
  switch (p.indices.size[1]) {
    case 2: return index_rows<Coordinates<I, 1>>(p, result);
    case 3: return index_rows<Coordinates<I, 2>>(p, result);
    case 4: return index_rows<Coordinates<I, 3>>(p, result);
    default: return index_rows<Coordinates<I, 4>>(p, result);
  }
}

// What an input block reaches in the output: positions along an axis are w = coordinate * scale + shift_of(tap), and
// an output is where w divides by `divisor`.
struct Reach {
  int64_t scale[4], step[4], offset[4], divisor[4], taps[4];

  explicit Reach(const VoxelRelation& r) {
    for (int a = 0; a < 4; ++a) {
      scale[a] = r.transposed ? r.stride[a] : 1;
      step[a] = r.transposed ? r.dilation[a] : -r.dilation[a];
      offset[a] = r.transposed ? -r.padding[a] : r.padding[a];
      divisor[a] = r.transposed ? 1 : r.stride[a];
      taps[a] = r.kernel[a];
    }
  }
};

// Inserts one output voxel; where it may lie is decided by the bounds.
struct Inserter {
  const Blocks& blocks;
  const VoxelBounds& bounds;
  BlockSet& set;
  int64_t last_key = -1;
  int32_t last = -1;

  FLEXOR_INLINE void operator()(int64_t batch, const int64_t* at) {
    int64_t block[4];
    for (int a = 0; a < 4; ++a) {
      if (bounds.given && (at[a] < bounds.lower[a] || at[a] >= bounds.upper[a])) return;
      block[a] = at[a] >> blocks.shift[a];
    }
    const int64_t key = blocks.key_of(batch, block);
    if (key < 0) return;
    if (key != last_key) last = set.insert(key), last_key = key;
    set.masks[last] |= uint64_t{1} << blocks.bit_of(at);
  }
};

// Each voxel and tap on its own; for kernels that reach far.
void collect_singly(const IndexView& in, const Blocks& in_blocks, const Reach& reach, int64_t b, Inserter& insert) {
  int64_t origin[4];
  const int64_t batch = in_blocks.decode(in.keys[b], origin);
  for (uint64_t left = static_cast<uint64_t>(in.masks[b]); left != 0; left &= left - 1) {
    const int bit = __builtin_ctzll(left);
    int64_t at[4], w[4];
    for (int a = 0; a < 4; ++a)
      w[a] = (in_blocks.start(a, origin[a]) + in_blocks.in_block(bit, a)) * reach.scale[a] + reach.offset[a];
    for (int64_t t = 0; t < reach.taps[0] * reach.taps[1] * reach.taps[2] * reach.taps[3]; ++t) {
      bool there = true;
      int64_t rest = t;
      for (int a = 3; a >= 0; --a) {
        const int64_t position = w[a] + rest % reach.taps[a] * reach.step[a];
        rest /= reach.taps[a];
        there = there && position % reach.divisor[a] == 0;
        at[a] = position / reach.divisor[a];
      }
      if (there) insert(batch, at);
    }
  }
}

constexpr int64_t kMostMarks = 1 << 14;

// A block's outputs are marked in a small dense grid first, then inserted once each.
struct Marks {
  int64_t span[4], pitch[4], low[4], size = 1;
  int32_t voxel[64];  // place of a voxel at tap 0 less the lowest
  bool dense = true;

  Marks(const Blocks& blocks, const Reach& reach) {
    for (int a = 3; a >= 0; --a) {
      const int64_t taps = (reach.taps[a] - 1) * reach.step[a];
      low[a] = reach.offset[a] + smaller<int64_t>(taps, 0);
      span[a] = (blocks.extent(a) - 1) * reach.scale[a] + (taps < 0 ? -taps : taps) + 1;
      pitch[a] = size;
      dense = dense && span[a] <= kMostMarks && size <= kMostMarks;
      if (dense) size *= span[a];
    }
    dense = dense && size <= kMostMarks;
    for (int bit = 0; bit < 64 && dense; ++bit) {
      int64_t place = 0;
      for (int a = 0; a < 4; ++a)
        place += (blocks.in_block(bit, a) * reach.scale[a] + reach.offset[a] - low[a]) * pitch[a];
      voxel[bit] = static_cast<int32_t>(place);
    }
  }
};

void collect_marked(const IndexView& in, const Blocks& in_blocks, const Reach& reach, const Marks& marks, int64_t b,
                    uint8_t* grid, Inserter& insert) {
  int64_t origin[4], w0[4], first[4];
  const int64_t batch = in_blocks.decode(in.keys[b], origin);
  __builtin_memset(grid, 0, static_cast<size_t>(marks.size));
  for (uint64_t left = static_cast<uint64_t>(in.masks[b]); left != 0; left &= left - 1) {
    uint8_t* at = grid + marks.voxel[__builtin_ctzll(left)];
    for (int64_t t0 = 0; t0 < reach.taps[0]; ++t0)
      for (int64_t t1 = 0; t1 < reach.taps[1]; ++t1)
        for (int64_t t2 = 0; t2 < reach.taps[2]; ++t2) {
          uint8_t* line = at + t0 * reach.step[0] * marks.pitch[0] + t1 * reach.step[1] * marks.pitch[1] +
                          t2 * reach.step[2] * marks.pitch[2];
          for (int64_t t3 = 0; t3 < reach.taps[3]; ++t3) line[t3 * reach.step[3]] = 1;
        }
  }
  for (int a = 0; a < 4; ++a) {
    w0[a] = in_blocks.start(a, origin[a]) * reach.scale[a] + marks.low[a];
    const int64_t over = w0[a] - floor_div(w0[a], reach.divisor[a]) * reach.divisor[a];
    first[a] = over == 0 ? 0 : reach.divisor[a] - over;
  }
  int64_t at[4];
  for (int64_t i = first[0]; i < marks.span[0]; i += reach.divisor[0])
    for (int64_t j = first[1]; j < marks.span[1]; j += reach.divisor[1])
      for (int64_t k = first[2]; k < marks.span[2]; k += reach.divisor[2]) {
        const uint8_t* line = grid + i * marks.pitch[0] + j * marks.pitch[1] + k * marks.pitch[2];
        for (int64_t l = first[3]; l < marks.span[3]; l += reach.divisor[3]) {
          if (line[l] == 0) continue;
          at[0] = (w0[0] + i) / reach.divisor[0];
          at[1] = (w0[1] + j) / reach.divisor[1];
          at[2] = (w0[2] + k) / reach.divisor[2];
          at[3] = (w0[3] + l) / reach.divisor[3];
          insert(batch, at);
        }
      }
}

// Bounds of what the input can reach, for the frame; false where they leave 62 bits.
bool reached(const IndexView& in, const Blocks& in_blocks, const Reach& reach, VoxelBounds* bounds) {
  for (int a = 0; a < 4; ++a) {
    const int64_t low = in_blocks.start(a, in.frame.first[a]);
    const int64_t high = in_blocks.start(a, in.frame.first[a] + (int64_t{1} << in.frame.bits[a])) - 1;
    const int64_t taps = (reach.taps[a] - 1) * reach.step[a];
    int64_t first, last;
    if (__builtin_mul_overflow(low, reach.scale[a], &first) || __builtin_mul_overflow(high, reach.scale[a], &last) ||
        __builtin_add_overflow(first, reach.offset[a] + smaller<int64_t>(taps, 0), &first) ||
        __builtin_add_overflow(last, reach.offset[a] + larger<int64_t>(taps, 0), &last))
      return false;
    first = floor_div(first, reach.divisor[a]);
    last = floor_div(last, reach.divisor[a]) + 1;
    if (!bounds->given) bounds->lower[a] = first;
    bounds->upper[a] = bounds->given ? smaller(last, bounds->upper[a]) : last;
    if (bounds->upper[a] < bounds->lower[a]) bounds->upper[a] = bounds->lower[a];
    if (static_cast<uint64_t>(bounds->upper[a]) - static_cast<uint64_t>(bounds->lower[a]) > uint64_t{1} << 62)
      return false;
  }
  return true;
}

template <class I>
void write_coordinates(const Blocks& blocks, int dims, IndexResult& result) {
  I* out = static_cast<I*>(allocate(static_cast<size_t>(result.rows) * static_cast<size_t>(1 + dims) * sizeof(I)));
  result.indices = out;
  const Chunks chunks(result.blocks, 512);
  parallel_for(chunks.count, [&](int64_t chunk) {
    for (int64_t b = chunks.begin(chunk); b < chunks.begin(chunk + 1); ++b) {
      int64_t origin[4];
      const int64_t batch = blocks.decode(result.keys[b], origin);
      int64_t row = result.bases[b];
      for (uint64_t left = static_cast<uint64_t>(result.masks[b]); left != 0; left &= left - 1, ++row) {
        const int bit = __builtin_ctzll(left);
        I* at = out + row * (1 + dims);
        at[0] = static_cast<I>(batch);
        for (int d = 0; d < dims; ++d) {
          const int a = 4 - dims + d;
          at[1 + d] = static_cast<I>(blocks.start(a, origin[a]) + blocks.in_block(bit, a));
        }
        result.order[row] = static_cast<int32_t>(row);
      }
    }
  });
}

}  // namespace

void sparse_index(const IndexParams& p, IndexResult& result) {
  if (p.indices.dtype == DType::i64) index_axes<int64_t>(p, result);
  else index_axes<int32_t>(p, result);
}

void sparse_output_index(const OutputIndexParams& p, IndexResult& result) {
  const IndexView& in = p.input;
  const Blocks in_blocks(in.dims, in.frame);
  const Reach reach(p.relation);
  VoxelBounds bounds = p.bounds;
  if (!reached(in, in_blocks, reach, &bounds) ||
      !make_frame(in.dims, bounds.lower, bounds.upper, in.frame.batches, &result.frame)) {
    result.status = IndexResult::too_wide;
    return;
  }
  bounds.given = true;
  const Blocks blocks(in.dims, result.frame);
  const Marks marks(in_blocks, reach);
  const Chunks chunks(in.blocks, 512);
  BlockSet sets[kMostChunks];
  GlobalNumbers global;
  parallel_for(chunks.count, [&](int64_t chunk) {
    uint8_t* grid = marks.dense ? static_cast<uint8_t*>(thread_workspace(static_cast<size_t>(marks.size))) : nullptr;
    Inserter insert{blocks, bounds, sets[chunk]};
    for (int64_t b = chunks.begin(chunk); b < chunks.begin(chunk + 1); ++b) {
      if (marks.dense) collect_marked(in, in_blocks, reach, marks, b, grid, insert);
      else collect_singly(in, in_blocks, reach, b, insert);
    }
  });
  merge_sets(sets, chunks.count, blocks, global.of, result);
  result.order = static_cast<int32_t*>(allocate(static_cast<size_t>(result.rows) * 4));
  if (p.wide) write_coordinates<int64_t>(blocks, in.dims, result);
  else write_coordinates<int32_t>(blocks, in.dims, result);
}

extern const SparseIndexKernels sparse_index_kernels{&sparse_index, &sparse_output_index, &sparse_map};

}  // namespace flexor::FLEXOR_ISA
