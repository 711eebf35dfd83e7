// SPDX-License-Identifier: Apache-2.0
// 3x3 convolution of stride 1 that keeps the size, with any dilation, by Winograd's algorithm: pixels are transformed
// into 16 planes of products' operands a tile at a time, multiplied within the cache, and transformed back.
#include "deform/conv3x3.h"

#include "core/gemm.h"
#include "core/tasks.h"
#include "deform/winograd.h"

namespace flexor::FLEXOR_ISA {
namespace {

constexpr int64_t kTiles = 84;  // of a task, about
constexpr int64_t kDepth = 64;  // input channels of one product
#if FLEXOR_ISA_avx512
constexpr int kTallMicro = 14, kShortMicro = 12;  // rows of the microkernel: whichever wastes less
#else
constexpr int kTallMicro = 4, kShortMicro = 4;
#endif

TensorView adjoint(const TensorView& w) {  // inputs and outputs exchanged, taps turned round
  TensorView turned = w;
  turned.size[0] = w.size[1], turned.size[1] = w.size[0];
  turned.stride[0] = w.stride[1], turned.stride[1] = w.stride[0];
  turned.stride[2] = -w.stride[2], turned.stride[3] = -w.stride[3];
  turned.data = static_cast<char*>(w.data) + 2 * (w.stride[2] + w.stride[3]) * item_size(w.dtype);
  return turned;
}

// How an image is cut into tasks: some rows of tiles times a stretch of columns, which covers its pixels whole.
struct Cut {
  TileAxis rows, columns;
  int64_t columns_at_once, rows_at_once, stretches, bands;

  Cut(const TensorView& image, int64_t dilation, int64_t tiles)
      : rows{image.size[2], dilation}, columns{image.size[3], dilation} {
    const int64_t all = columns.count(), periods = larger<int64_t>(1, tiles / dilation);
    columns_at_once = all <= tiles ? all : smaller(all, periods * dilation);
    rows_at_once = smaller(rows.count(), larger<int64_t>(1, tiles / columns_at_once));
    stretches = ceil_div(columns.count(), columns_at_once), bands = ceil_div(rows.count(), rows_at_once);
  }
  int64_t tasks() const { return stretches * bands; }
  int64_t tiles() const { return rows_at_once * columns_at_once; }
  int64_t pixels() const { return smaller(columns.size, columns.start(columns_at_once - 1) + 1 + columns.dilation); }
  int64_t window() const { return smaller(columns.size, pixels() + 2 * columns.dilation); }
};

struct Band {
  int64_t row, row_count, column, column_count, begin, end;  // [begin, end): pixels of the output
  int64_t window_begin, window_end;                          // pixels of the input

