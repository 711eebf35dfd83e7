// SPDX-License-Identifier: Apache-2.0
// Depth-wise correlation of one plane. An output row needs kh input rows, and an input row serves kh output
// rows: walking down the plane, the sums of kh unfinished output rows stay in registers, so that a vector of
// input is loaded once for a column of taps. Strides and dilations are the same walk over every so many rows,
// and over columns sorted by their remainder when the plane was copied.
#pragma once
#include "core/rows.h"
#include "core/simd.h"

namespace flexor::FLEXOR_ISA {

struct PlaneGeometry {
  int64_t h, w, oh, ow, kh, kw, sy, sx, py, px, dy, dx;

  // Of the correlation that takes the gradient of the output to that of the input, with the taps in reverse
  // order; for strides of one only. Its padding is negative where outputs saw nothing but padding.
  PlaneGeometry transposed() const {
    return {oh, ow, h, w, kh, kw, 1, 1, dy * (kh - 1) - py, dx * (kw - 1) - px, dy, dx};
  }
};

#define FLEXOR_NOINLINE __attribute__((noinline))

#if FLEXOR_ISA_avx512
constexpr int kVectorRegisters = 32;
#else
constexpr int kVectorRegisters = 16;
#endif

FLEXOR_INLINE int64_t greatest_divisor(int64_t a, int64_t b) {
  while (b != 0) {
    const int64_t rest = a % b;
    a = b, b = rest;
  }
  return a;
}

template <class T, int N, int... I>
FLEXOR_INLINE T sum_of(Vec<T, N> v, std::integer_sequence<int, I...>) {
  if constexpr (N == 2) return v[0] + v[1];
  else {
    const Vec<T, N / 2> halves = __builtin_shufflevector(v, v, I...) + __builtin_shufflevector(v, v, (I + N / 2)...);
    return sum_of<T, N / 2>(halves, std::make_integer_sequence<int, N / 4>{});
  }
}

// The sum of a vector's lanes, in an order of its own.
template <class T>
FLEXOR_INLINE T sum_of(Vec<T> v) {
  return sum_of<T, kLanes<T>>(v, std::make_integer_sequence<int, kLanes<T> / 2>{});
}

// One plane at a time, a band of output rows at a time, in buffers that belong to a thread.
template <class T>
class DepthwisePlane {
 public:
  explicit DepthwisePlane(const PlaneGeometry& geometry) : g_(geometry) {
    const int64_t common = greatest_divisor(g_.sy, g_.dy);
    classes_ = g_.sy / common, spacing_ = g_.dy / common;
    lanes_ = round_up(g_.ow, L);
    const int64_t needed = (g_.ow - 1) * g_.sx + (g_.kw - 1) * g_.dx + 1, width = larger(needed, g_.w + g_.px);
    tight_ = g_.sx == 1 && g_.px == 0 && g_.w == needed;
    phase_ = ceil_div(width, g_.sx);
    const int64_t last = (g_.sx - 1) * phase_ + (g_.kw - 1) * g_.dx / g_.sx;
    row_ = tight_ ? width : round_up(larger(g_.sx * phase_, last + lanes_), L);
    band_ = (kBandElements / row_ - (g_.kh - 1) * g_.dy) / g_.sy;
    band_ = smaller(larger<int64_t>(band_, 2 * kTapRows), g_.oh);
  }

  size_t workspace() const {
    const int64_t taps = round_up(g_.kh * g_.kw, L), columns = round_up(g_.kw * (8 / sizeof(T)), L);
    return (input_elements() + band_ * lanes_ + (2 + L) * taps + columns) * sizeof(T);
  }

  void use(void* workspace) {
    const int64_t taps = round_up(g_.kh * g_.kw, L);
    input_ = static_cast<T*>(workspace);
    output_ = input_ + input_elements();
    sums_ = output_ + band_ * lanes_;
    packed_ = sums_ + L * taps;
    taps_ = packed_ + taps;
    at_ = reinterpret_cast<int64_t*>(taps_ + taps);
    for (int64_t j = 0; j < g_.kw; ++j) at_[j] = j * g_.dx % g_.sx * phase_ + j * g_.dx / g_.sx;
    for (int64_t i = input_elements() - L; i < input_elements(); ++i) input_[i] = T(0);
  }

  T* taps() { return taps_; }  // [kh, kw], of the plane at hand: set before, or left by the calls below

