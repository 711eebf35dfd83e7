// SPDX-License-Identifier: Apache-2.0
// Gradients of a sparse convolution. That of the features is a convolution of the output's with the taps mirrored or
// the map transposed. That of the weight is summed over a fixed number of slices of the tiles, then over the slices.
#include "sparse3d/conv_tiles.h"
#include "sparse3d/sparse_conv_kernels.h"

namespace flexor::FLEXOR_ISA {
namespace {

constexpr int64_t kMostSlices = 16;
constexpr int64_t kTilesASlice = 4;               // at least, for slices to be worth their sums
constexpr int64_t kSumBytes = int64_t{64} << 20;  // of all slices' sums, about
constexpr int64_t kBatchBytes = 384 << 10;        // of the rows that a batch of tiles reads: they stay in cache

#if FLEXOR_ISA_avx512
constexpr int kSumRows[5] = {0, 16, 12, 8, 6};  // inputs by vectors of outputs, in registers
#else
constexpr int kSumRows[4] = {0, 8, 4, 4};
#endif

// sums[M][NV vectors] += outer products of a list's pairs.
template <class T, int M, int NV>
FLEXOR_INLINE void add_outer(const PairList& list, const RankRows<T>& features, const RankRows<T>& grads,
                             int64_t first_rank, int64_t in_channel, int64_t out_channel, Vec<T> (&acc)[M][NV]) {
  using V = Vec<T>;
  for (int64_t p = 0; p < list.count; ++p) {
    const T* x = features.row(list.rows[p]) + in_channel;
    const T* g = grads.row(first_rank + list.places[p]) + out_channel;
    V gv[NV];
    unroll<NV>([&](auto j) __attribute__((always_inline)) { gv[j] = load<V>(g + j * kLanes<T>); });
    unroll<M>([&](auto i) __attribute__((always_inline)) {
      const V xv = splat<V>(x[i]);
      unroll<NV>([&](auto j) __attribute__((always_inline)) { acc[i][j] += xv * gv[j]; });
    });
  }
}

template <class T>
class WeightGradient {
 public:
  WeightGradient(const SparseConvParams& p, const PairShape<T>& shape, const RankRows<T>& features,
                 const RankRows<T>& grads)
      : p_(p), map_(p.map), shape_(shape), features_(features), grads_(grads), taps_(p.map.taps) {
    size_ = taps_ * shape.tap_size();
    const int64_t room = larger<int64_t>(1, kSumBytes / larger<int64_t>(1, size_ * static_cast<int64_t>(sizeof(T))));
    slices_ = larger<int64_t>(1, smaller(smaller(kMostSlices, room), map_.tiles / kTilesASlice));
    const int64_t tile_bytes = kTileRows * (p.features.size[1] + p.weight.size[0]) * static_cast<int64_t>(sizeof(T));
    batch_ = larger<int64_t>(1, kBatchBytes / larger<int64_t>(1, tile_bytes));
  }

  void run() const {
    const SharedBuffer buffer(static_cast<size_t>(slices_ * size_) * sizeof(T));
    T* sums = buffer.as<T>();
    parallel_for(slices_, [&](int64_t slice) {
      T* own = sums + slice * size_;
      for (int64_t i = 0; i < size_; ++i) own[i] = T(0);
      const int64_t first = map_.tiles * slice / slices_, last = map_.tiles * (slice + 1) / slices_;
      for (int64_t tile = first; tile < last; tile += batch_) add_batch(tile, smaller(last, tile + batch_), own);
    });
    parallel_for(taps_, [&](int64_t tap) { store_tap(tap, sums); });
  }

 private:
  PairList list(int64_t tile, int64_t tap) const {
    const int64_t begin = map_.offsets[tile * taps_ + tap], end = map_.offsets[tile * taps_ + tap + 1];
    return {map_.in_rows + begin, map_.places + begin, end - begin};
  }