  Band(const Cut& cut, int64_t task) {
    const int64_t d = cut.columns.dilation;
    row = task / cut.stretches * cut.rows_at_once, row_count = smaller(cut.rows_at_once, cut.rows.count() - row);
    column = task % cut.stretches * cut.columns_at_once;
    column_count = smaller(cut.columns_at_once, cut.columns.count() - column);
    begin = cut.columns.start(column);
    end = smaller(cut.columns.size, cut.columns.start(column + column_count - 1) + 1 + d);
    window_begin = larger<int64_t>(0, begin - d), window_end = smaller(cut.columns.size, end + d);
  }
  int64_t tiles() const { return row_count * column_count; }
};

// Operands of the products, [position][tile][stride], from `count` channels of the input.
template <class T>
void input_operands(const TensorView& input, const Cut& cut, const Band& band, int64_t n, int64_t c, int64_t count,
                    int64_t stride, int64_t tiles, T* rows, T* scratch, T* out) {
  using V = Vec<T>;
  const int64_t d = cut.rows.dilation, width = band.window_end - band.window_begin, row_size = (width + 1) * stride;
  for (int64_t r = 0; r < band.row_count; ++r) {
    const int64_t y = cut.rows.start(band.row + r);
    for (int64_t i = 0; i < 4; ++i)
      pack_row(input, n, c, count, y + (i - 1) * d, band.window_begin, band.window_end, stride, scratch,
               rows + i * row_size);
    for (int64_t k = 0; k < band.column_count; ++k) {
      const int64_t x = cut.columns.start(band.column + k);
      int64_t at[4];
      for (int64_t j = 0; j < 4; ++j) {
        const int64_t from = x + (j - 1) * d;
        at[j] = (from < 0 || from >= input.size[3] ? width : from - band.window_begin) * stride;
      }
      T* tile = out + (r * band.column_count + k) * stride;
      for (int64_t l = 0; l < stride; l += kLanes<T>) {
        V pixels[4][4], v[4][4];
        unroll<16>([&](auto p) __attribute__((always_inline)) {
          pixels[p / 4][p % 4] = load<V>(rows + p / 4 * row_size + at[p % 4] + l);
        });
        transform_input(pixels, v);
        unroll<16>([&](auto p)
                       __attribute__((always_inline)) { store(tile + p * tiles * stride + l, v[p / 4][p % 4]); });
      }
    }
  }
}

template <class T>
class Forward {
 public:
  Forward(const TensorView& input, const TensorView& weight, const TensorView& bias, const TensorView& output,
          int64_t dilation)
      : input_(input),
        weight_(weight),
        bias_(bias),
        output_(output),
        cut_(output, dilation, weight.size[1] > kDepth ? kTiles / 2 : kTiles) {
    channels_ = weight.size[1], outputs_ = weight.size[0];
    vectors_ = ceil_div(outputs_, kLanes<T>);
    depth_ = smaller(kDepth, round_up(channels_, kLanes<T>));
    blocks_ = ceil_div(channels_, depth_);
    const int64_t n = cut_.tiles();
    micro_ = round_up(n, kShortMicro) < round_up(n, kTallMicro) ? kShortMicro : kTallMicro;
    tiles_ = round_up(n, micro_);
  }

  void run() {
    if (output_.numel() == 0) return;
    const int64_t padded = vectors_ * kLanes<T>;
    SharedBuffer buffer((kPositions * channels_ + 1) * padded * sizeof(T));
    weights_ = buffer.as<T>(), biases_ = weights_ + kPositions * channels_ * padded;
    for (int64_t o = 0; o < padded; ++o) biases_[o] = T(0);
    if (bias_) load_row(biases_, bias_, 0, bias_.stride[0], outputs_);
    parallel_for(channels_, [&](int64_t c) { pack_weights(c); });
    parallel_for(output_.size[0] * cut_.tasks(), [&](int64_t task) { work(task / cut_.tasks(), task % cut_.tasks()); });
  }

 private:
  static int panel(int64_t left) { return left == 1 ? 1 : 2; }

  template <class Visit>
  void for_panels(Visit visit) const {
    for (int64_t v = 0; v < vectors_; v += panel(vectors_ - v)) visit(v * kLanes<T>, panel(vectors_ - v));
  }

  // [panel][position][channel][output]
  void pack_weights(int64_t c) const {
    using V = Vec<T>;
    const int64_t padded = vectors_ * kLanes<T>;
    T* taps = static_cast<T*>(thread_workspace(9 * padded * sizeof(T)));
    for (int64_t k = 0; k < 9; ++k) {
      for (int64_t o = outputs_; o < padded; ++o) taps[k * padded + o] = T(0);
      const int64_t at = c * weight_.stride[1] + k / 3 * weight_.stride[2] + k % 3 * weight_.stride[3];
      load_row(taps + k * padded, weight_, at, weight_.stride[0], outputs_);
    }
    for_panels([&](int64_t o, int nv) {
      const int64_t width = nv * kLanes<T>;
      T* packed = weights_ + kPositions * channels_ * o + c * width;
      for (int64_t l = 0; l < width; l += kLanes<T>) {
        V g[3][3], u[4][4];
        unroll<9>([&](auto k) __attribute__((always_inline)) { g[k / 3][k % 3] = load<V>(taps + k * padded + o + l); });
        transform_weight<T>(g, u);
        unroll<16>([&](auto p)
                       __attribute__((always_inline)) { store(packed + p * channels_ * width + l, u[p / 4][p % 4]); });
      }
    });
  }

