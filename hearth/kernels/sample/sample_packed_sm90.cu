// SPDX-License-Identifier: Apache-2.0
// The sampler on a GPU: a cluster of CTAs a row, few rows more CTAs each. Every warp owns a contiguous segment of ids
// and reads it from L2 in each of a few passes: the largest logit; the sum of masses; where top-k or top-p cut, a
// histogram over an interval of keys, narrowed until the rest is a short list; the sum of what is kept; the draw. All
// sums are of integers, so that no order of summation shows.
#include <cooperative_groups.h>

#include "hearth/kernels/sample/sample_math.cuh"
#include "hearth/kernels/sample/sample_packed.h"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth {
namespace {

namespace cg = cooperative_groups;
using namespace sampling_sm90;

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kDigits = 2 * kThreads;  // of a histogram: two a thread
constexpr int kDigitBits = 11;
constexpr int kListKeys = kThreads;  // sorted by one key a thread
constexpr int kAtOnce = 8;           // loads of a thread under way
constexpr uint32_t kSeen = 0x80000000u;
static_assert(kDigits == 1 << kDigitBits && kMaxTopLogprobs <= kListKeys);

// A mass has 41 bits; its parts of 14 add up in 32 bits over as many tokens as a vocabulary has.
constexpr int kParts = 3, kPartBits = 14;
static_assert(kParts * kPartBits > sampling::kMassBits);
static_assert(((uint64_t{1} << kPartBits) - 1) * kMaxPackedVocab < (uint64_t{1} << 32));

struct RowStorage {
  uint32_t counts[kDigits];
  uint32_t parts[kParts][kDigits];
  uint64_t list[kListKeys];   // rank 0's: keys from all CTAs
  uint64_t segments[kWarps];  // masses of the warps' segments
  uint64_t scratch[kWarps];   // of one reduction or scan
  uint64_t slots[2];          // this CTA's part of a reduction, by turns
  uint64_t crossing_above;    // what stands above the crossing digit
  uint64_t place_before;      // of the draw: masses before the segment
  int list_count, crossing_digit, crossing_members, place;
};
static_assert(sizeof(RowStorage) <= 48 * 1024);

enum class Measure { kCount, kMass };

struct KernelParams {
  const float* logits;
  int64_t row_stride;
  const std::byte* block;
  SampleVerdict* verdicts;
  SampleCandidate* candidates;
  float* adjusted;
  uint32_t* counts;
  int vocab;
};

// What weighs in a row: tokens with a key of at least `cut` and a mass of at least mass_least.
struct Kept {
  float max = 0, inverse_temperature = 1;
  uint64_t mass_least = 0;
  uint64_t cut = 0;

  __device__ __forceinline__ uint64_t mass(float z) const {
    const uint64_t value = mass_of(z, max, inverse_temperature);
    return value >= mass_least ? value : 0;
  }
  __device__ __forceinline__ uint64_t mass(float z, int token) const {
    return cut == 0 || order_key(z, token) >= cut ? mass(z) : 0;
  }
};

// The threads of a cluster at one row. Every member function is called by all of them.
template <int kCtas>
class RowWork {
 public:
  __device__ RowWork(const KernelParams& p, RowStorage& shared, cg::cluster_group& cluster)
      : s(shared), cluster(cluster), vocab(p.vocab), rank(static_cast<int>(cluster.block_rank())) {
    const int each = (vocab + kCtas * kWarps - 1) / (kCtas * kWarps);
    begin = min(vocab, (rank * kWarps + warp) * each);
    end = min(vocab, begin + each);
  }

  RowStorage& s;
  cg::cluster_group& cluster;
  const int vocab, rank;
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32;
  int begin, end;  // the warp's ids
  int turn = 0;
  const uint32_t* allowed = nullptr;  // a bitset: other tokens count as -inf; null: all

  __device__ __forceinline__ float masked(float v, int id) const {
    return allowed == nullptr || (allowed[id / 32] >> (id % 32) & 1) ? v : -INFINITY;
  }

