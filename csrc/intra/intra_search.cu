// SPDX-License-Identifier: Apache-2.0
// Open-loop search of intra modes on a GPU. Results are those of intra_search_cpu.cpp, bit by bit.
//
// A unit is 8 x 8 samples of a block (4 x 4 of blocks of 4). A CUDA block has 32 units (a block of 64: 64): as many
// blocks of a picture as these make. Each warp takes one candidate after another, each of its lanes one unit, whose
// differences and Hadamard coefficients stay in registers.
#include "intra/intra_modes.cuh"

namespace flexor {

constexpr int kCandidates = 63;
constexpr int kLanes = 32;
constexpr int kMostSearchLine = kLanes * 33 + 2;  // borders of 32 blocks of 8; a sample beyond both ends

struct SearchCall {
  i64 height, width, rows, columns, blocks, log2_size, ctb_log2, bit_depth, considered, satd, strong_smoothing;
};

// How units and blocks lie in a CUDA block.
struct Layout {
  int log2_size, blocks;

  __device__ explicit Layout(const SearchCall& p) : log2_size(static_cast<int>(p.log2_size)) {
    blocks = static_cast<int>(least(p.blocks - first(), i64{1} << log2_together()));
  }

  __device__ int n() const { return 1 << log2_size; }
  __device__ int length() const { return 4 * n() + 1; }
  __device__ int log2_part() const { return least(log2_size, 3); }
  __device__ int log2_parts() const { return 2 * (log2_size - log2_part()); }
  __device__ int log2_units() const { return log2_size == 6 ? 6 : 5; }
  __device__ int log2_together() const { return log2_units() - log2_parts(); }
  __device__ i64 first() const { return static_cast<i64>(blockIdx.x) << log2_together(); }
};

// A block's place, and which parts of its border count as coded before it.
struct Place {
  i64 picture, row, column;
  bool left, top, bottom_left, top_right;
};

// Whether a block of a coding tree block comes before another one in it, along a Z curve.
__device__ inline bool comes_before(i64 column, i64 row, i64 other_column, i64 other_row) {
  const i64 x = column ^ other_column, y = row ^ other_row;
  return y < x && y < (x ^ y) ? column < other_column : row < other_row;
}

__device__ inline Place place_of(const SearchCall& p, i64 block) {
  Place at{block / (p.rows * p.columns), block / p.columns % p.rows, block % p.columns, false, false, false, false};
  const i64 row = at.row, column = at.column;
  at.left = column > 0;
  at.top = row > 0;
  at.bottom_left = at.left && row + 1 < p.rows;
  at.top_right = at.top && column + 1 < p.columns;
  if (p.ctb_log2 == 0) return at;
  const int shift = static_cast<int>(p.ctb_log2 - p.log2_size);
  const auto differ = [shift](i64 a, i64 b) { return a >> shift != b >> shift; };
  if (!differ(row, row - 1))
    at.top_right = at.top_right && !differ(column, column + 1) && comes_before(column + 1, row - 1, column, row);
  at.bottom_left = at.bottom_left && !differ(row, row + 1) &&
                   (differ(column, column - 1) || comes_before(column - 1, row + 1, column, row));
  return at;
}

struct SearchShared {
  int border[kMostSearchLine], smooth[kMostSearchLine];
  unsigned short original[64 * 64];  // by the place in its unit, then by unit, so that no lanes share a bank
  int costs[kLanes * kCandidates], sums[kLanes];
  Place places[kLanes];
};

template <class Sample>
struct Picture {
  const Sample* samples;
  i64 height, width;

  __device__ Picture(const Sample* pictures, const SearchCall& p, i64 picture)
      : samples(pictures + picture * p.height * p.width), height(p.height), width(p.width) {}

  // Beyond the right and lower edges the last samples repeat.
  __device__ int at(i64 y, i64 x) const { return samples[least(y, height - 1) * width + least(x, width - 1)]; }

