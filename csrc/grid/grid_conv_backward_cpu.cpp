// SPDX-License-Identifier: Apache-2.0
// Grid convolution, backward. A group of samples is laid out as rows of channels; then tiles of it own the
// gradients of their inputs and attentions, and (set of weights, tap, block of outputs) own their part of the
// weight gradient, which every group adds to in turn.
#include "grid/grid_conv_kernels.h"
#include "grid/grid_weights.h"

namespace flexor::FLEXOR_ISA {
namespace {

constexpr int64_t kGroupBytes = 4 << 20;  // of the rows of a group
constexpr int64_t kTileRows = 200;        // cells of the samples of a tile
constexpr int64_t kSumRows = 128;         // rows of one product of the weight gradient

template <class T>
class Backward {
 public:
  explicit Backward(const GridConvParams& params) : p_(params), g_(params) {
    in_stride_ = round_up(g_.in_channels, kBlock), out_stride_ = round_up(g_.out_channels, kBlock);
    in_vectors_ = ceil_div(g_.in_channels, kLanes<T>);
    in_chunks_ = ceil_div(g_.in_channels, kChunk), out_chunks_ = ceil_div(g_.out_channels, kChunk);
    sample_size_ = g_.cells * (in_stride_ + out_stride_ + (p_.attention ? g_.taps : 0));
    const int64_t sample_bytes = larger<int64_t>(1, sample_size_ * static_cast<int64_t>(sizeof(T)));
    group_ = larger<int64_t>(1, smaller(g_.batch, kGroupBytes / sample_bytes));
    tile_ = larger<int64_t>(1, smaller(group_, kTileRows / g_.cells));
    data_ = p_.grad_input || p_.grad_attention;
    weight_ = p_.grad_weight1 || p_.grad_weight2;
    bias_ = p_.grad_bias1 || p_.grad_bias2;
    turned_size_ = (smaller(kChunk, g_.out_channels) + 1) * g_.sets * g_.taps * kLanes<T>;
    sum_size_ = g_.out_channels * in_stride_;
  }

  void run() {
    // One buffer: of several, the allocator would give some back to the system at the end of every call.
    const int64_t turned = data_ ? out_chunks_ * in_vectors_ * turned_size_ : 0;
    const int64_t sums = weight_ ? g_.sets * g_.taps * sum_size_ : 0;
    const int64_t group = round_up(group_ * sample_size_, kBlock);
    SharedBuffer buffer((turned + sums + group) * sizeof(T) + out_stride_ * sizeof(double));
    turned_ = buffer.as<T>(), sums_ = turned_ + turned, input_ = sums_ + sums;
    grad_out_ = input_ + group_ * g_.cells * in_stride_;
    attention_ = grad_out_ + group_ * g_.cells * out_stride_;
    biases_ = reinterpret_cast<double*>(input_ + group);
    if (bias_)
      for (int64_t o = 0; o < out_stride_; ++o) biases_[o] = 0;
    if (weight_ && g_.batch == 0)
      for (int64_t i = 0; i < sums; ++i) sums_[i] = T(0);
    if (data_) parallel_for(g_.out_channels, [&](int64_t output) { turn_output(output); });
    for (int64_t sample = 0; sample < g_.batch; sample += group_) work(sample, smaller(group_, g_.batch - sample));
    if (weight_) parallel_for(g_.out_channels, [&](int64_t output) { store_weight_gradient(output); });
    if (bias_) store_bias_gradient();
  }

 private:
  struct Pairs {
    int64_t count;
    int64_t *cell, *source;
  };

  // T elements and two tables of cells, in this thread's workspace.
  T* scratch(int64_t size, Pairs* pairs) const {
    const int64_t tables = round_up(2 * g_.cells * 8 / static_cast<int64_t>(sizeof(T)), kBlock);
    T* base = static_cast<T*>(thread_workspace((tables + size) * sizeof(T)));
    int64_t* table = reinterpret_cast<int64_t*>(base);
    *pairs = {0, table, table + g_.cells};
    return base + tables;
  }

  void find_pairs(int set, int64_t tap, Pairs* pairs) const {
    pairs->count = g_.pairs(g_.set[set], tap, pairs->cell, pairs->source);
  }

