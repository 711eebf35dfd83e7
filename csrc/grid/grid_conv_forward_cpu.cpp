// SPDX-License-Identifier: Apache-2.0
// Grid convolution, forward: tap by tap, the rows (cell of a sample) that the tap reaches times its weights,
// added to the outputs of those cells. A tile of samples fills the rows of a product; a batch of one tile
// turns its weights in the cache just before their use, a larger one turns all of them once.
#include "grid/grid_conv_kernels.h"
#include "grid/grid_weights.h"

namespace flexor::FLEXOR_ISA {
namespace {

constexpr int64_t kTileRows = 200;    // cells of the samples of a tile
constexpr int64_t kFusedChunk = 64;   // channels at a time where weights are turned on the fly
constexpr int64_t kFusedVectors = 4;  // and vectors of outputs of a task
constexpr int64_t kManyTiles = 16;    // from here on a task does all outputs of its tile

template <class T>
class Forward {
 public:
  explicit Forward(const GridConvParams& params) : p_(params), g_(params) {
    constexpr int64_t L = kLanes<T>;
    vectors_ = ceil_div(g_.out_channels, L);
    tile_ = larger<int64_t>(1, smaller(g_.batch, kTileRows / g_.cells));
    tiles_ = ceil_div(g_.batch, tile_);
    tile_ = tiles_ == 0 ? 1 : ceil_div(g_.batch, tiles_);
    fused_ = tiles_ == 1;
    depth_ = smaller(g_.in_channels, fused_ ? kFusedChunk : kChunk);
    part_ = fused_ ? smaller(vectors_, kFusedVectors) : tiles_ < kManyTiles ? smaller<int64_t>(vectors_, 6) : vectors_;
    parts_ = vectors_ == 0 ? 0 : ceil_div(vectors_, part_);
    in_stride_ = round_up(g_.in_channels, kBlock);
    vector_weights_ = g_.sets * (depth_ + 1) * g_.taps * L;
  }

  void run() {
    if (g_.batch == 0 || g_.out_channels == 0) return;
    const int64_t chunks = g_.in_channels == 0 ? 0 : ceil_div(g_.in_channels, depth_);
    SharedBuffer weights(fused_ ? 0 : chunks * vectors_ * vector_weights_ * sizeof(T));
    weights_ = weights.as<T>();
    if (!fused_)
      parallel_for(chunks * parts_, [&](int64_t task) {
        const int64_t chunk = task / parts_, first = task % parts_ * part_;
        const int64_t scratch = turn_scratch();
        turn_part(chunk * depth_, first, weights_ + (chunk * vectors_ + first) * vector_weights_,
                  static_cast<T*>(thread_workspace(scratch * sizeof(T))));
      });
    parallel_for(tiles_ * parts_, [&](int64_t task) { work(task / parts_ * tile_, task % parts_ * part_); });
  }

 private:
  struct Scratch {  // of a task, in its thread's workspace
    T *input, *attention, *rows, *output, *planes, *weights, *turned;
    int64_t *cell, *source, *offset;
  };

  Scratch scratch() const {
    constexpr int64_t L = kLanes<T>;
    const int64_t cells = tile_ * g_.cells;
    const int64_t tables = 2 * g_.cells + cells;
    const int64_t sizes[7] = {cells * in_stride_,          p_.attention ? tile_ * g_.taps * g_.cells : 0,
                              cells * kRowStride<T>,       cells * part_ * L,
                              larger(g_.cells, part_) * L, fused_ ? part_ * vector_weights_ : 0,
                              fused_ ? turn_scratch() : 0};
    int64_t at[7], total = round_up(tables * 8 / static_cast<int64_t>(sizeof(T)), kBlock);
    for (int i = 0; i < 7; ++i) at[i] = total, total += round_up(sizes[i], kBlock);
    T* base = static_cast<T*>(thread_workspace(total * sizeof(T)));
    int64_t* table = reinterpret_cast<int64_t*>(base);
    return {base + at[0], base + at[1], base + at[2], base + at[3],     base + at[4],
            base + at[5], base + at[6], table,        table + g_.cells, table + 2 * g_.cells};
  }

  int64_t copy_size() const { return kLanes<T> * (depth_ * g_.taps + kBlock); }

  int64_t turn_scratch() const {
    return 2 * copy_size() + round_up(depth_ * g_.taps * 8 / static_cast<int64_t>(sizeof(T)), kBlock);
  }

  int64_t part_vectors(int64_t first) const { return smaller(part_, vectors_ - first); }

