// SPDX-License-Identifier: Apache-2.0
// The threads of a cluster at one row of logits, and what they share: passes over the row, reductions, lists of keys,
// the sort of a short list, the draw. Every warp owns a contiguous segment of ids, every other block of which stays in
// shared memory after the first pass; the rest comes from L2 in each. Sums are of integers, so that no order of
// summation shows. What all threads must call together says so; the functions of rank 0 run while the other CTAs are at
// the row's last barrier.
#pragma once

#include <cooperative_groups.h>

#include "hearth/kernels/sample/sample_math.cuh"
#include "hearth/kernels/sample/sample_packed.h"

namespace hearth::sampling_sm90 {

namespace cg = cooperative_groups;

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kAtOnce = 8;  // loads of a thread under way
constexpr int kBlockIds = 32 * kAtOnce;
constexpr int kNearBlocks = 4;  // of a warp's ids, in shared memory: every other one
constexpr int kMostCtas = 8, kLeastCtas = 2;
constexpr int kMostSegments = kMostCtas * kWarps;
// Of reductions: a cluster barrier lies between two that share one.
enum Slot { kSlotLargest, kSlotChanged, kSlotRaw, kSlotKept, kSlotCut, kSlots };
constexpr int kListEach = 2;  // keys of a thread in a sort
constexpr int kListKeys = kListEach * kThreads;
constexpr int kDrawEach = 4;  // ids of a thread in a draw from one segment
static_assert(kMaxPackedVocab <= int64_t{kDrawEach} * kThreads * kLeastCtas * kWarps);
static_assert(kMaxTopLogprobs <= kThreads && kMostSegments <= kThreads);

// Histogram of exact sums (sample_cut_sm90.cuh): two digits a thread. A mass has 41 bits; its parts of 14 add up in 32
// bits over as many tokens as a vocabulary has.
constexpr int kExactDigitBits = 11, kExactDigits = 1 << kExactDigitBits;
constexpr int kParts = 3, kPartBits = 14;
static_assert(kExactDigits == 2 * kThreads && kParts * kPartBits > sampling::kMassBits);
static_assert(((uint64_t{1} << kPartBits) - 1) * kMaxPackedVocab < (uint64_t{1} << 32));
struct ExactHistogram {
  uint32_t counts[kExactDigits];
  uint32_t parts[kParts][kExactDigits];
};
// Histogram that brackets (sample_bracket_sm90.cuh): eight digits a thread.
constexpr int kFineEach = 8, kFineDigits = kFineEach * kThreads;
// Counters of the tokens that change, by turns.
constexpr int kCounters = 8192;
// Words of a bit for each id of a CTA.
constexpr int kMostWords = kMaxPackedVocab / kLeastCtas / 32 + kWarps;

struct RowStorage {
  union {  // one after the other, cluster barriers between
    ExactHistogram exact;
    alignas(16) uint32_t fine[kFineDigits];
    uint64_t sorting[2][kListKeys];  // rank 0's, by turns
    uint32_t counters[kCounters];    // of the ids in `changed`, in their order
  };
  union {
    uint64_t list[kListKeys];          // this CTA's keys
    uint32_t bits_before[kMostWords];  // in the words of `changed` before
  };
  float near[kWarps][kNearBlocks * kBlockIds];  // logits of the warps' blocks, adjusted ones where there are
  uint32_t changed[kMostWords];                 // bits of this CTA's ids that have an adjusted logit
  uint64_t segments[2][kMostSegments];          // rank 0's: masses of the segments, of raw logits and of what is kept
  uint64_t below[kMostSegments];                // rank 0's: masses that count for top-p alone
  uint32_t more_low[kMostSegments], more_high[kMostSegments];  // rank 0's: added to the segments, 64 bits in two halves
  uint64_t maxima[kWarps];                                     // largest keys of the segments
  uint64_t guesses[kMostSegments];                             // those of all CTAs
  uint64_t scratch[kWarps];                                    // of one reduction or scan
  uint64_t slots[kSlots];                                      // this CTA's part of a reduction
  uint64_t guess;
  uint64_t crossing_above;  // exact histogram: what stands above the crossing digit
  uint64_t place_before;    // of the draw: masses before the segment
  uint64_t kept_mass;       // bracket: estimate of what stands above the digit of the k-th
  uint64_t part;            // bracket: estimate and count of this CTA's part of the digits
  uint64_t cut;
  uint32_t counted;  // tokens in the fine histogram
  uint32_t stale;    // a bit for each warp whose largest key an adjusted logit changed
  float least;       // the smallest logit with a mass
  int list_count, crossing_digit, crossing_members, place;
  int first_digit, last_digit, kth_digit, kth_rest, kth_members;
};

struct KernelParams {
  const float* logits;
  int64_t row_stride;
  const std::byte* block;
  SampleVerdict* verdicts;
  SampleCandidate* candidates;
  float* adjusted;
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

struct Sums {
  uint64_t before, all;
};

__device__ __forceinline__ RowStorage& row_storage() {
  extern __shared__ __align__(16) std::byte shared[];
  return *reinterpret_cast<RowStorage*>(shared);
}
__device__ __forceinline__ const PackedSampleRow& this_row(const KernelParams& p) {
  return reinterpret_cast<const PackedSampleRow*>(p.block)[blockIdx.y];
}
__device__ __forceinline__ const int* list_at(const KernelParams& p, const PackedList& list) {
  return reinterpret_cast<const int*>(p.block) + list.begin;
}
__device__ __forceinline__ int64_t scratch_of(const KernelParams& p, const PackedSampleRow& row) {
  return static_cast<int64_t>(row.scratch_row) * p.vocab;
}

// Holds no state of its own: a function that is not inlined makes one.
template <int kCtas>
class RowWork {
 public:
  static constexpr int kSegments = kCtas * kWarps;

