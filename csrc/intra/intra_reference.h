// SPDX-License-Identifier: Apache-2.0
// The plain form of every intra kernel, with the same flags: tests compare, benchmarks time against it.
#pragma once
#include "intra/intra_kernels.h"

namespace flexor {

#ifdef FLEXOR_ISA
namespace FLEXOR_ISA {  // kernel sources see the tables of their own instruction set
extern const IntraKernels intra_kernels, intra_reference;
}
#else
FLEXOR_DECLARE_KERNELS(IntraKernels, intra_reference)
#endif

}  // namespace flexor