  void add_batch(int64_t first, int64_t last, T* sums) const {
    for (int64_t tile = first; tile < last; ++tile) check_tile(map_, tile);
    for (int64_t tap = 0; tap < taps_; ++tap) {
      T* of_tap = sums + tap * shape_.tap_size();
      if (shape_.depthwise()) {
        for (int64_t tile = first; tile < last; ++tile) add_depthwise(tile, list(tile, tap), of_tap);
        continue;
      }
      for (int64_t g = 0; g < shape_.groups; ++g)
        for (int64_t vector = 0; vector < shape_.vectors;) {
          const int width = pair_panel(shape_.vectors - vector);
          T* at = of_tap + g * shape_.sources * shape_.width + vector * kLanes<T>;
          const int64_t out = g * shape_.outputs + vector * kLanes<T>;
          add_panel(width, first, last, tap, g * shape_.sources, out, at);
          vector += width;
        }
    }
  }

  FLEXOR_INLINE void add_panel(int width, int64_t first, int64_t last, int64_t tap, int64_t in, int64_t out,
                               T* at) const {
    switch (width) {
      case 1: return add_rows<1>(first, last, tap, in, out, at);
      case 2: return add_rows<2>(first, last, tap, in, out, at);
#if FLEXOR_ISA_avx512
      case 3: return add_rows<3>(first, last, tap, in, out, at);
#endif
      default: return add_rows<kMostVectors>(first, last, tap, in, out, at);
    }
  }

  template <int NV>
  __attribute__((noinline)) void add_rows(int64_t first, int64_t last, int64_t tap, int64_t in, int64_t out,
                                          T* at) const {
    int64_t c = 0;
    constexpr int M = kSumRows[NV];
    for (; c + M <= shape_.sources; c += M) add_block<M, NV>(first, last, tap, in + c, out, at + c * shape_.width);
    if constexpr (M > 8)
      for (; c + 8 <= shape_.sources; c += 8) add_block<8, NV>(first, last, tap, in + c, out, at + c * shape_.width);
    if constexpr (M > 4)
      for (; c + 4 <= shape_.sources; c += 4) add_block<4, NV>(first, last, tap, in + c, out, at + c * shape_.width);
    for (; c < shape_.sources; ++c) add_block<1, NV>(first, last, tap, in + c, out, at + c * shape_.width);
  }

  template <int M, int NV>
  FLEXOR_INLINE void add_block(int64_t first, int64_t last, int64_t tap, int64_t in, int64_t out, T* at) const {
    using V = Vec<T>;
    V acc[M][NV];
    unroll<M>([&](auto i) __attribute__((always_inline)) {
      unroll<NV>([&](auto j)
                     __attribute__((always_inline)) { acc[i][j] = load<V>(at + i * shape_.width + j * kLanes<T>); });
    });
    for (int64_t tile = first; tile < last; ++tile)
      add_outer<T, M, NV>(list(tile, tap), features_, grads_, tile * kTileRows, in, out, acc);
    unroll<M>([&](auto i) __attribute__((always_inline)) {
      unroll<NV>([&](auto j)
                     __attribute__((always_inline)) { store(at + i * shape_.width + j * kLanes<T>, acc[i][j]); });
    });
  }

  void add_depthwise(int64_t tile, const PairList& pairs, T* sums) const {
    using V = Vec<T>;
    for (int64_t p = 0; p < pairs.count; ++p) {
      const T* x = features_.row(pairs.rows[p]);
      const T* g = grads_.row(tile * kTileRows + pairs.places[p]);
      for (int64_t c = 0; c < shape_.row(); c += kLanes<T>)
        store(sums + c, load<V>(sums + c) + load<V>(x + c) * load<V>(g + c));
    }
  }

