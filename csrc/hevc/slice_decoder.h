// SPDX-License-Identifier: Apache-2.0
// Decodes the slice segment data of one substream (H.265 clauses 7.3.8, 8.4, 8.6). Everything a picture's threads
// share is in PictureState; this holds what one substream carries from block to block.
#pragma once
#include "hevc/analysis.h"
#include "hevc/cabac.h"
#include "hevc/prediction.h"

namespace flexor::FLEXOR_ISA {

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
  void pcm_sample(int x, int y, int log2_size);

  // transform_tree.h
  void transform_tree(int x, int y, int x_base, int y_base, int log2_size, int depth, int part, int cbf_cb, int cbf_cr);
  void transform_unit(int x, int y, int x_base, int y_base, int log2_size, int part, bool cbf_luma, int cbf_cb,
                      int cbf_cr);
  void delta_qp();
  void chroma_qp_offset();
  void set_qp(int delta);

  // reconstruction.h
  void predict(int component, int x, int y, int log2_size, int mode, bool nearest);
  void reconstruct(int component, int x, int y, int log2_size, int mode, bool coded, int scale);
  int residual(int component, int log2_size, int mode, bool coded, int scale);

  // wide_residual.h
  int wide_residual(int component, int log2_size, int mode, bool coded, int scale);
  void wide_transform(int component, int log2_size);

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

  CtbPlace ctb_ = {};

  // The current quantization group and coding unit.
  bool qp_delta_coded_ = false, chroma_qp_offset_coded_ = false;
  int last_qp_ = 0, predicted_qp_ = 0, qp_ = 0, qp_delta_ = 0;
  int cu_cb_qp_offset_ = 0, cu_cr_qp_offset_ = 0;
  int scaled_qp_[3] = {};  // Qp'Y, Qp'Cb, Qp'Cr
  bool bypass_ = false, nxn_ = false;
  int luma_modes_[4] = {}, chroma_modes_[4] = {};
  bool nearest_[4] = {};           // intra_nearest_flag
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
  BlockBorder border_;
};

}  // namespace flexor::FLEXOR_ISA
