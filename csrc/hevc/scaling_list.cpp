// SPDX-License-Identifier: Apache-2.0
// Scaling lists (H.265 clauses 7.3.4 and 7.4.5).
#include <cstring>

#include "hevc/parameter_sets.h"

namespace flexor::hevc {
namespace {

constexpr int kFlat = 16;

// Table 7-6, in diagonal scan order: intra, inter.
constexpr uint8_t kDefault8x8[2][64] = {
    {16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 17, 16, 17, 16, 17, 18, 17, 18, 18, 17, 18, 21,
     19, 20, 21, 20, 19, 21, 24, 22, 22, 24, 24, 22, 22, 24, 25, 25, 27, 30, 27, 25, 25, 29,
     31, 35, 35, 31, 29, 36, 41, 44, 41, 36, 47, 54, 54, 47, 65, 70, 65, 88, 88, 115},
    {16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 17, 17, 17, 17, 17, 18, 18, 18, 18, 18, 18, 20,
     20, 20, 20, 20, 20, 20, 24, 24, 24, 24, 24, 24, 24, 24, 25, 25, 25, 25, 25, 25, 25, 28,
     28, 28, 28, 28, 28, 33, 33, 33, 33, 33, 41, 41, 41, 41, 54, 54, 54, 71, 71, 91}};

// One list as it is coded: up to 64 coefficients in diagonal scan order, and the DC of the sizes above 8x8.
struct CodedList {
  uint8_t coefficients[64];
  uint8_t dc;
};

struct CodedLists {
  CodedList list[4][6];
};

void set_default(CodedList& list, int size_id, int matrix_id) {
  if (size_id == 0) {
    std::memset(list.coefficients, kFlat, sizeof list.coefficients);
  } else {
    std::memcpy(list.coefficients, kDefault8x8[matrix_id / 3], sizeof list.coefficients);
  }
  list.dc = kFlat;
}

// Coefficient i of the list goes to position (x, y) of the up-right diagonal scan, repeated to fill the block.
void expand(const CodedList& list, int size_id, uint8_t* factor) {
  const int coded = size_id == 0 ? 4 : 8;
  const int size = 4 << size_id;
  const int repeat = size / coded;
  int i = 0;
  for (int diagonal = 0; diagonal < 2 * coded - 1; ++diagonal) {
    for (int y = diagonal < coded ? diagonal : coded - 1; y >= 0 && diagonal - y < coded; --y) {
      uint8_t* corner = factor + y * repeat * size + (diagonal - y) * repeat;
      for (int row = 0; row < repeat; ++row) std::memset(corner + row * size, list.coefficients[i], repeat);
      ++i;
    }
  }
  if (size_id > 1) factor[0] = list.dc;
}

void expand_all(CodedLists& lists, ScalingList& out) {
  // Chroma blocks of 32x32 exist in 4:4:4 only and take the lists of 16x16.
  for (int matrix_id : {1, 2, 4, 5}) lists.list[3][matrix_id] = lists.list[2][matrix_id];
  for (int size_id = 0; size_id < 4; ++size_id)
    for (int matrix_id = 0; matrix_id < 6; ++matrix_id)
      expand(lists.list[size_id][matrix_id], size_id, out.factor[size_id][matrix_id]);
}

void parse_coefficients(BitReader& reader, int size_id, CodedList& list) {
  int next = 8;
  if (size_id > 1) {
    next = reader.se("scaling_list_dc_coef_minus8", -7, 247) + 8;
    list.dc = static_cast<uint8_t>(next);
  }
  const int count = size_id == 0 ? 16 : 64;
  for (int i = 0; i < count; ++i) {
    next = (next + reader.se("scaling_list_delta_coef", -128, 127) + 256) % 256;
    list.coefficients[i] = static_cast<uint8_t>(next);
  }
}

}  // namespace

void set_default_scaling_list(ScalingList& out) {
  CodedLists lists;
  for (int size_id = 0; size_id < 4; ++size_id)
    for (int matrix_id = 0; matrix_id < 6; ++matrix_id) set_default(lists.list[size_id][matrix_id], size_id, matrix_id);
  expand_all(lists, out);
}

void parse_scaling_list(BitReader& reader, ScalingList& out) {
  CodedLists lists;
  for (int size_id = 0; size_id < 4; ++size_id) {
    const int step = size_id == 3 ? 3 : 1;
    for (int matrix_id = 0; matrix_id < 6; matrix_id += step) {
      CodedList& list = lists.list[size_id][matrix_id];
      if (reader.flag("scaling_list_pred_mode_flag")) {
        parse_coefficients(reader, size_id, list);
      } else if (const int delta = reader.ue("scaling_list_pred_matrix_id_delta", matrix_id / step); delta == 0) {
        set_default(list, size_id, matrix_id);
      } else {
        list = lists.list[size_id][matrix_id - delta * step];
      }
    }
  }
  expand_all(lists, out);
}

}  // namespace flexor::hevc
