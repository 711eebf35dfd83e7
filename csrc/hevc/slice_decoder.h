// SPDX-License-Identifier: Apache-2.0
// Decodes the slice segment data of one substream (H.265 clauses 7.3.8, 8.4, 8.6). Everything a picture's threads
// share is in PictureState; this holds what one substream carries from block to block.
#pragma once
#include "hevc/analysis.h"
#include "hevc/cabac.h"
#include "hevc/picture_state.h"

namespace flexor::FLEXOR_ISA {

using namespace hevc;

class SliceDecoder {
 public:
  SliceDecoder(PictureState& picture, int index)
      : picture_(picture),
        tools_(picture.tools),
        substream_(picture.substreams[index]),
        slice_(*substream_.slice),
        index_(index) {}

  void decode();

 private:
  // slice_data_cpu.cpp
  bool decode_ctbs(int& ts);
  void enter_ctb(int ts);
  void start_contexts(int ts, bool first);
  void sao();
  void sao_component(SaoParameters& sao, int component);
  void give_up(int first_ts, int last_ts);

  // coding_quadtree.h
  void coding_quadtree(int x, int y, int log2_size, int depth);
  void coding_unit(int x, int y, int log2_size);
  void prediction_modes(int x, int y, int log2_size, int parts);
  int luma_mode(int x, int y, bool most_probable, int coded) const;
  int chroma_mode(int coded, int luma) const;
  void pcm_sample(int x, int y, int log2_size);
  void mark_edges(int x, int y, int log2_size);

  // transform_tree.h
  void transform_tree(int x, int y, int x_base, int y_base, int log2_size, int depth, int part, int cbf_cb, int cbf_cr);
  void transform_unit(int x, int y, int x_base, int y_base, int log2_size, int part, bool cbf_luma, int cbf_cb,
                      int cbf_cr);
  void delta_qp();
  void chroma_qp_offset();
  void set_qp(int delta);
  int chroma_qp(int offset) const;

  // reconstruction.h
  void predict(int component, int x, int y, int log2_size, int mode);
  void reconstruct(int component, int x, int y, int log2_size, int mode, bool coded, int scale);
  int residual(int component, int log2_size, int mode, bool coded, int scale);

  // wide_residual.h
  int wide_residual(int component, int log2_size, int mode, bool coded, int scale);
  void wide_transform(int component, int log2_size);
  bool in_ctb_before(int x, int y, int z) const {
    const int mask = (1 << tools_.ctb_log2) - 1;
    return picture_.z_order[((y & mask) >> 2) * 16 + ((x & mask) >> 2)] < z;
  }

  // residual_coding.h
  void residual_coding(int component, int log2_size, int mode);
  int last_position_prefix(uint8_t* models, int component, int log2_size);
  int64_t remaining_level(int rice, int range_log2);

  // What a syntax element cost, for the analysis.
  double bits_so_far() const;
  void count(int group) {
    if (__builtin_expect(picture_.analysis != nullptr, 0)) count_slowly(group);
  }
  void count_slowly(int group);

  PictureState& picture_;
  const PictureTools& tools_;
  Substream& substream_;
  const SliceTools& slice_;
  const int index_;

  Cabac cabac_;
  ContextState contexts_;
  double counted_ = 0;

  // The current CTB.
  int ctb_rs_ = 0, ctb_x_ = 0, ctb_y_ = 0;  // position in luma samples
  bool left_available_ = false, top_available_ = false, top_left_available_ = false, top_right_available_ = false;
  bool filter_left_ = false, filter_top_ = false;

  // The current quantization group and coding unit.
  bool qp_delta_coded_ = false, chroma_qp_offset_coded_ = false;
  int last_qp_ = 0, predicted_qp_ = 0, qp_ = 0, qp_delta_ = 0;
  int cu_cb_qp_offset_ = 0, cu_cr_qp_offset_ = 0;
  int scaled_qp_[3] = {};  // Qp'Y, Qp'Cb, Qp'Cr
  bool bypass_ = false, nxn_ = false;
  int luma_modes_[4] = {}, chroma_modes_[4] = {};
  bool chroma_from_luma_[4] = {};  // intra_chroma_pred_mode equal to 4
  bool error_ = false;

  // The current transform block.
  bool skipped_ = false;  // transform_skip_flag
  bool sign_hidden_ = false;
  int nonzero_width_ = 0, nonzero_height_ = 0;
  alignas(64) int16_t coefficients_[32 * 32] = {};
  alignas(64) int16_t luma_residual_[32 * 32];
  alignas(64) int16_t residual_[32 * 32];
  struct {  // the same of extended precision
    int32_t coefficients[32 * 32] = {}, luma_residual[32 * 32], residual[32 * 32];
  } wide_;
  alignas(64) uint16_t border_[2][4 * 32 + 1 + 2 * kIntraSlack];
};

inline int smaller(int a, int b) { return a < b ? a : b; }
inline int larger(int a, int b) { return a > b ? a : b; }
inline int clamp_to(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

}  // namespace flexor::FLEXOR_ISA
