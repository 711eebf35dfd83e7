// SPDX-License-Identifier: Apache-2.0
// The gradient of one image's weights, a tile at a time: D[output][step] = sum over pixels of the gradient of
// the output times the plane pixel that the step reads. A tile is used up in the cache, image after image.
#pragma once
#include "core/correlate.h"
#include "dynamic/window.h"

namespace flexor::FLEXOR_ISA {

constexpr int64_t kTileOutputs = 64, kSquare = 16;

// out[i][lanes] (+)= sum over h rows of w pixels of plane[offset[i] + pixel] * grad[pixel][lanes]
template <class T, int MR, int NV>
inline void gradient_micro(int64_t h, int64_t w, const T* plane, const int64_t* offset, int64_t pitch, const T* grad,
                           int64_t grad_stride, T* out, int64_t out_stride, bool add) {
  constexpr int L = kLanes<T>;
  using V = Vec<T>;
  V acc[MR][NV];
  unroll<MR>([&](auto i) __attribute__((always_inline)) {
    unroll<NV>([&](auto j)
                   __attribute__((always_inline)) { acc[i][j] = add ? load<V>(out + i * out_stride + j * L) : V{}; });
  });
  const T* a[MR];
  unroll<MR>([&](auto i) __attribute__((always_inline)) { a[i] = plane + offset[i]; });
  for (int64_t y = 0; y < h; ++y) {
    for (int64_t x = 0; x < w; ++x, grad += grad_stride) {
      V b[NV];
      unroll<NV>([&](auto j) __attribute__((always_inline)) { b[j] = load<V>(grad + j * L); });
      unroll<MR>([&](auto i) __attribute__((always_inline)) {
        const V av = splat<V>(a[i][x]);
        unroll<NV>([&](auto j) __attribute__((always_inline)) { acc[i][j] += av * b[j]; });
      });
    }
    unroll<MR>([&](auto i) __attribute__((always_inline)) { a[i] += pitch; });
  }
  unroll<MR>([&](auto i) __attribute__((always_inline)) {
    unroll<NV>([&](auto j) __attribute__((always_inline)) { store(out + i * out_stride + j * L, acc[i][j]); });
  });
}

template <class T, int NV>
inline void gradient_tall(int height, int64_t h, int64_t w, const T* plane, const int64_t* offset, int64_t pitch,
                          const T* grad, int64_t grad_stride, T* out, int64_t out_stride, bool add) {
  switch (height) {
    case 1: return gradient_micro<T, 1, NV>(h, w, plane, offset, pitch, grad, grad_stride, out, out_stride, add);
    case 2: return gradient_micro<T, 2, NV>(h, w, plane, offset, pitch, grad, grad_stride, out, out_stride, add);
    case 3: return gradient_micro<T, 3, NV>(h, w, plane, offset, pitch, grad, grad_stride, out, out_stride, add);
#if FLEXOR_ISA_avx512
    case 4: return gradient_micro<T, 4, NV>(h, w, plane, offset, pitch, grad, grad_stride, out, out_stride, add);
    case 5: return gradient_micro<T, 5, NV>(h, w, plane, offset, pitch, grad, grad_stride, out, out_stride, add);
    case 6: return gradient_micro<T, 6, NV>(h, w, plane, offset, pitch, grad, grad_stride, out, out_stride, add);
    case 7: return gradient_micro<T, 7, NV>(h, w, plane, offset, pitch, grad, grad_stride, out, out_stride, add);
#endif
    default:
      return gradient_micro<T, kTallRows, NV>(h, w, plane, offset, pitch, grad, grad_stride, out, out_stride, add);
  }
}

// Where the products of a call lie and how they are cut.
struct GradientShape {
  int64_t groups, outputs, steps;    // of a group
  int64_t tile;                      // steps of a tile, a multiple of kSquare
  int64_t out_h, out_w, pitch;       // of the outputs; of the planes
  int64_t plane_image, plane_group;  // elements from one image's, one group's planes to the next
  const int64_t* offset;             // of each step in a group's planes

  int64_t pixels() const { return out_h * out_w; }
  int64_t output_tiles() const { return ceil_div(outputs, kTileOutputs); }
  int64_t step_tiles() const { return ceil_div(steps, tile); }
  int64_t tasks() const { return groups * output_tiles() * step_tiles(); }
};

// One tile of the product: which outputs and steps.
struct GradientTile {
  int64_t group, output, outputs, step, steps;

