// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "deform/deform_conv2d.h"

namespace flexor::FLEXOR_ISA {

void deform_conv2d_forward(const DeformConv2dParams& p);
void deform_conv2d_backward(const DeformConv2dParams& p);

}  // namespace flexor::FLEXOR_ISA