  // output = correlation of input with the taps
  FLEXOR_NOINLINE void forward(const TensorView& input, const TensorView& output, int64_t n, int64_t c) {
    for_tap_rows([&](int64_t i, int64_t at) {
      for (int64_t j = 0; j < g_.kw; ++j) packed_[j * g_.kh + at] = taps_[i * g_.kw + j];
    });
    for_bands([&] {
      const bool once = classes_ == 1 && spacing_ == 1 && g_.kh <= smaller<int64_t>(kTapRows, rows_);
      whole_ = once && g_.ow >= L;
      in_ = input_rows(input, n, c);
      const bool direct = whole_ && in_place(output);
      out_ = direct ? rows_of(output, n, c, first_) : Rows{output_, output_step()};
      for_strips([&](const Strip& s) { with_tap_rows(s.taps, [&](auto kh) { correlate<decltype(kh)::value>(s); }); });
      if (!direct) for_output([&](T* rows, int64_t at, int64_t count) { write(output, n, c, at, count, rows); });
    });
  }

  // taps = their gradient
  FLEXOR_NOINLINE void grad_taps(const TensorView& input, const TensorView& grad_output, int64_t n, int64_t c) {
    zero(sums_, L * g_.kh * g_.kw);
    whole_ = g_.ow >= L;
    for_bands([&] {
      in_ = input_rows(input, n, c);
      out_ahead_ = ahead(grad_output, n, c, first_);
      const bool direct = whole_ && in_place(grad_output);
      out_ = direct ? rows_of(grad_output, n, c, first_) : Rows{output_, output_step()};
      if (!direct) for_output([&](T* rows, int64_t at, int64_t count) { read(grad_output, n, c, at, count, rows); });
      for_strips([&](const Strip& s) { with_tap_rows(s.taps, [&](auto kh) { multiply<decltype(kh)::value>(s); }); });
    });
    for_tap_rows([&](int64_t i, int64_t at) {
      for (int64_t j = 0; j < g_.kw; ++j) taps_[i * g_.kw + j] = sum_of<T>(load<Vec<T>>(sums_ + (j * g_.kh + at) * L));
    });
  }

  // The gradient of the input a row at a time: any stride, and no product with padding.
  FLEXOR_NOINLINE void grad_input(const TensorView& grad_output, const TensorView& grad_input, int64_t n, int64_t c) {
    for (int64_t y = 0; y < g_.h; ++y) {
      zero(input_, row_);
      for (int64_t i = 0; i < g_.kh; ++i) {
        const int64_t step = y + g_.py - i * g_.dy;
        if (step < 0 || step % g_.sy != 0 || step / g_.sy >= g_.oh) continue;
        read(grad_output, n, c, step / g_.sy * g_.ow, g_.ow, output_);
        for (int64_t j = 0; j < g_.kw; ++j) {
          const T tap = taps_[i * g_.kw + j];
          T* to = input_ + at_[j];
          for (int64_t x = 0; x < g_.ow; ++x) to[x] += tap * output_[x];
        }
      }
      for_phases([&](int64_t at, int64_t x, int64_t count) {
        const int64_t start = PlanePixels(grad_input).start(n, c, y, x);
        store_row(grad_input, start, grad_input.stride[3] * g_.sx, input_ + at, count);
      });
    }
  }

 private:
  static constexpr int64_t L = kLanes<T>, kBandElements = int64_t{1} << 17;
  static constexpr int kTapRows = 7;

  // Output rows and tap rows between which the rows of input are equal steps apart, within a band.
  struct Strip {
    int64_t input, input_step;  // row of input that the first output row and the first tap row meet at
    int64_t output, output_step, outputs;
    int64_t tap;  // first tap row, as packed
    int taps;     // not more than outputs
    bool first;   // nothing was added to these outputs before
  };

  static constexpr int within(int least, int n, int most) { return n < least ? least : n > most ? most : n; }

  // Rows of the band at hand, in a buffer or in the tensor itself.
  struct Rows {
    T* data;
    int64_t step;
  };

  // The same rows of the next plane, whose memory is asked for while this one is computed.
  struct Ahead {
    const char* data;
    int64_t step;
  };
  static Ahead ahead(const TensorView& view, int64_t n, int64_t c, int64_t y) {
    const Rows next = rows_of(view, n, c + 1, y);
    return {reinterpret_cast<const char*>(next.data), next.step * static_cast<int64_t>(sizeof(T))};
  }

