// SPDX-License-Identifier: Apache-2.0
#include "hevc/picture_memory.h"

#include <algorithm>
#include <new>
#include <thread>

namespace flexor::hevc {
namespace {

// Table 8-3: the direction that a luma mode means where chroma is half as wide but as high.
constexpr uint8_t kChromaMode422[35] = {0,  1,  2,  2,  2,  2,  3,  5,  7,  8,  10, 12, 13, 15, 17, 18, 19, 20,
                                        21, 22, 23, 23, 24, 24, 25, 25, 26, 27, 27, 28, 28, 29, 29, 30, 31};

struct ZOrder {
  uint8_t number[256] = {};
  constexpr ZOrder() {
    for (int y = 0; y < 16; ++y) {
      for (int x = 0; x < 16; ++x) {
        int z = 0;
        for (int bit = 0; bit < 4; ++bit) z |= ((x >> bit) & 1) << (2 * bit) | ((y >> bit) & 1) << (2 * bit + 1);
        number[y * 16 + x] = static_cast<uint8_t>(z);
      }
    }
  }
};
constexpr ZOrder kZOrder;

PictureTools picture_tools(const SequenceParameters& sps, const PictureParameters& pps) {
  PictureTools tools = {};
  tools.width = sps.width;
  tools.height = sps.height;
  tools.width_ctbs = sps.width_ctbs;
  tools.height_ctbs = sps.height_ctbs;
  tools.chroma = sps.chroma_array_type;
  tools.sub_width_log2 = sps.sub_width_log2;
  tools.sub_height_log2 = sps.sub_height_log2;
  tools.bit_depth[0] = sps.bit_depth_luma;
  tools.bit_depth[1] = sps.bit_depth_chroma;
  tools.qp_bd_offset[0] = sps.qp_bd_offset_luma;
  tools.qp_bd_offset[1] = sps.qp_bd_offset_chroma;
  tools.ctb_log2 = sps.ctb_log2;
  tools.min_cb_log2 = sps.min_cb_log2;
  tools.min_tb_log2 = sps.min_tb_log2;
  tools.max_tb_log2 = sps.max_tb_log2;
  tools.max_transform_depth = sps.max_transform_hierarchy_depth_intra;
  tools.min_qp_delta_log2 = pps.min_cu_qp_delta_log2;
  tools.min_chroma_qp_offset_log2 = sps.ctb_log2 - pps.diff_cu_chroma_qp_offset_depth;
  tools.max_transform_skip_log2 = pps.log2_max_transform_skip_size;
  tools.pcm_bit_depth[0] = sps.pcm_bit_depth_luma;
  tools.pcm_bit_depth[1] = sps.pcm_bit_depth_chroma;
  tools.min_pcm_log2 = sps.min_pcm_log2;
  tools.max_pcm_log2 = sps.max_pcm_log2;
  tools.pcm = sps.pcm_enabled_flag;
  tools.pcm_unfiltered = sps.pcm_enabled_flag && sps.pcm_loop_filter_disabled_flag;
  tools.strong_smoothing = sps.strong_intra_smoothing_enabled_flag;
  tools.no_smoothing = sps.intra_smoothing_disabled_flag;
  tools.transquant_bypass = pps.transquant_bypass_enabled_flag;
  tools.transform_skip = pps.transform_skip_enabled_flag;
  tools.sign_hiding = pps.sign_data_hiding_enabled_flag;
  tools.qp_delta = pps.cu_qp_delta_enabled_flag;
  tools.transform_skip_rotation = sps.transform_skip_rotation_enabled_flag;
  tools.transform_skip_context = sps.transform_skip_context_enabled_flag;
  tools.implicit_rdpcm = sps.implicit_rdpcm_enabled_flag;
  tools.cross_component = pps.cross_component_prediction_enabled_flag && sps.chroma_array_type == 3;
  tools.persistent_rice = sps.persistent_rice_adaptation_enabled_flag;
  tools.extended_precision = sps.extended_precision_processing_flag;
  for (int i = 0; i < 2; ++i) {
    tools.transform_range_log2[i] = tools.extended_precision ? std::max(15, tools.bit_depth[i] + 6) : 15;
  }
  tools.bypass_alignment = sps.cabac_bypass_alignment_enabled_flag;
  tools.wavefront = pps.entropy_coding_sync_enabled_flag;
  tools.across_tiles = pps.loop_filter_across_tiles_enabled_flag;
  tools.chroma_qp_offsets = pps.chroma_qp_offset_list_len_minus1 + 1;
  for (int i = 0; i < 6; ++i) {
    tools.cb_qp_offset_list[i] = static_cast<int8_t>(pps.cb_qp_offset_list[i]);
    tools.cr_qp_offset_list[i] = static_cast<int8_t>(pps.cr_qp_offset_list[i]);
  }
  tools.pps_cb_qp_offset = pps.pps_cb_qp_offset;
  tools.pps_cr_qp_offset = pps.pps_cr_qp_offset;
  tools.sao_scale_log2[0] = pps.log2_sao_offset_scale_luma;
  tools.sao_scale_log2[1] = pps.log2_sao_offset_scale_chroma;
  tools.scaling = sps.scaling_list_enabled_flag ? pps.scaling_list.factor : nullptr;
  tools.chroma_mode_422 = kChromaMode422;
  return tools;
}

}  // namespace

SliceTools slice_tools(const SliceHeader& header, const PictureParameters& pps) {
  SliceTools slice = {};
  slice.slice_address = header.slice_address;
  slice.slice_qp = header.slice_qp;
  slice.cb_qp_offset = pps.pps_cb_qp_offset + header.slice_cb_qp_offset;
  slice.cr_qp_offset = pps.pps_cr_qp_offset + header.slice_cr_qp_offset;
  slice.sao_luma = header.slice_sao_luma_flag;
  slice.sao_chroma = header.slice_sao_chroma_flag;
  slice.chroma_qp_offsets = header.cu_chroma_qp_offset_enabled_flag;
  slice.deblocking = !header.slice_deblocking_filter_disabled_flag;
  slice.across_slices = header.slice_loop_filter_across_slices_enabled_flag;
  slice.dependent = header.dependent_slice_segment_flag;
  slice.beta_offset = 2 * header.slice_beta_offset_div2;
  slice.tc_offset = 2 * header.slice_tc_offset_div2;
  return slice;
}

PictureMemory::PictureMemory(const SequenceParameters& sps, const PictureParameters& pps,
                             const NearestExtension& nearest, Frame& frame, int threads)
    : threads_(threads) {
  state.tools = picture_tools(sps, pps);
  state.tools.nearest_variant = nearest.variant;
  state.tools.no_edge_filters = nearest.variant != NearestExtension::kOff && !nearest.edge_filters;
  state.tools.nearest_threshold = nearest.threshold << (sps.bit_depth_luma - 8);
  const PictureTools& tools = state.tools;
  state.intra = FLEXOR_KERNELS(intra_kernels);
  state.transform = FLEXOR_KERNELS(transform_kernels);
  state.loop_filter = FLEXOR_KERNELS(loop_filter_kernels);
  for (int i = 0; i < frame.plane_count; ++i) {
    state.samples[i] = frame.planes[i].samples;
    state.stride[i] = frame.planes[i].stride;
  }

  const int ctbs = tools.width_ctbs * tools.height_ctbs;
  const int ctb_units = 1 << (tools.ctb_log2 - 2), ctb_blocks = 1 << (tools.ctb_log2 - tools.min_cb_log2);
  state.units_stride = tools.width_ctbs * ctb_units;
  state.blocks_stride = tools.width_ctbs * ctb_blocks;
  const size_t units = static_cast<size_t>(ctbs) * ctb_units * ctb_units;
  const size_t blocks = static_cast<size_t>(ctbs) * ctb_blocks * ctb_blocks;
  const bool chooses = nearest.variant == NearestExtension::kExplicit;
  bytes_.resize((chooses ? 4 : 3) * units + 3 * blocks);
  uint8_t* next = bytes_.data();
  const auto take = [&next](size_t count) {
    uint8_t* const taken = next;
    next += count;
    return taken;
  };
  state.luma_mode = take(units);
  state.vertical_edges = take(units);
  state.horizontal_edges = take(units);
  state.depth = take(blocks);
  state.qp = reinterpret_cast<int8_t*>(take(blocks));
  state.unfiltered = take(blocks);
  state.nearest = chooses ? take(units) : nullptr;
  sao_.resize(static_cast<size_t>(ctbs));
  state.sao = sao_.data();

  state.rs_to_ts = pps.ctb_addr_rs_to_ts.data();
  state.ts_to_rs = pps.ctb_addr_ts_to_rs.data();
  state.tile_id = pps.tile_id.data();
  tile_bounds_.resize(3 * static_cast<size_t>(ctbs));
  for (int y = 0; y < tools.height_ctbs; ++y) {
    const int top = *(std::upper_bound(pps.row_boundaries.begin(), pps.row_boundaries.end(), y) - 1);
    for (size_t column = 0; column + 1 < pps.column_boundaries.size(); ++column) {
      for (int x = pps.column_boundaries[column]; x < pps.column_boundaries[column + 1]; ++x) {
        const size_t rs = static_cast<size_t>(y) * tools.width_ctbs + x;
        tile_bounds_[rs] = pps.column_boundaries[column];
        tile_bounds_[ctbs + rs] = pps.column_boundaries[column + 1];
        tile_bounds_[2 * static_cast<size_t>(ctbs) + rs] = top;
      }
    }
  }
  state.tile_left = tile_bounds_.data();
  state.tile_right = tile_bounds_.data() + ctbs;
  state.tile_top = tile_bounds_.data() + 2 * static_cast<size_t>(ctbs);
  row_contexts_.resize(static_cast<size_t>(ctbs));
  state.row_contexts = row_contexts_.data();
  state.z_order = kZOrder.number;

  slice_of_ctb_.assign(static_cast<size_t>(ctbs), nullptr);
  state.slice = slice_of_ctb_.data();
  progress_ = std::vector<std::atomic<int>>(static_cast<size_t>(ctbs));
  state.publish = [](PictureState& picture, int row_rs, int count) { of(picture).publish(row_rs, count); };
  state.wait = [](PictureState& picture, int row_rs, int count) { of(picture).wait(row_rs, count); };
  state.wait_substream = [](PictureState& picture, int index) { of(picture).wait_substream(index); };
  state.progress = this;
}

void PictureMemory::publish(int row_rs, int count) {
  std::atomic<int>& done = progress_[static_cast<size_t>(row_rs)];
  int before = done.load(std::memory_order_relaxed);
  while (before < count && !done.compare_exchange_weak(before, count, std::memory_order_release)) {}
}

void PictureMemory::wait(int row_rs, int count) const {
  if (threads_ == 1) return;  // in decoding order all of it is there
  const std::atomic<int>& done = progress_[static_cast<size_t>(row_rs)];
  for (int tries = 0; done.load(std::memory_order_acquire) < count; ++tries) {
    if (given_up()) throw GivenUp();
    if (tries < 1000) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    } else {
      std::this_thread::yield();
    }
  }
}

