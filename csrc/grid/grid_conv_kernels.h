// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "grid/grid_conv.h"

namespace flexor::FLEXOR_ISA {

void grid_conv_forward(const GridConvParams& p);
void grid_conv_backward(const GridConvParams& p);

}  // namespace flexor::FLEXOR_ISA
