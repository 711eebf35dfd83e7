// SPDX-License-Identifier: Apache-2.0
// The plain form of every intra kernel, with the same flags: tests compare, benchmarks time against it.
#pragma once
#include "intra/intra_kernels.h"

namespace flexor {

FLEXOR_DECLARE_KERNELS(IntraKernels, intra_reference)

}  // namespace flexor
