// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "sparse3d/sparse_conv.h"

namespace flexor::FLEXOR_ISA {

void sparse_conv_forward(const SparseConvParams& p);
void sparse_conv_backward(const SparseConvParams& p);

}  // namespace flexor::FLEXOR_ISA
