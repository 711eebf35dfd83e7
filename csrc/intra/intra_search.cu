// SPDX-License-Identifier: Apache-2.0
// Open-loop search of intra modes on a GPU. Results are those of intra_search_cpu.cpp, bit by bit.
//
// A unit is 8 x 8 samples of a block (4 x 4 of blocks of 4). A CUDA block has 32 units (a block of 64: 64, in two
// turns): as many blocks of a picture as these make. All threads take one candidate after another: a warp one row of
// every unit, a lane for each, then one column of every unit.
#include "intra/intra_modes.cuh"

namespace flexor {

constexpr int kCandidates = 63;
constexpr int kLanes = 32;
constexpr int kMostUnits = 64;
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
  // By the place in a unit, then by unit, so that no lanes share a bank.
  unsigned short original[64 * kMostUnits];
  int coefficients[64 * kLanes];
  int magnitudes[kMostUnits * kCandidates], sums[kLanes];
  Place places[kLanes];
};

struct Picture {
  const unsigned short* samples;
  i64 height, width;

  __device__ Picture(const unsigned short* pictures, const SearchCall& p, i64 picture)
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
__device__ void read_blocks(SearchShared& shared, const Layout& l, const unsigned short* pictures, const SearchCall& p,
                            u32* amiss) {
  const int threads = static_cast<int>(blockDim.x), middle = 1 << (p.bit_depth - 1);
  for (int i = static_cast<int>(threadIdx.x); i < l.blocks * l.length(); i += threads) {
    const int block = i / l.length(), place = i % l.length() - 2 * l.n();
    const Place& at = shared.places[block];
    const int value = Picture(pictures, p, at.picture).border(at, l.n(), place, middle);
    shared.border[1 + i] = value;
    if (place != 0 && size_of(place) <= l.n()) atomicAdd(shared.sums + block, value);
  }
  u32 seen = 0;
  for (int i = static_cast<int>(threadIdx.x); i < l.blocks << (2 * l.log2_size); i += threads) {
    const int block = i >> (2 * l.log2_size), y = i >> l.log2_size & (l.n() - 1), x = i & (l.n() - 1);
    const Place& at = shared.places[block];
    const int value = Picture(pictures, p, at.picture).at(at.row * l.n() + y, at.column * l.n() + x);
    seen |= static_cast<u32>(value);
    const int shift = l.log2_part(), in_part = (1 << shift) - 1;
    const int unit = (block << l.log2_parts()) + ((y >> shift) << (l.log2_size - shift)) + (x >> shift);
    const int in_unit = ((y & in_part) << shift) + (x & in_part);
    shared.original[(in_unit << l.log2_units()) + unit] = static_cast<unsigned short>(value);
  }
  if (seen >> p.bit_depth != 0) atomicOr(amiss, 1u);
}

// In place.
template <int count>
__device__ inline void hadamard(int* values) {
#pragma unroll
  for (int half = count / 2; half > 0; half /= 2)
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if (i & half) continue;
      const int a = values[i], b = values[i + half];
      values[i] = a + b;
      values[i + half] = a - b;
    }
}

template <int count>
__device__ inline int magnitude(const int* values) {
  int sum = 0;
#pragma unroll
  for (int i = 0; i < count; ++i) sum += size_of(values[i]);
  return sum;
}

// One candidate of a block, seen from one of its units: differences row by row.
struct Candidate {
  const int* corner;
  const unsigned short* original;
  int mode, log2_size, log2_units, log2_part, x0, y0, mean, bit_depth;
  bool nearest;

  __device__ Candidate(const SearchShared& shared, const Layout& l, const SearchCall& p, int number, int unit)
      : original(shared.original + unit),
        log2_size(l.log2_size),
        log2_units(l.log2_units()),
        log2_part(l.log2_part()),
        bit_depth(static_cast<int>(p.bit_depth)),
        nearest(number >= kModes) {
    const int fractional = number - kModes;  // 7 modes between each two whose angle is a multiple of 32
    mode = nearest ? 3 + fractional + fractional / 7 : number;
    const int block = unit >> l.log2_parts(), log2_across = log2_size - log2_part, last = (1 << log2_across) - 1;
    x0 = (unit & last) << log2_part;
    y0 = (unit >> log2_across & last) << log2_part;
    mean = (shared.sums[block] + l.n()) >> (log2_size + 1);
    corner = (smooths(log2_size, mode) ? shared.smooth : shared.border) + 1 + block * l.length() + 2 * l.n();
  }

