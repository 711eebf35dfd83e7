// SPDX-License-Identifier: Apache-2.0
#include "core/tasks.h"
#include "intra/intra_angles.h"
#include "intra/intra_blocks.h"
#include "intra/intra_predict.h"
#include "intra/intra_reference.h"

namespace flexor::FLEXOR_ISA {
namespace {

constexpr int kMaxBorder = 4 * kMaxIntraSize + 1;
constexpr int kChunk = 16;  // divides 4n and n * n

// Samples as the kernels have them. All bits that there are in them are added to seen.
template <class Sample>
FLEXOR_INLINE void read_line(uint16_t* line, const Sample* border, int64_t stride, int count, uint32_t& seen) {
  uint32_t bits = 0;
  const auto read = [&](int i, int64_t step) __attribute__((always_inline)) {
    bits |= static_cast<uint32_t>(border[i * step]);
    line[i] = static_cast<uint16_t>(border[i * step]);
  };
  if (stride == 1)
    for (int i = 0; i + 1 < count; i += kChunk)
      for (int j = 0; j < kChunk; ++j) read(i + j, 1);
  for (int i = stride == 1 ? count - 1 : 0; i < count; ++i) read(i, stride);
  seen |= bits;
}

// Clause 8.4.4.2.2.
void substitute(uint16_t* line, const uint8_t* available, int64_t stride, int count, int bit_depth) {
  int first = 0;
  while (first < count && !available[first * stride]) ++first;
  fill(line, first, first < count ? line[first] : static_cast<uint16_t>(1 << (bit_depth - 1)));
  for (int i = first + 1; i < count; ++i)
    if (!available[i * stride]) line[i] = line[i - 1];
}

template <class Sample>
FLEXOR_INLINE void predict_block(const IntraPredictParams& p, const IntraKernels& kernels, int64_t block,
                                 uint32_t& seen, bool& known) {
  const int n = 1 << p.log2_size, count = 4 * n + 1;
  const int64_t mode = static_cast<const int64_t*>(p.mode.data)[block * p.mode.stride[0]];
  if (mode < 0 || mode >= kIntraModes) {
    known = false;
    return;
  }
  uint16_t lines[2][kMaxBorder + 2 * kIntraSlack], samples[kMaxIntraSize * kMaxIntraSize];
  uint16_t *line = lines[0] + kIntraSlack, *smoothed = lines[1] + kIntraSlack;
  read_line(line, static_cast<const Sample*>(p.border.data) + block * p.border.stride[0], p.border.stride[1], count,
            seen);
  if (p.available)
    substitute(line, static_cast<const uint8_t*>(p.available.data) + block * p.available.stride[0],
               p.available.stride[1], count, p.bit_depth);
  if (p.smoothing && intra_smooths(p.log2_size, static_cast<int>(mode))) {
    if (p.strong_smoothing && n >= 32 && intra_is_straight(line, p.log2_size, p.bit_depth))
      kernels.smooth_strong(smoothed, line, p.log2_size);
    else kernels.smooth(smoothed, line, p.log2_size);
    line = smoothed;
  }
  Sample* output = static_cast<Sample*>(p.output.data) + block * n * n;
  uint16_t* out = sizeof(Sample) == 2 ? reinterpret_cast<uint16_t*>(output) : samples;
  kernels.predict(out, n, line, p.log2_size, static_cast<int>(mode), p.nearest, p.edge_filter && n < 32, p.bit_depth);
  if (sizeof(Sample) == 2) return;
  for (int i = 0; i < n * n; i += kChunk)
    for (int j = 0; j < kChunk; ++j) output[i + j] = static_cast<Sample>(samples[i + j]);
}

template <class Sample>
bool predict_blocks(const IntraPredictParams& p, const IntraKernels& kernels) {
  const int64_t blocks = p.output.size[0], at_once = larger(int64_t{1}, (int64_t{1} << 14) >> (2 * p.log2_size));
  uint32_t bits = 0;
  parallel_for(ceil_div(blocks, at_once), [&](int64_t task) {
    uint32_t seen = 0;
    bool known = true;
    for (int64_t block = task * at_once; block < smaller(blocks, (task + 1) * at_once); ++block)
      predict_block<Sample>(p, kernels, block, seen, known);
    __atomic_fetch_or(&bits, known ? seen : ~uint32_t{0}, __ATOMIC_RELAXED);
  });
  return bits >> p.bit_depth == 0;
}

bool run(const IntraPredictParams& p, const IntraKernels& kernels) {
  return with_sample_type(p.border, [&](auto sample) { return predict_blocks<decltype(sample)>(p, kernels); });
}

bool predict(const IntraPredictParams& p) { return run(p, intra_kernels); }
bool predict_reference(const IntraPredictParams& p) { return run(p, intra_reference); }

}  // namespace

extern const IntraPredictKernels intra_predict_kernels{predict};
extern const IntraPredictKernels intra_predict_reference{predict_reference};

}  // namespace flexor::FLEXOR_ISA
