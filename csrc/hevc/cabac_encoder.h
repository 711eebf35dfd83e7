// SPDX-License-Identifier: Apache-2.0
// The arithmetic encoder (H.265 clause 9.3.5), and one that only counts what a bin would cost.
#pragma once
#include "hevc/cabac.h"
#include "hevc/encoder_state.h"

namespace flexor::FLEXOR_ISA {

using namespace hevc;

// What is decided of ivlLow waits in a 64-bit number; a carry runs back through the bytes written.
class CabacWriter {
 public:
  CabacWriter(ByteSink& sink, ContextState& contexts) : sink_(sink), contexts_(contexts) { start(); }

  void bin(int context, int value) {
    uint8_t& model = contexts_.model[context];
    const uint32_t lps = kRangeLps[model >> 1][(range_ >> 6) & 3];
    range_ -= lps;
    if (value != (model & 1)) {
      low_ += range_;
      range_ = lps;
      model = kTransitions.next[model ^ 255];
    } else {
      model = kTransitions.next[model];
    }
    shift(__builtin_clz(range_) - 23);
  }
  void bypass(uint32_t value, int count) {
    for (; count > 16; count -= 16) bypass(value >> (count - 16) & 0xffff, 16);
    low_ = (low_ << count) + static_cast<uint64_t>(range_) * (value & ((1u << count) - 1));
    pending_ += count;
    emit();
  }
  void terminate(int value) {
    range_ -= 2;
    if (value) {
      low_ += range_;
      range_ = 2;
      shift(7);
      finish();
    } else if (range_ < 256) {
      shift(1);
    }
  }
  ContextState& contexts() { return contexts_; }

 private:
  void start() {
    low_ = 0;
    range_ = 510;
    pending_ = -1;
  }
  void shift(int count) {
    range_ <<= count;
    low_ <<= count;
    pending_ += count;
    emit();
  }
  void emit() {
    while (pending_ >= 8) {
      pending_ -= 8;
      push(static_cast<uint32_t>(low_ >> (pending_ + 10)));
      low_ &= (uint64_t{1} << (pending_ + 10)) - 1;
    }
  }
  void push(uint32_t nine_bits) {
    if (sink_.size == sink_.capacity) sink_.reserve(sink_, 1);
    if (nine_bits & 256) {
      for (size_t i = sink_.size; i-- > 0;) {
        if (++sink_.data[i] != 0) break;
      }
    }
    sink_.data[sink_.size++] = static_cast<uint8_t>(nine_bits);
  }
  // The last of what is decided, the bit that ends the data, and zeros to the next byte.
  void finish() {
    int bits = pending_ + 3;
    const int padding = -bits & 7;
    uint64_t value = (low_ >> 7 | 1) << padding;
    for (bits += padding; bits > 0;) {
      bits -= 8;
      push(static_cast<uint32_t>(value >> bits));
      value &= (uint64_t{1} << bits) - 1;
    }
    start();
  }

  ByteSink& sink_;
  ContextState& contexts_;
  uint64_t low_ = 0;
  uint32_t range_ = 510;
  int pending_ = -1;  // bits above the ten of ivlLow
};

class BitCounter {
 public:
  BitCounter(const int32_t* entropy, ContextState& contexts) : entropy_(entropy), contexts_(contexts) {}
  void bin(int context, int value) {
    uint8_t& model = contexts_.model[context];
    const int other = value != (model & 1) ? 255 : 0;
    bits_ += entropy_[model ^ value];
    model = kTransitions.next[model ^ other];
  }
  void bypass(uint32_t, int count) { bits_ += static_cast<int64_t>(count) << 15; }
  void terminate(int) {}
  ContextState& contexts() { return contexts_; }
  double bits() const { return static_cast<double>(bits_) * (1.0 / 32768); }

 private:
  const int32_t* entropy_;
  ContextState& contexts_;
  int64_t bits_ = 0;
};

}  // namespace flexor::FLEXOR_ISA
