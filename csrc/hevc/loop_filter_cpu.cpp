// SPDX-License-Identifier: Apache-2.0
#include "hevc/loop_filter.h"

#include "hevc/loop_filter_reference.h"

namespace flexor::FLEXOR_ISA {

extern const hevc::LoopFilterKernels loop_filter_kernels{
    &reference::luma_columns, &reference::luma_rows, &reference::chroma_columns, &reference::chroma_rows,
    &reference::sao_band,     &reference::sao_edge,  &reference::narrow};

}  // namespace flexor::FLEXOR_ISA
