// SPDX-License-Identifier: Apache-2.0
// Depth-wise correlation of one plane: where its rows come from, and the strips they are cut into. Strides and
// dilations are plain strips over every so many rows, and over columns sorted by their remainder when the plane
// was copied. A plane that needs no padding is read where it is.
#pragma once
#include "core/rows.h"
#include "match/depthwise_strips.h"

#define FLEXOR_NOINLINE __attribute__((noinline))

namespace flexor::FLEXOR_ISA {

struct PlaneGeometry {
  int64_t h, w, oh, ow, kh, kw, sy, sx, py, px, dy, dx;

  // Of the correlation that takes the gradient of the output to that of the input, with the taps in reverse
  // order; for strides of one only. Its padding is negative where outputs saw nothing but padding.
  PlaneGeometry transposed() const {
    return {oh, ow, h, w, kh, kw, 1, 1, dy * (kh - 1) - py, dx * (kw - 1) - px, dy, dx};
  }
};

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
    column_ = reinterpret_cast<int64_t*>(taps_ + taps);
    for (int64_t j = 0; j < g_.kw; ++j) column_[j] = j * g_.dx % g_.sx * phase_ + j * g_.dx / g_.sx;
    zero(input_ + input_elements() - L, L);
  }

  // The taps of the plane at hand, [kh, kw]: set before it is correlated, left there when they were summed.
  T* taps() { return taps_; }
  void read_taps(const TensorView& view, int64_t n, int64_t c) { read(view, n, c, 0, g_.kh * g_.kw, taps_); }
  void write_taps(const TensorView& view, int64_t n, int64_t c) { write(view, n, c, 0, g_.kh * g_.kw, taps_); }

  void reverse_taps() {
    for (int64_t i = 0, last = g_.kh * g_.kw - 1; i < last - i; ++i) {
      const T tap = taps_[i];
      taps_[i] = taps_[last - i];
      taps_[last - i] = tap;
    }
  }

  bool finite_taps() const {
    T nothing = T(0);
    for (int64_t i = 0; i < g_.kh * g_.kw; ++i) nothing += taps_[i] - taps_[i];
    return nothing == T(0);
  }

  // output = correlation of input with the taps
  FLEXOR_NOINLINE void forward(const TensorView& input, const TensorView& output, int64_t n, int64_t c) {
    for_tap_rows([&](int64_t i, int64_t at) {
      for (int64_t j = 0; j < g_.kw; ++j) packed_[j * g_.kh + at] = taps_[i * g_.kw + j];
    });
    for_bands([&] {
      whole_ = one_strip() && g_.ow >= L;
      set_input(input, n, c);
      const bool direct = set_output(output, n, c);
      for_strips([](const Strip<T>& s) { correlate(s); });
      if (!direct) for_output([&](T* rows, int64_t at, int64_t count) { write(output, n, c, at, count, rows); });
    });
  }

  // taps = their gradient
  FLEXOR_NOINLINE void grad_taps(const TensorView& input, const TensorView& grad_output, int64_t n, int64_t c) {
    zero(sums_, L * g_.kh * g_.kw);
    whole_ = g_.ow >= L;
    for_bands([&] {
      set_input(input, n, c);
      const bool direct = set_output(grad_output, n, c);
      if (!direct) for_output([&](T* rows, int64_t at, int64_t count) { read(grad_output, n, c, at, count, rows); });
      for_strips([](const Strip<T>& s) { multiply(s); });
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
          T* to = input_ + column_[j];
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

  // Rows of the band at hand, in a buffer or in the tensor itself.
  struct Rows {
    T* data;
    int64_t step;
  };

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
  static Ahead ahead(const TensorView& view, int64_t n, int64_t c, int64_t y) {
    const Rows next = rows_of(view, n, c + 1, y);
    return {reinterpret_cast<const char*>(next.data), next.step * static_cast<int64_t>(sizeof(T))};
  }

  int64_t rows_for(int64_t outputs) const { return (outputs - 1) * g_.sy + (g_.kh - 1) * g_.dy + 1; }
  int64_t input_elements() const { return round_up(rows_for(band_) * row_ + L, L); }
  bool one_strip() const { return classes_ == 1 && spacing_ == 1 && g_.kh <= smaller<int64_t>(kTapRows, rows_); }

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

  bool set_output(const TensorView& view, int64_t n, int64_t c) {
    const bool direct = whole_ && in_place(view);
    output_ahead_ = ahead(view, n, c, first_);
    output_rows_ = direct ? rows_of(view, n, c, first_) : Rows{output_, whole_ ? g_.ow : lanes_};
    return direct;
  }

  FLEXOR_NOINLINE void set_input(const TensorView& view, int64_t n, int64_t c) {
    const int64_t rows = rows_for(rows_), top = first_ * g_.sy - g_.py;
    const int64_t begin = smaller(larger<int64_t>(-top, 0), rows);
    const int64_t end = larger(smaller(g_.h - top, rows), begin);
    const bool direct = tight_ && whole_ && in_place(view) && begin == 0 && end == rows;
    input_ahead_ = ahead(view, n, c, top + begin);
    input_rows_ = direct ? rows_of(view, n, c, top) : Rows{input_, row_};
    if (direct) return;
    zero(input_, begin * row_);
    zero(input_ + end * row_, (rows - end) * row_);
    if (tight_) return read(view, n, c, (top + begin) * g_.w, (end - begin) * g_.w, input_ + begin * row_);
    const bool simple = g_.sx == 1 && g_.px >= 0 && g_.w >= L && in_place(view);
    for (int64_t y = begin; y < end; ++y)
      if (simple) pad_row(rows_of(view, n, c, top + y).data, input_ + y * row_);
      else sort_row(view, n, c, top + y, input_ + y * row_);
  }

  // In whole vectors, of which later ones may write over earlier ones.
  void pad_row(const T* source, T* row) const {
    for (int64_t x = 0; x < g_.px; x += L) store(row + x, Vec<T>{});
    for (int64_t x = (g_.px + g_.w) / L * L; x < row_; x += L) store(row + x, Vec<T>{});
    for (int64_t x = 0; x < g_.w; x += L) {
      const int64_t at = smaller(x, g_.w - L);
      store(row + g_.px + at, load<Vec<T>>(source + at));
    }
  }

  void sort_row(const TensorView& view, int64_t n, int64_t c, int64_t y, T* row) const {
    zero(row, row_);
    for_phases([&](int64_t at, int64_t x, int64_t count) {
      load_row(row + at, view, PlanePixels(view).start(n, c, y, x), view.stride[3] * g_.sx, count);
    });
  }

  Strip<T> strip(int64_t input, int64_t output, int64_t outputs, int64_t tap, int64_t taps) const {
    Strip<T> s;
    s.input = input_rows_.data + input * input_rows_.step, s.input_step = spacing_ * g_.sy * input_rows_.step;
    s.output = output_rows_.data + output * output_rows_.step, s.output_step = spacing_ * output_rows_.step;
    s.outputs = outputs, s.taps = static_cast<int>(taps), s.first = tap == 0;
    s.tap = packed_ + tap, s.sums = sums_ + tap * L, s.tap_step = g_.kh;
    s.column = column_, s.columns = g_.kw;
    s.width = g_.ow, s.lanes = lanes_, s.whole = whole_;
    s.input_ahead = input_ahead_, s.output_ahead = output_ahead_;
    return s;
  }

  template <class Visit>
  void for_strips(Visit visit) const {
    if (one_strip()) return visit(strip(0, 0, rows_, 0, g_.kh));
    for (int64_t m = 0; m < smaller(spacing_, rows_); ++m) {
      const int64_t outputs = ceil_div(rows_ - m, spacing_);
      int64_t tap = 0;
      for (int64_t first = 0; first < smaller(classes_, g_.kh); ++first) {
        const int64_t count = ceil_div(g_.kh - first, classes_);
        int64_t parts = ceil_div(count, smaller<int64_t>(kTapRows, outputs));
        for (int64_t done = 0; done < count; --parts) {
          const int64_t taps = ceil_div(count - done, parts);
          visit(strip(first * g_.dy + (m + done * spacing_) * g_.sy, m, outputs, tap, taps));
          done += taps, tap += taps;
        }
      }
    }
  }

  PlaneGeometry g_;
  int64_t classes_, spacing_;  // of rows: sets of tap rows, output rows from one to the next of a strip
  int64_t lanes_, phase_, row_, band_;
  bool tight_;                    // rows of input without gaps
  int64_t first_ = 0, rows_ = 0;  // the band at hand
  bool whole_ = false;            // its vectors do not reach over the end of a row
  Rows input_rows_ = {}, output_rows_ = {};
  Ahead input_ahead_ = {}, output_ahead_ = {};
  T *input_, *output_, *sums_, *packed_, *taps_;
  int64_t* column_;  // of each column of taps in a row of the buffer
};

}  // namespace flexor::FLEXOR_ISA
