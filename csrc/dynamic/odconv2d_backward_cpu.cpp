// SPDX-License-Identifier: Apache-2.0
// Omni-dimensional dynamic convolution, backward. With D[o][k] the gradient of one image's plain weights,
// every other gradient of the weights' side is an elementwise product with D: of kernel i's weights
// a_i f_o kappa_k D, of a_i the sum of f_o kappa_k W_i D, of kappa_k (channel times spatial) the sum of f_o W D,
// of f_o the sum of kappa_k W D, where W is the mix of the kernels. D exists a tile at a time.
#include "dynamic/odconv2d_kernels.h"
#include "dynamic/weight_gradient.h"

namespace flexor::FLEXOR_ISA {
namespace {

// Sums of one image's tile that are still to be added over the tiles.
template <class T>
struct Sums {
  T* scale;   // [steps of a tile]
  T* filter;  // [outputs of a tile]
  T* kernel;  // [kernels]
};

template <class T>
class WeightSide {
 public:
  WeightSide(const ODConv2dParams& p, const ODConv2dShape& s, const Mixture<T>& m, T* grad_weight)
      : p_(p), s_(s), m_(m), grad_weight_(grad_weight), steps_(m.kernels > 2 ? 80 : 144) {}

  void run() const {
    const GradientShape cut{s_.groups, s_.outputs, s_.row(), steps_, 0, 0, 0, 0, 0, nullptr};
    const int64_t sums = cut.tasks() * (steps_ + kTileOutputs + m_.kernels);
    const GradientOperands<T> operands(window_of(p_), s_.groups, steps_, p_.input, p_.output, sums);
    const GradientShape& shape = operands.shape;
    const int64_t images = operands.images;
    SharedBuffer buffer(images * sums * sizeof(T));
    T* partial = buffer.as<T>();
    for (int64_t first = 0; first < s_.batch; first += images) {
      const int64_t count = smaller(images, s_.batch - first);
      operands.fill(first, count);
      parallel_for(shape.tasks(), [&](int64_t task) {
        const GradientTile t(shape, task);
        const Room room = take_room();
        gather(t, room.weights);
        for (int64_t b = 0; b < count; ++b) {
          gradient_tile(shape, t, operands.planes, operands.turned, b, room.tile);
          use_up(t, room, first + b, sums_of(partial, task, images, b));
        }
        spread(t, room.grad, first > 0);
      });
      store_sums(shape, partial, images, first, count);
    }
  }

 private:
  Sums<T> sums_of(T* partial, int64_t task, int64_t images, int64_t b) const {
    T* at = partial + (task * images + b) * (steps_ + kTileOutputs + m_.kernels);
    return {at, at + steps_, at + steps_ + kTileOutputs};
  }

  // Of a task: the tile of D; the kernels' weights under it and their gradients as [square][kernel][16][16], so that
  // they do not fall on the same cache sets; the attentions of the image.
  struct Room {
    T *tile, *weights, *grad, *scale, *filters, *kernels;
  };

  Room take_room() const {
    const int64_t tile = steps_ * kTileOutputs, lanes = kLanes<T>;
    const int64_t size = (1 + 2 * m_.kernels) * tile + steps_ + (kTileOutputs + m_.kernels) * lanes;
    T* at = static_cast<T*>(thread_workspace(size * sizeof(T)));
    for (int64_t i = 0; i < size; ++i) at[i] = T(0);  // also what lies past the last output and step
    T *weights = at + tile, *grad = weights + m_.kernels * tile, *scale = grad + m_.kernels * tile;
    return {at, weights, grad, scale, scale + steps_, scale + steps_ + kTileOutputs * lanes};
  }

  T* square_at(T* squares, int64_t o, int64_t k) const {
    return squares + (k / kSquare * (kTileOutputs / kSquare) + o / kSquare) * m_.kernels * kSquare * kSquare;
  }

  // visit(row of weights, the 16 or fewer steps of it in the squares)
  template <class Visit>
  void for_lines(const GradientTile& t, T* squares, Visit visit) const {
    for (int64_t i = 0; i < m_.kernels; ++i)
      for (int64_t o = 0; o < t.outputs; ++o)
        for (int64_t k = 0; k < t.steps; k += kSquare) {
          const int64_t row = i * m_.kernel_size + (t.group * m_.outputs + t.output + o) * m_.row() + t.step + k;
          T* line = square_at(squares, o, k) + (i * kSquare + o % kSquare) * kSquare;
          visit(row, line, smaller(kSquare, t.steps - k));
        }
  }

