// SPDX-License-Identifier: Apache-2.0
#include "hevc/offset_search.h"

#include <algorithm>
#include <cstring>

#include "hevc/threads.h"

namespace flexor::hevc {
namespace {

// Samples and summed differences to the original, by band and by edge class and index.
struct Statistics {
  int64_t band_sum[32], band_count[32];
  int64_t edge_sum[4][5], edge_count[4][5];
};

struct Region {
  int x, y, width, height, plane_width, plane_height;
};

Region region_of(const PictureTools& tools, int component, int ctb_rs) {
  const int sub_x = component > 0 ? tools.sub_width_log2 : 0, sub_y = component > 0 ? tools.sub_height_log2 : 0;
  const int x = (ctb_rs % tools.width_ctbs) << tools.ctb_log2, y = (ctb_rs / tools.width_ctbs) << tools.ctb_log2;
  const int size = 1 << tools.ctb_log2;
  return {x >> sub_x,
          y >> sub_y,
          std::min(size, tools.width - x) >> sub_x,
          std::min(size, tools.height - y) >> sub_y,
          tools.width >> sub_x,
          tools.height >> sub_y};
}

int sign(int value) { return (value > 0) - (value < 0); }

Statistics measure(const EncoderState& state, int component, int ctb_rs) {
  Statistics out = {};
  const PictureTools& tools = state.picture.tools;
  const Region r = region_of(tools, component, ctb_rs);
  const ptrdiff_t stride = state.picture.stride[component], original_stride = state.original_stride[component];
  const int band_shift = tools.bit_depth[component > 0] - 5;
  static constexpr int kStepX[4] = {1, 0, 1, -1}, kStepY[4] = {0, 1, 1, 1};
  static constexpr int kEdgeIndex[5] = {1, 2, 0, 3, 4};
  for (int y = r.y; y < r.y + r.height; ++y) {
    const uint16_t* const row = state.picture.samples[component] + y * stride;
    const uint16_t* const original = state.original[component] + y * original_stride;
    for (int x = r.x; x < r.x + r.width; ++x) {
      const int difference = original[x] - row[x];
      out.band_sum[row[x] >> band_shift] += difference;
      ++out.band_count[row[x] >> band_shift];
      for (int direction = 0; direction < 4; ++direction) {
        const int dx = kStepX[direction], dy = kStepY[direction];
        if (x - dx < 0 || x - dx >= r.plane_width || x + dx < 0 || x + dx >= r.plane_width || y - dy < 0 ||
            y + dy >= r.plane_height)
          continue;
        const int index =
            kEdgeIndex[2 + sign(row[x] - row[x - dx - dy * stride]) + sign(row[x] - row[x + dx + dy * stride])];
        out.edge_sum[direction][index] += difference;
        ++out.edge_count[direction][index];
      }
    }
  }
  return out;
}

// The change of the squared error where `count` samples that lack `sum` in all gain `offset` each.
double change(int64_t sum, int64_t count, int offset) {
  return static_cast<double>(count) * offset * offset - 2.0 * static_cast<double>(offset) * static_cast<double>(sum);
}

// The best offset between low and high, its bits counted as a truncated unary code.
int best_offset(int64_t sum, int64_t count, int low, int high, int largest, double lambda, bool with_sign,
                double& cost) {
  int best = 0;
  cost = lambda;  // of offset 0
  if (count == 0) return 0;
  const double mean = static_cast<double>(sum) / static_cast<double>(count);
  const int start = std::clamp(static_cast<int>(mean < 0 ? mean - 0.5 : mean + 0.5), low, high);
  for (int offset = start; offset != 0; offset += offset > 0 ? -1 : 1) {
    const int size = std::abs(offset);
    const double bits = (size < largest ? size + 1 : size) + (with_sign ? 1 : 0);
    const double candidate = change(sum, count, offset) + lambda * bits;
    if (candidate < cost) {
      cost = candidate;
      best = offset;
    }
  }
  return best;
}

struct Choice {
  double cost = 0;  // against no offset, in SSE
  int type = 0, band_or_class = 0;
  int offset[4] = {};
};

Choice best_band(const Statistics& s, int largest, double lambda) {
  int offsets[32];
  double costs[32];
  for (int band = 0; band < 32; ++band)
    offsets[band] =
        best_offset(s.band_sum[band], s.band_count[band], -largest, largest, largest, lambda, true, costs[band]);
  Choice best;
  best.cost = 1e300;
  for (int first = 0; first < 29; ++first) {
    const double cost = costs[first] + costs[first + 1] + costs[first + 2] + costs[first + 3] + lambda * 5;
    if (cost >= best.cost) continue;
    best.cost = cost;
    best.type = 1;
    best.band_or_class = first;
    for (int i = 0; i < 4; ++i) best.offset[i] = offsets[first + i];
  }
  return best;
}

Choice edge_choice(const Statistics& s, int direction, int largest, double lambda) {
  Choice choice;
  choice.type = 2;
  choice.band_or_class = direction;
  for (int i = 0; i < 4; ++i) {
    double cost;
    const bool up = i < 2;
    choice.offset[i] = best_offset(s.edge_sum[direction][i + 1], s.edge_count[direction][i + 1], up ? 0 : -largest,
                                   up ? largest : 0, largest, lambda, false, cost);
    choice.cost += cost;
  }
  return choice;
}

void put(SaoParameters& sao, int component, const Choice& choice) {
  sao.type[component] = static_cast<uint8_t>(choice.type);
  sao.band_or_class[component] = static_cast<uint8_t>(choice.band_or_class);
  for (int i = 0; i < 4; ++i) sao.offset[component][i] = static_cast<int16_t>(choice.offset[i]);
}

// What other parameters would do to the statistics of a CTB.
double cost_of(const SaoParameters& sao, int component, const Statistics& s) {
  double cost = 0;
  for (int i = 0; i < 4; ++i) {
    const int offset = sao.offset[component][i];
    if (sao.type[component] == 1) {
      const int band = (sao.band_or_class[component] + i) & 31;
      cost += change(s.band_sum[band], s.band_count[band], offset);
    } else if (sao.type[component] == 2) {
      const int direction = sao.band_or_class[component];
      cost += change(s.edge_sum[direction][i + 1], s.edge_count[direction][i + 1], offset);
    }
  }
  return cost;
}

}  // namespace

void decide_offsets(EncoderState& state, int threads) {
  const PictureTools& tools = state.picture.tools;
  const int components = tools.chroma == 0 ? 1 : 3, width = tools.width_ctbs;
  const int ctbs = width * tools.height_ctbs;
  std::vector<Statistics> statistics(static_cast<size_t>(3 * ctbs));
  run_tasks(threads, ctbs, [&](int ctb) {
    for (int c = 0; c < components; ++c) statistics[static_cast<size_t>(3 * ctb + c)] = measure(state, c, ctb);
  });
  SaoParameters* const sao = state.picture.sao;
  for (int ctb = 0; ctb < ctbs; ++ctb) {
    const Statistics* const here = &statistics[static_cast<size_t>(3 * ctb)];
    SaoParameters own;
    std::memset(&own, 0, sizeof own);
    double own_cost = state.lambda;  // no merge
    {
      const int largest = (1 << (std::min(tools.bit_depth[0], 10) - 5)) - 1;
      Choice best = best_band(here[0], largest, state.lambda);
      best.cost += 2 * state.lambda;
      for (int direction = 0; direction < 4; ++direction) {
        Choice choice = edge_choice(here[0], direction, largest, state.lambda);
        choice.cost += 4 * state.lambda;
        if (choice.cost < best.cost) best = choice;
      }
      if (best.cost < state.lambda) {
        put(own, 0, best);
        own_cost += best.cost;
      } else {
        own_cost += state.lambda;
      }
    }
    if (components == 3) {
      const double lambda = state.lambda / state.chroma_weight[1];
      const int largest = (1 << (std::min(tools.bit_depth[1], 10) - 5)) - 1;
      Choice cb = best_band(here[1], largest, lambda), cr = best_band(here[2], largest, lambda);
      double best = cb.cost + cr.cost + 2 * lambda;
      for (int direction = 0; direction < 4; ++direction) {
        const Choice edge_cb = edge_choice(here[1], direction, largest, lambda);
        const Choice edge_cr = edge_choice(here[2], direction, largest, lambda);
        const double cost = edge_cb.cost + edge_cr.cost + 4 * lambda;
        if (cost < best) {
          best = cost;
          cb = edge_cb;
          cr = edge_cr;
        }
      }
      if (best < lambda) {
        put(own, 1, cb);
        put(own, 2, cr);
        own_cost += best * state.chroma_weight[1];
      } else {
        own_cost += state.lambda;
      }
    }
    const SaoParameters* best = &own;
    for (const int other : {ctb % width > 0 ? ctb - 1 : -1, ctb >= width ? ctb - width : -1}) {
      if (other < 0) continue;
      double cost = state.lambda;
      for (int c = 0; c < components; ++c) cost += state.chroma_weight[c] * cost_of(sao[other], c, here[c]);
      if (cost < own_cost) {
        own_cost = cost;
        best = &sao[other];
      }
    }
    const SaoParameters chosen = *best;
    sao[ctb] = chosen;
  }
}

}  // namespace flexor::hevc
