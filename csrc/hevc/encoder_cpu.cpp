// SPDX-License-Identifier: Apache-2.0
// Rows of coding tree units: search, then, when the picture's filters are decided, writing.
#include "core/parallel.h"
#include "hevc/ctu_search.h"

namespace flexor::FLEXOR_ISA {

static void start_row(const EncoderState& state, const CtbPlace& place, ContextState& contexts,
                      const ContextState* row_contexts) {
  if (place.row_rs != 0 && place.top_right) {
    contexts = row_contexts[place.rs - state.picture.tools.width_ctbs];
  } else {
    initialise_contexts(contexts, state.slice.slice_qp);
  }
}

static void search_row(EncoderState& state, int ctb_row) {
  PictureState& picture = state.picture;
  KeptBlock* const kept = static_cast<KeptBlock*>(thread_workspace(20 * sizeof(KeptBlock)));
  CtuSearch search(state, kept);
  ContextState contexts;
  for (int column = 0; column < picture.tools.width_ctbs; ++column) {
    const int ts = ctb_row * picture.tools.width_ctbs + column;
    const CtbPlace place = place_ctb(picture, state.slice, ts);
    wait_for_neighbours(picture, place);
    if (column == 0) start_row(state, place, contexts, state.row_contexts);
    search.run(ts, contexts);
    if (column == 1) state.row_contexts[place.row_rs] = contexts;
    picture.publish(picture, place.row_rs, column + 1);
  }
}

static void write_rows(EncoderState& state, int first_row, int rows, ByteSink& sink) {
  PictureState& picture = state.picture;
  const PictureTools& tools = picture.tools;
  ContextState contexts;
  CabacWriter coder(sink, contexts);
  for (int i = 0; i < rows * tools.width_ctbs; ++i) {
    const int ts = first_row * tools.width_ctbs + i, column = ts % tools.width_ctbs;
    const CtbPlace place = place_ctb(picture, state.slice, ts);
    if (i == 0) start_row(state, place, contexts, picture.row_contexts);
    SyntaxWriter<CabacWriter> writer(state, place, coder);
    if (state.slice.sao_luma || state.slice.sao_chroma) writer.sao();
    writer.coding_quadtree(place.x, place.y, tools.ctb_log2, 0);
    if (column == 1) picture.row_contexts[place.row_rs] = contexts;
    const bool last = ts + 1 == tools.width_ctbs * tools.height_ctbs;
    coder.terminate(last);
    if (!last && i + 1 == rows * tools.width_ctbs) coder.terminate(1);  // end_of_subset_one_bit
  }
}

extern const EncoderKernels encoder_kernels{search_row, write_rows};

}  // namespace flexor::FLEXOR_ISA
