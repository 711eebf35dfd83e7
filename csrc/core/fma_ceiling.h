// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "core/cpu.h"

namespace flexor {

struct FmaCeilingKernel {
  float (*multiply_adds)(int64_t rounds);  // the sum, so that the work is not removed
  int flops_a_round;
};

FLEXOR_DECLARE_KERNELS(FmaCeilingKernel, fma_ceiling_kernel)

double fma_ceiling();  // GFLOP/s of one thread, float32, in the active instruction set

}  // namespace flexor
