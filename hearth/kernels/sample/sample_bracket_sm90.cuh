// SPDX-License-Identifier: Apache-2.0
// Where top-k and top-p cut a row, in two passes: a histogram of 8,192 digits, linear in the exponent of a mass, with
// one atomic a token; and an exact pass that lists the tokens of the few digits in which the cuts must be and sums the
// others. A digit's entry holds how many tokens it has and the sum of their places within it, 64 to a digit: counts are
// exact, and masses are known to 2^-14, as a mass falls by the factor exp(-2^-14) from place to place. So the digit of
// the k-th token is known, and of top-p's cut a bracket of digits, by bounds; every number that decides is exact.
#pragma once

#include "hearth/kernels/sample/sample_row_sm90.cuh"

namespace hearth::sampling_sm90 {

constexpr int kPlaceBits = 6;
constexpr float kDigitsPerUnit = 256, kPlacesPerUnit = kDigitsPerUnit * (1 << kPlaceBits);  // units of the exponent
static_assert(-sampling::kExpLow * kDigitsPerUnit < kFineDigits);
// An entry: the count above the sum of places. More tokens overflow it, and show in the sum of all counts: a carry out
// of the lower part adds at most 15 of them over all digits, a lost one takes 8,192.
constexpr int kCountShift = 19;
constexpr uint32_t kOne = 1u << kCountShift;
static_assert(((uint64_t{1} << (32 - kCountShift)) - 1) * ((1 << kPlaceBits) - 1) < kOne);

// Estimates are 64-bit numbers with 26 bits behind the point, 1 being the mass of the most likely token. Their relative
// error is below 2^-14: half a place and the rounding of its argument, 0.53 * 2^-14 together, the curvature within a
// digit, 2^-17, their own rounding, 2^-17. 2^-13 leaves a factor of 2. Masses are rounded to 2^-40 each, half a unit
// for 2^18 tokens.
constexpr int kEstimateBits = 26, kErrorBits = 13;
constexpr uint64_t kRounding = uint64_t{1} << 18;
__device__ __forceinline__ uint64_t most_mass(uint64_t estimate) {
  const uint64_t mass = estimate << (sampling::kMassBits - kEstimateBits);
  return mass + (mass >> kErrorBits) + kRounding;
}
__device__ __forceinline__ uint64_t least_mass(uint64_t estimate) {
  const uint64_t mass = estimate << (sampling::kMassBits - kEstimateBits);
  const uint64_t error = (mass >> kErrorBits) + kRounding;
  return mass > error ? mass - error : 0;
}
// The mass with which a digit begins, times `factor`.
__device__ __forceinline__ uint64_t digit_mass(int digit, float factor) {
  return __float2ull_rn(expf(static_cast<float>(-digit) / kDigitsPerUnit) * factor * 0x1p40f);
}

enum class BracketOutcome { kFound, kAllKept, kDeclined };

// Every member function is called by all threads of the cluster, if it does not say otherwise.
template <int kCtas>
class BracketCut {
 public:
  __device__ BracketCut(RowWork<kCtas>& work, const PackedSampleRow& row, const Kept& kept)
      : work(work), s(work.s), row(row), kept(kept), scale(row.inverse_temperature * kPlacesPerUnit) {}

  // kFound: the digits of the cuts stand in RowStorage, for draw(). kAllKept: there is no cut. kDeclined: too many
  // tokens share a digit.
  __device__ BracketOutcome find() {
    fill();
    if (!locate()) {
      work.cluster.sync();  // `part` may still be read
      return BracketOutcome::kDeclined;
    }
    if (row.top_p >= sampling::kMassOne && s.kth_digit < 0) return BracketOutcome::kAllKept;
    return BracketOutcome::kFound;
  }

