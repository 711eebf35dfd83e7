// SPDX-License-Identifier: Apache-2.0
#include "hevc/picture_encoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>

#include "hevc/encoder_state.h"
#include "hevc/filter_picture.h"
#include "hevc/header_writer.h"
#include "hevc/nal.h"
#include "hevc/nearest.h"
#include "hevc/offset_search.h"
#include "hevc/picture_memory.h"
#include "hevc/threads.h"

namespace flexor::hevc {
namespace {

// Table A.8: the least level whose MaxLumaPs and sides hold a picture; level_idc is 30 times the level.
int level_of(int width, int height) {
  struct Level {
    int idc, samples;
  };
  static constexpr Level kLevels[] = {{30, 36864},    {60, 122880},   {63, 245760},    {90, 552960},   {93, 983040},
                                      {120, 2228224}, {150, 8912896}, {180, 35651584}, {189, 80216064}};
  for (const Level& level : kLevels) {
    const int64_t w = width, h = height, limit = int64_t{8} * level.samples;
    if (w * h <= level.samples && w * w <= limit && h * h <= limit) return level.idc;
  }
  return 216;
}

std::shared_ptr<const SequenceParameters> make_sps(const EncoderOptions& options) {
  auto out = std::make_shared<SequenceParameters>();
  SequenceParameters& sps = *out;
  sps.chroma_format_idc = sps.chroma_array_type = options.chroma_format;
  sps.sub_width_log2 = options.chroma_format == 1 || options.chroma_format == 2;
  sps.sub_height_log2 = options.chroma_format == 1;
  sps.min_cb_log2 = 3;
  sps.ctb_log2 = options.preset == Preset::kFast ? 5 : 6;
  sps.min_tb_log2 = 2;
  sps.max_tb_log2 = 5;
  sps.max_transform_hierarchy_depth_intra = options.preset == Preset::kFast     ? 0
                                            : options.preset == Preset::kMedium ? 1
                                                                                : 2;
  sps.width = (options.width + 7) / 8 * 8;
  sps.height = (options.height + 7) / 8 * 8;
  sps.crop_right = sps.width - options.width;
  sps.crop_bottom = sps.height - options.height;
  sps.width_ctbs = (sps.width + (1 << sps.ctb_log2) - 1) >> sps.ctb_log2;
  sps.height_ctbs = (sps.height + (1 << sps.ctb_log2) - 1) >> sps.ctb_log2;
  sps.bit_depth_luma = sps.bit_depth_chroma = options.bit_depth;
  sps.qp_bd_offset_luma = sps.qp_bd_offset_chroma = 6 * (options.bit_depth - 8);
  sps.sample_adaptive_offset_enabled_flag = !options.lossless;
  sps.strong_intra_smoothing_enabled_flag = true;
  sps.persistent_rice_adaptation_enabled_flag = options.range_extensions;
  // Not of lossless blocks, which FFmpeg decodes wrongly with these two.
  sps.transform_skip_rotation_enabled_flag = options.range_extensions && !options.lossless;
  sps.implicit_rdpcm_enabled_flag = options.range_extensions && !options.lossless;
  sps.vui_parameters_present_flag = true;
  sps.vui = options.usability;
  ProfileTierLevel& profile = sps.profile_tier_level;
  profile.general_profile_idc = options.chroma_format != 1 || options.range_extensions ? 4
                                : options.bit_depth > 8                                ? 2
                                                                                       : 1;
  profile.general_profile_compatibility_flags = uint32_t{1} << (31 - profile.general_profile_idc);
  if (profile.general_profile_idc == 1) profile.general_profile_compatibility_flags |= uint32_t{1} << 29;
  profile.general_level_idc = level_of(sps.width, sps.height);
  return out;
}

std::shared_ptr<const PictureParameters> make_pps(const EncoderOptions& options, const SequenceParameters& sps) {
  PictureParameters pps;
  pps.init_qp_minus26 = std::clamp(options.qp - 26, -26, 25);
  pps.sign_data_hiding_enabled_flag = !options.lossless && options.preset != Preset::kFast;
  pps.transform_skip_enabled_flag = !options.lossless;
  pps.transquant_bypass_enabled_flag = options.lossless;
  pps.cross_component_prediction_enabled_flag = sps.chroma_array_type == 3 && options.preset != Preset::kFast;
  pps.pps_range_extension_flag = pps.cross_component_prediction_enabled_flag;
  // libde265 1.0.11 loses count of persistent Rice parameters from substream to substream.
  pps.entropy_coding_sync_enabled_flag = !options.range_extensions;
  pps.deblocking_filter_control_present_flag = options.lossless;
  pps.pps_deblocking_filter_disabled_flag = options.lossless;
  return activate(pps, sps);
}

NearestExtension nearest_of(const EncoderOptions& options) {
  const int variant = static_cast<int>(options.nearest);
  return {variant, options.nearest_threshold >= 0 ? options.nearest_threshold : kDefaultNearestThreshold[variant],
          options.edge_filters};
}

SearchEffort effort_of(Preset preset) {
  switch (preset) {
    case Preset::kFast: return {1, 1, 0, 0, 1, true, true, false, false, 0.04};
    case Preset::kMedium: return {4, 2, 1, 1, 5, false, true, true, true, 0.02};
    default: return {8, 4, 2, 2, 5, false, true, true, true, 0.005};
  }
}

// Costs of bins in 1 / 32768 bit by model ^ bin: states of less and less probable values, each by the factor that takes
// 1 / 2 to 0.01875 in 63 steps.
struct EntropyTable {
  int32_t cost[128];
  EntropyTable() {
    for (int state = 0; state < 64; ++state) {
      const double rare = 0.5 * std::pow(0.01875 / 0.5, std::min(state, 62) / 63.0);
      cost[2 * state] = static_cast<int32_t>(std::lround(-std::log2(1 - rare) * 32768));
      cost[2 * state + 1] = static_cast<int32_t>(std::lround(-std::log2(rare) * 32768));
    }
  }
};

class EncodingJob {
 public:
  EncodingJob(const EncoderOptions& options, const SequenceParameters& sps, const PictureParameters& pps, int threads);
  void read(const SourcePlane planes[3]);
  void search();
  void filter();
  std::vector<uint8_t> write(bool hash);