  // f(logit, id) for every id of this warp, past the first-level cache: other CTAs may have written the row.
  template <class F>
  __device__ __forceinline__ void for_each(const float* z, const F& f) const {
    for (int first = begin + lane; first < end; first += 32 * kAtOnce) {
      float v[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) v[u] = first + 32 * u < end ? __ldcg(z + first + 32 * u) : -INFINITY;
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u)
        if (first + 32 * u < end) f(masked(v[u], first + 32 * u), first + 32 * u);
    }
  }

  template <class Op>
  __device__ __forceinline__ static uint64_t reduce_warp(uint64_t v, const Op& op) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) v = op(v, __shfl_xor_sync(~0u, v, step));
    return v;
  }
  // Of all threads of the cluster.
  template <class Op>
  __device__ uint64_t reduce(uint64_t v, const Op& op) {
    v = reduce_warp(v, op);
    if (lane == 0) s.scratch[warp] = v;
    __syncthreads();
    if (warp == 0) {
      v = reduce_warp(s.scratch[lane], op);
      if (lane == 0) s.slots[turn] = v;
    }
    cluster.sync();
    // A lane for each CTA's part.
    v = *cluster.map_shared_rank(&s.slots[turn], lane % kCtas);
#pragma unroll
    for (int step = kCtas / 2; step > 0; step /= 2) v = op(v, __shfl_xor_sync(~0u, v, step));
    turn ^= 1;  // a slot is written again two barriers later
    return v;
  }
  __device__ uint64_t sum(uint64_t v) {
    return reduce(v, [](uint64_t a, uint64_t b) { return a + b; });
  }
  __device__ uint64_t largest(uint64_t v) {
    return reduce(v, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
  }
  __device__ uint64_t least(uint64_t v) {
    return reduce(v, [](uint64_t a, uint64_t b) { return a < b ? a : b; });
  }

  // The sum of `v` over the threads of the CTA before this one.
  __device__ uint64_t scan_before(uint64_t v) {
    uint64_t inclusive = v;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const uint64_t other = __shfl_up_sync(~0u, inclusive, step);
      if (lane >= step) inclusive += other;
    }
    __syncthreads();  // scratch may still be read
    if (lane == 31) s.scratch[warp] = inclusive;
    __syncthreads();
    uint64_t before = inclusive - v;
    const uint64_t warps = lane < warp ? s.scratch[lane] : 0;
    before += reduce_warp(warps, [](uint64_t a, uint64_t b) { return a + b; });
    return before;
  }

  // The masses of what is kept; leaves those of the segments.
  __device__ uint64_t sum_masses(const float* z, const Kept& kept) {
    uint64_t mass = 0;
    for_each(z, [&](float v, int id) { mass += kept.mass(v, id); });
    const uint64_t segment = reduce_warp(mass, [](uint64_t a, uint64_t b) { return a + b; });
    if (lane == 0) s.segments[warp] = segment;
    return sum(mass);
  }

  // Sorts rank 0's list of `count` keys, the largest first. Rank 0 alone.
  __device__ void sort_list(int count) {
    int size = 2;
    while (size < count) size *= 2;
    if (tid >= count && tid < size) s.list[tid] = 0;
    __syncthreads();
    for (int run = 2; run <= size; run *= 2) {
      for (int step = run / 2; step > 0; step /= 2) {
        const int other = tid ^ step;
        if (tid < size && other > tid) {
          const uint64_t a = s.list[tid], b = s.list[other];
          if ((a < b) == ((tid & run) == 0)) {
            s.list[tid] = b;
            s.list[other] = a;
          }
        }
        __syncthreads();
      }
    }
  }

  // Keys in [low, high] go to rank 0's list, whose count is 0 and which holds them all; returns how many they are.
  __device__ int gather(const float* z, uint64_t low, uint64_t high) {
    int* const count = cluster.map_shared_rank(&s.list_count, 0);
    uint64_t* const list = cluster.map_shared_rank(s.list, 0);
    for_each(z, [&](float v, int id) {
      const uint64_t key = order_key(v, id);
      if (key >= low && key <= high) list[atomicAdd(count, 1)] = key;
    });
    cluster.sync();
    return rank == 0 ? s.list_count : 0;
  }

  // The key with which a walk from the largest, `high`, reaches `goal` in the measure of what is kept. It is expected
  // at `low` or above; a wrong guess costs time. REQUIRES: all of the row reaches the goal, which is at least 1.
  __device__ uint64_t find_cut(const float* z, Measure measure, uint64_t goal, uint64_t low, uint64_t high,
                               const Kept& kept) {
    uint64_t above = 0;
    while (true) {
      const int width = 64 - __clzll(static_cast<long long>(high - low));
      const int shift = max(0, width - kDigitBits);
      fill_histogram(z, measure, low, high, shift, kept);
      const uint64_t all = find_crossing(measure, goal - above);
      const int digit = s.crossing_digit, members = s.crossing_members;
      const uint64_t above_digit = s.crossing_above;
      cluster.sync();  // before a histogram is filled again
      if (digit < 0) {
        if (low <= kept.cut) return kept.cut;  // not reached where REQUIRES holds
        above += all;
        high = low - 1;
        low = kept.cut;
        continue;
      }
      above += above_digit;
      low += static_cast<uint64_t>(digit) << shift;
      if (shift == 0) return low;
      high = min(high, low + ((uint64_t{1} << shift) - 1));
      if (members <= kListKeys) return cut_list(z, measure, goal - above, low, high, kept);
    }
  }

  // The token whose range of the cumulative mass holds `point`, to the verdict. After sum_masses() of the same.
  __device__ void draw(const float* z, const Kept& kept, uint64_t point, const float* logits, SampleVerdict* verdict) {
    if (tid == 0) s.place = -1;
    __syncthreads();
    uint64_t before = lane < warp ? s.segments[lane] : 0;
    for (int r = 0; r < rank; ++r) before += cluster.map_shared_rank(s.segments, r)[lane];
    before = reduce_warp(before, [](uint64_t a, uint64_t b) { return a + b; });
    if (lane == 0 && point >= before && point - before < s.segments[warp]) {
      s.place = begin;
      s.place_before = before;
    }
    __syncthreads();
    if (s.place < 0) return;
    // The threads share the segment, each a few ids behind each other.
    const int length = min((vocab + kCtas * kWarps - 1) / (kCtas * kWarps), vocab - s.place);
    const int each = (length + kThreads - 1) / kThreads;
    const int first = s.place + min(length, tid * each), last = s.place + min(length, (tid + 1) * each);
    uint64_t mine = 0;
    for (int id = first; id < last; ++id) mine += kept.mass(masked(__ldcg(z + id), id), id);
    uint64_t at = s.place_before + scan_before(mine);
    if (point < at || point - at >= mine) return;
    for (int id = first; id < last; ++id) {
      const uint64_t mass = kept.mass(masked(__ldcg(z + id), id), id);
      if (point - at < mass) {
        verdict->token = id;
        verdict->logit = __ldcg(logits + id);
        return;
      }
      at += mass;
    }
  }

 private:
  __device__ void fill_histogram(const float* z, Measure measure, uint64_t low, uint64_t high, int shift,
                                 const Kept& kept) {
    const bool masses = measure == Measure::kMass;
    for (int i = tid; i < kDigits; i += kThreads) {
      s.counts[i] = 0;
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        if (masses) s.parts[part][i] = 0;
    }
    if (tid == 0) {
      s.list_count = 0;
      s.crossing_digit = -1;
    }
    __syncthreads();
    for_each(z, [&](float v, int id) {
      const uint64_t key = order_key(v, id);
      if (key < low || key > high) return;
      const int digit = static_cast<int>((key - low) >> shift);
      if (masses) {
        const uint64_t mass = kept.mass(v);
        if (mass == 0) return;
#pragma unroll
        for (int part = 0; part < kParts; ++part)
          atomicAdd(&s.parts[part][digit], static_cast<uint32_t>(mass >> (part * kPartBits)) & ((1 << kPartBits) - 1));
      }
      atomicAdd(&s.counts[digit], 1);
    });
    cluster.sync();
  }

  // Of one digit, over all CTAs.
  __device__ uint64_t weight_of(Measure measure, int digit, int& members) const {
    uint64_t weight = 0;
    members = 0;
#pragma unroll(kCtas > 2 ? 2 : 1)  // more would keep the addresses of all CTAs in registers
    for (int r = 0; r < kCtas; ++r) {
      members += static_cast<int>(cluster.map_shared_rank(s.counts, r)[digit]);
      if (measure == Measure::kMass)
#pragma unroll
        for (int part = 0; part < kParts; ++part)
          weight += static_cast<uint64_t>(cluster.map_shared_rank(s.parts[part], r)[digit]) << (part * kPartBits);
    }
    return measure == Measure::kCount ? static_cast<uint64_t>(members) : weight;
  }

  // Writes the digit with which a walk from the highest reaches `goal`; all CTAs find the same. Returns the sum of all.
  __device__ uint64_t find_crossing(Measure measure, uint64_t goal) {
    const int upper = kDigits - 1 - 2 * tid;
    int upper_members, lower_members;
    const uint64_t upper_weight = weight_of(measure, upper, upper_members);
    const uint64_t lower_weight = weight_of(measure, upper - 1, lower_members);
    const uint64_t before = scan_before(upper_weight + lower_weight);
    const uint64_t middle = before + upper_weight, after = middle + lower_weight;
    if (before < goal && goal <= after) {
      const bool in_upper = goal <= middle;
      s.crossing_digit = in_upper ? upper : upper - 1;
      s.crossing_members = in_upper ? upper_members : lower_members;
      s.crossing_above = in_upper ? before : middle;
    }
    if (tid == kThreads - 1) s.place_before = after;
    __syncthreads();
    return s.place_before;
  }

  __device__ uint64_t cut_list(const float* z, Measure measure, uint64_t goal, uint64_t low, uint64_t high,
                               const Kept& kept) {
    const int count = gather_weighing(z, measure, low, high, kept);
    uint64_t found = 0;
    if (rank == 0) {
      sort_list(count);
      const uint64_t key = tid < count ? s.list[tid] : 0;
      uint64_t weight = 0;
      if (tid < count) weight = measure == Measure::kCount ? 1 : kept.mass(key_logit(key));
      const uint64_t before = scan_before(weight);
      if (before < goal && goal <= before + weight) found = key;
    }
    return largest(found);
  }

  // gather() of the keys that the histogram counted: without a mass they weigh nothing.
  __device__ int gather_weighing(const float* z, Measure measure, uint64_t low, uint64_t high, const Kept& kept) {
    if (measure == Measure::kCount) return gather(z, low, high);
    int* const count = cluster.map_shared_rank(&s.list_count, 0);
    uint64_t* const list = cluster.map_shared_rank(s.list, 0);
    for_each(z, [&](float v, int id) {
      const uint64_t key = order_key(v, id);
      if (key >= low && key <= high && kept.mass(v) > 0) list[atomicAdd(count, 1)] = key;
    });
    cluster.sync();
    return rank == 0 ? s.list_count : 0;
  }
};

