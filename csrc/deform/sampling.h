// SPDX-License-Identifier: Apache-2.0
// Bilinear sampling at learned offsets: the geometry of a call, the plan of a tile of output pixels, and
// the packed copies of the input that the samplers read.
#pragma once
#include "core/gemm.h"
#include "core/rows.h"
#include "core/tasks.h"
#include "deform/deform_conv2d.h"

namespace flexor::FLEXOR_ISA {

// Channels are worked on in segments, the runs that share a convolution group and an offset group, each
// cut into units of `lanes` channels (the last one padded with zeros). A unit and its taps make
// `lanes * taps` steps of the product, in the order unit, tap, channel.
struct Geometry {
  int64_t batch, channels, height, width, out_channels, out_height, out_width, kernel_h, kernel_w, taps, pixels;
  int64_t group_channels, group_outputs, offset_group_channels;
  int64_t segment, lanes, segment_units, units, group_units;
  int64_t padded_width, padded_plane;  // the input copy: a border of zeros, and a cell of zeros behind it

  explicit Geometry(const DeformConv2dParams& p) {
    batch = p.input.size[0], channels = p.input.size[1], height = p.input.size[2], width = p.input.size[3];
    out_channels = p.output.size[1], out_height = p.output.size[2], out_width = p.output.size[3];
    kernel_h = p.weight.size[2], kernel_w = p.weight.size[3], taps = kernel_h * kernel_w;
    pixels = out_height * out_width;
    group_channels = channels / p.groups, group_outputs = out_channels / p.groups;
    offset_group_channels = channels / p.offset_groups;
    int64_t a = group_channels, b = offset_group_channels;
    while (b != 0) {
      const int64_t r = a % b;
      a = b, b = r;
    }
    segment = a;
    padded_width = width + 2, padded_plane = padded_width * (height + 3);
    set_lanes(16);
    if (segment % 16 != 0)
      for (int64_t candidate : {8, 4})
        if (round_up(segment, lanes) * 8 > segment * 9) set_lanes(candidate);
  }

  void set_lanes(int64_t n) {
    lanes = n, segment_units = ceil_div(segment, lanes), units = channels / segment * segment_units;
    group_units = group_channels / segment * segment_units;
  }

  // With few channels a segment, lanes run over pixels instead (lanes == 1).
  bool few_channels() const {
    return segment < 4 || (round_up(segment, lanes) - segment) * group_outputs > 32 * segment ||
           (group_outputs < 4 && segment < 16);
  }

  int64_t unit_channel(int64_t unit) const { return unit / segment_units * segment + unit % segment_units * lanes; }
  int64_t unit_size(int64_t unit) const { return smaller(lanes, segment - unit % segment_units * lanes); }
  int64_t unit_offset_group(int64_t unit) const { return unit_channel(unit) / offset_group_channels; }
  int64_t dummy() const { return padded_width * (height + 1); }  // four zeros, wherever sampling gives 0
};

// Where the pixels of a tile sample one tap: the top left corner in the padded copy, and its four weights
// w00 w01 w10 w11 with the mask multiplied in. The weights of a pixel lie together where lanes are channels
// (kStep 4), those of a corner where lanes are pixels (kStep 1).
template <class T>
struct Plan {
  static constexpr int kFields = 8;
  int32_t* corner;
  T* weights;
  T *ly, *lx, *mask;  // kept for the backward only

