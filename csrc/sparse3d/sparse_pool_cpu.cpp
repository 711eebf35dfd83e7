// SPDX-License-Identifier: Apache-2.0
// Pooling over the active inputs of each output. The backward goes over inputs, so that each owns its gradient.
#include "sparse3d/rank_rows.h"
#include "sparse3d/sparse_index.h"
#include "sparse3d/sparse_pool.h"

namespace flexor::FLEXOR_ISA {
namespace {

using Mode = SparsePoolParams;

template <class T>
class Pool {
 public:
  explicit Pool(const SparsePoolParams& p)
      : p_(p),
        channels_(p.features.size[1]),
        row_(round_up(channels_, kLanes<T>)),
        in_order_(is_identity(p.map.in_order, p.map.n_in)),
        out_order_(is_identity(p.map.out_order, p.map.n_out)),
        features_(p.features, p.map.in_order, in_order_, row_) {}

  void forward() const {
    parallel_for(p_.map.tiles, [&](int64_t tile) {
      T* sums = tile_space();
      int32_t* counts = reinterpret_cast<int32_t*>(sums + kTileRows * row_);
      for (int64_t i = 0; i < kTileRows * row_; ++i) sums[i] = p_.mode == Mode::max ? -__builtin_inf() : T(0);
      count(tile, counts);
      for_pairs(p_.map, tile, [&](int64_t rank, int64_t place) {
        const T* x = features_.row(rank);
        T* to = sums + place * row_;
        if (p_.mode == Mode::average) {
          for (int64_t c = 0; c < row_; ++c) to[c] += x[c];
        } else {  // a NaN stays
          for (int64_t c = 0; c < row_; ++c) to[c] = (x[c] > to[c]) | (x[c] != x[c]) ? x[c] : to[c];
        }
      });
      for_rows(p_.map, tile, p_.output, out_order_, sums, [&](int64_t place, T* row) {
        if (counts[place] == 0)
          for (int64_t c = 0; c < channels_; ++c) row[c] = T(0);
        else if (p_.mode == Mode::average)
          for (int64_t c = 0; c < channels_; ++c) row[c] /= static_cast<T>(counts[place]);
      });
    });
  }

  void backward() const {
    const MapView& map = p_.transposed ? p_.transposed : p_.map;
    const RankRows<T> grads(p_.grad_output, p_.map.out_order, out_order_, row_);
    const SharedBuffer buffer(p_.mode == Mode::average ? static_cast<size_t>(p_.map.tiles * kTileRows) * 4 : 0);
    int32_t* counts = buffer.as<int32_t>();
    if (p_.mode == Mode::average) {
      parallel_for(p_.map.tiles, [&](int64_t tile) { count(tile, counts + tile * kTileRows); });
      return add_gradients(map, [&](int64_t out, int64_t, T* to) {
        const T* g = grads.row(out);
        const T scale = T(1) / static_cast<T>(counts[out]);
        for (int64_t c = 0; c < row_; ++c) to[c] += g[c] * scale;
      });
    }
    const RankRows<T> outputs(p_.output, p_.map.out_order, out_order_, row_);
    add_gradients(map, [&](int64_t out, int64_t in, T* to) {
      const T *g = grads.row(out), *y = outputs.row(out), *x = features_.row(in);
      for (int64_t c = 0; c < row_; ++c) to[c] += (x[c] == y[c]) | ((x[c] != x[c]) & (y[c] != y[c])) ? g[c] : T(0);
    });
  }

 private:
  T* tile_space() const {
    return static_cast<T*>(thread_workspace(static_cast<size_t>(kTileRows * row_) * sizeof(T) + kTileRows * 4));
  }

  // visit(input rank, output's place in the tile)
  template <class Visit>
  FLEXOR_INLINE void for_pairs(const MapView& map, int64_t tile, Visit visit) const {
    check_tile(map, tile);
    const int64_t end = map.offsets[(tile + 1) * map.taps];
    for (int64_t pair = map.offsets[tile * map.taps]; pair < end; ++pair) visit(map.in_rows[pair], map.places[pair]);
  }

  void count(int64_t tile, int32_t* counts) const {
    for (int r = 0; r < kTileRows; ++r) counts[r] = 0;
    const int64_t end = p_.map.offsets[(tile + 1) * p_.map.taps];
    for (int64_t pair = p_.map.offsets[tile * p_.map.taps]; pair < end; ++pair) ++counts[p_.map.places[pair]];
  }

  // finish(place, row), then the row is stored where it belongs.
  template <class Finish>
  FLEXOR_INLINE void for_rows(const MapView& map, int64_t tile, const TensorView& to, bool identity, T* sums,
                              Finish finish) const {
    const int64_t first = tile * kTileRows, rows = smaller<int64_t>(kTileRows, map.n_out - first);
    for (int64_t r = 0; r < rows; ++r) {
      finish(r, sums + r * row_);
      const int64_t row = identity ? first + r : map.out_order[first + r];
      store_row(to, row * to.stride[0], to.stride[1], sums + r * row_, channels_);
    }
  }

  // add(output rank, input rank, the input's sums) over a map from outputs to inputs
  template <class Add>
  FLEXOR_INLINE void add_gradients(const MapView& map, Add add) const {
    parallel_for(map.tiles, [&](int64_t tile) {
      T* sums = tile_space();
      for (int64_t i = 0; i < kTileRows * row_; ++i) sums[i] = T(0);
      for_pairs(map, tile, [&](int64_t rank, int64_t place) {
        const int64_t in = tile * kTileRows + place;
        add(rank, in, sums + place * row_);
      });
      for_rows(map, tile, p_.grad_features, in_order_, sums, [](int64_t, T*) {});
    });
  }

  const SparsePoolParams& p_;
  const int64_t channels_, row_;
  const bool in_order_, out_order_;
  const RankRows<T> features_;
};

void forward(const SparsePoolParams& p) {
  if (p.features.dtype == DType::f64) Pool<double>(p).forward();
  else Pool<float>(p).forward();
}

void backward(const SparsePoolParams& p) {
  if (p.features.dtype == DType::f64) Pool<double>(p).backward();
  else Pool<float>(p).backward();
}

}  // namespace

extern const SparsePoolKernels sparse_pool_kernels{&forward, &backward};

}  // namespace flexor::FLEXOR_ISA