  void gather(const GradientTile& t, T* squares) const {
    for_lines(t, squares, [&](int64_t row, T* line, int64_t n) {
      for (int64_t j = 0; j < n; ++j) line[j] = m_.weights[row + j];
    });
  }

  void spread(const GradientTile& t, T* squares, bool add) const {
    for_lines(t, squares, [&](int64_t row, const T* line, int64_t n) {
      for (int64_t j = 0; j < n; ++j) grad_weight_[row + j] = add ? grad_weight_[row + j] + line[j] : line[j];
    });
  }

  void use_up(const GradientTile& t, const Room& room, int64_t image, const Sums<T>& sums) const {
    constexpr int64_t L = kLanes<T>;
    const T* scale = m_.scale + (image * m_.groups + t.group) * m_.row() + t.step;
    for (int64_t k = 0; k < t.steps; ++k) room.scale[k] = scale[k];
    for (int64_t i = 0; i < (kTileOutputs + m_.kernels) * L; ++i) room.filters[i] = T(0);
    for (int64_t k = 0; k < steps_; ++k) sums.scale[k] = T(0);
    switch (m_.kernels) {
      case 1: use_tile<1>(t, room, image, sums.scale); break;
      case 2: use_tile<2>(t, room, image, sums.scale); break;
      case 4: use_tile<4>(t, room, image, sums.scale); break;
      default: use_tile<0>(t, room, image, sums.scale); break;
    }
    for (int64_t o = 0; o < kTileOutputs; ++o) sums.filter[o] = total(room.filters + o * L);
    for (int64_t i = 0; i < m_.kernels; ++i) sums.kernel[i] = total(room.kernels + i * L);
  }

  static T total(const T* lanes) {
    T sum = T(0);
    for (int i = 0; i < kLanes<T>; ++i) sum += lanes[i];
    return sum;
  }

  // N kernels, 0 for a number known at run time only.
  template <int N>
  __attribute__((noinline)) void use_tile(const GradientTile& t, const Room& room, int64_t image, T* sum_scale) const {
    const T* filter = m_.filter + (image * m_.groups + t.group) * m_.outputs + t.output;
    for (int64_t k = 0; k < t.steps; k += kSquare)
      for (int64_t o = 0; o < t.outputs; o += kSquare) {
        T d[kSquare * kSquare];
        turn_square(room.tile + k * kTileOutputs + o, d);
        use_square<N>(smaller(kSquare, t.outputs - o), square_at(room.weights, o, k), square_at(room.grad, o, k),
                      m_.kernel + image * m_.kernels, filter + o, d, room.scale + k, sum_scale + k,
                      room.filters + o * kLanes<T>, room.kernels);
      }
  }

  template <int N>
  FLEXOR_INLINE void use_square(int64_t outputs, const T* weights, T* grads, const T* a, const T* filters, const T* ds,
                                const T* scales, T* sum_scale, T* sum_filter, T* sum_kernel) const {
    constexpr int L = kLanes<T>;
    constexpr int64_t kArea = kSquare * kSquare;
    using V = Vec<T>;
    unroll<kSquare / L>([&](auto u) __attribute__((always_inline)) {
      const V scale = load<V>(scales + u * L);
      V sum = V{}, kernel[larger(N, 1)];
      unroll<N>([&](auto i) __attribute__((always_inline)) { kernel[i] = load<V>(sum_kernel + i * L); });
      for (int64_t r = 0; r < outputs; ++r) {
        const int64_t at = r * kSquare + u * L;
        const V d = load<V>(ds + at), scaled = d * scale, full = scaled * filters[r];
        V mixed = V{};
        unroll<N>([&](auto i) __attribute__((always_inline)) {
          const V w = load<V>(weights + i * kArea + at);
          mixed += w * a[i];
          kernel[i] += full * w;
          store(grads + i * kArea + at, load<V>(grads + i * kArea + at) + full * a[i]);
        });
        for (int64_t i = 0; N == 0 && i < m_.kernels; ++i) {
          const V w = load<V>(weights + i * kArea + at);
          mixed += w * a[i];
          store(sum_kernel + i * L, load<V>(sum_kernel + i * L) + full * w);
          store(grads + i * kArea + at, load<V>(grads + i * kArea + at) + full * a[i]);
        }
        store(sum_filter + r * L, load<V>(sum_filter + r * L) + mixed * scaled);
        sum += mixed * d * filters[r];
      }
      store(sum_scale + u * L, load<V>(sum_scale + u * L) + sum);
      unroll<N>([&](auto i) __attribute__((always_inline)) { store(sum_kernel + i * L, kernel[i]); });
    });
  }