  void work(int64_t n, int64_t task) const {
    const Band band(cut_, task);
    const int64_t window = band.window_end - band.window_begin;
    const int64_t lanes = kLanes<T>, padded = vectors_ * lanes, width = 2 * lanes;
    const int64_t rows_size = 4 * (window + 1) * depth_, line_size = 2 * (band.end - band.begin) * width;
    const int64_t scratch_size = larger(window * depth_, (band.end - band.begin) * width);
    const int64_t operands_size = kPositions * tiles_ * depth_;
    const int64_t products_size = kPositions * tiles_ * (blocks_ > 1 ? padded : width);
    T* rows = static_cast<T*>(
        thread_workspace((rows_size + line_size + scratch_size + operands_size + products_size) * sizeof(T)));
    T* lines = rows + rows_size;
    T* scratch = lines + line_size;
    T* operands = scratch + scratch_size;
    T* products = operands + operands_size;
    for (int64_t block = 0; block < blocks_; ++block) {
      const int64_t c = block * depth_, count = smaller(depth_, channels_ - c);
      input_operands(input_, cut_, band, n, c, count, depth_, tiles_, rows, scratch, operands);
      for (int64_t p = 0; p < kPositions; ++p)
        for (int64_t i = (p * tiles_ + band.tiles()) * depth_; i < (p + 1) * tiles_ * depth_; ++i) operands[i] = T(0);
      for_panels([&](int64_t o, int nv) {
        T* out = blocks_ > 1 ? products + kPositions * tiles_ * o : products;
        if (nv == 2) multiply<2>(operands, o, c, count, out, block > 0);
        else multiply<1>(operands, o, c, count, out, block > 0);
        if (block + 1 == blocks_) finish(band, n, o, nv * lanes, out, lines, scratch);
      });
    }
  }

  template <int NV>
  void multiply(const T* operands, int64_t o, int64_t c, int64_t depth, T* out, bool add) const {
    for (int64_t p = 0; p < kPositions; ++p) {
      const T* a = operands + p * tiles_ * depth_;
      const T* b = weights_ + kPositions * channels_ * o + (p * channels_ + c) * NV * kLanes<T>;
      T* to = out + p * tiles_ * NV * kLanes<T>;
      if (micro_ == kTallMicro) product<kTallMicro, NV>(a, b, depth, to, add);
      else product<kShortMicro, NV>(a, b, depth, to, add);
    }
  }

  template <int MR, int NV>
  __attribute__((noinline)) void product(const T* a, const T* b, int64_t depth, T* out, bool add) const {
    constexpr int64_t width = NV * kLanes<T>;
    for (int64_t i = 0; i < tiles_; i += MR)
      gemm_micro<T, MR, NV>(depth, RowsA<T>{a + i * depth_, depth_}, RowsB<T>{b, width},
                            RowsC<T>{out + i * width, width}, add);
  }

  // From products to the output, `width` channels from o on.
  void finish(const Band& band, int64_t n, int64_t o, int64_t width, const T* products, T* lines, T* scratch) const {
    using V = Vec<T>;
    const int64_t d = cut_.rows.dilation, pixels = band.end - band.begin;
    for (int64_t r = 0; r < band.row_count; ++r) {
      for (int64_t k = 0; k < band.column_count; ++k) {
        const int64_t x = cut_.columns.start(band.column + k) - band.begin;
        const T* tile = products + (r * band.column_count + k) * width;
        for (int64_t l = 0; l < width; l += kLanes<T>) {
          V m[4][4], y[2][2];
          unroll<16>([&](auto p)
                         __attribute__((always_inline)) { m[p / 4][p % 4] = load<V>(tile + p * tiles_ * width + l); });
          transform_output(m, y);
          const V bias = load<V>(biases_ + o + l);
          for (int64_t i = 0; i < 2; ++i) {
            store(lines + (i * pixels + x) * width + l, y[i][0] + bias);
            if (x + d < pixels) store(lines + (i * pixels + x + d) * width + l, y[i][1] + bias);
          }
        }
      }
      const int64_t y = cut_.rows.start(band.row + r), count = smaller(width, outputs_ - o);
      for (int64_t i = 0; i < 2 && y + i * d < output_.size[2]; ++i)
        unpack_row(lines + i * pixels * width, width, output_, n, o, count, y + i * d, band.begin, pixels, scratch);
    }
  }

