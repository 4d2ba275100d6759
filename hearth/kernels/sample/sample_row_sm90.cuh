// SPDX-License-Identifier: Apache-2.0
// The threads of a cluster at one row of logits, and what they share: passes over the row, reductions, lists of keys,
// the sort of a short list, the draw. Ids are walked by place: an id plus as many as the row begins behind a multiple
// of 16 bytes. Every warp owns a contiguous segment of places. Sums are of integers, so that no order of summation
// shows. What all threads must call together says so; the functions of rank 0 run while the other CTAs are at the
// row's last barrier.
#pragma once

#include <cooperative_groups.h>

#include "hearth/kernels/sample/sample_math.cuh"
#include "hearth/kernels/sample/sample_packed.h"
#include "hearth/kernels/sm90/shared.cuh"

namespace hearth::sampling_sm90 {

namespace cg = cooperative_groups;

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kVector = 4, kVectors = 2;  // logits of a load, and loads of a thread under way
constexpr int kAtOnce = kVector * kVectors;
constexpr int kBlockIds = 32 * kAtOnce;
constexpr int kMostCtas = 8, kLeastCtas = 2;
constexpr int kMostSegments = kMostCtas * kWarps;
// Of reductions: a cluster barrier lies between two that share one.
enum Slot { kSlotLargest, kSlotChanged = 2, kSlotRaw = 4, kSlotKept, kSlotCut, kSlots };
constexpr int kListEach = 2;  // keys of a thread in a sort
constexpr int kListKeys = kListEach * kThreads;
// Places of a segment, whole blocks: ends of rows alone are edges.
__host__ __device__ constexpr int segment_places(int vocab, int segments) {
  return ((vocab + kVector - 1 + segments - 1) / segments + kBlockIds - 1) / kBlockIds * kBlockIds;
}
constexpr int kMostEach = segment_places(kMaxPackedVocab, kLeastCtas* kWarps);
constexpr int kDrawEach = 5;  // ids of a thread in a draw from one segment
static_assert(kMostEach <= kDrawEach * kThreads);
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
// Changed logits, as they were before, that fit in shared memory.
constexpr int kKeptShared = 8192;

struct RowStorage {
  union {  // one after the other, cluster barriers between
    ExactHistogram exact;
    alignas(16) uint32_t fine[kFineDigits];
    uint64_t sorting[2][kListKeys];  // rank 0's, by turns
  };
  uint64_t list[kListKeys];             // this CTA's keys
  float kept[kKeptShared];              // what was where a change is, where there are no more
  uint64_t segments[2][kMostSegments];  // rank 0's: masses of the segments, of raw logits and of what is kept
  uint64_t counted[kMostSegments];      // rank 0's: masses that count for top-p
  uint32_t more_low[kMostSegments], more_high[kMostSegments];  // rank 0's: added to the segments, 64 bits in two halves
  uint64_t maxima[kWarps];                                     // largest keys of the segments
  uint64_t guesses[kMostSegments];                             // those of all CTAs
  uint64_t scratch[2][kWarps];                                 // of one reduction or scan
  uint64_t slots[kSlots];                                      // this CTA's part of a reduction
  uint64_t largest;  // key of find_largest(): in registers it would be spilled around every phase
  uint64_t guess;
  uint64_t crossing_above;  // exact histogram: what stands above the crossing digit
  uint64_t place_before;    // of the draw: masses before the segment
  uint64_t kept_mass;       // bracket: estimate of what stands above the digit of the k-th
  uint64_t part;            // bracket: estimate and count of this CTA's part of the digits
  uint64_t cut;
  uint32_t members;   // tokens in the fine histogram
  float least;        // bracket: no logit below it has a mass that counts
  float floors[4];    // bracket: see list_bracket()
  bool hides_finite;  // a change was of a finite logit
  int list_count, crossing_digit, crossing_members, place;
  int first_digit, last_digit, kth_digit, kth_rest, kth_members;
};

struct KernelParams {
  float* logits;
  int64_t row_stride;
  const std::byte* block;
  SampleVerdict* verdicts;
  SampleCandidate* candidates;
  float* adjusted;
  HistoryEntry* histories;
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
// Of a row; bad: a NaN or +inf is in it, or nothing finite.
struct Largest {
  uint64_t key = 0;  // with masks and changes as the pass has them; 0 where nothing is finite
  bool bad = false;
  float raw = 0;  // the largest logit as the model gave it
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
        shift(static_cast<int>(reinterpret_cast<uintptr_t>(logits) / sizeof(float) % kVector)),
        rank(static_cast<int>(cluster.block_rank())),
        each(segment_places(vocab, kSegments)) {
    begin = min(vocab + shift, segment() * each);
    end = min(vocab + shift, begin + each);
    const PackedSampleRow& row = this_row(p);
    if (masked && row.flags & PackedSampleRow::kAllowed)
      allowed = reinterpret_cast<const uint32_t*>(list_at(p, row.allowed));
  }