  // With the allowed tokens, or the raw logits.
  __device__ __forceinline__ explicit RowWork(const KernelParams& p, bool masked = false)
      : s(row_storage()),
        cluster(cg::this_cluster()),
        logits(p.logits + blockIdx.y * p.row_stride),
        vocab(p.vocab),
        rank(static_cast<int>(cluster.block_rank())),
        each(((vocab + kSegments - 1) / kSegments + 31) / 32 * 32) {
    begin = min(vocab, segment() * each);
    end = min(vocab, begin + each);
    const PackedSampleRow& row = this_row(p);
    if (masked && row.flags & PackedSampleRow::kAllowed)
      allowed = reinterpret_cast<const uint32_t*>(list_at(p, row.allowed));
  }
  // After adjust().
  __device__ __forceinline__ void use_adjusted(const KernelParams& p) {
    const PackedSampleRow& row = this_row(p);
    if (row.flags & PackedSampleRow::kAdjusts) adjusted = p.adjusted + scratch_of(p, row);
  }

  RowStorage& s;
  const cg::cluster_group cluster;
  const float* const logits;
  const int vocab, rank;
  const int each;  // ids of a segment: whole words of the bitsets
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32;
  int begin, end;                     // the warp's ids
  const uint32_t* allowed = nullptr;  // a bitset: other tokens count as -inf; null: all
  const float* adjusted = nullptr;    // logits of the tokens in s.changed; null: there are none

  __device__ int segment() const { return rank * kWarps + warp; }