  // Of channels from `channel` on, for the outputs of a part: [panel][set][tap][channel][output].
  void turn_part(int64_t channel, int64_t first, T* dst, T* copies) const {
    constexpr int64_t L = kLanes<T>;
    const int64_t n = smaller(depth_, g_.in_channels - channel), steps = n * g_.taps;
    int64_t* place = reinterpret_cast<int64_t*>(copies + 2 * copy_size());
    for (int64_t c = 0; c < n; ++c)
      for (int64_t tap = 0; tap < g_.taps; ++tap) place[c * g_.taps + tap] = tap * (n + 1) + c;
    for_panels(part_vectors(first), [&](int64_t vector, auto nv) {
      const int64_t width = nv * L;
      for (int64_t v = 0; v < nv; ++v) {
        const int64_t output = (first + vector + v) * L;
        const WeightRows<T> w1 = output_rows(p_.weight1, output, channel, n, copies);
        WeightRows<T> w2;
        if (p_.weight2) w2 = output_rows(p_.weight2, output, channel, n, copies + copy_size());
        turn_weights(g_, w1, w2, steps, dst + vector * vector_weights_ + v * L, g_.taps * (n + 1) * width,
                     [&](int64_t step) { return place[step] * width; });
      }
    });
  }

  void work(int64_t sample, int64_t first) const {
    const Scratch s = scratch();
    const int64_t samples = smaller(tile_, g_.batch - sample);
    for (int64_t i = 0; i < samples; ++i) {
      load_cells(p_.input, sample + i, s.input + i * g_.cells * in_stride_, in_stride_, s.planes);
      if (p_.attention) load_attention(p_.attention, sample + i, s.attention + i * g_.taps * g_.cells);
    }
    start_output(s, first, samples);
    for (int64_t channel = 0; channel < g_.in_channels; channel += depth_) {
      const T* weights = weights_ + (channel / depth_ * vectors_ + first) * vector_weights_;
      if (fused_) {
        turn_part(channel, first, s.weights, s.turned);
        weights = s.weights;
      }
      for (int64_t tap = 0; tap < g_.taps; ++tap)
        for (int set = 0; set < g_.sets; ++set) multiply(s, samples, first, channel, tap, set, weights);
    }
    constexpr int64_t L = kLanes<T>;
    const int64_t width = part_ * L, outputs = smaller(width, g_.out_channels - first * L);
    for (int64_t i = 0; i < samples; ++i)
      store_cells(p_.output, sample + i, first * L, outputs, s.output + i * g_.cells * width, width, s.planes);
  }

  // Every cell starts with the biases.
  void start_output(const Scratch& s, int64_t first, int64_t samples) const {
    const int64_t width = part_ * kLanes<T>, output = first * kLanes<T>;
    const int64_t n = smaller(width, g_.out_channels - output);
    for (int64_t o = 0; o < width; ++o) s.output[o] = T(0);
    for (const TensorView* bias : {&p_.bias1, &p_.bias2}) {
      if (!*bias) continue;
      load_row(s.planes, *bias, output * bias->stride[0], bias->stride[0], n);
      for (int64_t o = 0; o < n; ++o) s.output[o] += s.planes[o];
    }
    for (int64_t cell = 1; cell < samples * g_.cells; ++cell)
      for (int64_t o = 0; o < width; ++o) s.output[cell * width + o] = s.output[o];
  }

  void multiply(const Scratch& s, int64_t samples, int64_t first, int64_t channel, int64_t tap, int set,
                const T* weights) const {
    constexpr int64_t L = kLanes<T>;
    const int64_t n = smaller(depth_, g_.in_channels - channel);
    const int64_t pairs = g_.pairs(g_.set[set], tap, s.cell, s.source), rows = samples * pairs;
    for (int64_t i = 0, row = 0; i < samples; ++i)
      for (int64_t k = 0; k < pairs; ++k, ++row) {
        const T scale = p_.attention ? s.attention[(i * g_.taps + tap) * g_.cells + s.cell[k]] : T(1);
        copy_scaled(s.input + (i * g_.cells + s.source[k]) * in_stride_ + channel, scale, n,
                    s.rows + row * kRowStride<T>);
        s.offset[row] = (i * g_.cells + s.cell[k]) * part_ * L;
      }
    for_panels(part_vectors(first), [&](int64_t vector, auto nv) {
      constexpr int NV = decltype(nv)::value;
      const T* b = weights + vector * vector_weights_ + (set * g_.taps + tap) * (n + 1) * NV * L;
      for_slices(rows, [&](int64_t row, int height) {
        gemm_tall<T, NV>(height, n, ChunkA<T>{s.rows + row * kRowStride<T>}, RowsB<T>{b, NV * L},
                         IndexedC<T>{s.output + vector * L, s.offset + row}, true);
      });
    });
  }

  const GridConvParams& p_;
  GridGeometry g_;
  int64_t vectors_, tile_, tiles_, depth_, part_, parts_, in_stride_, vector_weights_;
  bool fused_;
  T* weights_ = nullptr;
};

}  // namespace

void grid_conv_forward(const GridConvParams& p) {
  if (p.input.dtype == DType::f64) Forward<double>(p).run();
  else Forward<float>(p).run();
}

}  // namespace flexor::FLEXOR_ISA
