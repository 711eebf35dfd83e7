// SPDX-License-Identifier: Apache-2.0
// Warping by a flow or an affine matrix: one plan a tile of output pixels, then every channel through it.
#include "deform/warp2d.h"

#include "core/gather.h"
#include "core/rows.h"
#include "core/tasks.h"

namespace flexor::FLEXOR_ISA {
namespace {

constexpr int kTile = 384;
constexpr int64_t kPlanes = 16, kBand = 32;

struct Bf16 {
  uint16_t bits;
  operator float() const { return from_bf16(bits); }
};
struct F16 {
  uint16_t bits;
  operator float() const { return from_f16(bits); }
};

// Element: as the input is stored; T: as it is computed; Index: of an element within one plane.
template <class Element, class T, class Index>
class Warp {
 public:
  explicit Warp(const WarpParams& params)
      : p_(params),
        out_(p_.output),
        height_(p_.input.size[2]),
        width_(p_.input.size[3]),
        pixels_(p_.output.size[2] * p_.output.size[3]),
        tiles_(ceil_div(pixels_, kTile)) {}

  void forward() const {
    if (p_.input.stride[1] == 1 && p_.output.stride[1] == 1 && kInPlace)
      return parallel_for(p_.input.size[0] * tiles_, [&](int64_t task) {
        Tile t(task / tiles_, task % tiles_ * kTile, pixels_);
        plan(t);
        forward_channels(t);
      });
    // A few planes at a time stay in the cache while the tiles of a band walk down them.
    const int64_t groups = ceil_div(p_.input.size[1], kPlanes), bands = ceil_div(tiles_, kBand);
    parallel_for(p_.input.size[0] * groups * bands, [&](int64_t task) {
      const int64_t c = task / bands % groups * kPlanes, band = task % bands * kBand;
      for (int64_t tile = band; tile < smaller(band + kBand, tiles_); ++tile) {
        Tile t(task / bands / groups, tile * kTile, pixels_);
        plan(t);
        forward_planes(t, c, smaller(c + kPlanes, p_.input.size[1]));
      }
    });
  }

  void backward() const {
    if (p_.grad_input) {
      const int64_t groups = ceil_div(p_.input.size[1], kChannels);
      parallel_for(p_.input.size[0] * groups,
                   [&](int64_t task) { grad_input(task / groups, task % groups * kChannels); });
    }
    if (!p_.grad_where) return;
    const int64_t batch = p_.input.size[0];
    SharedBuffer sums(p_.affine ? batch * tiles_ * 6 * sizeof(double) : 0);
    parallel_for(batch * tiles_, [&](int64_t task) {
      Tile t(task / tiles_, task % tiles_ * kTile, pixels_);
      plan(t);
      grad_position(t);
      if (p_.affine) sum_matrix(t, sums.as<double>() + task * 6);
      else store_flow(t);
    });
    if (p_.affine)
      for (int64_t n = 0; n < batch; ++n) store_matrix(n, sums.as<double>() + n * tiles_ * 6);
  }

 private:
  static constexpr int64_t L = kLanes<T>;
  static constexpr bool kPairs = std::is_same_v<Element, T> && sizeof(Index) == 4;
  static constexpr bool kInPlace = sizeof(Element) == sizeof(T);
  static constexpr int64_t kChannels = kInPlace ? 8 : 1;  // of the input gradient that a task owns

  struct Tile {
    int64_t image, first, n;
    T y[kTile], x[kTile], ly[kTile], lx[kTile], moves_y[kTile], moves_x[kTile];
    Index corner[4][kTile];  // -1 outside
    T weight[4][kTile];
    bool interior[kTile / kLanes<T>];  // vectors of pixels whose corners are all inside: pairs can be gathered
    Tile(int64_t i, int64_t f, int64_t pixels) : image(i), first(f), n(smaller<int64_t>(kTile, pixels - f)) {}
  };

  void positions(Tile& t) const {
    const int64_t out_width = p_.output.size[3];
    T m[6] = {};
    if (p_.affine)
      for (int i = 0; i < 2; ++i)
        load_row(m + 3 * i, p_.where, t.image * p_.where.stride[0] + i * p_.where.stride[1], p_.where.stride[2], 3);
    else {
      const PlanePixels flow(p_.where);
      flow.load(t.x, t.image, 0, t.first, t.n);
      flow.load(t.y, t.image, 1, t.first, t.n);
    }
    for (int64_t i = 0, y = t.first / out_width, x = t.first % out_width; i < t.n;) {
      const int64_t run = smaller(out_width - x, t.n - i);
      const T row = static_cast<T>(y);
      for (int64_t k = 0; k < run; ++k) {
        const T column = static_cast<T>(x + k);
        t.x[i + k] = p_.affine ? m[0] * column + m[1] * row + m[2] : t.x[i + k] + column;
        t.y[i + k] = p_.affine ? m[3] * column + m[4] * row + m[5] : t.y[i + k] + row;
      }
      i += run, x = 0, ++y;
    }
  }