  // f(logit, id) for every id of this warp, and -inf for a few from `end` on. Reads past the first-level cache, as
  // other CTAs may have written adjusted logits. kFill: the first pass, which fills s.near; each lane reads what it
  // wrote itself or, after a barrier, adjust() did.
  template <bool kFill = false, class F>
  __device__ __forceinline__ void for_each(const F& f) const {
    int block = 0;
    for (int first = begin; first < end; first += kBlockIds, ++block) {
      float v[kAtOnce];
      float* const near = near_block(warp, block);
      if (!kFill && near != nullptr) {
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) v[u] = near[32 * u + lane];
      } else {
        load(first, v);
      }
      if (kFill && near != nullptr) {
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) near[32 * u + lane] = v[u];
      }
      if (allowed != nullptr) mask(first, v);
      if (adjusted != nullptr && near == nullptr) take_adjusted(first, v);
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) f(v[u], first + lane + 32 * u);
    }
  }

  // Where a block of a warp stands in shared memory; null: nowhere. Neighbouring warps keep different ones, so that
  // some compute while others wait for L2.
  __device__ __forceinline__ float* near_block(int of_warp, int block) const {
    const bool kept_near = (block + of_warp) % 2 == 0 && block < 2 * kNearBlocks;
    return kept_near ? &s.near[of_warp][block / 2 * kBlockIds] : nullptr;
  }
  // Where s.near has an id of this CTA, `place` ids behind its first; null: nowhere.
  __device__ __forceinline__ float* near_of(int place) const {
    const int of_warp = place / each, at = place - of_warp * each;
    float* const block = near_block(of_warp, at / kBlockIds);
    return block == nullptr ? nullptr : block + at % kBlockIds;
  }

  // The logit of any id; another CTA's list of changes is read where it lies.
  __device__ float logit_at(int id) const {
    if (adjusted != nullptr) {
      const int owner = id / (each * kWarps), at = id - owner * each * kWarps;
      if (cluster.map_shared_rank(s.changed, owner)[at / 32] >> (at % 32) & 1) return __ldcg(adjusted + id);
    }
    return allowed_at(id);
  }
  // Before adjustment.
  __device__ float allowed_at(int id) const {
    return allowed == nullptr || (allowed[id / 32] >> (id % 32) & 1) ? __ldcg(logits + id) : -INFINITY;
  }

  template <class Op>
  __device__ __forceinline__ static uint64_t reduce_warp(uint64_t v, const Op& op) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) v = op(v, __shfl_xor_sync(~0u, v, step));
    return v;
  }
  __device__ __forceinline__ static uint64_t sum_warp(uint64_t v) {
    return reduce_warp(v, [](uint64_t a, uint64_t b) { return a + b; });
  }
  // Of all threads of the cluster; a cluster barrier for all of them.
  template <class Op>
  __device__ uint64_t reduce(uint64_t v, Slot slot, const Op& op) {
    v = reduce_warp(v, op);
    __syncthreads();  // scratch may still be read
    if (lane == 0) s.scratch[warp] = v;
    __syncthreads();
    if (warp == 0) {
      v = reduce_warp(s.scratch[lane], op);
      if (lane == 0) s.slots[slot] = v;
    }
    cluster.sync();
    // A lane for each CTA's part.
    v = *cluster.map_shared_rank(&s.slots[slot], lane % kCtas);
#pragma unroll
    for (int step = kCtas / 2; step > 0; step /= 2) v = op(v, __shfl_xor_sync(~0u, v, step));
    return v;
  }
  __device__ uint64_t sum(uint64_t v, Slot slot) {
    return reduce(v, slot, [](uint64_t a, uint64_t b) { return a + b; });
  }
  __device__ uint64_t largest(uint64_t v, Slot slot) {
    return reduce(v, slot, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
  }

  // The sum of `v` over the threads of the CTA before this one, and over all of them. Called by a whole CTA.
  __device__ Sums scan(uint64_t v) {
    uint64_t inclusive = v;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const uint64_t other = __shfl_up_sync(~0u, inclusive, step);
      if (lane >= step) inclusive += other;
    }
    __syncthreads();  // scratch may still be read
    if (lane == 31) s.scratch[warp] = inclusive;
    __syncthreads();
    const uint64_t of_warp = s.scratch[lane];
    return {inclusive - v + sum_warp(lane < warp ? of_warp : 0), sum_warp(of_warp)};
  }

  // The largest key of the row, 0 where nothing is finite, ~0 where a NaN or +inf is in it. Leaves those of the
  // segments in s.maxima. A cluster barrier. The first pass over the row.
  __device__ uint64_t find_largest() {
    const uint64_t of_warp = largest_of_warp<true>();
    if (lane == 0) s.maxima[warp] = of_warp;
    return largest(of_warp, kSlotLargest);
  }
  // The same after adjust(), where s.stale says what to look at again, or with a mask. REQUIRES: a barrier since then.
  __device__ uint64_t find_changed() {
    uint64_t of_warp = s.maxima[warp];
    if (allowed != nullptr || s.stale >> warp & 1) {
      of_warp = largest_of_warp<false>();
      if (lane == 0) s.maxima[warp] = of_warp;
    }
    return largest(of_warp, kSlotChanged);
  }
  template <bool kFill>
  __device__ __forceinline__ uint64_t largest_of_warp() const {
    float best = -INFINITY;
    int best_id = 0;
    bool bad = false;
    for_each<kFill>([&](float v, int id) {
      bad |= !(v < INFINITY);
      if (v > best) {
        best = v;
        best_id = id;
      }
    });
    const uint64_t key = bad ? ~uint64_t{0} : best == -INFINITY ? 0 : order_key(best, best_id);
    return reduce_warp(key, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
  }

  // A key that at least `count` tokens reach, from the largest ones of the segments; 0 where too few segments have one.
  // After find_largest(), by all threads. REQUIRES: count in [1, kSegments].
  __device__ uint64_t guess_of(int count) {
    __syncthreads();  // s.guess may still be read
    if (tid == 0) s.guess = 0;
    if (tid < kSegments) s.guesses[tid] = cluster.map_shared_rank(s.maxima, tid / 32)[tid % 32];
    __syncthreads();
    if (tid < kSegments) {
      const uint64_t mine = s.guesses[tid];
      int larger = 0;
      for (int i = 0; i < kSegments; ++i) larger += s.guesses[i] > mine;
      if (larger == count - 1) s.guess = mine;  // keys differ, but for zeros
    }
    __syncthreads();
    return s.guess;
  }

  // The masses of what is kept; leaves those of the segments in rank 0's `segments`. A cluster barrier.
  __device__ uint64_t sum_masses(const Kept& kept, int segments) {
    uint64_t mass = 0;
    for_each([&](float v, int id) { mass += kept.mass(v, id); });
    const uint64_t of_warp = sum_warp(mass);
    if (lane == 0) cluster.map_shared_rank(s.segments[segments], 0)[segment()] = of_warp;
    return sum(mass, segments == 0 ? kSlotRaw : kSlotKept);
  }

  // Empties this CTA's list. REQUIRES: a cluster barrier since listed().
  __device__ void start_list() {
    if (tid == 0) s.list_count = 0;
    __syncthreads();
  }
  // Counted, though not kept, where the list is full; up to there, as a whole row at one counter takes long.
  __device__ __forceinline__ void append(uint64_t key) {
    if (*const_cast<volatile int*>(&s.list_count) > kListKeys) return;
    const int at = atomicAdd(&s.list_count, 1);
    if (at < kListKeys) s.list[at] = key;
  }
  // Length of all CTAs' lists together, after the barrier behind the last append().
  __device__ int listed() const {
    int count = 0;
#pragma unroll
    for (int r = 0; r < kCtas; ++r) count += *cluster.map_shared_rank(&s.list_count, r);
    return count;
  }
  // Lists the keys from `low` on; a cluster barrier. Returns how many they are.
  __device__ int gather(uint64_t low) {
    start_list();
    for_each([&](float v, int id) {
      const uint64_t key = order_key(v, id);
      if (key >= low && id < end) append(key);
    });
    cluster.sync();
    return listed();
  }
  // All CTAs' lists: thread tid gets places tid and kThreads + tid, 0 behind the end. By rank 0 alone.
  __device__ void load_list(uint64_t (&key)[kListEach]) const {
#pragma unroll
    for (int u = 0; u < kListEach; ++u) {
      key[u] = 0;
      int at = tid + u * kThreads;
      for (int r = 0; r < kCtas; ++r) {
        const int count = *cluster.map_shared_rank(&s.list_count, r);
        if (at >= 0 && at < count) key[u] = cluster.map_shared_rank(s.list, r)[at];
        at -= count;
      }
    }
  }

  // Sorts numbers, the largest first (a bitonic network): place u * kThreads + tid is v[u] of thread tid, and places
  // from `count` on hold 0. By rank 0 alone.
  template <int kEach>
  __device__ void sort(uint64_t (&v)[kEach], int count) {
    int size = 2;
    while (size < count) size *= 2;
    int buffer = 0;
    __syncthreads();  // s.sorting may still be read
    for (int run = 2; run <= size; run *= 2) {
      for (int step = run / 2; step > 0; step /= 2) {
        if (kEach == 2 && step == kThreads) {
          const uint64_t a = v[0], b = v[kEach - 1];
          v[0] = a > b ? a : b;
          v[kEach - 1] = a > b ? b : a;
          continue;
        }
        if (step >= 32) {
          // Two buffers: one is written again a barrier after it was read.
#pragma unroll
          for (int u = 0; u < kEach; ++u) s.sorting[buffer][tid + u * kThreads] = v[u];
          __syncthreads();
        }
#pragma unroll
        for (int u = 0; u < kEach; ++u) {
          const int at = tid + u * kThreads;
          if (at - lane >= size) continue;  // whole warps
          const uint64_t other = step >= 32 ? s.sorting[buffer][at ^ step] : __shfl_xor_sync(~0u, v[u], step);
          const bool larger = ((at & run) == 0) == ((at & step) == 0);
          v[u] = (v[u] > other) == larger ? v[u] : other;
        }
        if (step >= 32) buffer ^= 1;
      }
    }
  }
  // All CTAs' lists, sorted: thread tid gets places 2 * tid and 2 * tid + 1. By rank 0 alone.
  __device__ void load_sorted_pairs(int count, uint64_t (&key)[kListEach]) {
    load_list(key);
    sort(key, count);
    __syncthreads();
#pragma unroll
    for (int u = 0; u < kListEach; ++u) s.sorting[0][tid + u * kThreads] = key[u];
    __syncthreads();
#pragma unroll
    for (int u = 0; u < kListEach; ++u) key[u] = s.sorting[0][kListEach * tid + u];
  }

  __device__ void answer(int token, SampleVerdict* verdict) const {
    verdict->token = token;
    verdict->logit = __ldcg(logits + token);
  }

  // The token whose range of the cumulative mass holds the random point, given the mass of each segment at the thread
  // of its number. By rank 0 alone.
  __device__ void draw(const Kept& kept, uint64_t of_segment, uint64_t random, SampleVerdict* verdict) {
    const Sums sums = scan(of_segment);
    const uint64_t point = draw_point(random, sums.all);
    if (sums.before <= point && point - sums.before < of_segment) {
      s.place = tid;
      s.place_before = sums.before;
    }
    __syncthreads();
    // The threads share the segment, a few neighbouring ids each.
    const int from = s.place * each, of_thread = (each + kThreads - 1) / kThreads;
    const int first = from + tid * of_thread, last = min(vocab, min(from + each, first + of_thread));
    uint64_t mass[kDrawEach], mine = 0;
#pragma unroll
    for (int u = 0; u < kDrawEach; ++u) {
      mass[u] = first + u < last ? kept.mass(logit_at(first + u), first + u) : 0;
      mine += mass[u];
    }
    uint64_t at = s.place_before + scan(mine).before;
#pragma unroll
    for (int u = 0; u < kDrawEach; ++u) {
      if (at <= point && point - at < mass[u]) answer(first + u, verdict);
      at += mass[u];
    }
  }

 private:
  __device__ __forceinline__ void load(int first, float (&v)[kAtOnce]) const {
    const float* const from = logits + first + lane;
    if (first + kBlockIds <= end) {
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) v[u] = __ldcg(from + 32 * u);
    } else {
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) v[u] = first + lane + 32 * u < end ? __ldcg(from + 32 * u) : -INFINITY;
    }
  }
  __device__ __forceinline__ void mask(int first, float (&v)[kAtOnce]) const {
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int word = first / 32 + u;
      if (word * 32 < end && !(allowed[word] >> lane & 1)) v[u] = -INFINITY;
    }
  }
  __device__ __forceinline__ void take_adjusted(int first, float (&v)[kAtOnce]) const {
    const uint32_t* const words = s.changed + (first / 32 - rank * kWarps * each / 32);
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u)
      if (first + 32 * u < end && (words[u] >> lane & 1)) v[u] = __ldcg(adjusted + first + 32 * u + lane);
  }
};

}  // namespace hearth::sampling_sm90