  // The sample at a place of a block's border, -2n to 2n, with substitution (clause 8.4.4.2.2).
  __device__ int border(const Place& block, int n, int place, int middle) const {
    const i64 y = block.row * n, x = block.column * n;
    if (!block.left && !block.top) return middle;
    if (place < 0 && block.left) return at(y + (block.bottom_left ? -1 - place : least(-1 - place, n - 1)), x - 1);
    if (place > 0 && block.top) return at(y - 1, x + (block.top_right ? place - 1 : least(place - 1, n - 1)));
    if (place == 0 && block.left && block.top) return at(y - 1, x - 1);
    return block.left ? at(y, x - 1) : at(y - 1, x);
  }
};

// Into shared memory: borders, sums of the samples that DC takes the mean of, and originals.
template <class Sample>
__device__ void read_blocks(SearchShared& shared, const Layout& l, const Sample* pictures, const SearchCall& p,
                            u32* amiss) {
  const int threads = static_cast<int>(blockDim.x), middle = 1 << (p.bit_depth - 1);
  for (int i = static_cast<int>(threadIdx.x); i < l.blocks * l.length(); i += threads) {
    const int block = i / l.length(), place = i % l.length() - 2 * l.n();
    const Place& at = shared.places[block];
    const int value = Picture<Sample>(pictures, p, at.picture).border(at, l.n(), place, middle);
    shared.border[1 + i] = value;
    if (place != 0 && size_of(place) <= l.n()) atomicAdd(shared.sums + block, value);
  }
  u32 seen = 0;
  for (int i = static_cast<int>(threadIdx.x); i < l.blocks << (2 * l.log2_size); i += threads) {
    const int block = i >> (2 * l.log2_size), y = i >> l.log2_size & (l.n() - 1), x = i & (l.n() - 1);
    const Place& at = shared.places[block];
    const int value = Picture<Sample>(pictures, p, at.picture).at(at.row * l.n() + y, at.column * l.n() + x);
    seen |= static_cast<u32>(value);
    const int shift = l.log2_part(), in_part = (1 << shift) - 1;
    const int unit = (block << l.log2_parts()) + ((y >> shift) << (l.log2_size - shift)) + (x >> shift);
    const int in_unit = ((y & in_part) << shift) + (x & in_part);
    shared.original[(in_unit << l.log2_units()) + unit] = static_cast<unsigned short>(value);
  }
  if (seen >> p.bit_depth != 0) atomicOr(amiss, 1u);
}

// In place, of `count` values `step` apart.
template <int count, int step>
__device__ inline void hadamard(int* values) {
#pragma unroll
  for (int half = count / 2; half > 0; half /= 2)
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if (i & half) continue;
      const int a = values[i * step], b = values[(i + half) * step];
      values[i * step] = a + b;
      values[(i + half) * step] = a - b;
    }
}

template <int part>
__device__ inline int cost_of(int* differences, bool satd) {
  if (satd) {
#pragma unroll
    for (int i = 0; i < part; ++i) hadamard<part, 1>(differences + i * part);
#pragma unroll
    for (int i = 0; i < part; ++i) hadamard<part, part>(differences + i);
  }
  int sum = 0;
#pragma unroll
  for (int i = 0; i < part * part; ++i) sum += size_of(differences[i]);
  return !satd ? sum : part == 8 ? (sum + 2) >> 2 : (sum + 1) >> 1;
}

