// SPDX-License-Identifier: Apache-2.0
// Where top-k or top-p cut a row, for any row: a histogram of exact counts or masses over an interval of order keys,
// narrowed around the crossing digit until the rest is a short list. A few passes over the row, each of them slow where
// many tokens share a digit, so that it serves the rows that the quicker ways (sample_bracket_sm90.cuh) decline.
#pragma once

#include "hearth/kernels/sample/sample_row_sm90.cuh"

namespace hearth::sampling_sm90 {

enum class Measure { kCount, kMass };

// Every member function is called by all threads of the cluster.
template <int kCtas>
class ExactCut {
 public:
  __device__ explicit ExactCut(RowWork<kCtas>& work) : work(work), s(work.s) {}

  // The key with which a walk from the largest, `high`, reaches `goal` in the measure of what is kept. It is expected
  // at `low` or above; a wrong guess costs time. REQUIRES: all of the row reaches the goal, which is at least 1.
  __device__ uint64_t find(Measure measure, uint64_t goal, uint64_t low, uint64_t high, const Kept& kept) {
    uint64_t above = 0;
    while (true) {
      const int width = 64 - __clzll(static_cast<long long>(high - low));
      const int shift = max(0, width - kExactDigitBits);
      fill(measure, low, high, shift, kept);
      const uint64_t all = find_crossing(measure, goal - above);
      const int digit = s.crossing_digit, members = s.crossing_members;
      const uint64_t above_digit = s.crossing_above;
      work.cluster.sync();  // before a histogram is filled again
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
      if (members <= kListKeys) return cut_list(measure, goal - above, low, high, kept);
    }
  }

 private:
  RowWork<kCtas>& work;
  RowStorage& s;

  __device__ void fill(Measure measure, uint64_t low, uint64_t high, int shift, const Kept& kept) {
    const bool masses = measure == Measure::kMass;
    for (int i = work.tid; i < kExactDigits; i += kThreads) {
      s.exact.counts[i] = 0;
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        if (masses) s.exact.parts[part][i] = 0;
    }
    if (work.tid == 0) s.crossing_digit = -1;
    __syncthreads();
    work.for_each([&](float v, int id) {
      const uint64_t key = order_key(v, id);
      if (key < low || key > high || !work.has(id)) return;
      const int digit = static_cast<int>((key - low) >> shift);
      if (masses) {
        const uint64_t mass = kept.mass(v);
        if (mass == 0) return;
#pragma unroll
        for (int part = 0; part < kParts; ++part)
          atomicAdd(&s.exact.parts[part][digit],
                    static_cast<uint32_t>(mass >> (part * kPartBits)) & ((1 << kPartBits) - 1));
      }
      atomicAdd(&s.exact.counts[digit], 1);
    });
    work.cluster.sync();
  }

  // Of one digit, over all CTAs.
  __device__ uint64_t weight_of(Measure measure, int digit, int& members) const {
    uint64_t weight = 0;
    members = 0;
#pragma unroll 1  // more would keep the addresses of all CTAs in registers
    for (int r = 0; r < kCtas; ++r) {
      members += static_cast<int>(work.cluster.map_shared_rank(s.exact.counts, r)[digit]);
      if (measure == Measure::kMass)
#pragma unroll
        for (int part = 0; part < kParts; ++part)
          weight += static_cast<uint64_t>(work.cluster.map_shared_rank(s.exact.parts[part], r)[digit])
                    << (part * kPartBits);
    }
    return measure == Measure::kCount ? static_cast<uint64_t>(members) : weight;
  }

  // Writes the digit with which a walk from the highest reaches `goal`; all CTAs find the same. Returns the sum of all.
  __device__ uint64_t find_crossing(Measure measure, uint64_t goal) {
    const int upper = kExactDigits - 1 - 2 * work.tid;
    int upper_members, lower_members;
    const uint64_t upper_weight = weight_of(measure, upper, upper_members);
    const uint64_t lower_weight = weight_of(measure, upper - 1, lower_members);
    const Sums sums = work.scan(upper_weight + lower_weight);
    const uint64_t middle = sums.before + upper_weight, after = middle + lower_weight;
    if (sums.before < goal && goal <= after) {
      const bool in_upper = goal <= middle;
      s.crossing_digit = in_upper ? upper : upper - 1;
      s.crossing_members = in_upper ? upper_members : lower_members;
      s.crossing_above = in_upper ? sums.before : middle;
    }
    __syncthreads();
    return sums.all;
  }

  // Among the tokens that the crossing digit counted.
  __device__ uint64_t cut_list(Measure measure, uint64_t goal, uint64_t low, uint64_t high, const Kept& kept) {
    work.start_list();
    work.for_blocks([&](const float(&v)[kAtOnce], int id) {
      uint32_t marks = 0;
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const uint64_t key = order_key(v[u], id + work.offset(u));
        if (key < low || key > high || !work.has(id + work.offset(u))) continue;
        if (measure == Measure::kCount || kept.mass(v[u]) > 0) marks |= 1u << u;
      }
      work.append(v, id, marks);
    });
    work.cluster.sync();
    const int count = work.listed();
    uint64_t found = 0;
    if (work.rank == 0) {
      uint64_t key[kListEach], weight[kListEach], mine = 0;
      work.load_sorted_pairs(count, key);
#pragma unroll
      for (int u = 0; u < kListEach; ++u) {
        weight[u] = 0;
        if (kListEach * work.tid + u < count) weight[u] = measure == Measure::kCount ? 1 : kept.mass(key_logit(key[u]));
        mine += weight[u];
      }
      uint64_t before = work.scan(mine).before;
#pragma unroll
      for (int u = 0; u < kListEach; ++u) {
        if (before < goal && goal <= before + weight[u]) found = key[u];
        before += weight[u];
      }
    }
    return work.largest(found, kSlotCut);
  }
};

}  // namespace hearth::sampling_sm90
