// SPDX-License-Identifier: Apache-2.0
// The inverse transforms of 8.6.4.2 on vectors. A stage goes line by line: the factors of two coefficients for several
// outputs make a vector, a pair of coefficients is broadcast to meet it, products of pairs are summed. The DCT's even
// and odd coefficients are summed apart where its half still fills vectors: the outputs i and n - 1 - i are their sum
// and difference. The first stage hands pairs to the second, so that nothing is transposed.
#pragma once
#include "hevc/transform_reference.h"
#include "hevc/vectors.h"

namespace flexor::FLEXOR_ISA {

struct Dct {
  template <int N>
  static constexpr int16_t factor(int k, int i) {
    return reference::kDct.factor[k * (32 / N)][i];
  }
};
struct Dst {
  template <int N>
  static constexpr int16_t factor(int k, int i) {
    return reference::kDst[k][i];
  }
};

template <class Kind, int N>
class Inverse {
 public:
  static void run(int16_t* residual, const int16_t* coefficients, int width, int height, int bit_depth) {
    alignas(64) int32_t input[kPairs * kGroups * N];    // pair j of group g, column x: (g kPairs + j) N + x
    alignas(64) int32_t between[kPairs * kGroups * N];  // the same of columns, for the lines in the order of line_of
    const int row_pairs = pairs_for(height), column_pairs = pairs_for(width);
    pair_rows(input, coefficients, row_pairs, column_pairs);
    for_pairs(row_pairs, [&](auto pairs) { columns<decltype(pairs)::value>(between, input, column_pairs); });
    for_pairs(column_pairs, [&](auto pairs) { rows<decltype(pairs)::value>(residual, between, 20 - bit_depth); });
  }

 private:
  static constexpr int kGroups = N > kLanes<int32_t> ? 2 : 1;  // even and odd coefficients, or all
  static constexpr int kPairs = N / 2 / kGroups;               // of coefficients in a group
  static constexpr int kOutputs = N / kGroups;
  static constexpr int L = smaller(kOutputs, kLanes<int32_t>);
  static constexpr int kVectors = kOutputs / L;
  using V = Vec<int32_t, L>;

  // Coefficient `half` (0 or 1) of a pair.
  static constexpr int coefficient(int group, int pair, int half) { return kGroups * (2 * pair + half) + group; }

  struct Factors {
    alignas(64) int16_t of[kGroups][kPairs][kOutputs][2];
    constexpr Factors() : of{} {
      for (int g = 0; g < kGroups; ++g)
        for (int j = 0; j < kPairs; ++j)
          for (int i = 0; i < kOutputs; ++i)
            for (int half = 0; half < 2; ++half)
              of[g][j][i][half] = Kind::template factor<N>(coefficient(g, j, half), i);
    }
  };
  static constexpr Factors kFactors{};

  // Pairs of each group that hold the first `count` coefficients: 1, 2, 4 or 8.
  static int pairs_for(int count) {
    int pairs = 1;
    while (2 * kGroups * pairs < count) pairs *= 2;
    return pairs;
  }

  template <class F>
  FLEXOR_INLINE static void for_pairs(int pairs, F f) {
    unroll<4>([&](auto i) __attribute__((always_inline)) {
      constexpr int kCount = 1 << decltype(i)::value;
      if constexpr (kCount <= kPairs)
        if (pairs == kCount) f(std::integral_constant<int, kCount>{});
    });
  }

