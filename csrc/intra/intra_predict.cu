// SPDX-License-Identifier: Apache-2.0
// Intra prediction on a GPU, each block with a mode of its own. Results are those of intra_predict_cpu.cpp, bit by bit.
#include "intra/intra_modes.cuh"

namespace flexor {

constexpr int kMostPredictedTogether = 16;                  // blocks of 4, a sample a thread
constexpr int kMostLine = kMostPredictedTogether * 17 + 2;  // more than one border of 64; a sample beyond both ends

struct PredictCall {
  i64 blocks, log2_size, bit_depth, nearest, smoothing, strong_smoothing, edge_filter;
};

struct PredictShared {
  int border[kMostLine], line[kMostLine], sums[kMostPredictedTogether];
};

__device__ inline bool is_mode(i64 mode) { return mode >= 0 && mode < kModes; }

// Clause 8.4.4.2.2: what is not available repeats what comes before it, the beginning what comes first; -1: nothing is.
__device__ inline int source_of(const unsigned char* available, int place, int last) {
  int source = place;
  while (source >= 0 && available[source] == 0) --source;
  if (source >= 0) return source;
  source = place + 1;
  while (source <= last && available[source] == 0) ++source;
  return source <= last ? source : -1;
}

__device__ inline int predicted(const int* corner, int log2_size, int mode, const PredictCall& p, int sum, int x,
                                int y) {
  const bool edges = p.edge_filter != 0 && log2_size < 5;
  if (mode == kPlanarMode) return planar(corner, log2_size, x, y);
  if (mode == kDcMode) return dc(corner, (sum + (1 << log2_size)) >> (log2_size + 1), edges, x, y);
  const Angular angular(mode);
  const int along = angular.side > 0 ? x : y, across = angular.side > 0 ? y : x;
  const int value = angular.at(corner, p.nearest != 0, along, across);
  return edges && angular.angle == 0 && along == 0
             ? angular.filtered(corner, value, across, static_cast<int>(p.bit_depth))
             : value;
}

// One CUDA block a few blocks. amiss gets a bit where a mode or a sample is out of range.
template <class Sample>
__device__ void predict(PredictShared& shared, Sample* output, const Sample* borders, const i64* modes,
                        const unsigned char* available, const PredictCall& p, u32* amiss) {
  const int log2_size = static_cast<int>(p.log2_size), n = 1 << log2_size, length = 4 * n + 1;
  const int bit_depth = static_cast<int>(p.bit_depth);
  const int together = log2_size < 4 ? 256 >> (2 * log2_size) : 1;
  const i64 first = static_cast<i64>(blockIdx.x) * together;
  const int blocks = static_cast<int>(least(p.blocks - first, static_cast<i64>(together)));
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  int* const border = shared.border + 1;
  int* const line = shared.line + 1;
  for (int i = thread; i < together; i += threads) shared.sums[i] = 0;
  for (int i = thread; i < kMostLine; i += threads) shared.line[i] = 0;
  __syncthreads();

  for (int i = thread; i < blocks * length; i += threads) {
    const int block = i / length, place = i % length;
    const i64 at = (first + block) * length;
    const int source = available == nullptr ? place : source_of(available + at, place, length - 1);
    const int value = source < 0 ? 1 << (bit_depth - 1) : static_cast<int>(borders[at + source]);
    border[i] = value;
    if (place >= n && place <= 3 * n && place != 2 * n) atomicAdd(shared.sums + block, value);
    if (static_cast<u32>(borders[at + place]) >> bit_depth != 0 || !is_mode(modes[first + block])) atomicOr(amiss, 1u);
  }
  __syncthreads();
  for (int i = thread; i < blocks * length; i += threads) {
    const int block = i / length;
    const i64 mode = modes[first + block];
    const bool smooth = p.smoothing != 0 && is_mode(mode) && smooths(log2_size, static_cast<int>(mode));
    const int* corner = border + block * length + 2 * n;
    line[i] = smooth ? smoothed(corner, log2_size, i % length - 2 * n, p.strong_smoothing != 0, bit_depth) : border[i];
  }
  __syncthreads();
  for (int i = thread; i < blocks << (2 * log2_size); i += threads) {
    const int block = i >> (2 * log2_size), x = i & (n - 1), y = i >> log2_size & (n - 1);
    const i64 mode = modes[first + block];
    if (!is_mode(mode)) continue;
    const int* corner = line + block * length + 2 * n;
    const int value = predicted(corner, log2_size, static_cast<int>(mode), p, shared.sums[block], x, y);
    output[(first << (2 * log2_size)) + i] = static_cast<Sample>(value);
  }
}

}  // namespace flexor

using namespace flexor;  // kernels keep plain names, by which they are found

extern "C" {

__global__ void intra_predict_u8(unsigned char* output, const unsigned char* borders, const i64* modes,
                                 const unsigned char* available, PredictCall call, u32* amiss) {
  __shared__ PredictShared shared;
  predict(shared, output, borders, modes, available, call, amiss);
}

__global__ void intra_predict_u16(unsigned short* output, const unsigned short* borders, const i64* modes,
                                  const unsigned char* available, PredictCall call, u32* amiss) {
  __shared__ PredictShared shared;
  predict(shared, output, borders, modes, available, call, amiss);
}

}  // extern "C"