std::unique_ptr<SharedBuffer> FramePool::take(size_t bytes) {
  {
    const std::lock_guard<std::mutex> guard(lock_);
    if (bytes == bytes_ && !free_.empty()) {
      std::unique_ptr<SharedBuffer> memory = std::move(free_.back());
      free_.pop_back();
      return memory;
    }
  }
  return std::make_unique<SharedBuffer>(bytes);
}

void FramePool::give_back(std::unique_ptr<SharedBuffer> memory, size_t bytes) noexcept {
  const std::lock_guard<std::mutex> guard(lock_);
  if (bytes != bytes_) free_.clear();
  bytes_ = bytes;
  try {
    if (free_.size() < most_) free_.push_back(std::move(memory));
  } catch (const std::bad_alloc&) {
    // The system has it back, which needs it now.
  }
}

Frame::~Frame() {
  if (pool_ != nullptr && memory_ != nullptr) pool_->give_back(std::move(memory_), bytes_);
}

Frame::Frame(const SequenceParameters& sps, FramePool* pool)
    : plane_count(sps.chroma_array_type == 0 ? 1 : 3), pool_(pool) {
  // A line more than the blocks need: kernels may read a little beyond a row.
  const size_t ctb = size_t{1} << sps.ctb_log2;
  size_t offsets[3] = {}, total = 0;
  for (int i = 0; i < plane_count; ++i) {
    const int sub_x = i > 0 ? sps.sub_width_log2 : 0, sub_y = i > 0 ? sps.sub_height_log2 : 0;
    const size_t width = (static_cast<size_t>(sps.width_ctbs) * ctb) >> sub_x;
    const size_t height = (static_cast<size_t>(sps.height_ctbs) * ctb) >> sub_y;
    planes[i].stride = static_cast<ptrdiff_t>((width + 63) / 32 * 32);
    planes[i].width = sps.width >> sub_x;
    planes[i].height = sps.height >> sub_y;
    offsets[i] = total + 64;
    total = offsets[i] + static_cast<size_t>(planes[i].stride) * (height + 1);
    total = (total + 63) / 64 * 64;
  }
  bytes_ = sizeof(uint16_t) * (total + 64);
  memory_ = pool != nullptr ? pool->take(bytes_) : std::make_unique<SharedBuffer>(bytes_);
  for (int i = 0; i < plane_count; ++i) planes[i].samples = memory_->as<uint16_t>() + offsets[i];
}

}  // namespace flexor::hevc