  GradientTile(const GradientShape& s, int64_t task)
      : group(task / s.step_tiles() / s.output_tiles()),
        output(task / s.step_tiles() % s.output_tiles() * kTileOutputs),
        outputs(smaller(kTileOutputs, s.outputs - output)),
        step(task % s.step_tiles() * s.tile),
        steps(smaller(s.tile, s.steps - step)) {}
};

// The gradient of the output as [image][group][pixel][outputs, padded to vectors].
template <class T>
inline int64_t turned_row(const GradientShape& s) {
  return round_up(s.outputs, kLanes<T>);
}

template <class T>
inline void turn_gradient(const TensorView& grad, int64_t first, int64_t images, const GradientShape& s, T* dst) {
  const PlanePixels source(grad);
  const int64_t row = turned_row<T>(s), parts = ceil_div(s.outputs, kSquare);
  parallel_for(images * s.groups * parts, [&](int64_t task) {
    const int64_t part = task % parts, group = task / parts % s.groups, image = task / parts / s.groups;
    const int64_t o = part * kSquare, n = smaller(kSquare, row - o), real = smaller(kSquare, s.outputs - o);
    constexpr int64_t kRun = 64;
    T lines[kSquare * kRun];
    T* out = dst + (image * s.groups + group) * s.pixels() * row + o;
    for (int64_t p = 0; p < s.pixels(); p += kRun) {
      const int64_t count = smaller(kRun, s.pixels() - p);
      for (int64_t i = 0; i < n; ++i) {
        T* line = lines + i * kRun;
        if (i < real) source.load(line, first + image, group * s.outputs + o + i, p, count);
        else
          for (int64_t j = 0; j < count; ++j) line[j] = T(0);
      }
      transpose(lines, kRun, n, count, out + p * row, row);
    }
  });
}

// D of a tile for one image, turned: [step][kTileOutputs].
template <class T>
inline void gradient_tile(const GradientShape& s, const GradientTile& t, const T* planes, const T* turned,
                          int64_t image, T* tile) {
  constexpr int64_t L = kLanes<T>;
  const int64_t row = turned_row<T>(s), lanes = round_up(t.outputs, L);
  const int64_t band = larger<int64_t>(1, 256 / s.out_w);
  const T* plane = planes + image * s.plane_image + t.group * s.plane_group;
  const T* grad = turned + (image * s.groups + t.group) * s.pixels() * row + t.output;
  for (int64_t y = 0; y < s.out_h; y += band) {
    const int64_t h = smaller(band, s.out_h - y);
    for (int64_t v = 0; v < lanes / L;) {
      const int nv = panel_vectors(lanes / L - v);
      const T* from = grad + y * s.out_w * row + v * L;
      for_slices(t.steps, [&](int64_t k, int height) __attribute__((always_inline)) {
        const int64_t* offset = s.offset + t.step + k;
        T* out = tile + k * kTileOutputs + v * L;
        const T* source = plane + y * s.pitch;
        switch (nv) {
          case 3:
            return gradient_tall<T, 3>(height, h, s.out_w, source, offset, s.pitch, from, row, out, kTileOutputs,
                                       y > 0);
          case 2:
            return gradient_tall<T, 2>(height, h, s.out_w, source, offset, s.pitch, from, row, out, kTileOutputs,
                                       y > 0);
          default:
            return gradient_tall<T, 1>(height, h, s.out_w, source, offset, s.pitch, from, row, out, kTileOutputs,
                                       y > 0);
        }
      });
      v += nv;
    }
  }
}

// Sixteen by sixteen of a turned tile as [output][step].
template <class T>
FLEXOR_INLINE void turn_square(const T* tile, T* square) {
  constexpr int64_t L = kLanes<T>;
  for (int64_t u = 0; u < kSquare; u += L)
    for (int64_t v = 0; v < kSquare; v += L)
      transpose_square<T, L>(tile + u * kTileOutputs + v, kTileOutputs, square + v * kSquare + u, kSquare);
}

// What a weight gradient multiplies, for some images at a time.
template <class T>
class GradientOperands {
 public:
  GradientOperands(const Window& window, int64_t groups, int64_t tile, const TensorView& input,
                   const TensorView& grad_output,
                   int64_t extra)  // extra elements that the caller keeps an image
      : input_(input),
        grad_output_(grad_output),
        layout_(forward_layout(window, grad_output.size[2], grad_output.size[3])),
        inputs_(input.size[1] / groups),
        offsets_(inputs_ * window.taps() * sizeof(int64_t)),
        shape{groups,
              grad_output.size[1] / groups,
              inputs_ * window.taps(),
              tile,
              grad_output.size[2],
              grad_output.size[3],
              layout_.pitch,
              groups * inputs_ * layout_.size(),
              inputs_ * layout_.size(),
              offsets_.as<int64_t>()},
        turned_size_(groups * shape.pixels() * turned_row<T>(shape)),
        images(smaller(input.size[0], larger<int64_t>(1, kPlanes / (shape.plane_image + turned_size_ + extra)))),
        buffer_((images * (shape.plane_image + turned_size_) + 4 * kLanes<T>)*sizeof(T)),
        planes(buffer_.as<T>()),
        turned(planes + images * shape.plane_image) {
    int64_t* offset = offsets_.as<int64_t>();
    forward_offsets(window, layout_, offset);
    for (int64_t k = window.taps(); k < shape.steps; ++k) offset[k] = offset[k - window.taps()] + layout_.size();
  }

  void fill(int64_t first, int64_t count) const {
    fill_images(layout_, input_, first, count, shape.groups, inputs_, planes);
    turn_gradient(grad_output_, first, count, shape, turned);
  }

 private:
  const TensorView &input_, &grad_output_;
  PlaneLayout layout_;
  int64_t inputs_;
  SharedBuffer offsets_;

 public:
  const GradientShape shape;

 private:
  int64_t turned_size_;

 public:
  const int64_t images;

 private:
  SharedBuffer buffer_;

 public:
  T *const planes, *const turned;
};

}  // namespace flexor::FLEXOR_ISA
