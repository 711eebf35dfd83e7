// SPDX-License-Identifier: Apache-2.0
#include "core/fma_ceiling.h"

#include <algorithm>
#include <ctime>

namespace flexor {

double fma_ceiling() {
  const FmaCeilingKernel& kernel = FLEXOR_KERNELS(fma_ceiling_kernel);
  constexpr int64_t kRounds = 1 << 20;  // a few milliseconds
  double best = 0;
  volatile float sink;
  for (int attempt = 0; attempt < 20; ++attempt) {
    const std::clock_t start = std::clock();  // CPU time: other processes do not lower the rate
    sink = kernel.multiply_adds(kRounds);
    const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    best = std::max(best, 1e-9 * static_cast<double>(kRounds) * kernel.flops_a_round / std::max(seconds, 1e-6));
  }
  static_cast<void>(sink);
  return best;
}

}  // namespace flexor