  void work(int64_t sample, int64_t samples) {
    parallel_for(samples, [&](int64_t i) {
      T* planes = static_cast<T*>(thread_workspace(g_.cells * kLanes<T> * sizeof(T)));
      load_cells(p_.input, sample + i, input_ + i * g_.cells * in_stride_, in_stride_, planes);
      load_cells(p_.output, sample + i, grad_out_ + i * g_.cells * out_stride_, out_stride_, planes);
      if (p_.attention) load_attention(p_.attention, sample + i, attention_ + i * g_.taps * g_.cells);
    });
    if (bias_) parallel_for(out_stride_ / kBlock, [&](int64_t block) { add_bias_gradient(block * kBlock, samples); });
    if (data_)
      parallel_for(ceil_div(samples, tile_),
                   [&](int64_t task) { data_gradient(sample, task * tile_, smaller(tile_, samples - task * tile_)); });
    if (weight_)
      parallel_for(g_.sets * g_.taps * out_chunks_, [&](int64_t task) {
        const int64_t list = task / out_chunks_;
        add_weight_gradient(static_cast<int>(list % g_.sets), list / g_.sets, task % out_chunks_ * kChunk, samples,
                            sample > 0);
      });
  }

  FLEXOR_INLINE T scale(int64_t sample, int64_t tap, int64_t cell) const {
    return p_.attention ? attention_[(sample * g_.taps + tap) * g_.cells + cell] : T(1);
  }

  // Turned weights: [chunk of outputs][panel of channels][set][tap][output][channel]; one output more, so that
  // taps do not lie a multiple of 4 kB apart.
  void turn_output(int64_t output) const {
    constexpr int64_t L = kLanes<T>;
    const int64_t chunk = output / kChunk, outputs = smaller(kChunk, g_.out_channels - chunk * kChunk) + 1;
    const int64_t size = (in_vectors_ * L + L) * g_.taps + L;
    T* copies = static_cast<T*>(thread_workspace(2 * size * sizeof(T)));
    const WeightRows<T> w1 = channel_rows(p_.weight1, output, copies);
    WeightRows<T> w2;
    if (p_.weight2) w2 = channel_rows(p_.weight2, output, copies + size);
    T* dst = turned_ + chunk * in_vectors_ * turned_size_;
    for_panels(in_vectors_, [&](int64_t vector, auto nv) {
      const int64_t width = nv * L;
      for (int64_t v = 0; v < nv; ++v) {
        const int64_t row = (vector + v) * L * g_.taps;
        turn_weights<T>(g_, {w1.p + row, w1.stride}, {w2.p == nullptr ? nullptr : w2.p + row, w2.stride}, g_.taps,
                        dst + vector * turned_size_ + output % kChunk * width + v * L, g_.taps * outputs * width,
                        [&](int64_t tap) { return tap * outputs * width; });
      }
    });
  }

  // Of the samples of one tile: gradients of the columns, one tap of one set at a time, and what follows.
  void data_gradient(int64_t group_sample, int64_t first, int64_t samples) const {
    const int64_t rows = samples * g_.cells, in_size = rows * in_stride_;
    const int64_t at_size = round_up(samples * g_.taps * g_.cells, kBlock);
    Pairs pairs;
    T* grad_in = scratch(2 * in_size + at_size + out_chunks_ * rows * kRowStride<T> + g_.cells * kLanes<T>, &pairs);
    T *columns = grad_in + in_size, *grad_at = columns + in_size, *operand = grad_at + at_size;
    T* planes = operand + out_chunks_ * rows * kRowStride<T>;
    for (int64_t i = 0; i < in_size; ++i) grad_in[i] = T(0);
    for (int64_t i = 0; i < at_size; ++i) grad_at[i] = T(0);
    for (int64_t tap = 0; tap < g_.taps; ++tap)
      for (int set = 0; set < g_.sets; ++set) {
        find_pairs(set, tap, &pairs);
        columns_gradient(pairs, set, tap, first, samples, operand, columns);
        for (int64_t i = 0, row = 0; i < samples; ++i)
          for (int64_t k = 0; k < pairs.count; ++k, ++row) {
            const int64_t source = (i * g_.cells + pairs.source[k]) * in_stride_;
            const T* x = input_ + first * g_.cells * in_stride_ + source;
            const T* column = columns + row * in_stride_;
            if (p_.grad_attention) grad_at[(i * g_.taps + tap) * g_.cells + pairs.cell[k]] += dot(column, x);
            if (p_.grad_input) add_scaled(column, scale(first + i, tap, pairs.cell[k]), grad_in + source);
          }
      }
    for (int64_t i = 0; i < samples; ++i) {
      const int64_t sample = group_sample + first + i;
      if (p_.grad_input)
        store_cells(p_.grad_input, sample, 0, g_.in_channels, grad_in + i * g_.cells * in_stride_, in_stride_, planes);
      if (p_.grad_attention) store_attention(p_.grad_attention, sample, grad_at + i * g_.taps * g_.cells);
    }
  }

