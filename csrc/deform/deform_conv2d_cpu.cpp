// SPDX-License-Identifier: Apache-2.0
#include "deform/deform_conv2d.h"
namespace flexor::FLEXOR_ISA {
void forward(const DeformConv2dParams&) {}
void backward(const DeformConv2dParams&) {}
extern const DeformConv2dKernels deform_conv2d_kernels{&forward, &backward};
}