  static void pair_rows(int32_t* input, const int16_t* coefficients, int row_pairs, int column_pairs) {
    for (int g = 0; g < kGroups; ++g)
      for (int j = 0; j < row_pairs; ++j) {
        const int16_t* row = coefficients + coefficient(g, j, 0) * N;
        int32_t* pairs = input + (g * kPairs + j) * N;
        if constexpr (N == 4) {
          const Shorts<8> both = load<Shorts<8>>(row);
          store(pairs, __builtin_shufflevector(both, both, 0, 4, 1, 5, 2, 6, 3, 7));
        } else {
          for (int x = 0; x < 2 * kGroups * column_pairs; x += 8) {
            const Shorts<8> a = load<Shorts<8>>(row + x), b = load<Shorts<8>>(row + kGroups * N + x);
            store(pairs + x, __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11));
            store(pairs + x + 4, __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15));
          }
        }
      }
  }

  // The outputs of a line, in 32 bits: the first half and, mirrored, the second; or all of them.
  struct Line {
    V sum[kVectors], difference[kVectors];
  };

  template <int P>
  FLEXOR_INLINE static Line line(const int32_t* pairs, int shift) {
    V sums[kGroups][kVectors];
    unroll<kVectors>([&](auto v) __attribute__((always_inline)) {
      sums[0][v] = splat<V>(1 << (shift - 1));
      if constexpr (kGroups == 2) sums[1][v] = V{};
    });
    unroll<P * kGroups>([&](auto jg) __attribute__((always_inline)) {
      constexpr int j = decltype(jg)::value / kGroups, g = decltype(jg)::value % kGroups;
      const V pair = splat<V>(pairs[(g * kPairs + j) * N]);
      unroll<kVectors>([&](auto v) __attribute__((always_inline)) {
        sums[g][v] += multiply_pairs<L>(pair, load<V>(kFactors.of[g][j][v * L]));
      });
    });
    Line out;
    unroll<kVectors>([&](auto v) __attribute__((always_inline)) {
      if constexpr (kGroups == 2) {
        out.sum[v] = (sums[0][v] + sums[1][v]) >> shift;
        out.difference[v] = (sums[0][v] - sums[1][v]) >> shift;
      } else {
        out.sum[v] = sums[0][v] >> shift;
      }
    });
    return out;
  }

  // The first stage leaves the second half of a column mirrored.
  static constexpr int line_of(int place) { return kGroups == 2 && place >= N / 2 ? N - 1 - (place - N / 2) : place; }

  // Pairs (a[i], b[i]), saturated to 16 bits.
  FLEXOR_INLINE static Shorts<2 * L> interleave(V a, V b) {
    return order(pack<L>(a, b), [](int i) { return packed_place(i / 2, i % 2); });
  }

  // First stage: one column after the other, two at a time because they make pairs.
  template <int P>
  static void columns(int32_t* between, const int32_t* input, int column_pairs) {
    for (int g = 0; g < kGroups; ++g)
      for (int j = 0; j < column_pairs; ++j) {
        const Line a = line<P>(input + coefficient(g, j, 0), 7), b = line<P>(input + coefficient(g, j, 1), 7);
        int32_t* to = between + (g * kPairs + j) * N;
        unroll<kVectors>([&](auto v) __attribute__((always_inline)) {
          store(to + v * L, interleave(a.sum[v], b.sum[v]));
          if constexpr (kGroups == 2) store(to + N / 2 + v * L, interleave(a.difference[v], b.difference[v]));
        });
      }
  }

  template <int P>
  static void rows(int16_t* residual, const int32_t* between, int shift) {
    for (int place = 0; place < N; place += 2) {
      const Line a = line<P>(between + place, shift), b = line<P>(between + place + 1, shift);
      if constexpr (kGroups == 1) {  // two rows fill one vector
        store(residual + place * N, in_order(pack<L>(a.sum[0], b.sum[0])));
      } else {
        store_row(residual + line_of(place) * N, a);
        store_row(residual + line_of(place + 1) * N, b);
      }
    }
  }

  FLEXOR_INLINE static void store_row(int16_t* row, const Line& line) {
    if constexpr (kVectors == 1) {
      const Shorts<2 * L> packed = pack<L>(line.sum[0], line.difference[0]);
      store(row, order(packed, [](int i) { return i < L ? packed_place(i, 0) : packed_place(2 * L - 1 - i, 1); }));
    } else {
      unroll<kVectors / 2>([&](auto v) __attribute__((always_inline)) {
        store(row + v * 2 * L, in_order(pack<L>(line.sum[2 * v], line.sum[2 * v + 1])));
        store(row + N - (v + 1) * 2 * L, order(pack<L>(line.difference[2 * v], line.difference[2 * v + 1]),
                                               [](int i) { return packed_place((2 * L - 1 - i) % L, i < L); }));
      });
    }
  }

  // Where pack() puts number i of its first or second argument.
  static constexpr int packed_place(int i, int argument) { return i / 4 * 8 + i % 4 + 4 * argument; }

  FLEXOR_INLINE static Shorts<2 * L> in_order(Shorts<2 * L> packed) {
    return order(packed, [](int i) { return packed_place(i % L, i / L); });
  }

  // The vector of v[place(0)], v[place(1)], ...
  template <class Place>
  FLEXOR_INLINE static Shorts<2 * L> order(Shorts<2 * L> v, Place place) {
    return order(v, place, std::make_integer_sequence<int, 2 * L>{});
  }
  template <class Place, int... I>
  FLEXOR_INLINE static Shorts<2 * L> order(Shorts<2 * L> v, Place place, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(v, v, place(I)...);
  }
};

}  // namespace flexor::FLEXOR_ISA
