// SPDX-License-Identifier: Apache-2.0
// Features by rank: as they lie in memory where rows are in rank order and of the dtype computed in, else a copy.
#pragma once
#include "core/rows.h"
#include "core/tasks.h"
#include "sparse3d/map_view.h"
#include "sparse3d/sparse_index.h"

namespace flexor::FLEXOR_ISA {

[[noreturn]] inline void bad_map() { fail("sparse_conv: the map's rows lie outside its tensors"); }

// Whether order is 0, 1, ... ; throws where it leads out of the tensor.
inline bool is_identity(const int32_t* order, int64_t n) {
  uint32_t different = 0, largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    different |= static_cast<uint32_t>(order[i]) ^ static_cast<uint32_t>(i);
    largest = larger(largest, static_cast<uint32_t>(order[i]));
  }
  if (n > 0 && static_cast<int64_t>(largest) >= n) bad_map();
  return different == 0;
}

constexpr int64_t kRowsAtOnce = 1024;
constexpr int64_t kRowsAhead = 16;  // whose loads are begun

// Begins to load a row, to write to it with Write = 1.
template <int Write>
FLEXOR_INLINE void prefetch_row(const TensorView& view, int64_t row) {
  const int64_t item = view.dtype == DType::f64 ? 8 : view.dtype == DType::f32 ? 4 : 2;
  const int64_t bytes = view.size[1] * view.stride[1] * item;
  const char* at = static_cast<const char*>(view.data) + row * view.stride[0] * item;
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(at + b, Write, 2);
}

template <class T>
class RankRows {
 public:
  // Rows can be read up to `columns`, where the first beyond the tensor's own are 0.
  RankRows(const TensorView& view, const int32_t* order, bool identity, int64_t columns) {
    const int64_t n = view.size[0], own = view.size[1];
    if (identity && view.dtype == kOwnDType<T> && (view.stride[1] == 1 || own == 1) && columns <= own) {
      data_ = static_cast<const T*>(view.data);
      stride_ = view.stride[0];
      return;
    }
    stride_ = larger(columns, own);
    copy_ = static_cast<T*>(allocate(static_cast<size_t>(n * stride_ + 1) * sizeof(T)));
    data_ = copy_;
    parallel_for(ceil_div(n, kRowsAtOnce), [&](int64_t task) {
      for (int64_t r = task * kRowsAtOnce; r < smaller(n, (task + 1) * kRowsAtOnce); ++r) {
        if (!identity && r + kRowsAhead < n) prefetch_row<0>(view, order[r + kRowsAhead]);
        T* to = copy_ + r * stride_;
        load_row(to, view, (identity ? r : order[r]) * view.stride[0], view.stride[1], own);
        for (int64_t c = own; c < stride_; ++c) to[c] = T(0);
      }
    });
  }
  ~RankRows() { release(copy_); }
  RankRows(const RankRows&) = delete;
  RankRows& operator=(const RankRows&) = delete;

  FLEXOR_INLINE const T* row(int64_t rank) const { return data_ + rank * stride_; }
  FLEXOR_INLINE int64_t stride() const { return stride_; }

 private:
  const T* data_ = nullptr;
  T* copy_ = nullptr;
  int64_t stride_ = 0;
};

// Throws unless a tile's pairs are of inputs and outputs that there are.
inline void check_tile(const MapView& map, int64_t tile) {
  const int64_t begin = map.offsets[tile * map.taps], end = map.offsets[(tile + 1) * map.taps];
  uint32_t largest = 0;
  for (int64_t p = begin; p < end; ++p) largest = larger(largest, static_cast<uint32_t>(map.in_rows[p]));
  if (begin < end && static_cast<int64_t>(largest) >= map.n_in) bad_map();
  if (tile + 1 < map.tiles) return;
  uint8_t last = 0;
  for (int64_t p = begin; p < end; ++p) last = larger(last, map.places[p]);
  if (begin < end && tile * kTileRows + last >= map.n_out) bad_map();
}

}  // namespace flexor::FLEXOR_ISA
