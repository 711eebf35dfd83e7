// SPDX-License-Identifier: Apache-2.0
#include "core/cpu.h"

#include "core/bf16_dot.h"

#include <cstdlib>
#include <stdexcept>

namespace flexor {
namespace {

bool machine_has(Isa isa) {
#if FLEXOR_HAVE_avx2
  if (isa == Isa::avx512) return __builtin_cpu_supports("x86-64-v4");
  if (isa == Isa::avx2) return __builtin_cpu_supports("x86-64-v3");
  return true;
#else
  return isa == Isa::baseline;
#endif
}

Isa best_isa() { return machine_has(Isa::avx512) ? Isa::avx512 : machine_has(Isa::avx2) ? Isa::avx2 : Isa::baseline; }

Isa& active() {
  static Isa isa = best_isa();
  return isa;
}

}  // namespace

const char* isa_name(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline"; }

Isa active_isa() { return active(); }

bool active_bf16_dot() {
#if FLEXOR_HAVE_avx512
  return active_isa() == Isa::avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512})
    if (machine_has(isa)) names.emplace_back(isa_name(isa));
  return names;
}

void set_active_isa(const std::string& name) {
  std::string have;
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (!machine_has(isa)) continue;
    if (name == isa_name(isa)) {
      active() = isa;
      return;
    }
    have += std::string(have.empty() ? "" : ", ") + isa_name(isa);
  }
  throw std::invalid_argument("FLEXOR_CPU must be one of " + have + " on this machine, got " + name);
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> names;
#if FLEXOR_HAVE_avx2
#define FLEXOR_FEATURE(name) \
  if (__builtin_cpu_supports(name)) names.emplace_back(name)
  FLEXOR_FEATURE("sse4.2");
  FLEXOR_FEATURE("avx");
  FLEXOR_FEATURE("f16c");
  FLEXOR_FEATURE("fma");
  FLEXOR_FEATURE("avx2");
  FLEXOR_FEATURE("avx512f");
  FLEXOR_FEATURE("avx512bw");
  FLEXOR_FEATURE("avx512vl");
  FLEXOR_FEATURE("avx512vnni");
  FLEXOR_FEATURE("avx512bf16");
#undef FLEXOR_FEATURE
#endif
  return names;
}

}  // namespace flexor
