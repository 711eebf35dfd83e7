// SPDX-License-Identifier: Apache-2.0
// Omni-dimensional dynamic convolution, forward: the correlation of mixed weights with the input's planes.
#include "dynamic/odconv2d_kernels.h"

namespace flexor::FLEXOR_ISA {
namespace {

template <class T>
void forward(const ODConv2dParams& p) {
  const ODConv2dShape s(p);
  if (s.batch == 0 || s.out_channels == 0) return;
  const Operands<T> operands(p, s);
  if (s.depthwise()) return depthwise_forward(p, s, operands.m);
  mixed_forward(operands.m, window_of(p), p.input, p.output);
}

}  // namespace

void odconv2d_forward(const ODConv2dParams& p) {
  if (p.input.dtype == DType::f64) forward<double>(p);
  else forward<float>(p);
}

extern const ODConv2dKernels odconv2d_kernels{&odconv2d_forward, &odconv2d_backward};

}  // namespace flexor::FLEXOR_ISA