  Plan(T* memory, int64_t tap, int64_t tile) {
    T* base = memory + tap * kFields * tile;
    corner = reinterpret_cast<int32_t*>(base);
    weights = base + tile;
    ly = base + 5 * tile, lx = base + 6 * tile, mask = base + 7 * tile;
  }
};

// The tile's n pixels, padded to `tile` with samples that read zeros at weight zero.
// Outside is y <= -1, y >= H, x <= -1 or x >= W; a NaN is not outside, so its weights stay NaN and reach
// the output, while its corner is the dummy. The backward counts exactly -1 as inside (kInclusive): the
// value is 0 either way, the right-sided gradient there is not.
template <class T, bool kInclusive, int kStep>
void make_plan(const Geometry& g, const Plan<T>& plan, const T* base_y, const T* base_x, T tap_y, T tap_x,
               const T* offset_y, const T* offset_x, const T* mask, int64_t n, int64_t tile) {
  const T height = static_cast<T>(g.height), width = static_cast<T>(g.width);
  const int32_t dummy = static_cast<int32_t>(g.dummy()), row = static_cast<int32_t>(g.padded_width);
  const int64_t next = kStep == 1 ? tile : 1;
  T *w00 = plan.weights, *w01 = w00 + next, *w10 = w01 + next, *w11 = w10 + next;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const T y = base_y[i] + tap_y + offset_y[i], x = base_x[i] + tap_x + offset_x[i];
    const bool beyond = kInclusive ? ((y < T(-1)) | (y >= height) | (x < T(-1)) | (x >= width))
                                   : ((y <= T(-1)) | (y >= height) | (x <= T(-1)) | (x >= width));
    const bool outside = beyond & (y == y) & (x == x);
    const bool inside = (y >= T(-1)) & (y < height) & (x >= T(-1)) & (x < width);
    const T y0 = floor_of(y), x0 = floor_of(x);
    const T ly = outside ? T(0) : y - y0 + T(0) * x, lx = outside ? T(0) : x - x0 + T(0) * y;  // a NaN is both's
    const T m = mask[i];
    const T scale = outside ? T(0) * m : m;
    const T low = ly * scale, high = scale - low;
    const int32_t yi = static_cast<int32_t>(inside ? y0 : T(0)), xi = static_cast<int32_t>(inside ? x0 : T(0));
    plan.corner[i] = inside ? (yi + 1) * row + xi + 1 : dummy;
    w00[i * kStep] = high - high * lx;
    w01[i * kStep] = high * lx;
    w10[i * kStep] = low - low * lx;
    w11[i * kStep] = low * lx;
    if (kInclusive) {
      plan.ly[i] = ly, plan.lx[i] = lx;
      plan.mask[i] = m;
    }
  }
  for (int64_t i = n; i < tile; ++i) {
    plan.corner[i] = dummy;
    w00[i * kStep] = w01[i * kStep] = w10[i * kStep] = w11[i * kStep] = T(0);
    if (kInclusive) plan.ly[i] = plan.lx[i] = plan.mask[i] = T(0);
  }
}

// The parts of a call that the plans of a tile come from.
template <class T>
struct Planner {
  const DeformConv2dParams& p;
  const Geometry& g;
  PlanePixels offset, mask;

  Planner(const DeformConv2dParams& params, const Geometry& geometry)
      : p(params), g(geometry), offset(params.offset), mask(params.mask ? params.mask : params.offset) {}

  // Element counts of the scratch that plan_group needs beside the plans.
  static int64_t scratch(int64_t tile) { return 5 * tile; }

  void start_tile(T* scratch, int64_t first, int64_t n, int64_t tile) const {
    T *base_y = scratch, *base_x = scratch + tile;
    int64_t y = first / g.out_width, x = first % g.out_width;
    for (int64_t i = 0; i < n; ++i) {
      base_y[i] = static_cast<T>(y * p.stride_h - p.pad_h);
      base_x[i] = static_cast<T>(x * p.stride_w - p.pad_w);
      if (++x == g.out_width) x = 0, ++y;
    }
  }

  // A row of pixels as it lies in memory when it can be read in place, else a converted copy.
  const T* row(const PlanePixels& plane, T* copy, int64_t image, int64_t channel, int64_t first, int64_t n) const {
    if (plane.flat && plane.view.stride[3] == 1 && plane.view.dtype == kOwnDType<T>)
      return static_cast<const T*>(plane.view.data) + plane.start(image, channel, 0, first);
    plane.load(copy, image, channel, first, n);
    return copy;
  }

  // Offsets are read once, a short stretch of each of many planes: too short for the hardware to foresee.
  // While one group is planned, the next one is brought near.
  void prefetch(const PlanePixels& plane, int64_t image, int64_t channel, int64_t first, int64_t n) const {
    const int64_t size = item_size(plane.view.dtype);
    if (!plane.flat || plane.view.stride[3] != 1 || channel >= plane.view.size[1]) return;
    const char* start = static_cast<const char*>(plane.view.data) + plane.start(image, channel, 0, first) * size;
    for (int64_t i = 0; i < n * size; i += 64) __builtin_prefetch(start + i, 0, 2);
  }