  RowStorage& s;
  const cg::cluster_group cluster;
  const float* const logits;
  const int vocab;
  const int shift;  // a place less its id
  const int rank;
  const int each;  // places of a segment
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32;
  int begin, end;                     // the warp's places
  const uint32_t* allowed = nullptr;  // a bitset: other tokens count as -inf; null: all

  __device__ int segment() const { return rank * kWarps + warp; }
  __device__ int segment_of(int id) const { return (id + shift) / each; }
  // Whether this warp owns the id, which it got from a pass.
  __device__ bool has(int id) const { return id >= 0 && id + shift < end; }

  // f(logits, id) for all ids of this warp, eight at once: logits[u] is that of id + offset(u), and -inf where has()
  // says no. g(logits) before that, with the logits as the model gave them.
  __device__ static constexpr int offset(int u) { return u / kVector * (32 * kVector) + u % kVector; }
  // kBack: from the last ones on, which the pass before left in the cache.
  template <bool kBack = false, class F, class G>
  __device__ __forceinline__ void for_blocks(const F& f, const G& g) const {
    if (allowed == nullptr)
      walk<false, kBack>(f, g);
    else
      walk<true, kBack>(f, g);
  }
  template <bool kBack = false, class F>
  __device__ __forceinline__ void for_blocks(const F& f) const {
    for_blocks<kBack>(f, [](const float(&)[kAtOnce]) {});
  }
  // f(logit, id), one by one.
  template <bool kBack = false, class F>
  __device__ __forceinline__ void for_each(const F& f) const {
    for_blocks<kBack>([&](const float(&v)[kAtOnce], int id) {
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) f(v[u], id + offset(u));
    });
  }