  static void zero(T* row, int64_t n) {
    for (int64_t i = 0; i < n; ++i) row[i] = T(0);
  }
  static FLEXOR_NOINLINE void read(const TensorView& view, int64_t n, int64_t c, int64_t at, int64_t count, T* dst) {
    PlanePixels(view).load(dst, n, c, at, count);
  }
  static FLEXOR_NOINLINE void write(const TensorView& view, int64_t n, int64_t c, int64_t at, int64_t count, T* src) {
    PlanePixels(view).store(src, n, c, at, count);
  }
  static bool in_place(const TensorView& view) { return view.dtype == kOwnDType<T> && view.stride[3] == 1; }
  static Rows rows_of(const TensorView& view, int64_t n, int64_t c, int64_t y) {
    return {static_cast<T*>(view.data) + PlanePixels(view).start(n, c, y, 0), view.stride[2]};
  }

  int64_t output_step() const { return whole_ ? g_.ow : lanes_; }
  int64_t rows_for(int64_t outputs) const { return (outputs - 1) * g_.sy + (g_.kh - 1) * g_.dy + 1; }
  int64_t input_elements() const { return round_up(rows_for(band_) * row_ + L, L); }

  template <class Visit>
  void for_bands(Visit visit) {
    for (first_ = 0; first_ < g_.oh; first_ += band_) {
      rows_ = smaller(band_, g_.oh - first_);
      visit();
    }
  }

  // Tap rows that meet the same input rows stand together: visit(row, where it is packed).
  template <class Visit>
  void for_tap_rows(Visit visit) const {
    int64_t at = 0;
    for (int64_t first = 0; first < smaller(classes_, g_.kh); ++first)
      for (int64_t i = first; i < g_.kh; i += classes_) visit(i, at++);
  }

  template <class Visit>
  void for_strips(Visit visit) const {
    for (int64_t m = 0; m < smaller(spacing_, rows_); ++m) {
      const int64_t outputs = ceil_div(rows_ - m, spacing_), step = spacing_ * g_.sy;
      int64_t tap = 0;
      for (int64_t first = 0; first < smaller(classes_, g_.kh); ++first) {
        const int64_t count = ceil_div(g_.kh - first, classes_);
        int64_t parts = ceil_div(count, smaller<int64_t>(kTapRows, outputs));
        for (int64_t done = 0; done < count; --parts) {
          const int64_t taps = ceil_div(count - done, parts);
          visit(Strip{first * g_.dy + m * g_.sy + done * step, step, m, spacing_, outputs, tap, static_cast<int>(taps),
                      tap == 0});
          done += taps, tap += taps;
        }
      }
    }
  }

  // visit(column of a row of the buffer, column of the tensor's row, how many): the columns of one remainder
  template <class Visit>
  void for_phases(Visit visit) const {
    const int64_t from = larger<int64_t>(g_.px, 0), until = g_.w + g_.px;
    for (int64_t remainder = 0; remainder < g_.sx; ++remainder) {
      const int64_t first = from + ((remainder - from) % g_.sx + g_.sx) % g_.sx;
      if (first < until) visit(remainder * phase_ + first / g_.sx, first - g_.px, ceil_div(until - first, g_.sx));
    }
  }

  // visit(rows of the buffer, first pixel, how many)
  template <class Visit>
  void for_output(Visit visit) const {
    if (whole_) return visit(output_, first_ * g_.ow, rows_ * g_.ow);
    for (int64_t y = 0; y < rows_; ++y) visit(output_ + y * lanes_, (first_ + y) * g_.ow, g_.ow);
  }

  FLEXOR_NOINLINE Rows input_rows(const TensorView& view, int64_t n, int64_t c) {
    const int64_t rows = rows_for(rows_), top = first_ * g_.sy - g_.py;
    in_ahead_ = ahead(view, n, c, larger<int64_t>(top, 0));
    if (tight_ && whole_ && in_place(view) && top >= 0 && top + rows <= g_.h) return rows_of(view, n, c, top);
    const int64_t begin = smaller(larger<int64_t>(-top, 0), rows);
    const int64_t end = larger(smaller(g_.h - top, rows), begin);
    zero(input_, begin * row_);
    zero(input_ + end * row_, (rows - end) * row_);
    if (tight_) read(view, n, c, (top + begin) * g_.w, (end - begin) * g_.w, input_ + begin * row_);
    else
      for (int64_t y = begin; y < end; ++y) {
        zero(input_ + y * row_, row_);
        for_phases([&](int64_t at, int64_t x, int64_t count) {
          const int64_t start = PlanePixels(view).start(n, c, top + y, x);
          load_row(input_ + y * row_ + at, view, start, view.stride[3] * g_.sx, count);
        });
      }
    return {input_, row_};
  }