  template <bool kInclusive>
  void plan_group(T* plans, T* scratch, int64_t image, int64_t offset_group, int64_t first, int64_t n,
                  int64_t tile) const {
    T *base_y = scratch, *base_x = scratch + tile, *oy = scratch + 2 * tile, *ox = scratch + 3 * tile,
      *m = scratch + 4 * tile;
    if (!p.mask)
      for (int64_t i = 0; i < n; ++i) m[i] = T(1);
    for (int64_t tap = 0; tap < g.taps; ++tap) {
      const int64_t channel = offset_group * g.taps + tap;
      prefetch(offset, image, 2 * (channel + g.taps), first, n);
      prefetch(offset, image, 2 * (channel + g.taps) + 1, first, n);
      if (p.mask) prefetch(mask, image, channel + g.taps, first, n);
      const T* y = row(offset, oy, image, 2 * channel, first, n);
      const T* x = row(offset, ox, image, 2 * channel + 1, first, n);
      const T* mask_row = p.mask ? row(mask, m, image, channel, first, n) : m;
      const T tap_y = static_cast<T>(tap / g.kernel_w * p.dilation_h);
      const T tap_x = static_cast<T>(tap % g.kernel_w * p.dilation_w);
      const Plan<T> plan(plans, tap, tile);
      if (g.lanes == 1) make_plan<T, kInclusive, 1>(g, plan, base_y, base_x, tap_y, tap_x, y, x, mask_row, n, tile);
      else make_plan<T, kInclusive, 4>(g, plan, base_y, base_x, tap_y, tap_x, y, x, mask_row, n, tile);
    }
  }
};

// dst[x * lanes + l] = src[l * stride + x]
template <class T>
FLEXOR_INLINE void copy_transposed(const T* src, int64_t stride, int64_t lanes, int64_t width, T* dst) {
  if (lanes == kLanes<T> || lanes == 1) return transpose(src, stride, lanes, width, dst, lanes);
  for (int64_t x = 0; x < width; ++x)
    for (int64_t l = 0; l < lanes; ++l) dst[x * lanes + l] = src[l * stride + x];
}

// dst[x * dst_stride + l] = src[x * src_stride + l]
template <class T>
FLEXOR_INLINE void copy_pixels(const T* src, int64_t src_stride, int64_t lanes, int64_t width, T* dst,
                               int64_t dst_stride) {
  const auto copy = [&](auto n) __attribute__((always_inline)) {
    for (int64_t x = 0; x < width; ++x)
      __builtin_memcpy(dst + x * dst_stride, src + x * src_stride, decltype(n)::value * sizeof(T));
  };
  switch (lanes) {
    case 16: return copy(std::integral_constant<int, 16>{});
    case 8: return copy(std::integral_constant<int, 8>{});
    case 4: return copy(std::integral_constant<int, 4>{});
    default: return copy(std::integral_constant<int, 1>{});
  }
}

// Copies the channels of one unit into [H + 3][W + 2][lanes], zeros around and in the missing lanes.
// `scratch` holds a line of the unit, lanes * width.
template <class T>
void pack_input(const Geometry& g, const TensorView& input, int64_t image, int64_t unit, T* dst, T* scratch) {
  const int64_t c0 = g.unit_channel(unit), n = g.unit_size(unit), lanes = g.lanes, row = g.padded_width * lanes;
  const bool own = input.dtype == kOwnDType<T>;
  for (int64_t i = 0; i < row; ++i) dst[i] = T(0);
  for (int64_t i = (g.height + 1) * row; i < (g.height + 3) * row; ++i) dst[i] = T(0);
  if (n < lanes)
    for (int64_t i = 0; i < lanes * g.width; ++i) scratch[i] = T(0);
  for (int64_t y = 0; y < g.height; ++y) {
    T* line = dst + (y + 1) * row;
    for (int64_t l = 0; l < lanes; ++l) line[l] = line[row - lanes + l] = T(0);
    line += lanes;
    const int64_t at = image * input.stride[0] + c0 * input.stride[1] + y * input.stride[2];
    if (own && n == lanes && input.stride[1] == 1) {
      const T* src = static_cast<const T*>(input.data) + at;
      copy_pixels(src, input.stride[3], lanes, g.width, line, lanes);
    } else if (own && n == lanes && input.stride[3] == 1) {
      copy_transposed(static_cast<const T*>(input.data) + at, input.stride[1], lanes, g.width, line);
    } else {
      for (int64_t l = 0; l < n; ++l)
        load_row(scratch + l * g.width, input, at + l * input.stride[1], input.stride[3], g.width);
      copy_transposed(scratch, g.width, lanes, g.width, line);
    }
  }
}

}  // namespace flexor::FLEXOR_ISA