  __device__ float logit_at(int id) const {
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
  // Of all threads of the cluster; a cluster barrier for all of them. Takes kCount slots.
  template <int kCount, class Op>
  __device__ void reduce(uint64_t (&v)[kCount], Slot slot, const Op& op) {
    __syncthreads();  // scratch may still be read
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      v[i] = reduce_warp(v[i], op);
      if (lane == 0) s.scratch[i][warp] = v[i];
    }
    __syncthreads();
    if (warp < kCount) {
      const uint64_t of_all = reduce_warp(s.scratch[warp][lane], op);
      if (lane == 0) s.slots[slot + warp] = of_all;
    }
    cluster.sync();
    // A lane for each CTA's part.
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      v[i] = *cluster.map_shared_rank(&s.slots[slot + i], lane % kCtas);
#pragma unroll
      for (int step = kCtas / 2; step > 0; step /= 2) v[i] = op(v[i], __shfl_xor_sync(~0u, v[i], step));
    }
  }
  __device__ uint64_t sum(uint64_t v, Slot slot) {
    uint64_t one[1] = {v};
    reduce(one, slot, [](uint64_t a, uint64_t b) { return a + b; });
    return one[0];
  }
  static __device__ uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }
  __device__ uint64_t largest(uint64_t v, Slot slot) {
    uint64_t one[1] = {v};
    reduce(one, slot, larger);
    return one[0];
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
    if (lane == 31) s.scratch[0][warp] = inclusive;
    __syncthreads();
    const uint64_t of_warp = s.scratch[0][lane];
    return {inclusive - v + sum_warp(lane < warp ? of_warp : 0), sum_warp(of_warp)};
  }

  // A cluster barrier. Leaves the largest keys of the segments in s.maxima. hides_finite: a change may have made a
  // finite logit -inf, which is not the model's fault.
  __device__ Largest find_largest(Slot slot, bool hides_finite) {
    float best = -INFINITY, raw = hides_finite ? -0x1.fffffep127f : -INFINITY;
    int best_id = 0;
    bool bad = false;
    for_blocks(
        [&](const float(&v)[kAtOnce], int id) {
#pragma unroll
          for (int u = 0; u < kAtOnce; ++u) {
            if (v[u] > best) {
              best = v[u];
              best_id = id + offset(u);
            }
          }
        },
        [&](const float(&v)[kAtOnce]) {
#pragma unroll
          for (int u = 0; u < kAtOnce; ++u) {
            bad |= !(v[u] < INFINITY);
            raw = fmaxf(raw, v[u]);
          }
        });
    uint64_t both[2] = {best == -INFINITY ? 0 : order_key(best, best_id), bad ? ~uint64_t{0} : ordered_bits(raw)};
    const uint64_t of_warp = reduce_warp(both[0], larger);
    if (lane == 0) s.maxima[warp] = of_warp;
    reduce(both, slot, larger);
    return {.key = both[0],
            .bad = both[1] == ~uint64_t{0} || both[1] == ordered_bits(-INFINITY),
            .raw = key_logit(both[1] << 32)};
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
    for_each<true>([&](float v, int id) { mass += kept.mass(v, id); });
    const uint64_t of_warp = sum_warp(mass);
    if (lane == 0) cluster.map_shared_rank(s.segments[segments], 0)[segment()] = of_warp;
    return sum(mass, segments == 0 ? kSlotRaw : kSlotKept);
  }

  // Empties this CTA's list. REQUIRES: a cluster barrier since listed().
  __device__ void start_list() {
    if (tid == 0) s.list_count = 0;
    __syncthreads();
  }
  // Those of a pass that have a bit in `marks`. Counted, though not kept, where the list is full; up to there, as a
  // whole row at one counter takes long.
  __device__ __forceinline__ void append(const float (&v)[kAtOnce], int id, uint32_t marks) const {
    if (marks == 0 || *const_cast<volatile int*>(&s.list_count) > kListKeys) return;
    int at = atomicAdd(&s.list_count, __popc(marks));
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      if (!(marks >> u & 1)) continue;
      if (at < kListKeys) s.list[at] = order_key(v[u], id + offset(u));
      ++at;
    }
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
    for_blocks([&](const float(&v)[kAtOnce], int id) {
      uint32_t marks = 0;
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u)
        if (order_key(v[u], id + offset(u)) >= low && has(id + offset(u))) marks |= 1u << u;
      append(v, id, marks);
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

  // Sorts numbers that differ but for zeros, the largest first: place u * kThreads + tid is v[u] of thread tid, and
  // places from `count` on hold 0. By rank 0 alone.
  template <int kEach>
  __device__ void sort(uint64_t (&v)[kEach], int count) {
    if (count <= kThreads / 2) {
      v[0] = sorted_by_rank(v[0], count);
      return;
    }
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
    const int from = s.place * each - shift, of_thread = (each + kThreads - 1) / kThreads;
    const int first = from + tid * of_thread, last = min(vocab, min(from + each, first + of_thread));
    uint64_t mass[kDrawEach], mine = 0;
#pragma unroll
    for (int u = 0; u < kDrawEach; ++u) {
      mass[u] = first + u >= 0 && first + u < last ? kept.mass(logit_at(first + u), first + u) : 0;
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
  // Few numbers: each is compared with all, by two threads. Places from kThreads on get nothing.
  __device__ uint64_t sorted_by_rank(uint64_t v, int count) {
    __syncthreads();  // s.sorting may still be read
    if (tid < kThreads / 2) {
      s.sorting[0][tid] = v;
      s.sorting[1][tid] = 0;
    }
    __syncthreads();
    const int at = tid / 2;
    const uint64_t mine = s.sorting[0][at];
    int larger_ones = 0;
    if (at - lane / 2 < count)  // whole warps
#pragma unroll 8
      for (int i = tid % 2; i < count; i += 2) larger_ones += s.sorting[0][i] > mine ? 1 : 0;
    larger_ones += __shfl_xor_sync(~0u, larger_ones, 1);
    if (tid % 2 == 0 && mine != 0) s.sorting[1][larger_ones] = mine;
    __syncthreads();
    return tid < kThreads / 2 ? s.sorting[1][tid] : 0;
  }

  template <bool kMasked, bool kBack, class F, class G>
  __device__ __forceinline__ void walk(const F& f, const G& g) const {
    const int last = begin + (end - begin - 1) / kBlockIds * kBlockIds;
#pragma unroll 1
    for (int i = begin; i < end; i += kBlockIds) {
      const int first = kBack ? last - (i - begin) : i;
      float v[kAtOnce];
      load(first, v);
      g(v);
      if (kMasked) mask(first + kVector * lane, v);
      f(v, first + kVector * lane - shift);
    }
  }
  // From L2: the row is read once a pass, and nothing of it stays for the next one.
  __device__ __forceinline__ void load(int first, float (&v)[kAtOnce]) const {
    const int at = first + kVector * lane;
    if (first >= shift && first + kBlockIds <= end) {
#pragma unroll
      for (int k = 0; k < kVectors; ++k) load_vector(at + 32 * kVector * k, v + kVector * k);
      return;
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int place = at + offset(u);
      v[u] = place >= shift && place < end ? __ldcg(logits + (place - shift)) : -INFINITY;
    }
  }
  __device__ __forceinline__ void load_vector(int place, float* to) const {
    const float4 four = __ldcg(reinterpret_cast<const float4*>(logits + (place - shift)));
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
  }
  // The logits of the places from `at` on.
  __device__ __forceinline__ void mask(int at, float (&v)[kAtOnce]) const {
    const int words = (vocab + 31) / 32;
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      // Four bits, which may begin in one word and end in the next.
      const int id = at + 32 * kVector * k - shift, word = id >> 5;
      const uint32_t low = word >= 0 && word < words ? allowed[word] : 0;
      const uint32_t high = word + 1 < words ? allowed[word + 1] : 0;
      const uint32_t bits = __funnelshift_r(low, high, id & 31);
#pragma unroll
      for (int j = 0; j < kVector; ++j)
        if (!(bits >> j & 1)) v[kVector * k + j] = -INFINITY;
    }
  }
};

}  // namespace hearth::sampling_sm90
