// SPDX-License-Identifier: Apache-2.0
// Blocks of pictures and their borders, as 16-bit samples. What lies beyond the right and lower edges of a picture
// repeats its last samples.
#pragma once
#include "core/simd.h"
#include "intra/intra_kernels.h"
#include "intra/intra_search.h"

namespace flexor::FLEXOR_ISA {

struct BlockPlace {
  int64_t batch, row, column;  // in blocks

  FLEXOR_INLINE BlockPlace(const IntraSearchParams& p, int64_t block)
      : batch(block / (p.rows * p.columns)), row(block / p.columns % p.rows), column(block % p.columns) {}
};

template <class Sample>
struct PictureView {
  const Sample* data;
  int64_t height, width, stride_y, stride_x;

  FLEXOR_INLINE PictureView(const TensorView& v, int64_t batch)
      : data(static_cast<const Sample*>(v.data) + batch * v.stride[0]),
        height(v.size[1]),
        width(v.size[2]),
        stride_y(v.stride[1]),
        stride_x(v.stride[2]) {}

  FLEXOR_INLINE const Sample* row(int64_t y) const { return data + smaller(y, height - 1) * stride_y; }

  // Four samples at a time; count is a multiple of 4. All bits that there are in them are added to seen.
  FLEXOR_INLINE void read_row(uint16_t* out, int64_t y, int64_t x, int count, uint32_t& seen) const {
    const Sample* line = row(y);
    using V = Vec<Sample, 4>;
    if (stride_x == 1 && x + count <= width) {
      V bits{};
      for (int i = 0; i < count; i += 4) {
        const V samples = load<V>(line + x + i);
        bits |= samples;
        store(out + i, __builtin_convertvector(samples, Vec<uint16_t, 4>));
      }
      for (int i = 0; i < 4; ++i) seen |= static_cast<uint32_t>(bits[i]);
      return;
    }
    for (int i = 0; i < count; ++i) {
      const Sample sample = line[smaller(x + i, width - 1) * stride_x];
      seen |= static_cast<uint32_t>(sample);
      out[i] = static_cast<uint16_t>(sample);
    }
  }

  FLEXOR_INLINE void read_column(uint16_t* out, int64_t x, int64_t y, int count, int step) const {
    for (int i = 0; i < count; ++i) out[i * step] = static_cast<uint16_t>(row(y + i)[x * stride_x]);
  }
};

// Whether a block of a coding tree block comes before another one in it, along a Z curve.
FLEXOR_INLINE bool comes_before(int64_t column, int64_t row, int64_t other_column, int64_t other_row) {
  const int64_t x = column ^ other_column, y = row ^ other_row;
  const bool by_columns = y < x && y < (x ^ y);  // the highest bit that differs is one of the columns
  return by_columns ? column < other_column : row < other_row;
}

// Which parts of a block's border count as coded before it.
struct Neighbours {
  bool left, top, bottom_left, top_right;

  FLEXOR_INLINE Neighbours(const IntraSearchParams& p, const BlockPlace& at)
      : left(at.column > 0),
        top(at.row > 0),
        bottom_left(left && at.row + 1 < p.rows),
        top_right(top && at.column + 1 < p.columns) {
    if (p.ctb_log2 == 0) return;
    const int shift = p.ctb_log2 - p.log2_size;
    const auto differ = [shift](int64_t a, int64_t b) { return a >> shift != b >> shift; };
    if (!differ(at.row, at.row - 1))
      top_right =
          top_right && !differ(at.column, at.column + 1) && comes_before(at.column + 1, at.row - 1, at.column, at.row);
    bottom_left = bottom_left && !differ(at.row, at.row + 1) &&
                  (differ(at.column, at.column - 1) || comes_before(at.column - 1, at.row + 1, at.column, at.row));
  }
};

FLEXOR_INLINE void fill(uint16_t* out, int count, uint16_t value) {
  for (int i = 0; i < count; ++i) out[i] = value;
}

// 4n + 1 samples with substitution (clause 8.4.4.2.2); what repeats beyond the picture's edges is what it asks for.
template <class Sample>
FLEXOR_INLINE void read_border(uint16_t* border, const IntraSearchParams& p, const PictureView<Sample>& picture,
                               const BlockPlace& at) {
  const int n = 1 << p.log2_size;
  const int64_t x = at.column * n, y = at.row * n;
  const Neighbours there(p, at);
  uint16_t *corner = border + 2 * n, *top = corner + 1;
  uint32_t unused = 0;
  if (there.left) {
    picture.read_column(corner - 1, x - 1, y, there.bottom_left ? 2 * n : n, -1);
    if (!there.bottom_left) fill(border, n, corner[-n]);
  }
  if (there.top) {
    picture.read_row(top, y - 1, x, there.top_right ? 2 * n : n, unused);
    if (!there.top_right) fill(top + n, n, top[n - 1]);
  }
  if (there.left && there.top) *corner = static_cast<uint16_t>(picture.row(y - 1)[(x - 1) * picture.stride_x]);
  else if (there.left) fill(corner, 2 * n + 1, corner[-1]);
  else if (there.top) fill(border, 2 * n + 1, *top);
  else fill(border, 4 * n + 1, static_cast<uint16_t>(1 << (p.bit_depth - 1)));
}

// Runs body(Sample{}) with the type of the pictures' samples.
template <class F>
FLEXOR_INLINE bool with_sample_type(const TensorView& pictures, F&& body) {
  switch (pictures.dtype) {
    case DType::u8: return body(uint8_t{});
    case DType::i16: return body(int16_t{});
    case DType::u16: return body(uint16_t{});
    default: return body(int32_t{});
  }
}

}  // namespace flexor::FLEXOR_ISA
