// SPDX-License-Identifier: Apache-2.0
#include "hevc/stream.h"

#include <algorithm>

#include "hevc/nearest.h"
#include "hevc/picture_decoder.h"
#include "hevc/threads.h"

namespace flexor::hevc {
namespace {

constexpr size_t kPiece = size_t{1} << 20;  // of the input, copied at a time
constexpr size_t kMaxProblems = 8;          // kept; more of them say nothing new
constexpr size_t kMaxHashes = 4;            // of a picture; each costs a pass over its samples

// Encoders repeat their parameter sets before every picture: the same bytes keep the same object.
template <class Stored, class Parsed>
void store(Stored& slot, std::vector<uint8_t>&& rbsp, Parsed&& parsed) {
  if (slot.parsed != nullptr && slot.rbsp == rbsp) return;
  slot = {std::move(rbsp), std::move(parsed)};
}

void add_hashes(std::vector<PictureHash>& known, const std::vector<PictureHash>& more) {
  for (const PictureHash& hash : more)
    if (known.size() < kMaxHashes) known.push_back(hash);
}

// Every coding tree block takes a bit at least (a bypass bin of its intra mode, or PCM samples). A stream of headers
// without data would otherwise make a large picture of every few bytes.
bool has_too_few_bits(const CodedPicture& coded) {
  size_t bytes = 0;
  for (const SliceSegment& segment : coded.segments) bytes += segment.data.size();
  return bytes < coded.pps->tile_id.size() / 8;
}

}  // namespace

void StreamDecoder::add_parameter_sets(const std::vector<RawNal>& units) {
  for (const RawNal& raw : units) read_unit(raw);
  picture_announced_ = false;
}

void StreamDecoder::feed(const uint8_t* data, size_t size, bool prompt) {
  for (size_t at = 0; at < size && !stopped_; at += kPiece) {
    splitter_.append(data + at, std::min(kPiece, size - at));
    read_units();
  }
  if (prompt || stopped_) decode_batch();
}

void StreamDecoder::finish() {
  RawNal raw;
  bool cut_off = false;
  if (!stopped_) {
    const bool any = splitter_.rest(raw, cut_off);
    if (any && raw.size == 0) report("the data end after a start code");
    if (any && raw.size > 0) read_unit(raw);
    if (cut_off) report("the data end inside a NAL unit");
    if (const size_t skipped = splitter_.take_skipped(); skipped > 0)
      report(std::to_string(skipped) + " bytes before the first start code were skipped");
  }
  finish_picture();
  if (std::exchange(picture_announced_, false) && !stopped_)
    report("the data end before the picture that follows their last headers");
  sequence_ended_ = true;
  order_.flush();
  decode_batch();
}

std::vector<std::shared_ptr<OutputPicture>> StreamDecoder::take_pictures() {
  std::vector<std::shared_ptr<OutputPicture>> pictures;
  auto& ready = order_.ready();
  for (; !ready.empty() && (ready.front()->inter || !ready.front()->planes.empty()); ready.pop_front())
    if (!ready.front()->inter) pictures.push_back(ready.front());
  return pictures;
}

void StreamDecoder::report(const std::string& message, bool unsupported) {
  if (unsupported) {
    stopped_ = true;
    order_.flush();
  }
  if (problems_.size() < kMaxProblems || unsupported) problems_.push_back({unsupported, message});
}

void StreamDecoder::read_units() {
  RawNal raw;
  try {
    while (!stopped_ && splitter_.next(raw)) {
      if (raw.size > 0) read_unit(raw);
    }
  } catch (const StreamError& error) {
    report(error.what());
    stopped_ = true;
  }
}

void StreamDecoder::read_unit(const RawNal& raw) {
  NalUnit nal;
  try {
    nal = unwrap(raw.data, raw.size);
  } catch (const StreamError& error) {
    report(error.what());
    return;
  }
  if (!options_.inspect) return dispatch(nal, nullptr);
  TracedUnit unit;
  unit.nal.nal_unit_type = nal.nal_unit_type;
  unit.nal.nuh_layer_id = nal.nuh_layer_id;
  unit.nal.temporal_id = nal.temporal_id;
  unit.bytes = raw.size;
  dispatch(nal, &unit);
  if (is_slice(nal.nal_unit_type) && gathered_ != nullptr) unit.picture = gathered_->picture->number;
  units_.push_back(std::move(unit));
}

void StreamDecoder::dispatch(NalUnit& nal, SyntaxTrace* trace) {
  if (nal.nuh_layer_id > 0) return;  // enhancement layers
  const bool nearest = nal.nal_unit_type == kNalNearestSlice && nearest_.variant != NearestExtension::kOff;
  if (nearest) nal.nal_unit_type = kNalIdrNLp;
  const int type = nal.nal_unit_type;
  if (begins_access_unit(type) || type == kNalEos || type == kNalEob) finish_picture();
  if (is_slice(type)) {
    read_slice(nal, nearest, trace);
  } else if (type == kNalNearestParameters) {
    read_nearest(nal);
  } else if (type == kNalVps || type == kNalSps || type == kNalPps) {
    picture_announced_ = true;
    read_parameter_set(nal, trace);
  } else if (type == kNalPrefixSei || type == kNalSuffixSei) {
    read_sei(nal, trace);
  } else if (type == kNalEos || type == kNalEob) {
    sequence_ended_ = true;
  }
}

void StreamDecoder::read_parameter_set(NalUnit& nal, SyntaxTrace* trace) {
  BitReader reader(nal.rbsp.data(), nal.rbsp.size(), trace);
  const int type = nal.nal_unit_type;
  const char* const name = type == kNalVps ? "video" : type == kNalSps ? "sequence" : "picture";
  try {
    if (type == kNalVps) {
      if (trace != nullptr) parse_video_parameters(reader);
    } else if (type == kNalSps) {
      auto sps = parse_sequence_parameters(reader);
      store(sps_[static_cast<size_t>(sps->sps_seq_parameter_set_id)], std::move(nal.rbsp), std::move(sps));
    } else {
      auto pps = parse_picture_parameters(reader);
      store(pps_[static_cast<size_t>(pps->pps_pic_parameter_set_id)], std::move(nal.rbsp), std::move(pps));
    }
  } catch (const StreamError& error) {
    if (type != kNalVps) report(std::string("a ") + name + " parameter set cannot be read: " + error.what());
  } catch (const Unsupported& error) { report(error.what(), true); }
}

void StreamDecoder::read_sei(const NalUnit& nal, SyntaxTrace* trace) {
  BitReader reader(nal.rbsp.data(), nal.rbsp.size(), trace);
  std::vector<PictureHash> hashes;
  const bool suffix = nal.nal_unit_type == kNalSuffixSei;
  try {
    parse_sei(reader, hashes);
  } catch (const StreamError& error) {
    if (suffix && gathered_ != nullptr) gathered_->picture->add_damage(std::string("its SEI: ") + error.what());
  }
  if (!suffix) {
    picture_announced_ = true;
    add_hashes(prefix_hashes_, hashes);
  } else if (gathered_ != nullptr) {
    add_hashes(gathered_->picture->hashes, hashes);
  } else if (!hashes.empty() && !slice_dropped_) {
    report("the hash of a picture comes without the picture: its slices are missing");
  }
}

StreamDecoder::Parameters StreamDecoder::find_parameters(int pps_id) {
  const auto& parsed = pps_[static_cast<size_t>(pps_id)].parsed;
  if (parsed == nullptr) throw StreamError("its picture parameter set " + std::to_string(pps_id) + " is missing");
  const int sps_id = parsed->pps_seq_parameter_set_id;
  const auto& sps = sps_[static_cast<size_t>(sps_id)].parsed;
  if (sps == nullptr) throw StreamError("its sequence parameter set " + std::to_string(sps_id) + " is missing");
  if (active_.parsed != parsed || active_.sps != sps) active_ = {sps, parsed, activate(*parsed, *sps)};
  return active_;
}

bool StreamDecoder::continues(const NalUnit& nal, const SliceHeader& header, const Parameters& parameters) const {
  if (gathered_ == nullptr || header.first_slice_segment_in_pic_flag) return false;
  const Gathered& now = *gathered_;
  const int address = now.parameters.pps->ctb_addr_rs_to_ts[static_cast<size_t>(header.slice_segment_address)];
  return now.parameters.pps == parameters.pps && now.nal_unit_type == nal.nal_unit_type && address > now.last_address &&
         header.slice_pic_order_cnt_lsb == now.previous.slice_pic_order_cnt_lsb;
}

void StreamDecoder::read_nearest(const NalUnit& nal) {
  try {
    if (parse_nearest(nal.rbsp, nearest_)) picture_announced_ = true;
  } catch (const StreamError& error) { report(error.what()); } catch (const Unsupported& error) {
    report(error.what(), true);
  }
}

void StreamDecoder::read_slice(NalUnit& nal, bool nearest, SyntaxTrace* trace) {
  picture_announced_ = false;
  slice_dropped_ = true;
  BitReader reader(nal.rbsp.data(), nal.rbsp.size(), trace);
  try {
    SliceHeader header = parse_slice_start(reader, nal.nal_unit_type);
    const bool skipped = skip_rasl_ && is_rasl(nal.nal_unit_type);
    if (header.first_slice_segment_in_pic_flag || skipped) finish_picture();
    if (skipped || stopped_) return;
    const Parameters parameters = find_parameters(header.slice_pic_parameter_set_id);
    if (gathered_ != nullptr && gathered_->parameters.pps != parameters.pps) finish_picture();
    std::vector<uint32_t> offsets;
    parse_slice_header(reader, nal.nal_unit_type, *parameters.sps, *parameters.pps,
                       gathered_ != nullptr ? &gathered_->previous : nullptr, header, offsets);
    if (!continues(nal, header, parameters)) {
      if (header.dependent_slice_segment_flag) throw StreamError("a dependent slice segment is out of order");
      finish_picture();
      if (stopped_) return;
      begin_picture(nal, header, parameters);
      if (nearest) gathered_->picture->coded.nearest = nearest_;
    }
    add_segment(nal, header, reader.position() / 8, offsets);
    slice_dropped_ = false;
  } catch (const StreamError& error) {
    const std::string message = std::string("a slice cannot be read: ") + error.what();
    if (gathered_ != nullptr) {
      gathered_->picture->add_damage(message);
    } else {
      report("picture " + std::to_string(next_number_) + ": " + message);
    }
  } catch (const Unsupported& error) { report(error.what(), true); }
}

// Clause 8.3.1. 64 bits: a hostile stream may count on without end.
int64_t StreamDecoder::order_count(const NalUnit& nal, const SliceHeader& header, const SequenceParameters& sps,
                                   bool resets) {
  const int64_t cycle = int64_t{1} << (sps.log2_max_pic_order_cnt_lsb_minus4 + 4);
  const int64_t lsb = header.slice_pic_order_cnt_lsb;
  int64_t msb = 0;
  if (!resets) {
    const int64_t previous_lsb = previous_order_count_ & (cycle - 1);
    msb = previous_order_count_ - previous_lsb;
    if (lsb < previous_lsb && previous_lsb - lsb >= cycle / 2) msb += cycle;
    if (lsb > previous_lsb && lsb - previous_lsb > cycle / 2) msb -= cycle;
  }
  if (nal.temporal_id == 0 && !is_leading(nal.nal_unit_type) && !is_sub_layer_non_reference(nal.nal_unit_type))
    previous_order_count_ = msb + lsb;
  return msb + lsb;
}

void StreamDecoder::begin_picture(const NalUnit& nal, const SliceHeader& header, const Parameters& parameters) {
  const int type = nal.nal_unit_type;
  const bool resets = is_irap(type) && (sequence_ended_ || type != kNalCra);
  if (is_irap(type)) skip_rasl_ = resets;
  sequence_ended_ = false;
  auto picture = std::make_shared<OutputPicture>();
  picture->number = next_number_++;
  picture->order_count = order_count(nal, header, *parameters.sps, resets);
  picture->nal_unit_type = type;
  picture->output = header.pic_output_flag;
  picture->sps = picture->coded.sps = parameters.sps;
  picture->coded.pps = parameters.pps;
  picture->hashes = std::exchange(prefix_hashes_, {});
  if (options_.inspect) picture->analysis = std::make_unique<Analysis>();
  if (!header.first_slice_segment_in_pic_flag) picture->add_damage("its first slice is missing");
  order_.begin_picture(*parameters.sps, resets, type == kNalCra || header.no_output_of_prior_pics_flag);
  gathered_ = std::make_unique<Gathered>();
  gathered_->picture = std::move(picture);
  gathered_->parameters = parameters;
  gathered_->nal_unit_type = type;
}

void StreamDecoder::add_segment(NalUnit& nal, const SliceHeader& header, size_t header_bytes,
                                const std::vector<uint32_t>& offsets) {
  Gathered& now = *gathered_;
  now.previous = header;
  now.last_address = now.parameters.pps->ctb_addr_rs_to_ts[static_cast<size_t>(header.slice_segment_address)];
  if (header.slice_type != kSliceI) now.picture->inter = true;
  if (now.picture->inter) {
    now.picture->coded.segments.clear();
    return;
  }
  SliceSegment segment;
  segment.header = header;
  segment.substreams = substream_positions(nal, header_bytes, offsets);
  nal.rbsp.erase(nal.rbsp.begin(), nal.rbsp.begin() + static_cast<ptrdiff_t>(header_bytes));
  segment.data = std::move(nal.rbsp);
  now.picture->coded.segments.push_back(std::move(segment));
}

void StreamDecoder::finish_picture() {
  if (gathered_ == nullptr) return;
  const std::unique_ptr<Gathered> done = std::move(gathered_);
  if (done->picture->inter && !options_.skip_inter) {
    report("picture " + std::to_string(done->picture->number) + " (in decoding order; POC " +
               std::to_string(done->picture->order_count) + ") is inter coded (slice_type " +
               (done->previous.slice_type == kSliceB ? "B" : "P") +
               "); flexor decodes intra pictures: take those before it from .pictures, or leave inter pictures out "
               "with skip_inter=True",
           true);
    return;
  }
  if (!done->picture->inter && has_too_few_bits(done->picture->coded)) {
    report("picture " + std::to_string(done->picture->number) + " has fewer bits than coding tree blocks");
    return;
  }
  order_.add(done->picture, *done->parameters.sps);
  if (done->picture->inter || !done->picture->output) return;
  batch_.push_back(done->picture);
  if (batch_.size() >= static_cast<size_t>(options_.threads)) decode_batch();
}

// Intra pictures need nothing of each other: with one for every thread they are decoded side by side. Fewer share the
// threads among their wavefront rows, tiles or slices.
void StreamDecoder::decode_batch() {
  const std::vector<std::shared_ptr<OutputPicture>> pictures = std::exchange(batch_, {});
  const int count = static_cast<int>(pictures.size());
  const bool side_by_side = count >= options_.threads;
  run_tasks(side_by_side ? options_.threads : 1, count, [&](int i) {
    decode_output(*pictures[static_cast<size_t>(i)], pool_, side_by_side ? 1 : options_.threads, options_.verify);
  });
}

}  // namespace flexor::hevc
