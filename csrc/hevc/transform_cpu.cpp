// SPDX-License-Identifier: Apache-2.0
#include "hevc/transform.h"

#include "hevc/transform_reference.h"

namespace flexor::FLEXOR_ISA {

extern const hevc::TransformKernels transform_kernels{&reference::dct,        &reference::dst,
                                                      &reference::skip,       &reference::rotate,
                                                      &reference::accumulate, &reference::cross_component,
                                                      &reference::add};

}  // namespace flexor::FLEXOR_ISA
