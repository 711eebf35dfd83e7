// SPDX-License-Identifier: Apache-2.0
// A vector holds one sample of as many blocks as it has lanes. Angles, weights and positions are then the same in all
// lanes, and neither prediction nor transform ever moves a sample from one lane to another. Horizontal modes are
// vertical ones on the transposed block, which no cost notices.
#include "core/tasks.h"
#include "intra/intra_blocks.h"
#include "intra/intra_rows.h"

namespace flexor::FLEXOR_ISA {
namespace {

constexpr int W = kLanes<uint16_t>;  // blocks at a time
using V = Vec<uint16_t, W>;
using Wide = Vec<uint32_t, W>;

FLEXOR_INLINE V splat_of(int x) { return splat<V>(static_cast<uint16_t>(x)); }
FLEXOR_INLINE V halved(V x) { return (V)((Vec<int16_t, W>)x >> 1); }  // of numbers with signs

// One side of the border from the corner on, sample[0]; step[i] = sample[i + 1] - sample[i]. Before the corner there
// is room for n samples of the other side, projected.
struct Line {
  V *sample, *step;
};

struct Group {
  const IntraSearchParams& p;
  int n;
  Line lines[2][2];  // [smoothed][0 on top, 1 at the left]
  V* original;       // part after part of T x T, row after row
  int32_t* costs;    // [candidate][lane]
};

void finish(const Line& line, int n) {
  for (int i = 0; i < 2 * n; ++i) line.step[i] = line.sample[i + 1] - line.sample[i];
}

void smooth(Group& g) {
  const int n = g.n, log2_size = g.p.log2_size;
  const V *top = g.lines[0][0].sample, *left = g.lines[0][1].sample;
  V straight{};
  if (g.p.strong_smoothing && n >= 32) {
    const V bend_top = magnitude<W>(top[0] + top[2 * n] - top[n] - top[n]);
    const V bend_left = magnitude<W>(left[0] + left[2 * n] - left[n] - left[n]);
    straight = (V)(greater<W>(bend_top, bend_left) < splat_of(1 << (g.p.bit_depth - 5)));
  }
  for (int side = 0; side < 2; ++side) {
    const V *raw = g.lines[0][side].sample, *other = g.lines[0][1 - side].sample;
    const Line& line = g.lines[1][side];
    for (int i = 0; i < 2 * n; ++i) {
      const V before = i > 0 ? raw[i - 1] : other[1];
      const V weight = splat_of(i << (14 - log2_size));
      const V bent = (before + raw[i] + raw[i] + raw[i + 1] + 2) >> 2;
      line.sample[i] = (bent & ~straight) | ((raw[0] + scaled<W>(raw[2 * n] - raw[0], weight)) & straight);
    }
    line.sample[2 * n] = raw[2 * n];
    finish(line, n);
  }
}

void project(const Line& line, const Line& other, int n, int angle, int inverse) {
  for (int i = 1; i < -((n * angle) >> 5); ++i) {
    line.sample[-i] = other.sample[(i * inverse + 128) >> 8];
    line.step[-i] = line.sample[1 - i] - line.sample[-i];
  }
}

FLEXOR_INLINE void add(int32_t* sums, V x) {
  constexpr int L = W / 2;
  uint16_t lanes[W];
  store(lanes, x);
  for (int i = 0; i < W; i += L)
    store(sums + i, load<Vec<int32_t, L>>(sums + i) +
                        __builtin_convertvector(load<Vec<uint16_t, L>>(lanes + i), Vec<int32_t, L>));
}

template <int T, class X>
FLEXOR_INLINE void butterflies(X* x, int last) {
  unroll<T == 8 ? 3 : 2>([&](auto stage) __attribute__((always_inline)) {
    constexpr int D = T >> (decltype(stage)::value + 1);
    if (D < last) return;
    unroll<T>([&](auto i) __attribute__((always_inline)) {
      if constexpr ((decltype(i)::value & D) == 0) {
        const X a = x[i], b = x[i + D];
        x[i] = a + b;
        x[i + D] = a - b;
      }
    });
  });
}

FLEXOR_INLINE V magnitude_of(V x) { return magnitude<W>(x); }
FLEXOR_INLINE V greater_of(V a, V b) { return greater<W>(a, b); }
using S = Vec<int32_t, W / 2>;
FLEXOR_INLINE S magnitude_of(S x) {
  const S sign = x >> 31;
  return (x ^ sign) - sign;
}
FLEXOR_INLINE S greater_of(S a, S b) { return a > b ? a : b; }

// |a + b| + |a - b| is twice the greater of |a| and |b|: the last stage needs no sums, and half the range.
template <int T, class X>
FLEXOR_INLINE X half_of_magnitudes(X* x) {
  butterflies<T>(x, 2);
  X sum{};
  unroll<T / 2>([&](auto i) __attribute__((always_inline)) {
    sum += greater_of(magnitude_of(x[2 * i]), magnitude_of(x[2 * i + 1]));
  });
  return sum;
}

// Of 8-bit samples every sum fits 16 bits, the last one too: by Cauchy's inequality at most 64 * 8 * 255 / 2.
template <int T, bool kDeep, class Rows>
FLEXOR_INLINE void add_satd(int32_t* costs, const Rows& rows) {
  V values[T * T];
  for (int y = 0; y < T; ++y) {
    V row[T];
    rows(y, row);
    butterflies<T>(row, 1);
    unroll<T>([&](auto x) __attribute__((always_inline)) { values[y * T + x] = row[x]; });
  }
  if constexpr (!kDeep) {
    V sum{};
    for (int x = 0; x < T; ++x) {
      V column[T];
      unroll<T>([&](auto y) __attribute__((always_inline)) { column[y] = values[y * T + x]; });
      sum += half_of_magnitudes<T>(column);
    }
    add(costs, T == 8 ? (sum >> 1) + (sum & 1) : sum);
  } else {
    for (int half = 0; half < W; half += W / 2) {
      S sum{};
      for (int x = 0; x < T; ++x) {
        S column[T];
        unroll<T>([&](auto y) __attribute__((always_inline)) {
          const auto* lanes = reinterpret_cast<const int16_t*>(values + y * T + x) + half;
          column[y] = __builtin_convertvector((load<Vec<int16_t, W / 2>>(lanes)), S);
        });
        sum += half_of_magnitudes<T>(column);
      }
      store(costs + half, load<S>(costs + half) + (T == 8 ? (sum + 1) >> 1 : sum));
    }
  }
}

template <int T, bool kDeep, class Rows>
FLEXOR_INLINE void add_sad(int32_t* costs, const Rows& rows) {
  V sum{};
  for (int y = 0; y < T; ++y) {
    V row[T];
    rows(y, row);
    unroll<T>([&](auto x) __attribute__((always_inline)) { sum += magnitude<W>(row[x]); });
    if (!kDeep && y + 1 < T) continue;
    add(costs, sum);
    sum = V{};
  }
}

// Adds a candidate's cost. sample(x, y, row) gives samples x to x + T - 1 of row y of the prediction.
template <int T, bool kDeep, bool kTransposed, class Samples>
FLEXOR_INLINE void add_cost(const Group& g, int candidate, const Samples& samples) {
  constexpr int kRight = kTransposed ? T : 1, kDown = kTransposed ? 1 : T;
  int32_t* costs = g.costs + candidate * W;
  const int parts = g.n / T;
  for (int i = 0; i < parts; ++i)
    for (int j = 0; j < parts; ++j) {
      const V* original = g.original + (kTransposed ? j * parts + i : i * parts + j) * T * T;
      const auto rows = [&](int y, V* row) __attribute__((always_inline)) {
        samples(j * T, i * T + y, row);
        unroll<T>([&](auto x) __attribute__((always_inline)) { row[x] -= original[y * kDown + x * kRight]; });
      };
      if (g.p.satd) add_satd<T, kDeep>(costs, rows);
      else add_sad<T, kDeep>(costs, rows);
    }
}

template <int T, bool kDeep>
void planar(const Group& g) {
  const int n = g.n, shift = g.p.log2_size + 1;
  const Line* lines = g.lines[intra_smooths(g.p.log2_size, kIntraPlanar)];
  const V *top = lines[0].sample + 1, *left = lines[1].sample + 1;
  using Sum = std::conditional_t<kDeep, Wide, V>;
  using Number = std::conditional_t<kDeep, uint32_t, uint16_t>;
  const auto number = [](int x) { return static_cast<Number>(x); };
  const Sum bottom = __builtin_convertvector(left[n], Sum), right = __builtin_convertvector(top[n], Sum);
  add_cost<T, kDeep, false>(g, kIntraPlanar, [&](int x, int y, V* row) __attribute__((always_inline)) {
    const Sum side = __builtin_convertvector(left[y], Sum);
    for (int i = 0; i < T; ++i) {
      const Sum across = side * number(n - 1 - x - i) + right * number(x + i + 1);
      const Sum down = __builtin_convertvector(top[x + i], Sum) * number(n - 1 - y) + bottom * number(y + 1);
      row[i] = __builtin_convertvector((across + down + number(n)) >> shift, V);
    }
  });
}

template <int T, bool kDeep>
void dc(const Group& g) {
  const int n = g.n;
  const V *top = g.lines[0][0].sample + 1, *left = g.lines[0][1].sample + 1;
  Wide sum = Wide{} + static_cast<uint32_t>(n);
  for (int i = 0; i < n; ++i) sum += __builtin_convertvector(top[i], Wide) + __builtin_convertvector(left[i], Wide);
  const V mean = __builtin_convertvector(sum >> (g.p.log2_size + 1), V);
  const V rounded = mean * uint16_t{3} + uint16_t{2};
  add_cost<T, kDeep, false>(g, kIntraDc, [&](int x, int y, V* row) __attribute__((always_inline)) {
    for (int i = 0; i < T; ++i) row[i] = mean;
    if (n >= 32) return;
    if (y == 0)
      for (int i = 0; i < T; ++i) row[i] = (top[x + i] + rounded) >> 2;
    if (x == 0) row[0] = y == 0 ? (top[0] + left[0] + rounded - mean) >> 2 : (left[y] + rounded) >> 2;
  });
}

template <int T, bool kDeep, bool kTransposed>
void straight(const Group& g, int mode) {
  const V *own = g.lines[0][kTransposed].sample, *other = g.lines[0][!kTransposed].sample;
  const auto most = splat<Vec<int16_t, W>>(static_cast<int16_t>((1 << g.p.bit_depth) - 1));
  add_cost<T, kDeep, kTransposed>(g, mode, [&](int x, int y, V* row) __attribute__((always_inline)) {
    for (int i = 0; i < T; ++i) row[i] = own[x + i + 1];
    if (x > 0 || g.n >= 32) return;
    const auto edge = (Vec<int16_t, W>)(own[1] + halved(other[y + 1] - own[0]));
    row[0] = (V)(edge < 0 ? Vec<int16_t, W>{} : edge > most ? most : edge);
  });
}

template <int T, bool kDeep, bool kTransposed>
void angular(const Group& g, int mode, int nearest) {
  const int angle = kIntraAngles[mode];
  const Line* lines = g.lines[intra_smooths(g.p.log2_size, mode)];
  const Line &line = lines[kTransposed], &other = lines[!kTransposed];
  if (angle < 0) project(line, other, g.n, angle, kIntraInverseAngles[mode - 11]);
  add_cost<T, kDeep, kTransposed>(g, mode, [&](int x, int y, V* row) __attribute__((always_inline)) {
    const int place = (y + 1) * angle, at = x + (place >> 5) + 1;
    const V weight = splat_of((place & 31) << 10);
    const V *sample = line.sample + at, *step = line.step + at;
    unroll<T>([&](auto i) __attribute__((always_inline)) { row[i] = scaled<W>(step[i], weight) + sample[i]; });
  });
  if (nearest == 0) return;
  add_cost<T, kDeep, kTransposed>(g, nearest, [&](int x, int y, V* row) __attribute__((always_inline)) {
    const V* sample = line.sample + x + (((y + 1) * angle + 16) >> 5) + 1;
    unroll<T>([&](auto i) __attribute__((always_inline)) { row[i] = sample[i]; });
  });
}

template <int T, bool kDeep>
void consider(const Group& g) {
  __builtin_memset(g.costs, 0, static_cast<size_t>(g.p.considered) * W * sizeof(int32_t));
  planar<T, kDeep>(g);
  dc<T, kDeep>(g);
  straight<T, kDeep, true>(g, kIntraHorizontal);
  straight<T, kDeep, false>(g, kIntraVertical);
  int next = kIntraModes;
  for (int mode = 2; mode < kIntraModes; ++mode) {
    if (kIntraAngles[mode] == 0) continue;
    const bool fractional = kIntraAngles[mode] % 32 != 0;
    const int nearest = fractional && g.p.considered > kIntraModes ? next++ : 0;
    if (mode < kFirstVerticalMode) angular<T, kDeep, true>(g, mode, nearest);
    else angular<T, kDeep, false>(g, mode, nearest);
  }
}

// The first `lanes` blocks' costs, or the best of them: costs are below 2^25, so cost and number are one key.
void write(const Group& g, int64_t first, int lanes) {
  const int64_t kept = g.p.costs.size[3];
  int32_t* out = static_cast<int32_t*>(g.p.costs.data) + first * kept;
  if (!g.p.candidates) {
    transpose<int32_t>(g.costs, W, g.p.considered, lanes, out, kept);
    return;
  }
  uint8_t* which = static_cast<uint8_t*>(g.p.candidates.data) + first * kept;
  for (int c = 0; c < g.p.considered; ++c)
    for (int lane = 0; lane < W; ++lane) g.costs[c * W + lane] = g.costs[c * W + lane] * 64 + c;
  for (int half = 0; half < W; half += W / 2) {
    const S most = splat<S>(INT32_MAX);
    S last = splat<S>(-1);
    for (int64_t k = 0; k < kept; ++k) {
      S best = most;
      for (int c = 0; c < g.p.considered; ++c) {
        const S key = load<S>(g.costs + c * W + half);
        const S left = key > last ? key : most;
        best = left < best ? left : best;
      }
      last = best;
      for (int lane = 0; lane < W / 2 && half + lane < lanes; ++lane) {
        out[(half + lane) * kept + k] = best[lane] >> 6;
        which[(half + lane) * kept + k] = static_cast<uint8_t>(best[lane] & 63);
      }
    }
  }
}

// A thread's memory, taken from one piece.
struct Carver {
  char* next;