  // Adds the slices up and writes [Co, tap, Ci/groups].
  void store_tap(int64_t tap, T* sums) const {
    const int64_t tap_size = shape_.tap_size();
    T* total = sums + tap * tap_size;
    for (int64_t s = 1; s < slices_; ++s)
      for (int64_t i = 0; i < tap_size; ++i) total[i] += sums[s * size_ + tap * tap_size + i];
    const TensorView& to = p_.grad_weight;
    if (shape_.depthwise()) return store_row(to, tap * to.stride[1], to.stride[0], total, shape_.groups);
    T* line = static_cast<T*>(thread_workspace(static_cast<size_t>(shape_.sources * shape_.width) * sizeof(T)));
    for (int64_t g = 0; g < shape_.groups; ++g) {
      transpose(total + g * shape_.sources * shape_.width, shape_.width, shape_.sources, shape_.outputs, line,
                shape_.sources);
      for (int64_t o = 0; o < shape_.outputs; ++o)
        store_row(to, (g * shape_.outputs + o) * to.stride[0] + tap * to.stride[1], to.stride[2],
                  line + o * shape_.sources, shape_.sources);
    }
  }

  const SparseConvParams& p_;
  const MapView& map_;
  const PairShape<T> shape_;
  const RankRows<T>&features_, &grads_;
  const int64_t taps_;
  int64_t size_, slices_, batch_;
};

// Columns of the output's gradient, each summed over slices of fixed size.
template <class T>
void bias_gradient(const SparseConvParams& p) {
  const int64_t n = p.output.size[0], channels = p.output.size[1];
  constexpr int64_t kRows = 4096;
  const int64_t slices = ceil_div(n, kRows);
  const SharedBuffer buffer(static_cast<size_t>((slices + 1) * channels) * sizeof(double) +
                            static_cast<size_t>(channels) * sizeof(T));
  double* sums = buffer.as<double>();
  parallel_for(slices, [&](int64_t slice) {
    T* line = static_cast<T*>(thread_workspace(static_cast<size_t>(channels) * sizeof(T)));
    double* own = sums + slice * channels;
    for (int64_t c = 0; c < channels; ++c) own[c] = 0;
    for (int64_t r = slice * kRows; r < smaller(n, (slice + 1) * kRows); ++r) {
      load_row(line, p.output, r * p.output.stride[0], p.output.stride[1], channels);
      for (int64_t c = 0; c < channels; ++c) own[c] += line[c];
    }
  });
  double* total = sums + slices * channels;
  T* line = reinterpret_cast<T*>(total + channels);
  for (int64_t c = 0; c < channels; ++c) {
    total[c] = 0;
    for (int64_t s = 0; s < slices; ++s) total[c] += sums[s * channels + c];
    line[c] = static_cast<T>(total[c]);
  }
  store_row(p.grad_bias, 0, p.grad_bias.stride[0], line, channels);
}

template <class T>
void backward(const SparseConvParams& p) {
  const int64_t in = p.features.size[1], out = p.weight.size[0];
  const PairShape<T> shape(p.groups, in, out), turned(p.groups, out, in);
  const bool in_order = is_identity(p.map.in_order, p.map.n_in), out_order = is_identity(p.map.out_order, p.map.n_out);
  // The last group's vectors may end beyond its channels.
  const int64_t columns = shape.depthwise() ? shape.row() : (p.groups - 1) * shape.outputs + shape.width;
  if (p.grad_features || p.grad_weight) {
    const RankRows<T> grads(p.output, p.map.out_order, out_order, p.grad_weight || shape.depthwise() ? columns : 0);
    if (p.grad_features) {
      const MapView& map = p.transposed ? p.transposed : p.map;
      const PackedWeight<T> weight(p.weight, turned, true, !p.transposed);
      const TileProduct<Plain<T>> product(map, grads, weight.data(), turned);
      ConvTiles<Plain<T>>{map, turned, product, p.grad_features, nullptr, nullptr, in_order, false, T(0)}.run();
    }
    if (p.grad_weight) {
      const RankRows<T> features(p.features, p.map.in_order, in_order, shape.depthwise() ? shape.row() : 0);
      WeightGradient<T>(p, shape, features, grads).run();
    }
  }
  if (p.grad_bias) bias_gradient<T>(p);
}

}  // namespace

void sparse_conv_backward(const SparseConvParams& p) {
  if (p.features.dtype == DType::f64) backward<double>(p);
  else backward<float>(p);
}

}  // namespace flexor::FLEXOR_ISA