  template <class Visit>
  static FLEXOR_INLINE void with_tap_rows(int taps, Visit visit) {
    switch (taps) {
      case 1: return visit(std::integral_constant<int, 1>{});
      case 2: return visit(std::integral_constant<int, 2>{});
      case 3: return visit(std::integral_constant<int, 3>{});
      case 4: return visit(std::integral_constant<int, 4>{});
      case 5: return visit(std::integral_constant<int, 5>{});
      case 6: return visit(std::integral_constant<int, 6>{});
      default: return visit(std::integral_constant<int, kTapRows>{});
    }
  }

  // Where whole vectors are wanted, the last one of a row overlaps the one before.
  int64_t overlap(int64_t end) const { return whole_ && end == lanes_ ? lanes_ - g_.ow : 0; }

  template <int KH>
  void correlate(const Strip& s) {
    constexpr int kMost = within(1, (kVectorRegisters - 2) / (KH + 1), 4);
    for (int64_t x = 0; x < lanes_;) {
      const int64_t left = (lanes_ - x) / L, vectors = ceil_div(left, ceil_div(left, kMost));
      unroll<kMost>([&](auto most) {
        constexpr int V = decltype(most)::value + 1;
        if (vectors == V) correlate_columns<KH, V>(s, x);
      });
      x += vectors * L;
    }
  }

  // Slot i of the sums is output row y - (KH - 1) + i at input row y: tap row KH - 1 - i goes there.
  template <int KH, int V>
  void correlate_columns(const Strip& s, int64_t x) {
    const int64_t step = s.input_step * in_.step, output_step = s.output_step * out_.step;
    const T* in = in_.data + s.input * in_.step + x;
    T* out = out_.data + s.output * out_.step + x;
    const int64_t last = (V - 1) * L - overlap(x + V * L);
    const auto column = [&](auto v) __attribute__((always_inline)) { return v == V - 1 ? last : v * L; };
    Vec<T> sum[KH][V] = {};
    const auto begin_row = [&](int64_t y) __attribute__((always_inline)) {
      unroll<V>([&](auto v) __attribute__((always_inline)) {
        sum[KH - 1][v] = s.first ? Vec<T>{} : load<Vec<T>>(out + y * output_step + column(v));
      });
    };
    const auto add_row = [&](auto begin, auto end) __attribute__((always_inline)) {
      const T* tap = packed_ + s.tap;
      for (int64_t j = 0; j < g_.kw; ++j, tap += g_.kh) {
        Vec<T> value[V];
        unroll<V>([&](auto v) __attribute__((always_inline)) { value[v] = load<Vec<T>>(in + at_[j] + column(v)); });
        unroll<KH>([&](auto i) __attribute__((always_inline)) {
          if constexpr (i >= begin && i < end) {
            const Vec<T> factor = splat<Vec<T>>(tap[KH - 1 - i]);
            unroll<V>([&](auto v) __attribute__((always_inline)) { sum[i][v] += factor * value[v]; });
          }
        });
      }
      in += step;
    };
    const auto next_row = [&]() __attribute__((always_inline)) {
      unroll<KH - 1>([&](auto i) __attribute__((always_inline)) {
        unroll<V>([&](auto v) __attribute__((always_inline)) { sum[i][v] = sum[i + 1][v]; });
      });
    };
    const auto end_row = [&](int64_t y) __attribute__((always_inline)) {
      unroll<V>([&](auto v) __attribute__((always_inline)) { store(out + y * output_step + column(v), sum[0][v]); });
      next_row();
    };
    unroll<KH - 1>([&](auto y) __attribute__((always_inline)) {
      begin_row(y);
      add_row(std::integral_constant<int, KH - 1 - y>{}, std::integral_constant<int, KH>{});
      next_row();
    });
    const char* next = in_ahead_.data + x * static_cast<int64_t>(sizeof(T));
    for (int64_t y = KH - 1; y < s.outputs; ++y, next += in_ahead_.step) {
      for (int v = 0; v < V; ++v) __builtin_prefetch(next + v * kVectorBytes);
      begin_row(y);
      add_row(std::integral_constant<int, 0>{}, std::integral_constant<int, KH>{});
      end_row(y - (KH - 1));
    }
    unroll<KH - 1>([&](auto y) __attribute__((always_inline)) {
      add_row(std::integral_constant<int, 0>{}, std::integral_constant<int, KH - 1 - y>{});
      end_row(s.outputs - (KH - 1) + y);
    });
  }