  template <class T>
  T* take(int64_t count) {
    T* taken = reinterpret_cast<T*>(next);
    next += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return taken;
  }
};

constexpr int64_t workspace_bytes(int n) {
  const int64_t line = 3 * n + 1, samples = 8 * line + n * n + 4 * n + 1;
  return samples * kVectorBytes + kIntraCandidates * W * 4 + W * (4 * n + 64) * 2 + 32 * 64;
}

template <class Sample, int T>
uint32_t read_blocks(const Group& g, uint16_t* space, int64_t first, int lanes) {
  const IntraSearchParams& p = g.p;
  const int n = g.n, length = 4 * n + 1, pitch = 4 * n + 32;
  const auto place = [&](int lane) { return BlockPlace(p, first + smaller(lane, lanes - 1)); };
  uint32_t seen = 0;
  V* border = g.original;  // for now
  for (int lane = 0; lane < W; ++lane) {
    const BlockPlace at = place(lane);
    read_border(space + lane * pitch, p, PictureView<Sample>(p.pictures, at.batch), at);
  }
  transpose<uint16_t>(space, pitch, W, length, reinterpret_cast<uint16_t*>(border), W);
  for (int i = 0; i <= 2 * n; ++i) {
    g.lines[0][0].sample[i] = border[2 * n + i];
    g.lines[0][1].sample[i] = border[2 * n - i];
  }
  uint16_t part[W * T * T];
  V* out = g.original;
  for (int y = 0; y < n; y += T)
    for (int x = 0; x < n; x += T, out += T * T) {
      for (int lane = 0; lane < W; ++lane) {
        const BlockPlace at = place(lane);
        const PictureView<Sample> picture(p.pictures, at.batch);
        for (int i = 0; i < T; ++i)
          picture.read_row(part + (lane * T + i) * T, at.row * n + y + i, at.column * n + x, T, seen);
      }
      transpose<uint16_t>(part, T * T, W, T * T, reinterpret_cast<uint16_t*>(out), W);
    }
  return seen;
}

template <class Sample, int T, bool kDeep>
uint32_t search_group(const IntraSearchParams& p, int64_t first, int lanes) {
  const int n = 1 << p.log2_size;
  Carver memory{static_cast<char*>(thread_workspace(static_cast<size_t>(workspace_bytes(n))))};
  Group g{p, n, {}, nullptr, nullptr};
  for (auto& lines : g.lines)
    for (Line& line : lines) line = {memory.take<V>(3 * n + 1) + n, memory.take<V>(3 * n + 1) + n};
  g.original = memory.take<V>(larger(n * n, 4 * n + 1));
  g.costs = memory.take<int32_t>(kIntraCandidates * W);
  const uint32_t seen = read_blocks<Sample, T>(g, memory.take<uint16_t>(W * (4 * n + 32)), first, lanes);
  for (const Line& line : g.lines[0]) finish(line, n);
  smooth(g);
  consider<T, kDeep>(g);
  write(g, first, lanes);
  return seen;
}

template <class Sample>
bool search_of(const IntraSearchParams& p) {
  const bool deep = p.bit_depth > 8;
  const auto run = p.log2_size == 2 ? (deep ? search_group<Sample, 4, true> : search_group<Sample, 4, false>)
                                    : (deep ? search_group<Sample, 8, true> : search_group<Sample, 8, false>);
  uint32_t bits = 0;
  parallel_for(ceil_div(p.blocks, W), [&](int64_t group) {
    const uint32_t seen = run(p, group * W, static_cast<int>(smaller<int64_t>(W, p.blocks - group * W)));
    __atomic_fetch_or(&bits, seen, __ATOMIC_RELAXED);
  });
  return bits >> p.bit_depth == 0;
}

bool search(const IntraSearchParams& p) {
  return with_sample_type(p.pictures, [&](auto sample) { return search_of<decltype(sample)>(p); });
}

}  // namespace

extern const IntraSearchKernels intra_search_kernels{search};

}  // namespace flexor::FLEXOR_ISA