// The largest key of a row, 0 where nothing is finite, ~0 where a NaN or +inf is in it; and that of this warp.
struct Scan {
  uint64_t largest, of_warp;
};

template <int kCtas, class F>
__device__ Scan scan(RowWork<kCtas>& work, const float* z, const F& f) {
  float best = -INFINITY;
  int best_id = 0;
  bool bad = false;
  work.for_each(z, [&](float v, int id) {
    bad |= !(v < INFINITY);
    if (v > best) {
      best = v;
      best_id = id;
    }
    f(v, id);
  });
  const uint64_t key = bad ? ~uint64_t{0} : best == -INFINITY ? 0 : order_key(best, best_id);
  const uint64_t of_warp = RowWork<kCtas>::reduce_warp(key, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
  return {work.largest(of_warp), of_warp};
}

__device__ __forceinline__ const int* list_at(const KernelParams& p, const PackedList& list) {
  return reinterpret_cast<const int*>(p.block) + list.begin;
}

// The sparse changes, after the allowed logits are in z and the counts are 0. Tokens go over all threads of the
// cluster; what touches the same token is a barrier apart.
template <int kCtas>
__device__ void adjust(RowWork<kCtas>& work, const KernelParams& p, const PackedSampleRow& row, float* z,
                       uint32_t* counts) {
  const int first = work.rank * kThreads + work.tid, step = kCtas * kThreads;
  work.cluster.sync();
  const int* const bias = list_at(p, row.bias);
  for (int i = first; i < row.bias.count; i += step) {
    float* const at = z + bias[2 * i];
    *at = biased(__ldcg(at), __int_as_float(bias[2 * i + 1]));
  }
  const int *const prompt = list_at(p, row.prompt), *const output = list_at(p, row.output);
  for (int i = first; i < row.prompt.count; i += step) atomicOr(counts + prompt[i], kSeen);
  for (int i = first; i < row.output.count; i += step) atomicAdd(counts + output[i], 1);
  work.cluster.sync();
  const Penalties penalties{row.repetition_penalty, row.presence_penalty, row.frequency_penalty};
  // Whoever takes a token's count applies it.
  const auto apply = [&](int token) {
    const uint32_t count = atomicExch(counts + token, 0);
    if (count != 0) z[token] = penalised(__ldcg(z + token), penalties, count & ~kSeen);
  };
  for (int i = first; i < row.prompt.count; i += step) apply(prompt[i]);
  for (int i = first; i < row.output.count; i += step) apply(output[i]);
  work.cluster.sync();
  const int* const banned = list_at(p, row.banned);
  for (int i = first; i < row.banned.count; i += step) z[banned[i]] = -INFINITY;
  work.cluster.sync();
}

// The most likely tokens of the raw logits.
template <int kCtas>
__device__ void report_top(RowWork<kCtas>& work, const float* logits, int count, const Scan& raw, SampleCandidate* to) {
  const uint64_t guess = work.least(raw.of_warp);
  const Kept all;
  const uint64_t low = count <= kCtas * kWarps ? guess : 0;
  const uint64_t cut = work.find_cut(logits, Measure::kCount, static_cast<uint64_t>(count), low, raw.largest, all);
  if (work.tid == 0) work.s.list_count = 0;
  work.cluster.sync();
  const int found = work.gather(logits, cut, ~uint64_t{0});
  if (work.rank == 0) {
    work.sort_list(found);
    if (work.tid < count) {
      const int token = key_token(work.s.list[work.tid]);
      to[work.tid] = {token, __ldcg(logits + token)};
    }
  }
  work.cluster.sync();
}

template <int kCtas>
__device__ void choose(RowWork<kCtas>& work, const PackedSampleRow& row, const float* z, const float* logits,
                       const Scan& scan, SampleVerdict* verdict) {
  Kept kept{
      .max = key_logit(scan.largest), .inverse_temperature = row.inverse_temperature, .mass_least = row.mass_least};
  if (row.top_k > 0) {
    // As many warps as there are have a key at least as large as the least of their largest ones.
    const uint64_t guess = work.least(scan.of_warp);
    const uint64_t low = row.top_k <= kCtas * kWarps ? guess : 0;
    kept.cut = work.find_cut(z, Measure::kCount, static_cast<uint64_t>(row.top_k), low, scan.largest, kept);
  }
  uint64_t total = work.sum_masses(z, kept);
  if (row.top_p < sampling::kMassOne) {
    const uint64_t likely = static_cast<uint64_t>(ordered_bits(__fsub_rn(kept.max, row.likely_range))) << 32;
    const uint64_t low = likely > kept.cut ? likely : kept.cut;
    kept.cut = work.find_cut(z, Measure::kMass, goal_of(row.top_p, total), low, scan.largest, kept);
    total = work.sum_masses(z, kept);
  }
  work.draw(z, kept, draw_point(row.random, total), logits, verdict);
}

// Grid kCtas x rows, a cluster a row.
template <int kCtas>
__global__ void __cluster_dims__(kCtas, 1, 1) __launch_bounds__(kThreads) sample_kernel(KernelParams p) {
  __shared__ RowStorage shared;
  cg::cluster_group cluster = cg::this_cluster();
  sm90::pdl_wait();
  sm90::pdl_launch_next();
  RowWork<kCtas> work(p, shared, cluster);
  const PackedSampleRow& row = reinterpret_cast<const PackedSampleRow*>(p.block)[blockIdx.y];
  const float* const logits = p.logits + blockIdx.y * p.row_stride;
  SampleVerdict* const verdict = p.verdicts + blockIdx.y;
  const bool leads = work.rank == 0 && work.tid == 0;
  const bool adjusts = row.flags & PackedSampleRow::kAdjusts;
  float* const adjusted = p.adjusted + static_cast<int64_t>(row.scratch_row) * p.vocab;
  uint32_t* const counts = p.counts + static_cast<int64_t>(row.scratch_row) * p.vocab;
  const auto* const allowed = reinterpret_cast<const uint32_t*>(list_at(p, row.allowed));

  const Scan raw = scan(work, logits, [&](float v, int id) {
    if (!adjusts) return;
    const bool may = !(row.flags & PackedSampleRow::kAllowed) || (allowed[id / 32] >> (id % 32) & 1);
    adjusted[id] = may ? v : -INFINITY;
    if (row.flags & PackedSampleRow::kPenalises) counts[id] = 0;
  });
  if (raw.largest == 0 || raw.largest == ~uint64_t{0}) {
    if (leads) *verdict = {-1, SampleVerdict::Outcome::kBadLogits, 0, 0, 0};
    cluster.sync();  // no CTA ends while another reads its memory
    return;
  }
  uint64_t total = 0;
  if (row.flags & PackedSampleRow::kLogprobs) total = work.sum_masses(logits, Kept{.max = key_logit(raw.largest)});
  if (row.top_logprobs > 0)
    report_top(work, logits, row.top_logprobs, raw, p.candidates + blockIdx.y * int64_t{kMaxTopLogprobs});

  Scan changed = raw;
  const float* const z = adjusts ? adjusted : logits;
  if (adjusts) adjust(work, p, row, adjusted, counts);
  if (!adjusts && (row.flags & PackedSampleRow::kAllowed)) work.allowed = allowed;
  if (adjusts || work.allowed != nullptr) changed = scan(work, z, [](float, int) {});
  const bool forced = row.forced_token >= 0, greedy = row.flags & PackedSampleRow::kGreedy;
  const auto outcome = changed.largest == 0 ? SampleVerdict::Outcome::kNothingLeft : SampleVerdict::Outcome::kToken;
  if (leads) {
    const int token = forced                                      ? row.forced_token
                      : outcome == SampleVerdict::Outcome::kToken ? key_token(changed.largest)
                                                                  : -1;
    // A drawn token takes the place of the most likely one.
    *verdict = {token, outcome, token >= 0 ? __ldcg(logits + token) : 0, key_logit(raw.largest), total};
  }
  if (!forced && !greedy && outcome == SampleVerdict::Outcome::kToken) {
    cluster.sync();  // the verdict above comes before the draw's
    choose(work, row, z, logits, changed, verdict);
  }
  cluster.sync();
}

template <int kCtas>
Status start(const KernelParams& params, int64_t rows, ExecContext& exec) {
  Launch how(dim3(kCtas, static_cast<unsigned>(rows)), dim3(kThreads), exec.stream);
  how.pdl = true;
  return launch(how, sample_kernel<kCtas>, params);
}

}  // namespace

Status sample_packed_sm90(const SamplePackedArgs& args, ExecContext& exec) {
  const int64_t rows = args.logits.rows(), vocab = args.logits.cols();
  if (vocab < 1 || vocab > kMaxPackedVocab || rows > 65535)
    return unsupported("sample: {} rows of {} logits, wanted at most 65535 of {}", rows, vocab, kMaxPackedVocab);
  if (rows == 0) return {};
  const KernelParams params{static_cast<const float*>(args.logits.data),
                            args.logits.row_stride,
                            args.block,
                            args.verdicts,
                            args.candidates,
                            args.adjusted,
                            args.counts,
                            static_cast<int>(vocab)};
  // One CTA to a multiprocessor, at least two to a row: an H100 has 132, in groups of 16 and 18.
  if (rows <= 12) return start<8>(params, rows, exec);
  if (rows <= 30) return start<4>(params, rows, exec);
  return start<2>(params, rows, exec);
}

}  // namespace hearth