  template <int KH>
  void multiply(const Strip& s) {
    constexpr int kMost = within(1, (kVectorRegisters - 3) / (2 * KH), 3);
    for (int64_t x = 0; x < lanes_; x += L) {
      int64_t j = 0;
      for (; j + kMost <= g_.kw; j += kMost) multiply_columns<KH, kMost>(s, x, j);
      for (; j < g_.kw; ++j) multiply_columns<KH, 1>(s, x, j);
    }
  }

  // A vector of columns at x, and J columns of taps: the last KH rows of input stay in registers.
  template <int KH, int J>
  void multiply_columns(const Strip& s, int64_t x, int64_t j0) {
    using Bits = Vec<std::conditional_t<sizeof(T) == 8, int64_t, int32_t>, L>;
    const int64_t step = s.input_step * in_.step, output_step = s.output_step * out_.step;
    const int64_t seen = overlap(x + L);
    const T* in = in_.data + s.input * in_.step + x - seen;
    const T* grad = out_.data + s.output * out_.step + x - seen;
    Bits lanes;  // the others are other pixels' or had their turn: not even infinity times 0 may count
    for (int64_t i = 0; i < L; ++i) lanes[i] = i >= seen && x - seen + i < g_.ow ? -1 : 0;
    const auto inside = [&](const T* at) __attribute__((always_inline)) {
      return reinterpret_cast<Vec<T>>(reinterpret_cast<Bits>(load<Vec<T>>(at)) & lanes);
    };
    int64_t column[J];
    Vec<T> sum[KH][J] = {}, value[KH][J] = {};
    unroll<J>([&](auto j) __attribute__((always_inline)) { column[j] = at_[j0 + j]; });
    const auto next_row = [&](auto last) __attribute__((always_inline)) {
      unroll<J>([&](auto j) __attribute__((always_inline)) { value[last][j] = inside(in + column[j]); });
      in += step;
    };
    unroll<KH - 1>([&](auto i) __attribute__((always_inline)) { next_row(i); });
    const int64_t bytes = x * static_cast<int64_t>(sizeof(T));
    const char *next_in = in_ahead_.data + bytes, *next_grad = out_ahead_.data + bytes;
    for (int64_t y = 0; y < s.outputs; ++y, grad += output_step) {
      if (j0 == 0) {
        __builtin_prefetch(next_in + y * in_ahead_.step);
        __builtin_prefetch(next_grad + y * out_ahead_.step);
      }
      next_row(std::integral_constant<int, KH - 1>{});
      const Vec<T> g = inside(grad);
      unroll<KH>([&](auto i) __attribute__((always_inline)) {
        unroll<J>([&](auto j) __attribute__((always_inline)) { sum[i][j] += g * value[i][j]; });
      });
      unroll<KH - 1>([&](auto i) __attribute__((always_inline)) {
        unroll<J>([&](auto j) __attribute__((always_inline)) { value[i][j] = value[i + 1][j]; });
      });
    }
    unroll<J>([&](auto j) __attribute__((always_inline)) {
      unroll<KH>([&](auto i) __attribute__((always_inline)) {
        T* total = sums_ + ((j0 + j) * g_.kh + s.tap + i) * L;
        store(total, load<Vec<T>>(total) + sum[i][j]);
      });
    });
  }

  PlaneGeometry g_;
  int64_t classes_, spacing_;  // of rows: sets of tap rows, output rows from one to the next of a strip
  int64_t lanes_, phase_, row_, band_;
  bool tight_;                    // rows of input without gaps
  int64_t first_ = 0, rows_ = 0;  // the band at hand
  bool whole_ = false;            // vectors do not reach over the end of a row
  Rows in_ = {}, out_ = {};
  Ahead in_ahead_ = {}, out_ahead_ = {};
  T *input_, *output_, *sums_, *packed_, *taps_;
  int64_t* at_;  // of each column of taps in a row of the buffer
};

}  // namespace flexor::FLEXOR_ISA
