// SPDX-License-Identifier: Apache-2.0
// sum over taps and pairs of source[in] * weight[tap], for a tile of outputs at a time. The tile's sums stay in cache;
// nothing is gathered: the microkernel reads each of its rows where it lies.
#pragma once
#include "core/gemm.h"
#include "sparse3d/rank_rows.h"
#include "sparse3d/sparse_index.h"

namespace flexor::FLEXOR_ISA {

// Vectors of outputs that the microkernel holds, and rows for each width.
#if FLEXOR_ISA_avx512
constexpr int kMostVectors = 4;
constexpr int kPairRows[5] = {0, 0, 8, 8, 6};
constexpr int kHeldWeights = 16;  // vectors of weights in registers, for one vector of outputs
#else
constexpr int kMostVectors = 3;
constexpr int kPairRows[4] = {0, 0, 4, 4};
constexpr int kHeldWeights = 8;
#endif
constexpr int64_t kPairsAhead = 12;  // whose rows are being loaded

// Of the next panel when `left` vectors remain: no single one is left over.
FLEXOR_INLINE int pair_panel(int64_t left) {
  if (left <= kMostVectors) return static_cast<int>(left);
  return left == kMostVectors + 1 ? kMostVectors - 1 : kMostVectors;
}

// Sizes of a product from `sources` to `outputs` channels, in groups.
template <class T>
struct PairShape {
  int64_t groups, sources, outputs;  // channels of a group
  int64_t vectors;                   // that hold a group's outputs
  int64_t width;                     // their elements

  PairShape(int64_t g, int64_t in, int64_t out)
      : groups(g),
        sources(in / g),
        outputs(out / g),
        vectors(ceil_div(outputs, kLanes<T>)),
        width(vectors * kLanes<T>) {}

  // Channel by channel: vectors run over the groups.
  FLEXOR_INLINE bool depthwise() const { return sources == 1 && outputs == 1 && groups > 1; }
  FLEXOR_INLINE int64_t row() const { return depthwise() ? round_up(groups, kLanes<T>) : groups * width; }
  FLEXOR_INLINE int64_t tap_size() const { return depthwise() ? row() : groups * sources * width; }
  FLEXOR_INLINE int64_t panels() const {
    int64_t count = 0;
    for (int64_t left = vectors; left > 0; left -= pair_panel(left)) ++count;
    return depthwise() ? 1 : groups * count;
  }
};

// Keeps the compiler from computing addresses in vectors, which then have to be taken apart again.
template <class P>
FLEXOR_INLINE P scalar(P pointer) {
  asm("" : "+r"(pointer));
  return pointer;
}

// How rows and weights are multiplied: rows of T, and a weight for each of their elements.
template <class T>
struct Plain {
  using Sum = T;
  using Element = T;
  using Rows = RankRows<T>;
  static FLEXOR_INLINE Vec<T> add_product(Vec<T> sum, T x, Vec<T> weight) { return sum + splat<Vec<T>>(x) * weight; }
};

// One group of R pairs against one panel.
template <class A, int R, int NV>
FLEXOR_INLINE void multiply_pairs(const typename A::Element* const* from, typename A::Sum* const* to,
                                  const typename A::Sum* weight, int64_t sources) {
  using T = typename A::Sum;
  using V = Vec<T>;
  V acc[R][NV];
  const typename A::Element* a[R];
  unroll<R>([&](auto i) __attribute__((always_inline)) {
    a[i] = from[i];
    unroll<NV>([&](auto j) __attribute__((always_inline)) { acc[i][j] = load<V>(to[i] + j * kLanes<T>); });
  });
  for (int64_t c = 0; c < sources; ++c) {
    V w[NV];
    unroll<NV>([&](auto j) __attribute__((always_inline)) { w[j] = load<V>(weight + j * kLanes<T>); });
    unroll<R>([&](auto i) __attribute__((always_inline)) {
      const auto x = a[i][c];
      unroll<NV>([&](auto j) __attribute__((always_inline)) { acc[i][j] = A::add_product(acc[i][j], x, w[j]); });
    });
    weight += NV * kLanes<T>;
  }
  unroll<R>([&](auto i) __attribute__((always_inline)) {
    unroll<NV>([&](auto j) __attribute__((always_inline)) { store(to[i] + j * kLanes<T>, acc[i][j]); });
  });
}

struct PairList {
  const int32_t* rows;
  const uint8_t* places;
  int64_t count;
};

template <class A>
class TileProduct {
  using T = typename A::Sum;
  using Element = typename A::Element;

 public:
  // weight: [tap][group][panel][source][lanes of the panel], or [tap][channel] where depth-wise.
  TileProduct(const MapView& map, const typename A::Rows& source, const T* weight, const PairShape<T>& shape)
      : map_(map), source_(source), weight_(weight), shape_(shape) {}

  // Elements of workspace for one tile: its sums, a row for pairs that fill a group up, and a row of zeros.
  int64_t workspace() const { return (kTileRows + 1) * shape_.row() + round_up(shape_.sources, kLanes<T>); }

  // Sums of one tile into [256][shape.row()], begun by the caller; panels [first, last) of all groups.
  void add(int64_t tile, int64_t first, int64_t last, T* sums) const {
    check_tile(map_, tile);
    Element* zeros = reinterpret_cast<Element*>(sums + (kTileRows + 1) * shape_.row());
    for (int64_t c = 0; c < shape_.sources; ++c) zeros[c] = Element(0);
    for (int64_t tap = 0; tap < map_.taps; ++tap) {
      const int64_t begin = map_.offsets[tile * map_.taps + tap], end = map_.offsets[tile * map_.taps + tap + 1];
      if (begin == end) continue;
      const PairList list{map_.in_rows + begin, map_.places + begin, end - begin};
      const T* weight = weight_ + tap * shape_.tap_size();
      if constexpr (std::is_same_v<Element, T>) {
        if (shape_.depthwise()) {
          add_depthwise(list, weight, sums);
          continue;
        }
      }
      add_panels(list, weight, first, last, sums, zeros);
    }
  }