  // Of a horizontal mode a column: transposed, a unit costs the same.
  template <int part>
  __device__ void row(int row, int* differences) const {
    const bool edges = log2_size < 5;
    if (mode == kPlanarMode || mode == kDcMode) {
#pragma unroll
      for (int i = 0; i < part; ++i) {
        const int value = mode == kPlanarMode ? planar(corner, log2_size, x0 + i, y0 + row)
                                              : dc(corner, mean, edges, x0 + i, y0 + row);
        differences[i] = original[((row << log2_part) + i) << log2_units] - value;
      }
      return;
    }
    const Angular angular(mode);
    const bool vertical = angular.side > 0;
    const int along = vertical ? x0 : y0, across = (vertical ? y0 : x0) + row;
    const int first = vertical ? row << log2_part : row, step = vertical ? 0 : log2_part;
#pragma unroll
    for (int i = 0; i < part; ++i) {
      int value = angular.at(corner, nearest, along + i, across);
      if (i == 0 && along == 0 && edges && angular.angle == 0)
        value = angular.filtered(corner, value, across, bit_depth);
      differences[i] = original[(first + (i << step)) << log2_units] - value;
    }
  }
};

// Every unit of one candidate, up to 32 at once; the whole CUDA block comes here.
template <int part>
__device__ inline void measure(SearchShared& shared, const Layout& l, const SearchCall& p, int number) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes, line = static_cast<int>(threadIdx.x) / kLanes;
  for (int first = 0; first < l.blocks << l.log2_parts(); first += kLanes) {
    const int unit = first + lane;
    const bool busy = line < part && unit < l.blocks << l.log2_parts();
    int* const sum = shared.magnitudes + unit * kCandidates + number;
    int values[part];
    if (busy) {
      Candidate(shared, l, p, number, unit).row<part>(line, values);
      if (p.satd != 0) {
        hadamard<part>(values);
#pragma unroll
        for (int i = 0; i < part; ++i) shared.coefficients[(line * part + i) * kLanes + lane] = values[i];
      } else {
        atomicAdd(sum, magnitude<part>(values));
      }
    }
    if (p.satd == 0) continue;
    __syncthreads();
    if (busy) {
#pragma unroll
      for (int i = 0; i < part; ++i) values[i] = shared.coefficients[(i * part + line) * kLanes + lane];
      hadamard<part>(values);
      atomicAdd(sum, magnitude<part>(values));
    }
    __syncthreads();
  }
}

// Of a block, from the magnitudes of its units.
__device__ inline int cost_of(const SearchShared& shared, const Layout& l, bool satd, int block, int number) {
  int cost = 0;
  for (int unit = block << l.log2_parts(); unit < (block + 1) << l.log2_parts(); ++unit) {
    const int sum = shared.magnitudes[unit * kCandidates + number];
    cost += !satd ? sum : l.log2_size == 2 ? (sum + 1) >> 1 : (sum + 2) >> 2;
  }
  return cost;
}

__device__ void search(SearchShared& shared, const unsigned short* pictures, int* costs, const SearchCall& p,
                       u32* amiss) {
  const Layout l(p);
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const int considered = static_cast<int>(p.considered);
  for (int i = thread; i < kMostUnits * kCandidates; i += threads) shared.magnitudes[i] = 0;
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
  for (int number = 0; number < considered; ++number)
    if (l.log2_size == 2) measure<4>(shared, l, p, number);
    else measure<8>(shared, l, p, number);
  __syncthreads();
  for (int i = thread; i < l.blocks * considered; i += threads)
    costs[l.first() * considered + i] = cost_of(shared, l, p.satd != 0, i / considered, i % considered);
}

}  // namespace flexor

using namespace flexor;  // kernels keep plain names, by which they are found

extern "C" {

__global__ void intra_search(const unsigned short* pictures, int* costs, SearchCall call, u32* amiss) {
  __shared__ SearchShared shared;
  search(shared, pictures, costs, call, amiss);
}

}  // extern "C"
