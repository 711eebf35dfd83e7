// SPDX-License-Identifier: Apache-2.0
// Which instruction set the kernels use: every kernel source is compiled once per set, and the best one
// the machine has is taken when the module loads. FLEXOR_CPU=baseline|avx2|avx512 forces one.
#pragma once
#include <string>
#include <vector>

namespace flexor {

enum class Isa { baseline, avx2, avx512 };

Isa active_isa();
void set_active_isa(const std::string& name);  // throws std::invalid_argument that says what there is
std::vector<std::string> available_isas();     // compiled in, and had by this machine; worst first
std::vector<std::string> cpu_features();
const char* isa_name(Isa isa);

// The table of one kernel family: name_<isa> for each instruction set that was compiled.
#if FLEXOR_HAVE_avx2
#define FLEXOR_KERNELS(table) \
  (active_isa() == Isa::avx512 ? avx512::table : active_isa() == Isa::avx2 ? avx2::table : baseline::table)
#define FLEXOR_DECLARE_KERNELS(Type, table)       \
  namespace baseline { extern const Type table; } \
  namespace avx2 { extern const Type table; }     \
  namespace avx512 { extern const Type table; }
#else
#define FLEXOR_KERNELS(table) (baseline::table)
#define FLEXOR_DECLARE_KERNELS(Type, table) \
  namespace baseline { extern const Type table; }
#endif

}  // namespace flexor
