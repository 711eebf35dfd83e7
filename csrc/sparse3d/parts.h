// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <pybind11/pybind11.h>

#include "core/checks.h"
#include "sparse3d/sparse_index.h"

namespace flexor {

// An index from its six parts (order, keys, masks, bases, slots, frame), checked so that no look-up leaves them.
IndexView read_parts(pybind11::handle parts, int dims, const Checks& checks);

}  // namespace flexor