  // columns[row][channel] = sum over outputs of grad_out * weight
  void columns_gradient(const Pairs& pairs, int set, int64_t tap, int64_t first, int64_t samples, T* operand,
                        T* columns) const {
    constexpr int64_t L = kLanes<T>;
    const int64_t rows = samples * pairs.count;
    for (int64_t chunk = 0; chunk < out_chunks_; ++chunk) {
      const int64_t outputs = smaller(kChunk, g_.out_channels - chunk * kChunk);
      for (int64_t i = 0, row = 0; i < samples; ++i)
        for (int64_t k = 0; k < pairs.count; ++k, ++row)
          copy_scaled(grad_out_ + ((first + i) * g_.cells + pairs.cell[k]) * out_stride_ + chunk * kChunk, T(1),
                      outputs, operand + row * kRowStride<T>);
      for_panels(in_vectors_, [&](int64_t vector, auto nv) {
        constexpr int NV = decltype(nv)::value;
        const T* b =
            turned_ + (chunk * in_vectors_ + vector) * turned_size_ + (set * g_.taps + tap) * (outputs + 1) * NV * L;
        for_slices(rows, [&](int64_t row, int height) {
          gemm_tall<T, NV>(height, outputs, ChunkA<T>{operand + row * kRowStride<T>}, RowsB<T>{b, NV * L},
                           RowsC<T>{columns + row * in_stride_ + vector * L, in_stride_}, chunk > 0);
        });
      });
    }
  }

  T dot(const T* a, const T* b) const {
    constexpr int64_t L = kLanes<T>;
    Vec<T> sums{};
    int64_t c = 0;
    for (; c + L <= g_.in_channels; c += L) sums += load<Vec<T>>(a + c) * load<Vec<T>>(b + c);
    T sum = 0;
    for (; c < g_.in_channels; ++c) sum += a[c] * b[c];
    for (int i = 0; i < L; ++i) sum += sums[i];
    return sum;
  }

  void add_scaled(const T* from, T by, T* to) const {
    const Vec<T> s = splat<Vec<T>>(by);
    for (int64_t c = 0; c < g_.in_channels; c += kLanes<T>)
      store(to + c, load<Vec<T>>(to + c) + s * load<Vec<T>>(from + c));
  }

  // sums[set][tap][output][channel] (+)= sum over rows of grad_out * scaled input
  void add_weight_gradient(int set, int64_t tap, int64_t output, int64_t samples, bool add) const {
    constexpr int64_t L = kLanes<T>;
    Pairs pairs;
    T* columns = scratch((in_chunks_ + 1) * kSumRows * kRowStride<T>, &pairs);
    T* grad = columns + in_chunks_ * kSumRows * kRowStride<T>;
    find_pairs(set, tap, &pairs);
    const int64_t outputs = smaller(kChunk, g_.out_channels - output), rows = samples * pairs.count;
    T* sums = sums_ + (set * g_.taps + tap) * sum_size_ + output * in_stride_;
    if (rows == 0 && !add)
      for (int64_t i = 0; i < outputs * in_stride_; ++i) sums[i] = T(0);
    for (int64_t begin = 0; begin < rows; begin += kSumRows) {
      const int64_t n = smaller(kSumRows, rows - begin);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t sample = (begin + i) / pairs.count, k = (begin + i) % pairs.count;
        const T* x = input_ + (sample * g_.cells + pairs.source[k]) * in_stride_;
        copy_scaled(grad_out_ + (sample * g_.cells + pairs.cell[k]) * out_stride_ + output, T(1), outputs,
                    grad + i * kRowStride<T>);
        for (int64_t c = 0; c < in_chunks_; ++c)
          copy_scaled(x + c * kChunk, scale(sample, tap, pairs.cell[k]), smaller(kChunk, g_.in_channels - c * kChunk),
                      columns + (c * kSumRows + i) * kRowStride<T>);
      }
      for (int64_t c = 0; c < in_chunks_; ++c)
        for_panels(smaller(kChunk / L, in_vectors_ - c * kChunk / L), [&](int64_t vector, auto nv) {
          for_slices(outputs, [&](int64_t o, int height) {
            gemm_tall<T, decltype(nv)::value>(
                height, n, ColumnsA<T>{grad + o, kRowStride<T>},
                RowsB<T>{columns + c * kSumRows * kRowStride<T> + vector * L, kRowStride<T>},
                RowsC<T>{sums + o * in_stride_ + c * kChunk + vector * L, in_stride_}, add || begin > 0);
          });
        });
    }
  }

