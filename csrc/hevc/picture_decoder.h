// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "hevc/analysis.h"
#include "hevc/coded_picture.h"

namespace flexor::hevc {

// Reconstructs an intra picture. Bad slice data never throw: frame.damaged says that a part is missing, which is grey.
// The samples do not depend on `threads`. analysis may be null.
void decode_picture(const CodedPicture& coded, Frame& frame, int threads, Analysis* analysis);

}  // namespace flexor::hevc