  // Clamped to the image, one exactly on the border included: such a coordinate has no gradient.
  void clamp(T* y, T* moves, int64_t n, T last) const {
    for (int64_t i = 0; i < n; ++i) {
      const T v = y[i];
      moves[i] = (v >= last) | (v <= T(0)) ? T(0) : T(1);
      const T low = v >= last ? last : v;
      y[i] = low <= T(0) ? T(0) : low;
    }
  }

  static T finite(T v) {  // infinity is outside like any far position; NaN stays
    const T huge = sizeof(T) == 8 ? static_cast<T>(1e300) : static_cast<T>(1e30f);
    return (v > huge) | (v < -huge) ? T(-2) : v;
  }

  void plan(Tile& t) const {
    positions(t);
    const T height = static_cast<T>(height_), width = static_cast<T>(width_);
    if (p_.border) {
      clamp(t.y, t.moves_y, t.n, height - T(1));
      clamp(t.x, t.moves_x, t.n, width - T(1));
    } else {
      for (int64_t i = 0; i < t.n; ++i) t.moves_y[i] = t.moves_x[i] = T(1);
    }
    const Index row = static_cast<Index>(p_.input.stride[2]), column = static_cast<Index>(p_.input.stride[3]);
    if (p_.nearest) return plan_nearest(t, height, width, row, column);
    plan_bilinear(t.y, t.x, t.ly, t.lx, t.weight, t.corner, t.n, height, width, row, column);
    for (int64_t i = 0; i < t.n; i += L) {
      bool all = kPairs && column == 1 && i + L <= t.n;
      for (int64_t k = i; k < smaller(i + L, t.n); ++k) all &= (t.corner[0][k] | t.corner[3][k]) >= 0;
      t.interior[i / L] = all;
    }
  }

  static void plan_bilinear(const T* ys, const T* xs, T* lys, T* lxs, T (*weight)[kTile], Index (*corners)[kTile],
                            int64_t n, T height, T width, Index row, Index column) {
    Index *c00 = corners[0], *c01 = corners[1], *c10 = corners[2], *c11 = corners[3];
    T *w00 = weight[0], *w01 = weight[1], *w10 = weight[2], *w11 = weight[3];
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      const T y = finite(ys[i]), x = finite(xs[i]);
      const T y0 = floor_of(y), x0 = floor_of(x), ly = y - y0 + T(0) * x, lx = x - x0 + T(0) * y;
      lys[i] = ly, lxs[i] = lx;
      w00[i] = (T(1) - ly) * (T(1) - lx), w01[i] = (T(1) - ly) * lx;
      w10[i] = ly * (T(1) - lx), w11[i] = ly * lx;
      c00[i] = corner(y0, x0, height, width, row, column);
      c01[i] = corner(y0, x0 + T(1), height, width, row, column);
      c10[i] = corner(y0 + T(1), x0, height, width, row, column);
      c11[i] = corner(y0 + T(1), x0 + T(1), height, width, row, column);
    }
  }

  static Index corner(T y, T x, T height, T width, Index row, Index column) {
    const bool inside = (y >= T(0)) & (y < height) & (x >= T(0)) & (x < width);
    const Index at = static_cast<Index>(inside ? y : T(0)) * row + static_cast<Index>(inside ? x : T(0)) * column;
    return inside ? at : Index(-1);
  }

  void plan_nearest(Tile& t, T height, T width, Index row, Index column) const {
    for (int64_t i = 0; i < t.n; ++i) {
      const T y = t.y[i], x = t.x[i];
      t.corner[0][i] = corner(round_of(y), round_of(x), height, width, row, column);
      t.weight[0][i] = (y != y) | (x != x) ? y + x : T(1);
    }
  }

  int corners() const { return p_.nearest ? 1 : 4; }

  static T read(const Element* plane, Index at) {
    const T value = static_cast<T>(plane[at < 0 ? 0 : at]);
    return at < 0 ? T(0) : value;
  }

