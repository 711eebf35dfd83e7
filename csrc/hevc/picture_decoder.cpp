// SPDX-License-Identifier: Apache-2.0
#include "hevc/picture_decoder.h"

#include <algorithm>
#include <memory>

#include "hevc/filter_picture.h"
#include "hevc/picture_memory.h"
#include "hevc/threads.h"

namespace flexor::hevc {
namespace {

class PictureJob final : public PictureMemory {
 public:
  PictureJob(const CodedPicture& coded, Frame& frame, int threads, Analysis* analysis);
  void run();

 private:
  void cut_substreams();
  void filter_behind(int finished_rows);
  void filter_together();
  void publish(int row_rs, int count) override;
  void wait_substream(int index) override;

  const CodedPicture& coded_;
  Frame& frame_;
  bool deblocks_ = false, offsets_ = false;
  bool pipelined_ = false;  // one thread: rows are filtered while they are in the cache
  int filtered_rows_ = 0;

  std::vector<SliceTools> slices_;
  std::vector<Substream> substreams_;
  std::vector<std::atomic<bool>> finished_;
  std::unique_ptr<PictureFilter> filter_;
};

PictureJob::PictureJob(const CodedPicture& coded, Frame& frame, int threads, Analysis* analysis)
    : PictureMemory(*coded.sps, *coded.pps, coded.nearest, frame, analysis != nullptr ? 1 : std::max(threads, 1)),
      coded_(coded),
      frame_(frame) {
  cut_substreams();
  finished_ = std::vector<std::atomic<bool>>(substreams_.size());
  state.analysis = analysis;
  state.on_coding_block = [](Analysis& to, const CodingBlock& block) { to.coding_blocks.push_back(block); };
  state.on_transform_block = [](Analysis& to, const TransformBlock& block) { to.transform_blocks.push_back(block); };
  state.on_bits = [](Analysis& to, int group, double bits) { to.bits[group] += bits; };
}

// Which CTBs each slice segment and each of its substreams holds. A segment ends where the next one begins; segments
// that do not ascend are left out.
void PictureJob::cut_substreams() {
  const PictureTools& tools = state.tools;
  const PictureParameters& pps = *coded_.pps;
  const int ctbs = tools.width_ctbs * tools.height_ctbs;
  slices_.reserve(coded_.segments.size());
  std::vector<const SliceSegment*> segments;
  std::vector<int> starts;
  for (const SliceSegment& segment : coded_.segments) {
    const int address = segment.header.slice_segment_address;
    if (address < 0 || address >= ctbs || segment.substreams.empty()) {
      frame_.damaged = true;
      continue;
    }
    const int ts = pps.ctb_addr_rs_to_ts[address];
    if (!starts.empty() && ts <= starts.back()) {
      frame_.damaged = true;
      continue;
    }
    segments.push_back(&segment);
    starts.push_back(ts);
  }
  starts.push_back(ctbs);

  const auto ends_unit = [&](int ts) {  // whether a substream may end before this CTB
    const int rs = pps.ctb_addr_ts_to_rs[ts];
    return (pps.tiles_enabled_flag && pps.tile_id[ts] != pps.tile_id[ts - 1]) ||
           (tools.wavefront && rs % tools.width_ctbs == state.tile_left[rs]);
  };
  for (size_t s = 0; s < segments.size(); ++s) {
    const SliceSegment& segment = *segments[s];
    slices_.push_back(slice_tools(segment.header, pps));
    const SliceTools& slice = slices_.back();
    deblocks_ |= slice.deblocking;
    offsets_ |= slice.sao_luma || slice.sao_chroma;
    const int first = starts[s], last = starts[s + 1];
    for (int ts = s == 0 ? 0 : first; ts < last; ++ts) slice_of_ctb_[pps.ctb_addr_ts_to_rs[ts]] = &slice;

    std::vector<int> cuts = {first};
    for (int ts = first + 1; ts < last; ++ts) {
      if (ends_unit(ts)) cuts.push_back(ts);
    }
    if (cuts.size() != segment.substreams.size()) cuts.resize(1);  // no entry points, or wrong ones: in one go
    const uint8_t* const data = segment.data.data();
    const size_t size = segment.data.size();
    for (size_t i = 0; i < cuts.size(); ++i) {
      Substream substream = {};
      const bool is_last = i + 1 == cuts.size();
      const size_t begin = std::min(segment.substreams[i], size);
      const size_t end = is_last ? size : std::clamp(segment.substreams[i + 1], begin, size);
      substream.data = data + begin;
      substream.end = data + end;
      substream.slice = &slice;
      substream.first_ts = cuts[i];
      substream.owned_ts = substreams_.empty() ? 0 : cuts[i];
      substream.last_ts = is_last ? last : cuts[i + 1];
      substream.begins_segment = i == 0;
      substream.ends_segment = is_last;
      substreams_.push_back(substream);
    }
  }
  state.substreams = substreams_.data();
}

void PictureJob::publish(int row_rs, int count) {
  PictureMemory::publish(row_rs, count);
  if (pipelined_ && count == state.tools.width_ctbs) filter_behind(row_rs / state.tools.width_ctbs + 1);
}

void PictureJob::wait_substream(int index) {
  if (threads_ == 1) return;
  while (!finished_[static_cast<size_t>(index)].load(std::memory_order_acquire)) std::this_thread::yield();
}

void PictureJob::run() {
  if (substreams_.empty()) {
    frame_.damaged = true;
    return;
  }
  const bool filters = deblocks_ || offsets_;
  if (filters) filter_ = std::make_unique<PictureFilter>(state);
  pipelined_ = filters && threads_ == 1 && coded_.pps->column_boundaries.size() == 2;
  const SliceKernels& kernels = FLEXOR_KERNELS(slice_kernels);
  run_tasks(threads_, static_cast<int>(substreams_.size()), [&](int index) {
    kernels.decode(state, index);
    finished_[static_cast<size_t>(index)].store(true, std::memory_order_release);
  });
  for (const Substream& substream : substreams_) frame_.damaged |= substream.damaged;
  if (filters && !pipelined_) filter_together();
  if (Analysis* const analysis = state.analysis) {
    for (const SaoParameters& sao : sao_) analysis->sao_types.insert(analysis->sao_types.end(), sao.type, sao.type + 3);
  }
}

// One thread: each step as soon as what it needs is there.
void PictureJob::filter_behind(int finished_rows) {
  const int height = state.tools.height_ctbs;
  const int ready = finished_rows == height ? height : finished_rows - 1;
  for (; filtered_rows_ < ready; ++filtered_rows_) {
    const int row = filtered_rows_;
    if (deblocks_) {
      filter_->columns(row);
      filter_->rows(row);
    }
    if (!offsets_) continue;
    if (row > 0) filter_->keep(row - 1);
    if (row > 1) filter_->offsets(row - 2);
  }
  if (filtered_rows_ == height && offsets_) {
    filter_->keep(height - 1);
    if (height > 1) filter_->offsets(height - 2);
    filter_->offsets(height - 1);
  }
}

void PictureJob::filter_together() {
  const int height = state.tools.height_ctbs;
  if (deblocks_) {
    run_tasks(threads_, height, [&](int row) { filter_->columns(row); });
    run_tasks(threads_, height, [&](int row) { filter_->rows(row); });
  }
  if (offsets_) {
    run_tasks(threads_, height, [&](int row) { filter_->keep(row); });
    run_tasks(threads_, height, [&](int row) { filter_->offsets(row); });
  }
}

}  // namespace

void decode_picture(const CodedPicture& coded, Frame& frame, int threads, Analysis* analysis) {
  PictureJob(coded, frame, threads, analysis).run();
}

}  // namespace flexor::hevc