  const TensorView input_, weight_, bias_, output_;
  Cut cut_;
  int64_t channels_, outputs_, vectors_, depth_, blocks_, micro_, tiles_;
  T* weights_ = nullptr;
  T* biases_ = nullptr;
};

// A task owns some channels of input and output, and walks all tiles.
template <class T>
class WeightGradient {
 public:
  explicit WeightGradient(const Conv3x3Params& p) : p_(p), cut_(p.output, p.dilation, kTiles) {
    depth_ = smaller(kDepth, round_up(p.input.size[1], kLanes<T>));
    blocks_ = ceil_div(p.input.size[1], depth_);
    panels_ = ceil_div(p.output.size[1], kWidth);
  }

  void run() const {
    parallel_for(blocks_ * panels_, [&](int64_t task) { work(task / panels_ * depth_, task % panels_ * kWidth); });
  }

 private:
  static constexpr int kVectors = 3;
  static constexpr int64_t kWidth = kVectors * kLanes<T>;  // outputs of a task

  void work(int64_t c, int64_t o) const {
    const int64_t count = smaller(depth_, p_.input.size[1] - c), outputs = smaller(kWidth, p_.output.size[1] - o);
    const int64_t tiles = cut_.tiles(), row_size = (cut_.window() + 1) * larger(depth_, kWidth);
    const int64_t sizes[5] = {4 * row_size, row_size, kPositions * tiles * depth_, kPositions * tiles * kWidth,
                              kPositions * depth_ * kWidth};
    T* rows = static_cast<T*>(thread_workspace((sizes[0] + sizes[1] + sizes[2] + sizes[3] + sizes[4]) * sizeof(T)));
    T* scratch = rows + sizes[0];
    T* operands = scratch + sizes[1];
    T* grads = operands + sizes[2];
    T* sums = grads + sizes[3];
    for (int64_t i = 0; i < sizes[4]; ++i) sums[i] = T(0);
    for (int64_t n = 0; n < p_.input.size[0]; ++n)
      for (int64_t task = 0; task < cut_.tasks(); ++task) {
        const Band band(cut_, task);
        input_operands(p_.input, cut_, band, n, c, count, depth_, tiles, rows, scratch, operands);
        grad_operands(band, n, o, outputs, rows, scratch, grads);
        for (int64_t p = 0; p < kPositions; ++p)
          for_slices(count, [&](int64_t row, int height) {
            gemm_tall<T, kVectors>(height, band.tiles(), ColumnsA<T>{operands + p * tiles * depth_ + row, depth_},
                                   RowsB<T>{grads + p * tiles * kWidth, kWidth},
                                   RowsC<T>{sums + (p * depth_ + row) * kWidth, kWidth}, true);
          });
      }
    store_taps(c, count, o, outputs, sums);
  }

