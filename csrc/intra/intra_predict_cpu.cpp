// SPDX-License-Identifier: Apache-2.0
#include "intra/intra_modes.h"
#include "intra/intra_reference.h"

namespace flexor::FLEXOR_ISA {
namespace {

template <int N>
void predict_one(uint16_t* block, ptrdiff_t stride, const uint16_t* border, int mode, bool nearest, bool edge_filter,
                 int bit_depth) {
  using V = Vec<uint16_t, 8>;
  const uint16_t* corner = border + 2 * N;
  uint16_t line[2 * N + 2 * kIntraSlack];
  if (kIntraAngles[mode] < 0) {
    uint16_t* own = line + N + kIntraSlack;
    for (int i = -N; i <= N; i += 8) store(own + i, load<V>(corner + i));
    project(own, corner, N, mode);
    corner = own;
  }
  predict_blocks<N>(OneBlock<uint16_t>{block, stride, corner}, mode, nearest, edge_filter, bit_depth);
}

void predict(uint16_t* block, ptrdiff_t stride, const uint16_t* border, int log2_size, int mode, bool nearest,
             bool edge_filter, int bit_depth) {
  // The differences of samples of 16 bits do not fit them.
  if (bit_depth > 15)
    return intra_reference.predict(block, stride, border, log2_size, mode, nearest, edge_filter, bit_depth);
  switch (log2_size) {
    case 2: return predict_one<4>(block, stride, border, mode, nearest, edge_filter, bit_depth);
    case 3: return predict_one<8>(block, stride, border, mode, nearest, edge_filter, bit_depth);
    case 4: return predict_one<16>(block, stride, border, mode, nearest, edge_filter, bit_depth);
    case 5: return predict_one<32>(block, stride, border, mode, nearest, edge_filter, bit_depth);
    default: return predict_one<64>(block, stride, border, mode, nearest, edge_filter, bit_depth);
  }
}

void smooth(uint16_t* smoothed, const uint16_t* border, int log2_size) {
  constexpr int W = kLanes<uint16_t> < 16 ? kLanes<uint16_t> : 16;
  using V = Vec<uint16_t, W>;
  const int last = 4 << log2_size;
  for (int i = 0; i < last; i += W) {
    const V a = load<V>(border + i - 1), b = load<V>(border + i), c = load<V>(border + i + 1);
    const V sides = (a & c) + ((a ^ c) >> 1);               // their mean, rounded down
    store(smoothed + i, (b | sides) - ((b ^ sides) >> 1));  // the mean of both, rounded up: no sum overflows
  }
  smoothed[0] = border[0];
  smoothed[last] = border[last];
}

void smooth_strong(uint16_t* smoothed, const uint16_t* border, int log2_size) {
  const int n = 1 << log2_size;
  const int bottom = border[0], corner = border[2 * n], right = border[4 * n];
  for (int i = 0; i < 2 * n; ++i) {
    smoothed[i] = static_cast<uint16_t>(((2 * n - i) * bottom + i * corner + n) >> (log2_size + 1));
    smoothed[2 * n + i] = static_cast<uint16_t>(((2 * n - i) * corner + i * right + n) >> (log2_size + 1));
  }
  smoothed[4 * n] = border[4 * n];
}

}  // namespace

extern const IntraKernels intra_kernels{predict, smooth, smooth_strong};

}  // namespace flexor::FLEXOR_ISA