  void store_weight_gradient(int64_t output) const {
    const int64_t size = (g_.in_channels + kLanes<T>)*g_.taps + kLanes<T>;
    T* row = static_cast<T*>(thread_workspace(size * sizeof(T)));
    if (p_.grad_weight1) {
      sum_sets(output, true, row);
      store_weights(p_.grad_weight1, output, row);
    }
    if (p_.grad_weight2) {
      sum_sets(output, false, row);
      store_weights(p_.grad_weight2, output, row);
    }
  }

  // row[channel][tap] of the first or the second branch. The last taps come first: whole vectors are stored,
  // over the first taps of the next channel.
  void sum_sets(int64_t output, bool first, T* row) const {
    constexpr int L = kLanes<T>;
    for (int64_t c = 0; c < g_.in_channels; c += L)
      for (int64_t tap = (g_.taps - 1) / L * L; tap >= 0; tap -= L) {
        Vec<T> x[L];
        unroll<L>([&](auto i) __attribute__((always_inline)) {
          x[i] = Vec<T>{};
          if (tap + i >= g_.taps) return;
          for (int set = 0; set < g_.sets; ++set)
            if (first ? g_.set[set].first : g_.set[set].second)
              x[i] += load<Vec<T>>(sums_ + (set * g_.taps + tap + i) * sum_size_ + output * in_stride_ + c);
        });
        transpose_step<T, L, L / 2>(x);
        unroll<L>([&](auto i) __attribute__((always_inline)) { store(row + (c + i) * g_.taps + tap, x[i]); });
      }
  }

  void add_bias_gradient(int64_t output, int64_t samples) const {
    for (int64_t i = 0; i < samples; ++i) {
      T part[kBlock] = {};
      const T* grad = grad_out_ + i * g_.cells * out_stride_ + output;
      for (int64_t cell = 0; cell < g_.cells; ++cell)
        for (int64_t o = 0; o < kBlock; ++o) part[o] += grad[cell * out_stride_ + o];
      for (int64_t o = 0; o < kBlock; ++o) biases_[output + o] += static_cast<double>(part[o]);
    }
  }

  void store_bias_gradient() const {
    for (const TensorView* grad : {&p_.grad_bias1, &p_.grad_bias2}) {
      if (!*grad) continue;
      for (int64_t o = 0; o < g_.out_channels; ++o) {
        const T sum = static_cast<T>(biases_[o]);
        store_row(*grad, o * grad->stride[0], 1, &sum, 1);
      }
    }
  }

  const GridConvParams& p_;
  GridGeometry g_;
  int64_t in_stride_, out_stride_, in_vectors_, in_chunks_, out_chunks_;
  int64_t sample_size_, group_, tile_, turned_size_, sum_size_;
  bool data_, weight_, bias_;
  T *input_ = nullptr, *grad_out_ = nullptr, *attention_ = nullptr, *turned_ = nullptr, *sums_ = nullptr;
  double* biases_ = nullptr;
};

}  // namespace

void grid_conv_backward(const GridConvParams& p) {
  if (p.input.dtype == DType::f64) Backward<double>(p).run();
  else Backward<float>(p).run();
}

extern const GridConvKernels grid_conv_kernels{&grid_conv_forward, &grid_conv_backward};

}  // namespace flexor::FLEXOR_ISA
