// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <pybind11/pybind11.h>

#include "core/checks.h"
#include "sparse3d/map_view.h"

namespace flexor {

// A map from its five tensors (out_order, in_order, in_rows, places, offsets).
MapView read_map(pybind11::handle map, int64_t taps, const Checks& checks);

}  // namespace flexor