  // visit(i, v00, v01, v10, v11) for whole vectors of pixels; past the tile's end they are of no meaning.
  template <class Visit>
  FLEXOR_INLINE void for_vectors(const Tile& t, const Element* plane, Visit visit) const {
    const int64_t row = p_.input.stride[2];
    for (int64_t i = 0; i < t.n; i += L) {
      Vec<T> v[4];
      if constexpr (kPairs) {
        if (t.interior[i / L]) {
          gather_corners(plane, row, t.corner[0] + i, v);
          visit(i, v[0], v[1], v[2], v[3]);
          continue;
        }
      }
      T values[4][L];
      for (int j = 0; j < 4; ++j) {
        for (int64_t k = 0; k < L; ++k) values[j][k] = read(plane, i + k < t.n ? t.corner[j][i + k] : Index(-1));
        v[j] = load<Vec<T>>(values[j]);
      }
      visit(i, v[0], v[1], v[2], v[3]);
    }
  }

  const Element* input_at(int64_t image, int64_t channel) const {
    return static_cast<const Element*>(p_.input.data) + image * p_.input.stride[0] + channel * p_.input.stride[1];
  }

  bool no_input() const { return height_ == 0 || width_ == 0; }

  void forward_planes(const Tile& t, int64_t first, int64_t last) const {
    T line[kTile];
    for (int64_t c = first; c < last; ++c) {
      const Element* plane = input_at(t.image, c);
      if (no_input())
        for (int64_t i = 0; i < t.n; ++i) line[i] = T(0);
      else if (p_.nearest)
        for (int64_t i = 0; i < t.n; ++i) line[i] = t.weight[0][i] * read(plane, t.corner[0][i]);
      else
        for_vectors(t, plane, [&](int64_t i, auto v00, auto v01, auto v10, auto v11) __attribute__((always_inline)) {
          using V = decltype(v00);
          const auto w = [&](int j) __attribute__((always_inline)) { return load<V>(t.weight[j] + i); };
          store(line + i, (w(0) * v00 + w(1) * v01) + (w(2) * v10 + w(3) * v11));
        });
      out_.store(line, t.image, c, t.first, t.n);
    }
  }

  // Both channels_last: a vector of channels at a time. Corners outside are skipped, all others added.
  void forward_channels(const Tile& t) const {
    const Element* image = input_at(t.image, 0);
    const int64_t channels = p_.input.size[1], out_width = p_.output.size[3];
    for (int64_t i = 0; i < t.n; ++i) {
      const int64_t pixel = t.first + i;
      T* out = static_cast<T*>(p_.output.data) + out_.start(t.image, 0, pixel / out_width, pixel % out_width);
      const T none = t.weight[0][i] == t.weight[0][i] ? T(0) : t.weight[0][i];
      for (int64_t c = 0; c < channels; ++c) out[c] = none;
      for (int j = 0; j < corners(); ++j) {
        if (t.corner[j][i] < 0) continue;
        const Element* src = image + t.corner[j][i];
        const T w = t.weight[j][i];
        for (int64_t c = 0; c < channels; ++c) out[c] += w * static_cast<T>(src[c]);
      }
    }
  }

  // The gradient of channels [c0, c0 + kChannels) of one image: this task alone writes there.
  void grad_input(int64_t image, int64_t c0) const {
    const int64_t count = smaller(kChannels, p_.input.size[1] - c0), plane = height_ * width_;
    T* sums = static_cast<T*>(thread_workspace(larger<int64_t>(1, plane * count) * sizeof(T)));
    for (int64_t i = 0; i < plane * count; ++i) sums[i] = T(0);
    for (int64_t first = 0; first < pixels_; first += kTile) {
      Tile t(image, first, pixels_);
      plan(t);
      to_dense(t);
      T grad[kTile];
      for (int64_t c = 0; c < count; ++c) {
        out_.load(grad, image, c0 + c, first, t.n);
        T* sum = sums + c * plane;
        if (p_.nearest) scatter<1>(t, grad, sum);
        else scatter<4>(t, grad, sum);
      }
    }
    const PlanePixels out(p_.grad_input);
    for (int64_t c = 0; c < count; ++c) out.store(sums + c * plane, image, c0 + c, 0, plane);
  }

  template <int kCorners>
  static void scatter(const Tile& t, const T* grad, T* sum) {
    for (int64_t i = 0; i < t.n; ++i)
      for (int j = 0; j < kCorners; ++j)
        if (t.corner[j][i] >= 0) sum[t.corner[j][i]] += t.weight[j][i] * grad[i];
  }

  // Corners as indices of a contiguous plane.
  void to_dense(Tile& t) const {
    const int64_t row = p_.input.stride[2], column = p_.input.stride[3];
    if (row == width_ && column == 1) return;
    const T height = static_cast<T>(height_), width = static_cast<T>(width_);
    for (int64_t i = 0; i < t.n; ++i) {
      const T y = p_.nearest ? round_of(t.y[i]) : floor_of(finite(t.y[i]));
      const T x = p_.nearest ? round_of(t.x[i]) : floor_of(finite(t.x[i]));
      for (int j = 0; j < corners(); ++j)
        t.corner[j][i] = corner(y + T(j / 2), x + T(j % 2), height, width, static_cast<Index>(width_), Index(1));
    }
  }

