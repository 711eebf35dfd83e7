// SPDX-License-Identifier: Apache-2.0
// From Python objects to TensorView.
#pragma once
#include <pybind11/pybind11.h>

#include <string>

#include "core/tensor.h"

namespace flexor {

// Reads a CPU tensor of torch (through the DLPack C exchange table, else its Python attributes) or a
// NumPy array. None gives an empty view. Raises TypeError with `name` in it when the object is no
// tensor, is not on the CPU, or has a dtype that no kernel takes.
TensorView view_tensor(pybind11::handle object, const char* name);

std::string describe(const TensorView& view);  // "float32 (1, 3, 8, 8)"

}  // namespace flexor