 private:
  const EncoderOptions& options_;
  const SequenceParameters& sps_;
  const PictureParameters& pps_;
  const int threads_;
  Frame source_, frame_;
  PictureMemory memory_;
  EncoderState state_ = {};
  SliceHeader header_;
  std::vector<uint16_t> units_;
  std::vector<uint8_t> bytes_;
  std::vector<int16_t> levels_[3], luma_residual_;
  std::vector<int8_t> scales_;
  std::vector<ContextState> search_contexts_;
};

EncodingJob::EncodingJob(const EncoderOptions& options, const SequenceParameters& sps, const PictureParameters& pps,
                         int threads)
    : options_(options),
      sps_(sps),
      pps_(pps),
      threads_(threads),
      source_(sps),
      frame_(sps),
      memory_(sps, pps, nearest_of(options), frame_, threads) {
  static const EntropyTable kEntropy;
  state_.picture = memory_.state;
  const PictureTools& tools = state_.picture.tools;
  header_.slice_qp = options.qp;
  header_.slice_sao_luma_flag = sps.sample_adaptive_offset_enabled_flag;
  header_.slice_sao_chroma_flag = header_.slice_sao_luma_flag && sps.chroma_array_type != 0;
  header_.slice_deblocking_filter_disabled_flag = pps.pps_deblocking_filter_disabled_flag;
  state_.slice = slice_tools(header_, pps);
  state_.effort = effort_of(options.preset);
  state_.lossless = options.lossless;
  state_.lambda =
      options.lossless ? 1.0 : 0.57 * std::pow(2.0, (options.qp - 12) / 3.0) * std::pow(4.0, options.bit_depth - 8);
  const int chroma_format = tools.chroma;
  for (int c = 0; c < 3; ++c) state_.chroma_weight[c] = 1;
  if (chroma_format == 1) {
    const int chroma_qp = chroma_qp_of_index(chroma_format, options.qp);
    state_.chroma_weight[1] = state_.chroma_weight[2] = std::pow(2.0, (options.qp - chroma_qp) / 3.0);
  }
  state_.entropy = kEntropy.cost;

  const size_t ctbs = static_cast<size_t>(tools.width_ctbs) * tools.height_ctbs;
  const size_t units = ctbs << (2 * (tools.ctb_log2 - 2)), blocks = ctbs << (2 * (tools.ctb_log2 - 3));
  units_.resize(units);
  bytes_.resize(units + blocks);
  state_.units = units_.data();
  state_.chroma_coded = bytes_.data();
  state_.nxn = bytes_.data() + units;
  for (int c = 0; c < frame_.plane_count; ++c) {
    const size_t rows =
        (static_cast<size_t>(tools.height_ctbs) << tools.ctb_log2) >> (c > 0 ? tools.sub_height_log2 : 0);
    levels_[c].resize(rows * static_cast<size_t>(frame_.planes[c].stride));
    state_.levels[c] = levels_[c].data();
    state_.original[c] = source_.planes[c].samples;
    state_.original_stride[c] = source_.planes[c].stride;
  }
  scales_.resize(2 * units);
  state_.scales[0] = scales_.data();
  state_.scales[1] = scales_.data() + units;
  if (tools.cross_component) luma_residual_.resize(levels_[0].size());
  state_.luma_residual = luma_residual_.data();
  search_contexts_.resize(ctbs);
  state_.row_contexts = search_contexts_.data();
  std::fill_n(state_.picture.qp, blocks, static_cast<int8_t>(options.qp));
  std::fill_n(state_.picture.unfiltered, blocks, static_cast<uint8_t>(options.lossless));
  for (size_t i = 0; i < ctbs; ++i) state_.picture.slice[i] = &state_.slice;
}

// The picture, its last row and column repeated up to the coded size.
void EncodingJob::read(const SourcePlane planes[3]) {
  for (int c = 0; c < source_.plane_count; ++c) {
    const Plane& plane = source_.planes[c];
    const int sub_x = c > 0 ? sps_.sub_width_log2 : 0, sub_y = c > 0 ? sps_.sub_height_log2 : 0;
    const int width = (options_.width + sub_x) >> sub_x, height = (options_.height + sub_y) >> sub_y;
    for (int y = 0; y < plane.height; ++y) {
      uint16_t* const row = plane.samples + y * plane.stride;
      const ptrdiff_t from = std::min(y, height - 1) * planes[c].stride;
      if (planes[c].bytes == 1) {
        const uint8_t* const in = static_cast<const uint8_t*>(planes[c].samples) + from;
        for (int x = 0; x < width; ++x) row[x] = in[x];
      } else {
        std::memcpy(row, static_cast<const uint16_t*>(planes[c].samples) + from,
                    sizeof(uint16_t) * static_cast<size_t>(width));
      }
      for (int x = width; x < plane.width; ++x) row[x] = row[width - 1];
    }
  }
}

// Rows wait for each other: one that finds no memory must end the others' waiting.
void EncodingJob::search() {
  const EncoderKernels& kernels = FLEXOR_KERNELS(encoder_kernels);
  std::exception_ptr failure;
  std::mutex failure_lock;
  run_tasks(threads_, sps_.height_ctbs, [&](int row) {
    if (memory_.given_up()) return;
    try {
      kernels.search_row(state_, row);
    } catch (const GivenUp&) {
    } catch (...) {
      const std::lock_guard<std::mutex> guard(failure_lock);
      failure = std::current_exception();
      memory_.give_up();
    }
  });
  if (failure != nullptr) std::rethrow_exception(failure);
}

void EncodingJob::filter() {
  if (options_.lossless) return;
  PictureFilter filter(state_.picture);
  run_tasks(threads_, sps_.height_ctbs, [&](int row) { filter.columns(row); });
  run_tasks(threads_, sps_.height_ctbs, [&](int row) { filter.rows(row); });
  decide_offsets(state_, threads_);
  run_tasks(threads_, sps_.height_ctbs, [&](int row) { filter.keep(row); });
  run_tasks(threads_, sps_.height_ctbs, [&](int row) { filter.offsets(row); });
}

std::vector<uint8_t> EncodingJob::write(bool hash) {
  const EncoderKernels& kernels = FLEXOR_KERNELS(encoder_kernels);
  const int count = pps_.entropy_coding_sync_enabled_flag ? sps_.height_ctbs : 1;
  const int height = sps_.height_ctbs / count;  // of a substream, in CTBs
  std::vector<std::vector<uint8_t>> rows(static_cast<size_t>(count));
  for (int row = 0; row < count; ++row) {
    std::vector<uint8_t>& bytes = rows[static_cast<size_t>(row)];
    bytes.resize(4096);
    ByteSink sink = {bytes.data(), 0, bytes.size(),
                     [](ByteSink& full, size_t more) {
                       auto& owner = *static_cast<std::vector<uint8_t>*>(full.owner);
                       owner.resize(2 * owner.size() + more);
                       full.data = owner.data();
                       full.capacity = owner.size();
                     },
                     &bytes};
    kernels.write_rows(state_, row * height, height, sink);
    bytes.resize(sink.size);
  }
  // Emulation prevention bytes count in the entry points, and where they go depends on what stands before: the header
  // ends byte aligned with a bit that is 1, so that it does not matter how long it is.
  std::vector<uint32_t> entry_points;
  int zeros = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    uint32_t size = 0;
    for (const uint8_t byte : rows[i]) {
      if (zeros >= 2 && byte <= 3) {
        ++size;
        zeros = 0;
      }
      ++size;
      zeros = byte == 0 ? zeros + 1 : 0;
    }
    if (i + 1 < rows.size()) entry_points.push_back(size);
  }
  std::vector<uint8_t> slice = write_slice_header(header_, sps_, pps_, entry_points);
  for (const std::vector<uint8_t>& row : rows) slice.insert(slice.end(), row.begin(), row.end());
  std::vector<uint8_t> stream;
  append_nal(stream, options_.nearest == Nearest::kOff ? kNalIdrNLp : kNalNearestSlice, slice);
  if (hash) {
    std::vector<Digest> digests(static_cast<size_t>(frame_.plane_count));
    for (int c = 0; c < frame_.plane_count; ++c)
      digests[static_cast<size_t>(c)] = hash_plane(HashMethod::kMd5, frame_.planes[c], options_.bit_depth);
    append_nal(stream, kNalSuffixSei, write_picture_hash(digests));
  }
  return stream;
}

}  // namespace

PictureEncoder::PictureEncoder(const EncoderOptions& options)
    : options_(options), sps_(make_sps(options)), pps_(make_pps(options, *sps_)) {}

std::vector<uint8_t> PictureEncoder::parameter_sets() const {
  std::vector<uint8_t> stream;
  append_nal(stream, kNalVps, write_video_parameters(*sps_));
  append_nal(stream, kNalSps, write_sequence_parameters(*sps_));
  append_nal(stream, kNalPps, write_picture_parameters(*pps_));
  if (options_.nearest != Nearest::kOff) append_nal(stream, kNalNearestParameters, write_nearest(nearest_of(options_)));
  return stream;
}

std::vector<uint8_t> PictureEncoder::encode(const SourcePlane planes[3], int threads) const {
  EncodingJob job(options_, *sps_, *pps_, std::max(threads, 1));
  job.read(planes);
  job.search();
  job.filter();
  return job.write(options_.hash);
}

}  // namespace flexor::hevc