  void grad_operands(const Band& band, int64_t n, int64_t o, int64_t outputs, T* rows, T* scratch, T* out) const {
    using V = Vec<T>;
    const int64_t d = p_.dilation, pixels = band.end - band.begin, row_size = (pixels + 1) * kWidth;
    for (int64_t r = 0; r < band.row_count; ++r) {
      const int64_t y = cut_.rows.start(band.row + r);
      for (int64_t i = 0; i < 2; ++i)
        pack_row(p_.output, n, o, outputs, y + i * d, band.begin, band.end, kWidth, scratch, rows + i * row_size);
      for (int64_t k = 0; k < band.column_count; ++k) {
        const int64_t x = cut_.columns.start(band.column + k) - band.begin;
        const int64_t at[2] = {x * kWidth, smaller(x + d, pixels) * kWidth};  // pixel `pixels` is zeros
        T* tile = out + (r * band.column_count + k) * kWidth;
        for (int64_t l = 0; l < kWidth; l += kLanes<T>) {
          V g[2][2], m[4][4];
          unroll<4>([&](auto q) __attribute__((always_inline)) {
            g[q / 2][q % 2] = load<V>(rows + q / 2 * row_size + at[q % 2] + l);
          });
          transform_grad_output(g, m);
          unroll<16>([&](auto p) __attribute__((always_inline)) {
            store(tile + p * cut_.tiles() * kWidth + l, m[p / 4][p % 4]);
          });
        }
      }
    }
  }

  void store_taps(int64_t c, int64_t count, int64_t o, int64_t outputs, const T* sums) const {
    using V = Vec<T>;
    const TensorView& w = p_.grad_weight;
    T taps[9 * kWidth];
    for (int64_t k = 0; k < count; ++k) {
      for (int64_t l = 0; l < kWidth; l += kLanes<T>) {
        V u[4][4], g[3][3];
        unroll<16>([&](auto p) __attribute__((always_inline)) {
          u[p / 4][p % 4] = load<V>(sums + (p * depth_ + k) * kWidth + l);
        });
        transform_grad_weight<T>(u, g);
        unroll<9>([&](auto i) __attribute__((always_inline)) { store(taps + i * kWidth + l, g[i / 3][i % 3]); });
      }
      for (int64_t i = 0; i < 9; ++i)
        store_row(w, o * w.stride[0] + (c + k) * w.stride[1] + i / 3 * w.stride[2] + i % 3 * w.stride[3], w.stride[0],
                  taps + i * kWidth, outputs);
    }
  }

  const Conv3x3Params& p_;
  Cut cut_;
  int64_t depth_, blocks_, panels_;
};

template <class T>
void bias_gradient(const Conv3x3Params& p) {
  const TensorView& grad = p.output;
  const PlanePixels planes(grad);
  parallel_for(grad.size[1], [&](int64_t o) {
    const int64_t pixels = grad.size[2] * grad.size[3];
    T* values = static_cast<T*>(thread_workspace((pixels + 1) * sizeof(T)));
    Vec<T> sums{};
    T sum = T(0);
    for (int64_t n = 0; n < grad.size[0]; ++n) {
      planes.load(values, n, o, 0, pixels);
      int64_t i = 0;
      for (; i + kLanes<T> <= pixels; i += kLanes<T>) sums += load<Vec<T>>(values + i);
      for (; i < pixels; ++i) sum += values[i];
    }
    for (int l = 0; l < kLanes<T>; ++l) sum += sums[l];
    store_row(p.grad_bias, o * p.grad_bias.stride[0], 1, &sum, 1);
  });
}

template <class T>
void forward(const Conv3x3Params& p) {
  Forward<T>(p.input, p.weight, p.bias, p.output, p.dilation).run();
}

template <class T>
void backward(const Conv3x3Params& p) {
  if (p.grad_bias) bias_gradient<T>(p);
  if (p.grad_weight) WeightGradient<T>(p).run();
  if (p.grad_input) Forward<T>(p.output, adjoint(p.weight), TensorView{}, p.grad_input, p.dilation).run();
}

void conv3x3_forward(const Conv3x3Params& p) {
  if (p.input.dtype == DType::f64) forward<double>(p);
  else forward<float>(p);
}

void conv3x3_backward(const Conv3x3Params& p) {
  if (p.input.dtype == DType::f64) backward<double>(p);
  else backward<float>(p);
}

}  // namespace

extern const Conv3x3Kernels conv3x3_kernels{&conv3x3_forward, &conv3x3_backward};

}  // namespace flexor::FLEXOR_ISA
