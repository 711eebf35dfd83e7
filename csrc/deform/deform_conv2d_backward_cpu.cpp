// SPDX-License-Identifier: Apache-2.0
#include "deform/deform_conv2d_kernels.h"
namespace flexor::FLEXOR_ISA {
void deform_conv2d_backward(const DeformConv2dParams&) {}
extern const DeformConv2dKernels deform_conv2d_kernels{&deform_conv2d_forward, &deform_conv2d_backward};
}
