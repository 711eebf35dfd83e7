// SPDX-License-Identifier: Apache-2.0
// Matching with a kernel for every image: a dynamic convolution with one kernel and nothing to scale it.
#include "match/xcorr2d.h"

#include "dynamic/mixing.h"
#include "dynamic/weight_gradient.h"

namespace flexor::FLEXOR_ISA {
namespace {

Window window_of(const Xcorr2dParams& p) { return {p.kernel.size[3], p.kernel.size[4], 1, 1, p.pad_h, p.pad_w, 1, 1}; }

// visit(start in the view, start in a contiguous copy) of every row of taps of images [first, first + count).
template <class Visit>
void for_kernel_rows(const TensorView& k, int64_t first, int64_t count, Visit visit) {
  const int64_t rows = k.size[2] * k.size[3];
  parallel_for(count * k.size[1], [&](int64_t task) {
    const int64_t start = (first + task / k.size[1]) * k.stride[0] + task % k.size[1] * k.stride[1];
    for (int64_t i = 0; i < rows; ++i)
      visit(start + i / k.size[3] * k.stride[2] + i % k.size[3] * k.stride[3], (task * rows + i) * k.size[4]);
  });
}

template <class T>
class Kernels {
 public:
  explicit Kernels(const TensorView& k)
      : row_(k.size[2] * k.size[3] * k.size[4]),
        in_place_(k.dtype == kOwnDType<T> && is_contiguous(k)),
        buffer_((larger(row_, k.size[1]) + (in_place_ ? 0 : k.numel())) * sizeof(T)) {
    T* ones = buffer_.as<T>();
    for (int64_t i = 0; i < larger(row_, k.size[1]); ++i) ones[i] = T(1);
    T* copy = ones + larger(row_, k.size[1]);
    if (!in_place_)
      for_kernel_rows(k, 0, k.size[0],
                      [&](int64_t at, int64_t to) { load_row(copy + to, k, at, k.stride[4], k.size[4]); });
    m.weights = in_place_ ? static_cast<const T*>(k.data) : copy;
    m.kernels = 1, m.kernel_size = m.image_size = k.size[1] * row_, m.groups = 1;
    m.outputs = k.size[1], m.inputs = k.size[2], m.taps = k.size[3] * k.size[4];
    m.scaled = false, m.ones = ones;
    m.filter = m.channel = m.spatial = m.kernel = m.scale = nullptr;
  }

  Mixture<T> m;

 private:
  int64_t row_;
  bool in_place_;
  SharedBuffer buffer_;
};

template <class T>
void grad_kernel(const Xcorr2dParams& p) {
  constexpr int64_t kTile = 144;
  const GradientOperands<T> operands(window_of(p), 1, kTile, p.input, p.output, 0);
  const GradientShape& shape = operands.shape;
  const TensorView& k = p.grad_kernel;
  SharedBuffer buffer(operands.images * shape.outputs * shape.steps * sizeof(T));
  T* grad = buffer.as<T>();
  for (int64_t first = 0; first < k.size[0]; first += operands.images) {
    const int64_t count = smaller(operands.images, k.size[0] - first);
    operands.fill(first, count);
    parallel_for(count * shape.tasks(), [&](int64_t task) {
      const GradientTile t(shape, task % shape.tasks());
      const int64_t image = task / shape.tasks();
      T* tile = static_cast<T*>(thread_workspace(kTile * kTileOutputs * sizeof(T)));
      gradient_tile(shape, t, operands.planes, operands.turned, image, tile);
      transpose(tile, kTileOutputs, t.steps, t.outputs,
                grad + (image * shape.outputs + t.output) * shape.steps + t.step, shape.steps);
    });
    for_kernel_rows(k, first, count,
                    [&](int64_t at, int64_t from) { store_row(k, at, k.stride[4], grad + from, k.size[4]); });
  }
}

template <class T>
void forward(const Xcorr2dParams& p) {
  if (p.output.numel() == 0) return;
  const Kernels<T> kernels(p.kernel);
  mixed_forward(kernels.m, window_of(p), p.input, p.output);
}

template <class T>
void backward(const Xcorr2dParams& p) {
  if (p.output.numel() == 0) return;
  if (p.grad_input) {
    const Kernels<T> kernels(p.kernel);
    mixed_backward(kernels.m, window_of(p), p.output, p.grad_input);
  }
  if (p.grad_kernel) grad_kernel<T>(p);
}

void xcorr2d_forward(const Xcorr2dParams& p) {
  if (p.input.dtype == DType::f64) forward<double>(p);
  else forward<float>(p);
}

void xcorr2d_backward(const Xcorr2dParams& p) {
  if (p.input.dtype == DType::f64) backward<double>(p);
  else backward<float>(p);
}

}  // namespace

extern const Xcorr2dKernels xcorr2d_kernels{&xcorr2d_forward, &xcorr2d_backward};

}  // namespace flexor::FLEXOR_ISA
