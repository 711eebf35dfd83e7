// SPDX-License-Identifier: Apache-2.0
// Weights as TileProduct reads them: [tap][group][panel][source][lanes of the panel], or [tap][channel].
#pragma once
#include "sparse3d/tile_product.h"

namespace flexor::FLEXOR_ISA {

// Of a [Co, K, Ci/groups] tensor, any dtype and strides; `turned` exchanges inputs and outputs, `reversed` the taps.
template <class T>
class PackedWeight {
 public:
  PackedWeight(const TensorView& weight, const PairShape<T>& shape, bool turned, bool reversed)
      : weight_(weight),
        shape_(shape),
        taps_(weight.size[1]),
        turned_(turned),
        reversed_(reversed),
        buffer_(static_cast<size_t>(taps_ * shape.tap_size()) * sizeof(T)) {
    parallel_for(taps_, [&](int64_t tap) {
      if (shape_.depthwise()) pack_depthwise(tap);
      else pack(tap);
    });
  }

  const T* data() const { return buffer_.template as<T>(); }

 private:
  T* of_tap(int64_t tap) const {
    return buffer_.template as<T>() + (reversed_ ? taps_ - 1 - tap : tap) * shape_.tap_size();
  }

  void pack_depthwise(int64_t tap) const {
    T* to = of_tap(tap);
    load_row(to, weight_, tap * weight_.stride[1], weight_.stride[0], shape_.groups);
    for (int64_t c = shape_.groups; c < shape_.row(); ++c) to[c] = T(0);
  }

  void pack(int64_t tap) const {
    // A row of the tensor is an output and a tap: inputs side by side.
    const int64_t inputs = weight_.size[2], outputs = weight_.size[0] / shape_.groups;
    const int64_t stride = round_up(inputs, kLanes<T>);
    T* rows = static_cast<T*>(thread_workspace(static_cast<size_t>(outputs * stride) * sizeof(T)));
    T* to = of_tap(tap);
    for (int64_t g = 0; g < shape_.groups; ++g) {
      for (int64_t o = 0; o < outputs; ++o)
        load_row(rows + o * stride, weight_, (g * outputs + o) * weight_.stride[0] + tap * weight_.stride[1],
                 weight_.stride[2], inputs);
      for (int64_t vector = 0; vector < shape_.vectors;) {
        const int width = pair_panel(shape_.vectors - vector);
        const int64_t first = vector * kLanes<T>, lanes = width * kLanes<T>;
        const int64_t there = smaller(shape_.outputs - first, lanes);
        for (int64_t s = 0; s < shape_.sources; ++s)
          for (int64_t j = there; j < lanes; ++j) to[s * lanes + j] = T(0);
        if (turned_)
          for (int64_t s = 0; s < shape_.sources; ++s)
            for (int64_t j = 0; j < there; ++j) to[s * lanes + j] = rows[s * stride + first + j];
        else transpose(rows + first * stride, stride, there, inputs, to, lanes);
        to += shape_.sources * lanes;
        vector += width;
      }
    }
  }

  const TensorView& weight_;
  const PairShape<T> shape_;
  const int64_t taps_;
  const bool turned_, reversed_;
  const SharedBuffer buffer_;
};

}  // namespace flexor::FLEXOR_ISA
