// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <stdexcept>
#include <string>

namespace flexor::hevc {

// The data break the standard, or end early.
struct StreamError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The data may be right, but this decoder does not do what they ask for. The message names it.
struct Unsupported : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace flexor::hevc
