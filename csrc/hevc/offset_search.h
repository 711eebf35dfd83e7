// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "hevc/encoder_state.h"

namespace flexor::hevc {

// Chooses the sample adaptive offset of every CTB from the deblocked picture (H.265 clause 8.7.3).
void decide_offsets(EncoderState& state, int threads);

}  // namespace flexor::hevc