  // The gradients of the attentions of some images from the sums of all tiles, in the order of the tiles.
  void store_sums(const GradientShape& shape, T* partial, int64_t images, int64_t first, int64_t count) const {
    parallel_for(count, [&](int64_t b) {
      const int64_t image = first + b, row = s_.groups * m_.row();
      SharedBuffer buffer((row + s_.in_channels + s_.taps + s_.out_channels + m_.kernels) * sizeof(T));
      T *scale = buffer.as<T>(), *channel = scale + row, *spatial = channel + s_.in_channels;
      T *filter = spatial + s_.taps, *kernel = filter + s_.out_channels;
      for (T* x = scale; x < kernel + m_.kernels; ++x) *x = T(0);
      for (int64_t task = 0; task < shape.tasks(); ++task) {
        const GradientTile t(shape, task);
        const Sums<T> sums = sums_of(partial, task, images, b);
        for (int64_t k = 0; k < t.steps; ++k) scale[t.group * m_.row() + t.step + k] += sums.scale[k];
        for (int64_t o = 0; o < t.outputs; ++o) filter[t.group * m_.outputs + t.output + o] += sums.filter[o];
        for (int64_t i = 0; i < m_.kernels; ++i) kernel[i] += sums.kernel[i];
      }
      for (int64_t c = 0; c < s_.in_channels; ++c)
        for (int64_t t = 0; t < s_.taps; ++t) {
          channel[c] += scale[c * s_.taps + t] * m_.spatial[image * s_.taps + t];
          spatial[t] += scale[c * s_.taps + t] * m_.channel[image * s_.in_channels + c];
        }
      store_vector(p_.grad_channel, image, channel);
      store_vector(p_.grad_spatial, image, spatial);
      store_vector(p_.grad_filter, image, filter);
      store_vector(p_.grad_kernel, image, kernel);
    });
  }

  const ODConv2dParams& p_;
  const ODConv2dShape& s_;
  const Mixture<T>& m_;
  T* grad_weight_;
  int64_t steps_;  // of a tile
};

template <class T>
void backward(const ODConv2dParams& p) {
  const ODConv2dShape s(p);
  const bool in_place = p.grad_weight && p.grad_weight.dtype == kOwnDType<T> && is_contiguous(p.grad_weight);
  const bool weight_side = p.grad_weight || p.grad_channel || p.grad_filter || p.grad_spatial || p.grad_kernel;
  const Operands<T> operands(p, s);
  SharedBuffer copy(in_place || !weight_side ? 0 : s.kernels * s.kernel_size() * sizeof(T));
  T* grad_weight = !weight_side ? nullptr : in_place ? static_cast<T*>(p.grad_weight.data) : copy.as<T>();
  if (s.batch == 0) {
    for (int64_t i = 0; weight_side && i < s.kernels * s.kernel_size(); ++i) grad_weight[i] = T(0);
  } else if (s.depthwise()) {
    depthwise_backward(p, s, operands.m, grad_weight);
  } else {
    if (p.grad_input) mixed_backward(operands.m, window_of(p), p.output, p.grad_input);
    if (weight_side) WeightSide<T>(p, s, operands.m, grad_weight).run();
  }
  if (p.grad_weight && !in_place) store_weights(p.grad_weight, grad_weight);
}

}  // namespace

void odconv2d_backward(const ODConv2dParams& p) {
  if (p.input.dtype == DType::f64) backward<double>(p);
  else backward<float>(p);
}

}  // namespace flexor::FLEXOR_ISA
