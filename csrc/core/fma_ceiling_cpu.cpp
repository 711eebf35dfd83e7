// SPDX-License-Identifier: Apache-2.0
#include "core/fma_ceiling.h"
#include "core/simd.h"

namespace flexor::FLEXOR_ISA {
namespace {

constexpr int kChains = 12;  // enough to cover latency x throughput, few enough for 16 registers

float multiply_adds(int64_t rounds) {
  using V = Vec<float>;
  V chain[kChains], factor = splat<V>(0.999f), term = splat<V>(1e-3f);
  unroll<kChains>([&](auto i) { chain[i] = splat<V>(static_cast<float>(i)); });
  for (int64_t r = 0; r < rounds; ++r) unroll<kChains>([&](auto i) { chain[i] = chain[i] * factor + term; });
  V sum = chain[0];
  for (int i = 1; i < kChains; ++i) sum += chain[i];
  return sum[0];
}

}  // namespace

extern const FmaCeilingKernel fma_ceiling_kernel{&multiply_adds, 2 * kChains * kLanes<float>};

}  // namespace flexor::FLEXOR_ISA
