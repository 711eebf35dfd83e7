// SPDX-License-Identifier: Apache-2.0
// In-loop filters of a decoded picture, a row of CTBs at a time (H.265 clause 8.7).
#pragma once
#include <cstdint>
#include <vector>

#include "hevc/picture_state.h"

namespace flexor::hevc {

// Steps of a row r, and what must be done before each:
//   columns(r)    all of r is decoded, and the row below, which is predicted from it
//   rows(r)       columns(r - 1), columns(r)
//   keep(r)       rows(r), rows(r + 1)
//   offsets(r)    keep(r - 1), keep(r), keep(r + 1)
// Rows may be worked on by different threads.
class PictureFilter {
 public:
  explicit PictureFilter(PictureState& picture);
  void columns(int row);
  void rows(int row);
  void keep(int row);
  void offsets(int row);

 private:
  void offset_ctb(int component, int ctb_rs, const uint16_t* in, ptrdiff_t in_stride, int width, int height);
  void restore_border(int component, int ctb_rs, uint16_t* out, const uint16_t* in, ptrdiff_t in_stride, int width,
                      int height);
  void restore_unfiltered(int component, int ctb_rs, uint16_t* out, const uint16_t* in, ptrdiff_t in_stride, int width,
                          int height);
  bool crosses(int ctb_rs, int dx, int dy) const;
  uint16_t* kept_line(int component, int row, bool last) {
    const size_t line = 2 * static_cast<size_t>(row) + last;
    return kept_[component].data() + line * static_cast<size_t>(picture_.stride[component]);
  }

  PictureState& picture_;
  const PictureTools& tools_;
  std::vector<uint16_t> kept_[3];  // the first and the last line of each row of CTBs before SAO
};

}  // namespace flexor::hevc