  // Leaves the gradients of the positions in t.y and t.x.
  void grad_position(Tile& t) const {
    T sum[4][kTile] = {}, grad[kTile] = {};
    if (!p_.nearest && !no_input())
      for (int64_t c = 0; c < p_.input.size[1]; ++c) {
        const Element* plane = input_at(t.image, c);
        out_.load(grad, t.image, c, t.first, t.n);
        for_vectors(t, plane, [&](int64_t i, auto v00, auto v01, auto v10, auto v11) __attribute__((always_inline)) {
          using V = decltype(v00);
          const V g = load<V>(grad + i), v[4] = {v00, v01, v10, v11};
          for (int j = 0; j < 4; ++j) store(sum[j] + i, load<V>(sum[j] + i) + g * v[j]);
        });
      }
    for (int64_t i = 0; i < t.n; ++i) {
      const T ly = t.ly[i], lx = t.lx[i];  // both NaN where a position is
      const T y = (T(1) - lx) * (sum[2][i] - sum[0][i]) + lx * (sum[3][i] - sum[1][i]);
      const T x = (T(1) - ly) * (sum[1][i] - sum[0][i]) + ly * (sum[3][i] - sum[2][i]);
      t.y[i] = p_.nearest || t.moves_y[i] == T(0) ? T(0) : y;
      t.x[i] = p_.nearest || t.moves_x[i] == T(0) ? T(0) : x;
    }
  }

  void store_flow(const Tile& t) const {
    const PlanePixels flow(p_.grad_where);
    flow.store(t.x, t.image, 0, t.first, t.n);
    flow.store(t.y, t.image, 1, t.first, t.n);
  }

  void sum_matrix(const Tile& t, double* sums) const {
    for (int k = 0; k < 6; ++k) sums[k] = 0;
    for (int64_t i = 0; i < t.n; ++i) {
      const double row = static_cast<double>((t.first + i) / p_.output.size[3]);
      const double column = static_cast<double>((t.first + i) % p_.output.size[3]);
      const double x = static_cast<double>(t.x[i]), y = static_cast<double>(t.y[i]);
      sums[0] += x * column, sums[1] += x * row, sums[2] += x;
      sums[3] += y * column, sums[4] += y * row, sums[5] += y;
    }
  }

  void store_matrix(int64_t image, const double* sums) const {
    const TensorView& grad = p_.grad_where;
    double total[6] = {};
    for (int64_t tile = 0; tile < tiles_; ++tile)
      for (int k = 0; k < 6; ++k) total[k] += sums[tile * 6 + k];
    for (int i = 0; i < 2; ++i)
      store_row(grad, image * grad.stride[0] + i * grad.stride[1], grad.stride[2], total + 3 * i, 3);
  }

  const WarpParams& p_;
  PlanePixels out_;
  int64_t height_, width_, pixels_, tiles_;
};

// How far apart two elements of one plane of the input lie at most.
bool small_planes(const WarpParams& p) {
  const auto reach = [&](int d) {
    const int64_t stride = p.input.stride[d] < 0 ? -p.input.stride[d] : p.input.stride[d];
    return larger(stride, d == 2 ? p.input.size[3] : int64_t{1}) * p.input.size[d];
  };
  return reach(2) + reach(3) < (int64_t{1} << 31);
}

template <class Element, class T, class Visit>
void with_index(const WarpParams& p, Visit visit) {
  if (small_planes(p)) visit(Warp<Element, T, int32_t>(p));
  else visit(Warp<Element, T, int64_t>(p));
}

template <class Visit>
void with_types(const WarpParams& p, Visit visit) {
  if (p.output.numel() == 0 && p.input.numel() == 0 && !p.grad_where) return;
  switch (p.input.dtype) {
    case DType::f32: return with_index<float, float>(p, visit);
    case DType::f64: return with_index<double, double>(p, visit);
    case DType::bf16: return with_index<Bf16, float>(p, visit);
    default: return with_index<F16, float>(p, visit);
  }
}

void forward(const WarpParams& p) {
  with_types(p, [](const auto& warp) { warp.forward(); });
}

void backward(const WarpParams& p) {
  with_types(p, [](const auto& warp) { warp.backward(); });
}

}  // namespace

extern const WarpKernels warp2d_kernels{&forward, &backward};

}  // namespace flexor::FLEXOR_ISA