// The cost of one unit of one candidate. Differences of a horizontal mode are transposed, which changes no cost.
template <int log2_part>
__device__ inline int unit_cost(const SearchShared& shared, const Layout& l, const SearchCall& p, int candidate,
                                int unit) {
  constexpr int part = 1 << log2_part;
  const bool nearest = candidate >= kModes, edges = l.log2_size < 5;
  const int fractional = candidate - kModes;  // 7 modes between each two whose angle is a multiple of 32
  const int mode = nearest ? 3 + fractional + fractional / 7 : candidate;
  const int log2_across = l.log2_size - log2_part;
  const int block = unit >> (2 * log2_across);
  const int x0 = (unit & ((1 << log2_across) - 1)) << log2_part;
  const int y0 = (unit >> log2_across & ((1 << log2_across) - 1)) << log2_part;
  const int* corner = (smooths(l.log2_size, mode) ? shared.smooth : shared.border) + 1 + block * l.length() + 2 * l.n();
  const unsigned short* original = shared.original + unit;
  int differences[part * part];
  if (mode == kPlanarMode || mode == kDcMode) {
    const int mean = (shared.sums[block] + l.n()) >> (l.log2_size + 1);
#pragma unroll
    for (int i = 0; i < part * part; ++i) {
      const int x = x0 + i % part, y = y0 + i / part;
      const int value = mode == kPlanarMode ? planar(corner, l.log2_size, x, y) : dc(corner, mean, edges, x, y);
      differences[i] = original[i << l.log2_units()] - value;
    }
    return cost_of<part>(differences, p.satd != 0);
  }
  const Angular angular(mode);
  const bool vertical = angular.side > 0;
  const int along0 = vertical ? x0 : y0, across0 = vertical ? y0 : x0;
  const int step_along = vertical ? l.log2_units() : l.log2_units() + log2_part;
  const int step_across = vertical ? l.log2_units() + log2_part : l.log2_units();
#pragma unroll
  for (int i = 0; i < part * part; ++i) {
    const int along = i % part, across = i / part;
    int value = angular.at(corner, nearest, along0 + along, across0 + across);
    if (along == 0 && along0 == 0 && edges && angular.angle == 0)
      value = angular.filtered(corner, value, across0 + across, static_cast<int>(p.bit_depth));
    differences[i] = original[(along << step_along) + (across << step_across)] - value;
  }
  return cost_of<part>(differences, p.satd != 0);
}

template <class Sample>
__device__ void search(SearchShared& shared, const Sample* pictures, int* costs, const SearchCall& p, u32* amiss) {
  const Layout l(p);
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const int considered = static_cast<int>(p.considered);
  for (int i = thread; i < kLanes * kCandidates; i += threads) shared.costs[i] = 0;
  for (int i = thread; i < kLanes; i += threads) shared.sums[i] = 0;
  for (int i = thread; i < kMostSearchLine; i += threads) shared.border[i] = shared.smooth[i] = 0;
  for (int i = thread; i < l.blocks; i += threads) shared.places[i] = place_of(p, l.first() + i);
  __syncthreads();
  read_blocks(shared, l, pictures, p, amiss);
  __syncthreads();
  for (int i = thread; i < l.blocks * l.length(); i += threads) {
    const int block = i / l.length(), place = i % l.length() - 2 * l.n();
    const int* corner = shared.border + 1 + block * l.length() + 2 * l.n();
    shared.smooth[1 + i] = smoothed(corner, l.log2_size, place, p.strong_smoothing != 0, static_cast<int>(p.bit_depth));
  }
  __syncthreads();
  for (int candidate = thread / kLanes; candidate < considered; candidate += threads / kLanes)
    for (int unit = thread % kLanes; unit < l.blocks << l.log2_parts(); unit += kLanes) {
      const int cost =
          l.log2_size == 2 ? unit_cost<2>(shared, l, p, candidate, unit) : unit_cost<3>(shared, l, p, candidate, unit);
      atomicAdd(shared.costs + (unit >> l.log2_parts()) * considered + candidate, cost);
    }
  __syncthreads();
  for (int i = thread; i < l.blocks * considered; i += threads) costs[l.first() * considered + i] = shared.costs[i];
}

}  // namespace flexor

using namespace flexor;  // kernels keep plain names, by which they are found

extern "C" {

__global__ void __launch_bounds__(256, 2)
    intra_search_u8(const unsigned char* pictures, int* costs, SearchCall call, u32* amiss) {
  __shared__ SearchShared shared;
  search(shared, pictures, costs, call, amiss);
}

__global__ void __launch_bounds__(256, 2)
    intra_search_u16(const unsigned short* pictures, int* costs, SearchCall call, u32* amiss) {
  __shared__ SearchShared shared;
  search(shared, pictures, costs, call, amiss);
}

}  // extern "C"
