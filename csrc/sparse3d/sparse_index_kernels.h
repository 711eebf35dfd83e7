// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "sparse3d/sparse_index.h"

namespace flexor::FLEXOR_ISA {

void sparse_index(const IndexParams& p, IndexResult& result);
void sparse_output_index(const OutputIndexParams& p, IndexResult& result);
void sparse_map(const MapParams& p, MapResult& result);

}  // namespace flexor::FLEXOR_ISA
