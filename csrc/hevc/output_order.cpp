// SPDX-License-Identifier: Apache-2.0
#include "hevc/output_order.h"

#include <algorithm>

namespace flexor::hevc {

void OutputOrder::begin_picture(const SequenceParameters& sps, bool begins_sequence, bool drop) {
  if (begins_sequence) {
    if (drop) waiting_.clear();
    flush();
    return;
  }
  const size_t capacity = static_cast<size_t>(sps.sps_max_dec_pic_buffering_minus1) + 1;
  while (!waiting_.empty() && (too_many(sps) || waiting_.size() >= capacity)) bump();
}

void OutputOrder::add(Entry picture, const SequenceParameters& sps) {
  if (!picture->output) return;
  for (Waiting& other : waiting_)
    if (other.picture->order_count > picture->order_count) ++other.latency;
  waiting_.push_back({std::move(picture)});
  while (!waiting_.empty() && too_many(sps)) bump();
}

void OutputOrder::flush() {
  while (!waiting_.empty()) bump();
}

bool OutputOrder::too_many(const SequenceParameters& sps) const {
  if (waiting_.size() > static_cast<size_t>(sps.sps_max_num_reorder_pics)) return true;
  if (sps.sps_max_latency_increase_plus1 == 0) return false;
  const uint64_t most =
      uint64_t{sps.sps_max_latency_increase_plus1} - 1 + static_cast<uint64_t>(sps.sps_max_num_reorder_pics);
  return std::any_of(waiting_.begin(), waiting_.end(), [most](const Waiting& w) { return w.latency >= most; });
}

void OutputOrder::bump() {
  const auto first = std::min_element(waiting_.begin(), waiting_.end(), [](const Waiting& a, const Waiting& b) {
    return a.picture->order_count < b.picture->order_count;
  });
  ready_.push_back(std::move(first->picture));
  waiting_.erase(first);
}

}  // namespace flexor::hevc