 private:
  void add_panels(const PairList& list, const T* weight, int64_t first, int64_t last, T* sums,
                  const Element* zeros) const {
    int64_t number = 0;
    for (int64_t group = 0; group < shape_.groups; ++group)
      for (int64_t vector = 0; vector < shape_.vectors;) {
        const int width = pair_panel(shape_.vectors - vector);
        if (number >= first && number < last)
          add_panel(width, list, group * shape_.sources, weight, sums + group * shape_.width + vector * kLanes<T>,
                    zeros);
        weight += shape_.sources * width * kLanes<T>;
        vector += width;
        ++number;
      }
  }

  FLEXOR_INLINE void add_panel(int width, const PairList& list, int64_t channel, const T* weight, T* sums,
                               const Element* zeros) const {
    switch (width) {
      case 1: return add_narrow(list, channel, weight, sums);
      case 2: return add_pairs<2>(list, channel, weight, sums, zeros);
#if FLEXOR_ISA_avx512
      case 3: return add_pairs<3>(list, channel, weight, sums, zeros);
#endif
      default: return add_pairs<kMostVectors>(list, channel, weight, sums, zeros);
    }
  }

  // One vector of outputs: there is little to multiply with each weight, so the weights stay in registers and pairs go
  // by one at a time.
  void add_narrow(const PairList& list, int64_t channel, const T* weight, T* sums) const {
    int64_t c = 0;
    for (; c + kHeldWeights <= shape_.sources; c += kHeldWeights)
      add_held<kHeldWeights>(list, channel + c, weight + c * kLanes<T>, sums);
    held_tail<kHeldWeights - 1>(shape_.sources - c, list, channel + c, weight + c * kLanes<T>, sums);
  }

  template <int M>
  FLEXOR_INLINE void held_tail(int64_t left, const PairList& list, int64_t channel, const T* weight, T* sums) const {
    if constexpr (M > 0) {
      if (left == M) add_held<M>(list, channel, weight, sums);
      else held_tail<M - 1>(left, list, channel, weight, sums);
    }
  }

  template <int M>
  __attribute__((noinline)) void add_held(const PairList& list, int64_t channel, const T* weight, T* sums) const {
    using V = Vec<T>;
    V w[M];
    unroll<M>([&](auto c) __attribute__((always_inline)) { w[c] = load<V>(weight + c * kLanes<T>); });
    const int64_t row = shape_.row(), stride = source_.stride();
    const Element* source = source_.row(0) + channel;
    for (int64_t p = 0; p < list.count; ++p) {
      const Element* x = source + list.rows[p] * stride;
      T* to = sums + list.places[p] * row;
      if (p + kPairsAhead < list.count) __builtin_prefetch(source + list.rows[p + kPairsAhead] * stride);
      V even = load<V>(to), odd{};  // two sums: half the latency
      unroll<M>([&](auto c) __attribute__((always_inline)) {
        V& sum = c % 2 ? odd : even;
        sum = A::add_product(sum, x[c], w[c]);
      });
      store(to, M > 1 ? even + odd : even);
    }
  }

  template <int NV>
  __attribute__((noinline)) void add_pairs(const PairList& list, int64_t channel, const T* weight, T* sums,
                                           const Element* zeros) const {
    constexpr int R = kPairRows[NV];
    const int64_t row = shape_.row(), stride = source_.stride(), sources = shape_.sources;
    const Element* source = source_.row(0) + channel;
    const int32_t* rows = list.rows;
    const uint8_t* places = list.places;
    const Element* from[R];
    T* to[R];
    for (int64_t left = list.count; left > 0; left -= R) {
      if (left >= R) {
        unroll<R>([&](auto i) __attribute__((always_inline)) {
          from[i] = scalar(source + rows[i] * stride);
          to[i] = scalar(sums + places[i] * row);
        });
      } else {
        for (int i = 0; i < R; ++i) {
          from[i] = i < left ? source + rows[i] * stride : zeros;
          to[i] = sums + (i < left ? places[i] : kTileRows) * row;
        }
      }
      for (int64_t i = R; i < smaller<int64_t>(left, 2 * R); ++i) prefetch(source + rows[i] * stride, sources);
      if (left > R / 2) multiply_pairs<A, R, NV>(from, to, weight, sources);
      else multiply_pairs<A, R / 2, NV>(from, to, weight, sources);
      rows += R;
      places += R;
    }
  }

  // Rows of the next pairs: the products of these leave no room to wait for them.
  FLEXOR_INLINE static void prefetch(const Element* row, int64_t count) {
    for (int64_t c = 0; c < count; c += 64 / static_cast<int64_t>(sizeof(Element))) __builtin_prefetch(row + c);
  }

  void add_depthwise(const PairList& list, const T* weight, T* sums) const {
    using V = Vec<T>;
    const int64_t row = shape_.row();
    for (int64_t p = 0; p < list.count; ++p) {
      const T* x = source_.row(list.rows[p]);
      T* to = sums + list.places[p] * row;
      for (int64_t c = 0; c < row; c += kLanes<T>)
        store(to + c, load<V>(to + c) + load<V>(x + c) * load<V>(weight + c));
    }
  }

  const MapView& map_;
  const typename A::Rows& source_;
  const T* weight_;
  const PairShape<T> shape_;
};

}  // namespace flexor::FLEXOR_ISA
