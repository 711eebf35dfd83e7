// SPDX-License-Identifier: Apache-2.0
// The open-loop search a block, a candidate and a sample at a time: what the fast one is checked and timed against.
#include "core/tasks.h"
#include "intra/intra_blocks.h"
#include "intra/intra_reference.h"

namespace flexor::FLEXOR_ISA {
namespace {

constexpr int kMaxBorder = 4 * kMaxIntraSize + 1;

int magnitude(int x) { return x < 0 ? -x : x; }

int sad(const uint16_t* a, const uint16_t* b, int n) {
  int sum = 0;
  for (int i = 0; i < n * n; ++i) sum += magnitude(a[i] - b[i]);
  return sum;
}

// In place, of `size` values `step` apart.
void hadamard(int* values, int size, int step) {
  for (int half = size / 2; half > 0; half /= 2)
    for (int i = 0; i < size; ++i) {
      if (i & half) continue;
      const int a = values[i * step], b = values[(i + half) * step];
      values[i * step] = a + b;
      values[(i + half) * step] = a - b;
    }
}

int satd(const uint16_t* a, const uint16_t* b, int n) {
  const int part = n < 8 ? n : 8;
  int sum = 0;
  for (int y = 0; y < n; y += part)
    for (int x = 0; x < n; x += part) {
      int values[64];
      for (int i = 0; i < part; ++i)
        for (int j = 0; j < part; ++j) {
          const int at = (y + i) * n + x + j;
          values[i * part + j] = a[at] - b[at];
        }
      for (int i = 0; i < part; ++i) hadamard(values + i * part, part, 1);
      for (int i = 0; i < part; ++i) hadamard(values + i, part, part);
      int magnitudes = 0;
      for (int i = 0; i < part * part; ++i) magnitudes += magnitude(values[i]);
      sum += part == 8 ? (magnitudes + 2) >> 2 : (magnitudes + 1) >> 1;
    }
  return sum;
}

void costs_of(int32_t* costs, const IntraSearchParams& p, const uint16_t* original, const uint16_t* border) {
  const int n = 1 << p.log2_size;
  uint16_t smooth[kMaxBorder], block[kMaxIntraSize * kMaxIntraSize];
  if (p.strong_smoothing && n >= 32 && intra_is_straight(border, p.log2_size, p.bit_depth))
    intra_reference.smooth_strong(smooth, border, p.log2_size);
  else intra_reference.smooth(smooth, border, p.log2_size);
  int nearest = kIntraModes;
  const auto cost = [&](int mode, bool is_nearest) {
    const uint16_t* line = intra_smooths(p.log2_size, mode) ? smooth : border;
    intra_reference.predict(block, n, line, p.log2_size, mode, is_nearest, n < 32, p.bit_depth);
    return p.satd ? satd(original, block, n) : sad(original, block, n);
  };
  for (int mode = 0; mode < kIntraModes; ++mode) {
    costs[mode] = cost(mode, false);
    if (p.considered > kIntraModes && kIntraAngles[mode] % 32 != 0) costs[nearest++] = cost(mode, true);
  }
}

// The best ones by cost, then by number.
void choose(int32_t* best, uint8_t* which, int count, int32_t* costs, int considered) {
  for (int k = 0; k < count; ++k) {
    int least = -1;
    for (int c = 0; c < considered; ++c)
      if (costs[c] >= 0 && (least < 0 || costs[c] < costs[least])) least = c;
    best[k] = costs[least];
    which[k] = static_cast<uint8_t>(least);
    costs[least] = -1;
  }
}

template <class Sample>
bool search_of(const IntraSearchParams& p) {
  const int n = 1 << p.log2_size;
  const int64_t kept = p.costs.size[3];
  auto* out = static_cast<int32_t*>(p.costs.data);
  uint32_t bits = 0;
  parallel_for(p.blocks, [&](int64_t block) {
    const BlockPlace at(p, block);
    const PictureView<Sample> picture(p.pictures, at.batch);
    uint16_t border[kMaxBorder], original[kMaxIntraSize * kMaxIntraSize];
    uint32_t seen = 0;
    read_border(border, p, picture, at);
    for (int y = 0; y < n; ++y) picture.read_row(original + y * n, at.row * n + y, at.column * n, n, seen);
    __atomic_fetch_or(&bits, seen, __ATOMIC_RELAXED);
    int32_t costs[kIntraCandidates];
    costs_of(p.candidates ? costs : out + block * kept, p, original, border);
    if (p.candidates)
      choose(out + block * kept, static_cast<uint8_t*>(p.candidates.data) + block * kept, static_cast<int>(kept), costs,
             p.considered);
  });
  return bits >> p.bit_depth == 0;
}

bool search(const IntraSearchParams& p) {
  return with_sample_type(p.pictures, [&](auto sample) { return search_of<decltype(sample)>(p); });
}

}  // namespace

extern const IntraSearchKernels intra_search_reference{search};

}  // namespace flexor::FLEXOR_ISA
