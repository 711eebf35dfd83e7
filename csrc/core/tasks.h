// SPDX-License-Identifier: Apache-2.0
// parallel_for over a lambda, for kernel sources.
#pragma once
#include <type_traits>

#include "core/parallel.h"
#include "core/simd.h"

namespace flexor::FLEXOR_ISA {

template <class F>
FLEXOR_INLINE void parallel_for(int64_t tasks, F&& body) {
  using Body = std::remove_reference_t<F>;
  parallel_for_raw(tasks, [](void* context, int64_t task) { (*static_cast<Body*>(context))(task); }, &body);
}

}  // namespace flexor::FLEXOR_ISA
