// SPDX-License-Identifier: Apache-2.0
#include "core/tasks.h"
#include "intra/intra_blocks.h"
#include "intra/intra_modes.h"
#include "intra/intra_predict.h"
#include "intra/intra_reference.h"

namespace flexor::FLEXOR_ISA {
namespace {

// Every bit that there is in a sample; bytes always fit.
template <class Sample>
struct Seen {
  static constexpr bool kAsked = sizeof(Sample) > 1;
  Vec<Sample, 16> lanes{};
  uint32_t rest = 0;

  FLEXOR_INLINE void add(Sample sample) {
    if (kAsked) rest |= static_cast<uint32_t>(sample);
  }
  FLEXOR_INLINE uint32_t all() const {
    uint32_t bits = rest;
    for (int lane = 0; kAsked && lane < 16; ++lane) bits |= static_cast<uint32_t>(lanes[lane]);
    return bits;
  }
};

// Samples as the kernels have them.
template <int N, class Sample>
FLEXOR_INLINE void read_line(uint16_t* line, const Sample* border, int64_t stride, Seen<Sample>& seen) {
  if (stride == 1) {
    for (int i = 0; i < 4 * N; i += 16) {
      Vec<Sample, 16> samples;
      __builtin_memcpy(&samples, border + i, sizeof samples);
      if (seen.kAsked) seen.lanes |= samples;
      const Vec<uint16_t, 16> converted = __builtin_convertvector(samples, Vec<uint16_t, 16>);
      __builtin_memcpy(line + i, &converted, sizeof converted);
    }
  } else {
    for (int i = 0; i < 4 * N; ++i) {
      seen.add(border[i * stride]);
      line[i] = static_cast<uint16_t>(border[i * stride]);
    }
  }
  seen.add(border[4 * N * stride]);
  line[4 * N] = static_cast<uint16_t>(border[4 * N * stride]);
}

// Clause 8.4.4.2.2.
void substitute(uint16_t* line, const uint8_t* available, int64_t stride, int count, int bit_depth) {
  int first = 0;
  while (first < count && !available[first * stride]) ++first;
  fill(line, first, first < count ? line[first] : static_cast<uint16_t>(1 << (bit_depth - 1)));
  for (int i = first + 1; i < count; ++i)
    if (!available[i * stride]) line[i] = line[i - 1];
}

template <int N, class Sample>
FLEXOR_INLINE void read_block(uint16_t* line, const IntraPredictParams& p, int64_t block, Seen<Sample>& seen) {
  const auto* border = static_cast<const Sample*>(p.border.data) + block * p.border.stride[0];
  read_line<N>(line, border, p.border.stride[1], seen);
  if (p.available)
    substitute(line, static_cast<const uint8_t*>(p.available.data) + block * p.available.stride[0],
               p.available.stride[1], 4 * N + 1, p.bit_depth);
}

template <int N>
FLEXOR_INLINE void smooth(uint16_t* smoothed, const uint16_t* line, const IntraPredictParams& p,
                          const IntraKernels& kernels) {
  if (p.strong_smoothing && N >= 32 && intra_is_straight(line, p.log2_size, p.bit_depth))
    kernels.smooth_strong(smoothed, line, p.log2_size);
  else kernels.smooth(smoothed, line, p.log2_size);
}

FLEXOR_INLINE bool smooths(const IntraPredictParams& p, int mode) {
  return p.smoothing && intra_smooths(p.log2_size, mode);
}

FLEXOR_INLINE int64_t mode_of(const IntraPredictParams& p, int64_t block) {
  return static_cast<const int64_t*>(p.mode.data)[block * p.mode.stride[0]];
}

constexpr int64_t kLeastBlocks = 128, kMostBlocks = 4096;  // of a task: 65536 samples, from 4 x 4 to 16 x 16

// All bits of the blocks' samples; all ones where a mode is none.
using Body = uint32_t (*)(const IntraPredictParams& p, int64_t first, int count);

// Blocks of a run: each step is taken for all of them, so that no load waits for the store before it.
template <int N>
constexpr int kRun = 256 / N;

template <int N, class Sample>
uint32_t predict_run(const IntraPredictParams& p, int64_t first, const uint16_t* order, int count, int mode) {
  constexpr int kPitch = 4 * N + 1 + 2 * kIntraSlack;
  uint16_t lines[2][kRun<N> * kPitch];
  uint16_t* line = lines[0] + kIntraSlack;
  Sample* blocks[kRun<N>];
  Seen<Sample> seen;
  for (int i = 0; i < count; ++i) {
    const int64_t block = first + order[i];
    read_block<N, Sample>(line + i * kPitch, p, block, seen);
    blocks[i] = static_cast<Sample*>(p.output.data) + block * N * N;
  }
  if (smooths(p, mode)) {
    line = lines[1] + kIntraSlack;
    for (int i = 0; i < count; ++i) smooth<N>(line + i * kPitch, lines[0] + kIntraSlack + i * kPitch, p, intra_kernels);
  }
  uint16_t* corner = line + 2 * N;
  if (kIntraAngles[mode] < 0)
    for (int i = 0; i < count; ++i) project(corner + i * kPitch, corner + i * kPitch, N, mode);
  predict_blocks<N>(ManyBlocks<Sample>{blocks, N, corner, kPitch, count}, mode, p.nearest, p.edge_filter && N < 32,
                    p.bit_depth);
  return seen.all();
}

// In their order, which the processor would see coming; that of the modes it does not.
template <int N, class Sample>
FLEXOR_INLINE void prefetch(const IntraPredictParams& p, int64_t block) {
  constexpr int kLine = 64;
  const auto* border = static_cast<const Sample*>(p.border.data) + block * p.border.stride[0];
  const auto* output = static_cast<const char*>(p.output.data) + block * static_cast<int64_t>(N * N * sizeof(Sample));
  __builtin_prefetch(border);
  for (int at = 0; at < static_cast<int>(N * N * sizeof(Sample)); at += kLine) __builtin_prefetch(output + at, 1);
}

// Mode after mode, so that what a mode needs is at hand.
template <int N, class Sample>
uint32_t predict_task(const IntraPredictParams& p, int64_t first, int count) {
  int ends[kIntraModes + 1] = {};
  uint8_t modes[kMostBlocks];
  uint16_t order[kMostBlocks];
  for (int i = 0; i < count; ++i) {
    const int64_t mode = mode_of(p, first + i);
    if (mode < 0 || mode >= kIntraModes) return ~uint32_t{0};
    modes[i] = static_cast<uint8_t>(mode);
    if (N <= 16) prefetch<N, Sample>(p, first + i);
    ++ends[mode + 1];
  }
  for (int mode = 0; mode < kIntraModes; ++mode) ends[mode + 1] += ends[mode];
  for (int i = 0; i < count; ++i) order[ends[modes[i]]++] = static_cast<uint16_t>(i);
  uint32_t seen = 0;
  for (int mode = 0, next = 0; mode < kIntraModes; ++mode)
    while (next < ends[mode]) {
      const int run = smaller(kRun<N>, ends[mode] - next);
      seen |= predict_run<N, Sample>(p, first, order + next, run, mode);
      next += run;
    }
  return seen;
}

template <int N, class Sample>
uint32_t predict_plainly(const IntraPredictParams& p, int64_t first, int count) {
  uint16_t lines[2][4 * N + 1], samples[N * N];
  Seen<Sample> seen;
  for (int64_t block = first; block < first + count; ++block) {
    const int64_t mode = mode_of(p, block);
    if (mode < 0 || mode >= kIntraModes) return ~uint32_t{0};
    const int known = static_cast<int>(mode);
    const bool smoothed = smooths(p, known);
    read_block<N, Sample>(lines[0], p, block, seen);
    if (smoothed) smooth<N>(lines[1], lines[0], p, intra_reference);
    intra_reference.predict(samples, N, lines[smoothed], p.log2_size, known, p.nearest, p.edge_filter && N < 32,
                            p.bit_depth);
    Sample* output = static_cast<Sample*>(p.output.data) + block * N * N;
    for (int i = 0; i < N * N; ++i) output[i] = static_cast<Sample>(samples[i]);
  }
  return seen.all();
}

bool run(const IntraPredictParams& p, Body body) {
  const int64_t blocks = p.output.size[0], at_once = larger(kMostBlocks >> (2 * p.log2_size - 4), kLeastBlocks);
  uint32_t bits = 0;
  parallel_for(ceil_div(blocks, at_once), [&](int64_t task) {
    const int64_t first = task * at_once;
    const uint32_t seen = body(p, first, static_cast<int>(smaller(at_once, blocks - first)));
    __atomic_fetch_or(&bits, seen, __ATOMIC_RELAXED);
  });
  return bits >> p.bit_depth == 0;
}

#define FLEXOR_SIZES(task) {task<4, Sample>, task<8, Sample>, task<16, Sample>, task<32, Sample>, task<64, Sample>}

bool predict(const IntraPredictParams& p) {
  return with_sample_type(p.border, [&](auto sample) {
    using Sample = decltype(sample);
    constexpr Body kBodies[] = FLEXOR_SIZES(predict_task);
    return run(p, kBodies[p.log2_size - 2]);
  });
}

bool predict_reference(const IntraPredictParams& p) {
  return with_sample_type(p.border, [&](auto sample) {
    using Sample = decltype(sample);
    constexpr Body kBodies[] = FLEXOR_SIZES(predict_plainly);
    return run(p, kBodies[p.log2_size - 2]);
  });
}

}  // namespace

extern const IntraPredictKernels intra_predict_kernels{predict};
extern const IntraPredictKernels intra_predict_reference{predict_reference};

}  // namespace flexor::FLEXOR_ISA
