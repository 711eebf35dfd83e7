// SPDX-License-Identifier: Apache-2.0
// The angles of modes 2 to 34 (H.265 tables 8-5 and 8-6), in 1/32 of a sample a row.
#pragma once
#include <cstdint>

namespace flexor {

constexpr int kIntraModes = 35;
constexpr int kFirstVerticalMode = 18;

constexpr int8_t kIntraAngles[kIntraModes] = {0,  0,  32,  26,  21,  17,  13,  9,   5,   2,   0,   -2,
                                              -5, -9, -13, -17, -21, -26, -32, -26, -21, -17, -13, -9,
                                              -5, -2, 0,   2,   5,   9,   13,  17,  21,  26,  32};

// 8192 / angle, of modes 11 to 25 without their sign.
constexpr int16_t kIntraInverseAngles[15] = {4096, 1638, 910, 630, 482, 390,  315, 256,
                                             315,  390,  482, 630, 910, 1638, 4096};

}  // namespace flexor
