// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace flexor {

bool active_bf16_dot();  // avx512 is active, and the machine has its dot products of bfloat16

}  // namespace flexor