  // Lists the tokens of the bracket, [from, to) in places, and of the k-th's digit, [again, end). Sums by segments what
  // is above the bracket, and what is above the k-th's digit, which is what counts for top-p. After find(). Returns how
  // many are listed; more than kListKeys: draw() cannot be.
  __device__ int list_bracket() {
    const int kth = s.kth_digit, last = kth >= 0 ? min(s.last_digit, kth) : s.last_digit;
    const int first = min(s.first_digit, last);
    // Places in order are logits in order: the smallest ones before `from`, `to`, `again`, `end`.
    if (work.warp < 4) {
      const int digit = work.warp == 0 ? first : work.warp == 1 ? last + 1 : work.warp == 2 ? kth : kth + 1;
      float floor = s.least;
      if (work.warp < 2 || kth >= 0)
        floor = fmaxf(floor, floor_of([&](float z) { return is_before(z, digit << kPlaceBits); }));
      if (work.lane == 0) s.floors[work.warp] = floor;
    }
    __syncthreads();
    const float from = s.floors[0], to = s.floors[1], again = s.floors[2], end = s.floors[3];
    uint64_t above = 0, counted = 0;
    if (kth < 0 && kept.mass_least <= 1) {
      // Neither top-k nor min-p: every token counts.
      work.for_blocks([&](const float(&v)[kAtOnce], int id) {
        uint32_t marks = 0;
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          const uint64_t mass = mass_of(v[u], kept.max, kept.inverse_temperature);
          const bool is_above = v[u] >= from;
          counted += mass;
          above += is_above ? mass : 0;
          marks |= !is_above && v[u] >= to ? 1u << u : 0;
        }
        work.append(v, id, marks);
      });
    } else {
      work.for_blocks([&](const float(&v)[kAtOnce], int id) {
        uint32_t marks = 0;
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          const uint64_t mass = mass_from(again, v[u], kept.max, kept.inverse_temperature);
          counted += mass;
          if (v[u] >= from) above += mass;
          if ((v[u] >= to && v[u] < from) || (v[u] >= end && v[u] < again)) marks |= 1u << u;
        }
        work.append(v, id, marks);
      });
    }
    above = work.sum_warp(above);
    counted = work.sum_warp(counted);
    if (work.lane == 0) {
      work.cluster.map_shared_rank(s.segments[1], 0)[work.segment()] = above;
      work.cluster.map_shared_rank(s.counted, 0)[work.segment()] = counted;
    }
    work.cluster.sync();
    return work.listed();
  }

  // After list_bracket(): a token of what top-k and top-p keep to the verdict. By rank 0 alone, as its last work.
  __device__ void draw(int count, SampleVerdict* verdict) {
    const int tid = work.tid;
    const bool has_segment = tid < RowWork<kCtas>::kSegments;
    const uint64_t of_segment = has_segment ? s.segments[1][tid] : 0;
    if (has_segment) s.more_low[tid] = s.more_high[tid] = 0;
    if (tid == 0) s.cut = ~uint64_t{0};
    uint64_t key[kListEach], mass[kListEach], mine = 0;
    work.load_sorted_pairs(count, key);
    // Of the k-th's digit, which is the last in the list, top-k keeps a part.
    const int limit = s.kth_digit >= 0 ? count - s.kth_members + s.kth_rest : count;
#pragma unroll
    for (int u = 0; u < kListEach; ++u) {
      mass[u] = kListEach * tid + u < limit ? mass_of(key_logit(key[u]), kept.max, kept.inverse_temperature) : 0;
      mine += mass[u];
    }
    const uint64_t above = work.scan(of_segment).all;
    uint64_t goal = ~uint64_t{0};
    if (row.top_p < sampling::kMassOne) {
      uint64_t counted = has_segment ? s.counted[tid] : 0;
#pragma unroll
      for (int u = 0; u < kListEach; ++u)
        if (s.kth_digit >= 0 && kListEach * tid + u >= count - s.kth_members) counted += mass[u];
      goal = goal_of(row.top_p, work.scan(counted).all);
    }
    uint64_t before = above + work.scan(mine).before;
#pragma unroll
    for (int u = 0; u < kListEach; ++u) {
      const int at = kListEach * tid + u;
      if (at < limit && before < goal) {
        const int segment = work.segment_of(key_token(key[u]));
        const auto low = static_cast<uint32_t>(mass[u]);
        const uint32_t old = atomicAdd(&s.more_low[segment], low);
        atomicAdd(&s.more_high[segment], static_cast<uint32_t>(mass[u] >> 32) + (old + low < old ? 1 : 0));
        if (at + 1 == limit || before + mass[u] >= goal) s.cut = key[u];
      }
      before += mass[u];
    }
    __syncthreads();
    Kept rest = kept;
    rest.cut = s.cut;
    const uint64_t more = has_segment ? static_cast<uint64_t>(s.more_high[tid]) << 32 | s.more_low[tid] : 0;
    work.draw(rest, of_segment + more, row.random, verdict);
  }

 private:
  RowWork<kCtas>& work;
  RowStorage& s;
  const PackedSampleRow& row;
  const Kept kept;
  const float scale;

  // In 1/64 of a digit, from the largest logit down; never falls with a falling logit. Of these bits: what a place is
  // without kPlaceZero.
  static constexpr uint32_t kPlaceZero = 0x4b000000;  // 2^23
  __device__ __forceinline__ uint32_t place_bits(float z) const {
    return __float_as_uint(__fmaf_rn(__fsub_rn(kept.max, z), scale, 0x1p23f));
  }
  __device__ __forceinline__ bool is_before(float z, int place) const {
    return place_bits(z) < kPlaceZero + static_cast<uint32_t>(place);
  }

  // The smallest logit of which `holds`, which holds of all above; infinity where it does of none. One warp.
  template <class F>
  __device__ float floor_of(const F& holds) const {
    uint64_t low = ordered_bits(-INFINITY), high = ordered_bits(kept.max);  // does not hold of, holds of
    if (!holds(kept.max)) return INFINITY;
    while (high - low > 1) {
      const uint64_t step = (high - low + 31) / 32;
      const uint64_t probe = min(low + step * (work.lane + 1), high);
      const int first =
          __ffs(static_cast<int>(__ballot_sync(~0u, holds(key_logit(probe << 32))))) - 1;  // the last does
      high = min(low + step * (first + 1), high);
      low += step * first;
    }
    return key_logit(high << 32);
  }
  // A logit such that none below it has a mass that counts, and those from it on have their place in the histogram.
  // Without min-p every mass is 0 that is 30 units of the exponent down; the search is for large logits at small
  // temperatures, where these units are less than a step of the logit. One warp.
  __device__ float least_logit() const {
    if (kept.mass_least <= 1) {
      const float least = __fsub_rd(kept.max, __fdiv_ru(-sampling::kExpLow, kept.inverse_temperature));
      if (is_before(least, kFineDigits << kPlaceBits)) return least;
    }
    const uint64_t wanted = max(kept.mass_least, uint64_t{1});
    return floor_of([&](float z) { return mass_of(z, kept.max, kept.inverse_temperature) >= wanted; });
  }

  __device__ void fill() {
    uint4* const digits = reinterpret_cast<uint4*>(s.fine);
    for (int i = work.tid; i < kFineDigits / 4; i += kThreads) digits[i] = make_uint4(0, 0, 0, 0);
    if (work.warp == 0) {
      const float least = least_logit();
      if (work.lane == 0) {
        s.least = least;
        s.members = 0;
      }
    }
    __syncthreads();
    const float least = s.least;
    const uint32_t fine = sm90::kept_shared_address(s.fine);
    uint32_t members = 0;
    work.template for_each<true>([&](float v, int) {
      const uint32_t place = place_bits(v);
      // A digit's word begins at 4 times the digit; kPlaceZero is not in these bits.
      const uint32_t at = place >> (kPlaceBits - 2) & (4 * kFineDigits - 4);
      sm90::add_shared_if(v >= least, fine + at, (place & ((1 << kPlaceBits) - 1)) | kOne);
      members += v >= least ? 1 : 0;
    });
    members = __reduce_add_sync(~0u, members);
    if (work.lane == 0) atomicAdd(&s.members, members);
    work.cluster.sync();
  }

  // Writes kth_digit (-1: top-k cuts nothing), how many of its tokens there are and are kept, first_digit and
  // last_digit, for all CTAs. False: a digit overflowed. Every CTA adds up a part of the digits: a whole histogram
  // from each other CTA would take 5 us a CTA.
  __device__ bool locate() {
    constexpr int kMine = kFineEach / kCtas;  // digits of a thread, from `mine` on
    struct alignas(4 * kMine) Words {
      uint32_t of[kMine];
    };
    const int tid = work.tid, mine = kMine * (work.rank * kThreads + tid);
    // A count less its places, in places: 16,384 a token.
    uint32_t weight[kMine] = {}, count[kMine] = {}, members = 0;
#pragma unroll 1
    for (int i = 0; i < kCtas; ++i) {
      const uint32_t* const fine = work.cluster.map_shared_rank(s.fine, (work.rank + i) % kCtas);
      const Words words = *reinterpret_cast<const Words*>(fine + mine);
#pragma unroll
      for (int j = 0; j < kMine; ++j) {
        weight[j] += static_cast<uint32_t>(kPlacesPerUnit) * (words.of[j] >> kCountShift) - (words.of[j] & (kOne - 1));
        count[j] += words.of[j] >> kCountShift;
        members += words.of[j] >> kCountShift;
      }
    }
    // Estimates up to each digit of this thread.
    float upto[kMine], sum = 0;
#pragma unroll
    for (int j = 0; j < kMine; ++j) {
      const float begin = expf(static_cast<float>(-(mine + j)) / kDigitsPerUnit);
      upto[j] = sum += begin * static_cast<float>(weight[j]) * ((1 << kEstimateBits) / kPlacesPerUnit);
    }
    // One scan for both: 19 bits of counts below the estimates.
    const Sums sums = work.scan(__float2ull_rn(sum) << kCountShift | members);
    if (tid == 0) {
      s.part = sums.all;
      s.kth_digit = -1;
      s.first_digit = 0;
      s.last_digit = kFineDigits - 1;
      s.list_count = 0;
    }
    work.cluster.sync();
    const uint64_t part = *work.cluster.map_shared_rank(&s.part, work.lane % kCtas);
    const uint32_t members_there = *work.cluster.map_shared_rank(&s.members, work.lane % kCtas);
    uint64_t all = 0, packed_before = sums.before;
    uint32_t members_all = 0;
#pragma unroll
    for (int r = 0; r < kCtas; ++r) {
      const uint64_t of_cta = __shfl_sync(~0u, part, r);
      all += of_cta;
      if (r < work.rank) packed_before += of_cta;
      members_all += __shfl_sync(~0u, members_there, r);
    }
    if ((static_cast<uint32_t>(all) & (kOne - 1)) != members_all) return false;
    const uint64_t before = packed_before >> kCountShift;

    if (row.top_k > 0) {
      const auto k = static_cast<uint32_t>(row.top_k);
      uint32_t above = static_cast<uint32_t>(packed_before) & (kOne - 1);
      uint64_t mass_above = before;
#pragma unroll
      for (int j = 0; j < kMine; ++j) {
        if (above < k && k <= above + count[j]) tell_kth(mine + j, count[j], k - above, mass_above);
        above += count[j];
        mass_above = before + __float2ull_rn(upto[j]);
      }
      work.cluster.sync();
    }
    const int kth = s.kth_digit;
    if (row.top_p >= sampling::kMassOne) {
      __syncthreads();
      if (tid == 0) s.first_digit = s.last_digit = kth;
      __syncthreads();
      return true;
    }
    uint64_t total_least = least_mass(all >> kCountShift), total_most = most_mass(all >> kCountShift);
    if (kth >= 0) {
      const float rest = static_cast<float>(s.kth_rest);
      total_least = least_mass(s.kept_mass) + digit_mass(kth + 1, rest * (1 - 0x1p-12f));
      total_most = most_mass(s.kept_mass) + digit_mass(kth, rest * (1 + 0x1p-12f));
    }
    const uint64_t goal_least = goal_of(row.top_p, total_least), goal_most = goal_of(row.top_p, total_most);
    uint64_t above = before;
#pragma unroll
    for (int j = 0; j < kMine; ++j) {
      const uint64_t upto_here = before + __float2ull_rn(upto[j]);
      const bool is_first = most_mass(above) < goal_least && goal_least <= most_mass(upto_here);
      const bool is_last = least_mass(above) < goal_most && goal_most <= least_mass(upto_here);
      if (is_first) tell([&](RowStorage& to) { to.first_digit = mine + j; });
      if (is_last) tell([&](RowStorage& to) { to.last_digit = mine + j; });
      above = upto_here;
    }
    work.cluster.sync();
    return true;
  }

  // f(RowStorage&) of every CTA, by one thread; to be read after a cluster barrier.
  template <class F>
  __device__ __forceinline__ void tell(const F& f) const {
#pragma unroll 1
    for (int r = 0; r < kCtas; ++r) f(*work.cluster.map_shared_rank(&s, r));
  }
  __device__ __forceinline__ void tell_kth(int digit, uint32_t members, uint32_t rest, uint64_t mass_above) const {
    tell([&](RowStorage& to) {
      to.kth_digit = digit;
      to.kth_members = static_cast<int>(members);
      to.kth_rest = static_cast<int>(rest);
      to.kept_mass = mass_above;
    });
  }
};

}  // namespace hearth::sampling_sm90
