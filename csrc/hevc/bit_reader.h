// SPDX-License-Identifier: Apache-2.0
// Syntax elements of headers (H.265 clauses 7.2 and 9.2), read from an RBSP. Every read is checked and may be traced,
// so that decoding and `flexor hevc info` share one parser.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "hevc/stream_error.h"

namespace flexor::hevc {

// Told of every syntax element in the order of the stream; elements of an array come under the same name.
struct SyntaxTrace {
  virtual void element(const char* name, int64_t value) = 0;
  virtual ~SyntaxTrace() = default;
};

class BitReader {
 public:
  BitReader(const uint8_t* data, size_t size, SyntaxTrace* trace = nullptr)
      : data_(data), bits_(size * 8), trace_(trace) {}

  // u(n), n up to 32. Throws StreamError past the end, as every function here.
  uint32_t u(const char* name, int n) { return static_cast<uint32_t>(traced(name, bits(n))); }
  bool flag(const char* name) { return u(name, 1) != 0; }

  // ue(v) and se(v); a value out of range is a StreamError.
  uint32_t ue(const char* name, uint32_t max) {
    const uint32_t value = exp_golomb();
    if (value > max) out_of_range(name, value, 0, max);
    return static_cast<uint32_t>(traced(name, value));
  }
  int ue(const char* name, int max) { return static_cast<int>(ue(name, static_cast<uint32_t>(max))); }
  int se(const char* name, int min, int max) {
    const int64_t code = exp_golomb();
    const int64_t value = code % 2 == 1 ? (code + 1) / 2 : -(code / 2);
    if (value < min || value > max) out_of_range(name, value, min, max);
    return static_cast<int>(traced(name, value));
  }

  // n bits that are not traced.
  uint32_t bits(int n) {
    if (static_cast<size_t>(n) > bits_left()) ends_early();
    uint64_t value = 0;
    for (int read = 0; read < n;) {
      const int offset = static_cast<int>(position_ & 7);
      const int take = 8 - offset < n - read ? 8 - offset : n - read;
      const int byte = data_[position_ >> 3];
      value = (value << take) | ((byte >> (8 - offset - take)) & ((1 << take) - 1));
      position_ += static_cast<size_t>(take);
      read += take;
    }
    return static_cast<uint32_t>(value);
  }

  void skip(size_t n) {
    if (n > bits_left()) ends_early();
    position_ += n;
  }
  size_t position() const { return position_; }  // in bits
  size_t bits_left() const { return bits_ - position_; }
  const uint8_t* data() const { return data_; }

  // more_rbsp_data(): whether anything comes before the stop bit and the zeros after it.
  bool more_rbsp_data() const {
    size_t last = bits_ / 8;
    while (last > 0 && data_[last - 1] == 0) --last;
    if (last == 0) return false;
    int zeros = 0;
    while (((data_[last - 1] >> zeros) & 1) == 0) ++zeros;
    return position_ < last * 8 - static_cast<size_t>(zeros) - 1;
  }

  // byte_alignment(): a one, then zeros up to the next byte.
  void byte_alignment() {
    if (bits(1) != 1) throw StreamError("alignment_bit_equal_to_one is 0");
    position_ = (position_ + 7) & ~static_cast<size_t>(7);
  }

  void trace(const char* name, int64_t value) { traced(name, value); }

 private:
  uint32_t exp_golomb() {
    int zeros = 0;
    while (bits(1) == 0)
      if (++zeros > 31) throw StreamError("an exp-Golomb code is longer than 63 bits");
    return static_cast<uint32_t>((uint64_t{1} << zeros) - 1 + bits(zeros));
  }

  int64_t traced(const char* name, int64_t value) {
    if (trace_ != nullptr) trace_->element(name, value);
    return value;
  }

  [[noreturn]] static void ends_early() { throw StreamError("the data end inside a header"); }
  [[noreturn]] static void out_of_range(const char* name, int64_t value, int64_t min, int64_t max) {
    throw StreamError(std::string(name) + " must be " + std::to_string(min) + " to " + std::to_string(max) + ", got " +
                      std::to_string(value));
  }

  const uint8_t* data_;
  size_t bits_;
  size_t position_ = 0;
  SyntaxTrace* trace_;
};

}  // namespace flexor::hevc
