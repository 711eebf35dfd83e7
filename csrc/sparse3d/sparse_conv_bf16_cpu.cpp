// SPDX-License-Identifier: Apache-2.0
// Products of bfloat16 rows two channels at a time, by the dot product instructions of newer AVX-512 processors, which
// add to float32. Compiled for those alone, in a namespace of its own. Subnormal numbers count as 0 in them.
#include "sparse3d/conv_tiles.h"

namespace flexor::FLEXOR_ISA {
namespace {

// Two channels of a row, the first in the lower half.
using Channels = uint32_t;

// Rows of bfloat16 by rank, as they lie in memory where they are in rank order and of an even number of channels.
class ChannelRows {
 public:
  ChannelRows(const TensorView& view, const int32_t* order, bool identity) {
    const int64_t n = view.size[0], channels = view.size[1];
    const bool even = channels % 2 == 0 && (view.stride[0] % 2 == 0 || n == 1);
    if (identity && even && view.stride[1] == 1 && reinterpret_cast<uintptr_t>(view.data) % 4 == 0) {
      data_ = static_cast<const Channels*>(view.data);
      stride_ = view.stride[0] / 2;
      return;
    }
    stride_ = ceil_div(channels, 2);
    copy_ = static_cast<Channels*>(allocate(static_cast<size_t>(n * stride_) * sizeof(Channels)));
    data_ = copy_;
    parallel_for(ceil_div(n, kRowsAtOnce), [&](int64_t task) {
      for (int64_t r = task * kRowsAtOnce; r < smaller(n, (task + 1) * kRowsAtOnce); ++r) {
        if (!identity && r + kRowsAhead < n) prefetch_row<0>(view, order[r + kRowsAhead]);
        const uint16_t* from = static_cast<const uint16_t*>(view.data) + (identity ? r : order[r]) * view.stride[0];
        uint16_t* to = reinterpret_cast<uint16_t*>(copy_ + r * stride_);
        if (channels % 2 != 0) to[channels] = 0;
        if (view.stride[1] == 1) __builtin_memcpy(to, from, static_cast<size_t>(channels) * 2);
        else
          for (int64_t c = 0; c < channels; ++c) to[c] = from[c * view.stride[1]];
      }
    });
  }
  ~ChannelRows() { release(copy_); }
  ChannelRows(const ChannelRows&) = delete;
  ChannelRows& operator=(const ChannelRows&) = delete;

  FLEXOR_INLINE const Channels* row(int64_t rank) const { return data_ + rank * stride_; }
  FLEXOR_INLINE int64_t stride() const { return stride_; }

 private:
  const Channels* data_ = nullptr;
  Channels* copy_ = nullptr;
  int64_t stride_ = 0;
};

struct DotPairs {
  using Sum = float;
  using Element = Channels;
  using Rows = ChannelRows;
  static FLEXOR_INLINE Vec<float> add_product(Vec<float> sum, Channels x, Vec<float> weight) {
    const __m512i both = _mm512_set1_epi32(static_cast<int>(x));
    return reinterpret_cast<Vec<float>>(_mm512_dpbf16_ps(
        reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(weight), reinterpret_cast<__m512bh>(both)));
  }
};

// Weights as [tap][panel][pair of sources][lanes], two sources in each lane. Of a [Co, K, Ci] tensor of bfloat16;
// turned exchanges inputs and outputs, reversed the taps.
class ChannelWeights {
 public:
  ChannelWeights(const TensorView& weight, const PairShape<float>& shape, bool turned, bool reversed)
      : buffer_(static_cast<size_t>(weight.size[1] * shape.tap_size()) * sizeof(Channels)) {
    const int64_t taps = weight.size[1], sources = weight.size[turned ? 0 : 2];
    const int64_t source_step = weight.stride[turned ? 0 : 2], output_step = weight.stride[turned ? 2 : 0];
    parallel_for(taps, [&](int64_t tap) {
      Channels* to = buffer_.as<Channels>() + (reversed ? taps - 1 - tap : tap) * shape.tap_size();
      const uint16_t* from = static_cast<const uint16_t*>(weight.data) + tap * weight.stride[1];
      const auto at = [&](int64_t source, int64_t output) -> Channels {
        return source < sources && output < shape.outputs ? from[source * source_step + output * output_step] : 0;
      };
      for (int64_t vector = 0; vector < shape.vectors;) {
        const int width = pair_panel(shape.vectors - vector);
        for (int64_t s = 0; s < shape.sources; ++s)
          for (int64_t o = vector * kLanes<float>; o < (vector + width) * kLanes<float>; ++o)
            *to++ = at(2 * s, o) | at(2 * s + 1, o) << 16;
        vector += width;
      }
    });
  }

  const float* data() const { return buffer_.as<float>(); }

 private:
  const SharedBuffer buffer_;
};

void forward(const SparseConvParams& p) {
  const PairShape<float> shape(1, ceil_div(p.features.size[1], 2), p.weight.size[0]);
  const ChannelWeights weight(p.weight, shape, false, false);
  const ChannelRows features(p.features, p.map.in_order, is_identity(p.map.in_order, p.map.n_in));
  const TileProduct<DotPairs> product(p.map, features, weight.data(), shape);
  ConvTiles<DotPairs>{p.map,
                      shape,
                      product,
                      p.output,
                      &p.bias,
                      &p.residual,
                      is_identity(p.map.out_order, p.map.n_out),
                      p.activate,
                      static_cast<float>(p.slope)}
      .run();
}

void input_gradient(const SparseConvParams& p) {
  const PairShape<float> shape(1, ceil_div(p.weight.size[0], 2), p.features.size[1]);
  const ChannelWeights weight(p.weight, shape, true, !p.transposed);
  const ChannelRows grads(p.output, p.map.out_order, is_identity(p.map.out_order, p.map.n_out));
  const MapView& map = p.transposed ? p.transposed : p.map;
  const TileProduct<DotPairs> product(map, grads, weight.data(), shape);
  const bool identity = is_identity(p.map.in_order, p.map.n_in);
  ConvTiles<DotPairs>{map, shape, product, p.grad_features, nullptr, nullptr, identity, false, 0.f}.run();
}

}  // namespace

extern const SparseConvBf16Kernels sparse_conv_bf16_kernels{&forward, &input_gradient};

}  // namespace flexor::FLEXOR_ISA
