// SPDX-License-Identifier: Apache-2.0
// The sampler of the CPU backend: no sort of the vocabulary. A row is scanned once for its largest logit
// (per block of 128 too); a filter first narrows the row to a list of candidates that surely holds the kept
// set, skipping blocks by their maxima, then finds the exact cut in the list with a histogram and a weighted
// quickselect. All sums are of integer masses, so no order of summation shows in the result.
// Rows go over the threads of the pool; each thread has its own scratch. Never allocates.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>

#include "hearth/kernels/sample/sample_math.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "hearth/kernels/sample/sample_cpu.cpp"
#include "hearth/kernels/cpu/targets.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#ifndef HEARTH_SAMPLE_CPU_ONCE
#define HEARTH_SAMPLE_CPU_ONCE
namespace hearth::sampling {

constexpr int64_t kBlock = 128;
constexpr int64_t kBuckets = 2048;
constexpr int64_t kPad = 64;  // a compressing store may write a whole vector past its end
constexpr int64_t kSortedDirectly = 256;
constexpr float kMassRange = 28.5f;  // tokens this many temperatures below the most likely have no mass

// One thread's memory; see sample_cpu_workspace_bytes. `keys` lies over z and counts, which are not in use
// at the same time: a cut is searched in list_z.
struct Scratch {
  float* z;             // [vocab] adjusted logits
  uint32_t* counts;     // [vocab] occurrences in the output; valid where `in_output` has the bit
  uint64_t* keys;       // [vocab]
  float* list_z;        // [vocab] candidates, ascending ids
  int32_t* list_ids;    // [vocab]
  uint64_t* seen;       // [vocab / 64] bitset
  uint64_t* in_output;  // [vocab / 64] bitset
  uint64_t* block_sums;
  float* block_max;
  uint64_t* histogram;  // [kBuckets]

  static int64_t bytes(int64_t vocab) { return layout(nullptr, vocab, nullptr); }
  static Scratch at(std::byte* base, int64_t vocab) {
    Scratch scratch;
    layout(base, vocab, &scratch);
    return scratch;
  }

 private:
  static int64_t layout(std::byte* base, int64_t vocab, Scratch* out) {
    const int64_t n = (vocab + kPad - 1) / kPad * kPad + kPad, blocks = n / kBlock + 1;
    int64_t offset = 0;
    const auto take = [&](int64_t bytes) { return offset += (bytes + 63) / 64 * 64, offset - (bytes + 63) / 64 * 64; };
    const int64_t z = take(4 * n), counts = take(4 * n), list_z = take(4 * n), list_ids = take(4 * n);
    const int64_t seen = take(n / 8), in_output = take(n / 8), sums = take(8 * blocks), max = take(4 * blocks);
    const int64_t histogram = take(8 * kBuckets);
    if (out != nullptr) {
      const auto at = [&]<class T>(T*& pointer, int64_t position) { pointer = reinterpret_cast<T*>(base + position); };
      at(out->z, z), at(out->counts, counts), at(out->keys, z), at(out->list_z, list_z), at(out->list_ids, list_ids);
      at(out->seen, seen), at(out->in_output, in_output), at(out->block_sums, sums), at(out->block_max, max);
      at(out->histogram, histogram);
    }
    return offset;
  }
};

// Tokens in ascending ids; without `ids`, token i is at i.
struct List {
  const float* z;
  const int32_t* ids;
  int64_t count;
};

// From logits to masses, and which tokens are kept: those not after (z_least, id_last) in the order of keys
// and with at least mass_least.
struct Distribution {
  float z_max = 0;
  float inverse_temperature = 1;
  uint64_t mass_least = 0;
  float z_least = -INFINITY;
  int32_t id_last = std::numeric_limits<int32_t>::max();

  bool keeps_all() const { return mass_least == 0 && z_least == -INFINITY; }
  uint64_t mass(float z) const {
    const uint64_t value = mass_of(z, z_max, inverse_temperature);
    return value >= mass_least ? value : 0;
  }
  uint64_t kept_mass(float z, int32_t id) const { return z > z_least || (z == z_least && id <= id_last) ? mass(z) : 0; }
};

enum class Measure { kCount, kMass };

// Sets (z_least, id_last) of `cut` to the token with which a walk over `keys` (any order) from the largest
// reaches `goal` in counts or masses, and returns what it has then reached. REQUIRES: all of them reach it;
// goal >= 1.
inline uint64_t cut_keys(std::span<uint64_t> keys, Measure measure, uint64_t goal, Distribution& cut) {
  const uint64_t whole_goal = goal;
  const auto weigh = [&](uint64_t key) { return measure == Measure::kCount ? 1 : cut.mass(key_logit(key)); };
  const auto set = [&](uint64_t key, uint64_t weight) {
    cut.z_least = key_logit(key);
    cut.id_last = key_token(key);
    return whole_goal - goal + weight;
  };
  // Keys differ, so that each round drops the pivot at least; unlucky pivots end in the sort.
  for (int round = 0; keys.size() > 64 && round < 48; ++round) {
    const uint64_t a = keys.front(), b = keys[keys.size() / 2], c = keys.back();
    const uint64_t pivot = std::max(std::min(a, b), std::min(std::max(a, b), c));
    const auto middle = std::partition(keys.begin(), keys.end(), [&](uint64_t key) { return key > pivot; });
    uint64_t above = 0;
    for (auto key = keys.begin(); key != middle; ++key) above += weigh(*key);
    if (above >= goal) {
      keys = {keys.begin(), middle};
      continue;
    }
    goal -= above;
    const uint64_t weight = weigh(pivot);
    if (weight >= goal) return set(pivot, weight);
    goal -= weight;
    const auto rest = std::partition(middle, keys.end(), [&](uint64_t key) { return key == pivot; });
    keys = {rest, keys.end()};
  }
  std::sort(keys.begin(), keys.end(), std::greater<>());
  for (const uint64_t key : keys) {
    const uint64_t weight = weigh(key);
    if (weight >= goal) return set(key, weight);
    goal -= weight;
  }
  HEARTH_CHECK(false, "a cut is {} short of its goal", goal);
}

// The allowed, biased, penalised and banned logits go to scratch.z, which holds the allowed ones already.
inline void adjust_sparse(const SampleRow& row, int64_t vocab, const Scratch& scratch) {
  float* z = scratch.z;
  for (const LogitBias& entry : row.logit_bias) z[entry.token] = biased(z[entry.token], entry.bias);
  if (row.params.penalises()) {
    const size_t bytes = static_cast<size_t>((vocab + 63) / 64) * 8;
    std::memset(scratch.seen, 0, bytes);
    std::memset(scratch.in_output, 0, bytes);
    const auto bit = [](int32_t token) { return uint64_t{1} << (token % 64); };
    for (const int32_t token : row.prompt_tokens) scratch.seen[token / 64] |= bit(token);
    for (const int32_t token : row.output_tokens) {
      uint64_t& word = scratch.in_output[token / 64];
      scratch.counts[token] = word & bit(token) ? scratch.counts[token] + 1 : 1;
      word |= bit(token);
      scratch.seen[token / 64] |= bit(token);
    }
    // Each token once: its bit goes with its penalty.
    const auto apply = [&](int32_t token) {
      if (!(scratch.seen[token / 64] & bit(token))) return;
      scratch.seen[token / 64] &= ~bit(token);
      const bool output = scratch.in_output[token / 64] & bit(token);
      z[token] = penalised(z[token], row.params, true, output ? scratch.counts[token] : 0);
    };
    for (const int32_t token : row.prompt_tokens) apply(token);
    for (const int32_t token : row.output_tokens) apply(token);
  }
  for (const int32_t token : row.banned) z[token] = -INFINITY;
}

}  // namespace hearth::sampling
#endif  // HEARTH_SAMPLE_CPU_ONCE

HWY_BEFORE_NAMESPACE();
namespace hearth::sampling::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using DI = hn::RebindToSigned<D>;
using DHalf = hn::Half<D>;
using DWide = hn::Rebind<double, DHalf>;
using DWideU = hn::RebindToUnsigned<DWide>;
using V = hn::VFromD<D>;
constexpr D kD;

// [from, count) of `values`, at most one vector; lanes past the end get `fill`.
template <class Tag, class T>
HWY_INLINE hn::VFromD<Tag> load(Tag d, const T* values, int64_t from, int64_t count, T fill) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  if (HWY_LIKELY(from + lanes <= count)) return hn::LoadU(d, values + from);
  HWY_ALIGN T tail[HWY_MAX_BYTES / sizeof(T)];
  for (int64_t i = 0; i < lanes; ++i) tail[i] = from + i < count ? values[from + i] : fill;
  return hn::Load(d, tail);
}

struct Scan {
  float max;
  bool broken;  // a NaN or +inf
};

// The largest value of the row and of each block.
Scan scan(const float* z, int64_t count, float* block_max) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(kD));
  const V infinity = hn::Set(kD, INFINITY);
  V all = hn::Set(kD, -INFINITY);
  auto fine = hn::Eq(infinity, infinity);
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    V largest = hn::Set(kD, -INFINITY);
    for (int64_t i = begin; i < std::min(begin + kBlock, count); i += lanes) {
      const V v = load(kD, z, i, count, -INFINITY);
      fine = hn::And(fine, hn::Lt(v, infinity));
      largest = hn::Max(largest, v);
    }
    all = hn::Max(all, largest);
    block_max[begin / kBlock] = hn::GetLane(hn::MaxOfLanes(kD, largest));
  }
  return {hn::GetLane(hn::MaxOfLanes(kD, all)), !hn::AllTrue(kD, fine)};
}

int32_t first_equal(const float* z, int64_t count, const float* block_max, float value) {
  int64_t i = 0;
  while (block_max[i / kBlock] != value) i += kBlock;
  while (z[i] != value) ++i;
  HEARTH_DCHECK(i < count, "no token has the largest logit");
  return static_cast<int32_t>(i);
}

// exp_f32 of sample_math.h, the same operations lane by lane, then times 2^40 (exact).
HWY_INLINE V exp_scaled(V x) {
  const hn::RebindToUnsigned<D> du;
  const V rounded = hn::Add(hn::Mul(x, hn::Set(kD, kExpLog2e)), hn::Set(kD, kExpRound));
  const V n = hn::Sub(rounded, hn::Set(kD, kExpRound));
  const V r = hn::Sub(hn::Sub(x, hn::Mul(n, hn::Set(kD, kExpLn2Head))), hn::Mul(n, hn::Set(kD, kExpLn2Tail)));
  V q = hn::Set(kD, kExpQ[4]);
  for (int i = 3; i >= 0; --i) q = hn::Add(hn::Mul(q, r), hn::Set(kD, kExpQ[i]));
  const V p = hn::Add(hn::Add(hn::Mul(q, hn::Mul(r, r)), r), hn::Set(kD, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::Add(hn::BitCast(du, rounded), hn::Set(du, uint32_t{kMassBits})));
  return hn::BitCast(kD, hn::Add(hn::BitCast(du, p), exponent));
}

// Masses as doubles with 2^52 added, so that their bits are the bits of 2^52 plus the integer.
struct Masses {
  hn::VFromD<DWide> low, high;
};

HWY_INLINE Masses masses(V z, const Distribution& distribution) {
  const DWide dw;
  const V x =
      hn::Max(hn::Mul(hn::Sub(z, hn::Set(kD, distribution.z_max)), hn::Set(kD, distribution.inverse_temperature)),
              hn::Set(kD, kExpLow));
  const V e = exp_scaled(x);
  const auto offset = hn::Set(dw, 0x1p52);
  const DHalf dh;
  const auto low = hn::Add(hn::PromoteTo(dw, hn::LowerHalf(dh, e)), offset);
#if HWY_TARGET == HWY_SCALAR
  return {low, offset};  // one lane has no upper half
#else
  return {low, hn::Add(hn::PromoteTo(dw, hn::UpperHalf(dh, e)), offset)};
#endif
}

// Lanes with fewer than mass_least become 2^52, a mass of 0.
HWY_INLINE Masses drop_small(Masses m, const Distribution& distribution) {
  const DWide dw;
  const auto offset = hn::Set(dw, 0x1p52);
  const auto least = hn::Set(dw, 0x1p52 + static_cast<double>(distribution.mass_least));
  return {hn::IfThenElse(hn::Ge(m.low, least), m.low, offset), hn::IfThenElse(hn::Ge(m.high, least), m.high, offset)};
}

// Lanes whose token is after the cut get -inf, a mass of 0.
HWY_INLINE V drop_after_cut(V z, const List& list, int64_t i, const Distribution& cut) {
  const DI di;
  const V least = hn::Set(kD, cut.z_least);
  const auto ids =
      list.ids != nullptr ? load(di, list.ids, i, list.count, int32_t{0}) : hn::Iota(di, static_cast<int32_t>(i));
  const auto early = hn::Not(hn::RebindMask(kD, hn::Gt(ids, hn::Set(di, cut.id_last))));
  const auto kept = hn::Or(hn::Gt(z, least), hn::And(hn::Eq(z, least), early));
  return hn::IfThenElse(kept, z, hn::Set(kD, -INFINITY));
}

template <bool kKeepsAll>
uint64_t sum_blocks(const List& list, const Distribution& distribution, uint64_t enough, uint64_t* block_sums) {
  const DWideU du;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(kD));
  uint64_t total = 0;
  for (int64_t begin = 0; begin < list.count && total <= enough; begin += kBlock) {
    auto low = hn::Zero(du), high = hn::Zero(du);
    const int64_t end = std::min(begin + kBlock, list.count);
    for (int64_t i = begin; i < end; i += lanes) {
      V z = load(kD, list.z, i, list.count, -INFINITY);
      if constexpr (!kKeepsAll) z = drop_after_cut(z, list, i, distribution);
      Masses m = masses(z, distribution);
      if constexpr (!kKeepsAll) m = drop_small(m, distribution);
      low = hn::Add(low, hn::BitCast(du, m.low));
      high = hn::Add(high, hn::BitCast(du, m.high));
    }
    // Each lane has added 2^52 twice per vector.
    const uint64_t offsets =
        static_cast<uint64_t>((end - begin + lanes - 1) / lanes) * 2 * std::bit_cast<uint64_t>(0x1p52);
    const uint64_t sum = hn::GetLane(hn::SumOfLanes(du, hn::Sub(hn::Add(low, high), hn::Set(du, offsets))));
    block_sums[begin / kBlock] = sum;
    total += sum;
  }
  return total;
}

// The mass of what is kept, and of each block of the list; ends with the block that exceeds `enough`.
uint64_t sum(const List& list, const Distribution& distribution, uint64_t* block_sums, uint64_t enough = ~uint64_t{0}) {
  return distribution.keeps_all() ? sum_blocks<true>(list, distribution, enough, block_sums)
                                  : sum_blocks<false>(list, distribution, enough, block_sums);
}

// Writes the lanes of the mask to out_z and out_ids and returns how many.
template <class Mask>
HWY_INLINE int64_t store_masked(V z, hn::VFromD<DI> ids, Mask mask, float* out_z, int32_t* out_ids) {
  const DI di;
  hn::CompressStore(ids, hn::RebindMask(di, mask), di, out_ids);
  return static_cast<int64_t>(hn::CompressStore(z, mask, kD, out_z));
}

// The tokens with z >= least, in scratch.list_*.
List narrow(const float* z, int64_t count, float least, const Scratch& scratch) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(kD));
  const DI di;
  const V bound = hn::Set(kD, least);
  int64_t kept = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    if (scratch.block_max[begin / kBlock] < least) continue;
    for (int64_t i = begin; i < std::min(begin + kBlock, count); i += lanes) {
      const V v = load(kD, z, i, count, -INFINITY);
      auto mask = hn::Ge(v, bound);
      if (i + lanes > count) mask = hn::And(mask, hn::FirstN(kD, static_cast<size_t>(count - i)));
      if (hn::AllFalse(kD, mask)) continue;
      kept +=
          store_masked(v, hn::Iota(di, static_cast<int32_t>(i)), mask, scratch.list_z + kept, scratch.list_ids + kept);
    }
  }
  return {scratch.list_z, scratch.list_ids, kept};
}

// Drops from the list, in place, what is after the cut.
List drop(const List& list, const Distribution& cut, const Scratch& scratch) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(kD));
  const DI di;
  int64_t kept = 0;
  for (int64_t i = 0; i < list.count; i += lanes) {
    const V z = load(kD, list.z, i, list.count, -INFINITY);
    const auto ids = load(di, list.ids, i, list.count, std::numeric_limits<int32_t>::max());
    const V least = hn::Set(kD, cut.z_least);
    const auto early = hn::Not(hn::RebindMask(kD, hn::Gt(ids, hn::Set(di, cut.id_last))));
    auto mask = hn::Or(hn::Gt(z, least), hn::And(hn::Eq(z, least), early));
    if (i + lanes > list.count) mask = hn::And(mask, hn::FirstN(kD, static_cast<size_t>(list.count - i)));
    kept += store_masked(z, ids, mask, scratch.list_z + kept, scratch.list_ids + kept);
  }
  return {scratch.list_z, scratch.list_ids, kept};
}

// Buckets of equal width in z from the largest down; the last takes the rest. Never larger for a larger z.
struct Buckets {
  float z_max, per_unit;
  HWY_INLINE hn::VFromD<DI> of(V z) const {
    const V position = hn::Mul(hn::Sub(hn::Set(kD, z_max), z), hn::Set(kD, per_unit));
    return hn::ConvertTo(DI(), hn::Min(position, hn::Set(kD, static_cast<float>(kBuckets - 1))));
  }
};

uint64_t fill_histogram(const List& list, const Buckets& buckets, Measure measure, const Distribution& distribution,
                        uint64_t* histogram) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(kD));
  const DI di;
  const DWideU du;
  std::fill_n(histogram, kBuckets, 0);
  HWY_ALIGN int32_t bucket[kBlock];
  HWY_ALIGN uint64_t mass[kBlock];
  for (int64_t begin = 0; begin < list.count; begin += kBlock) {
    const int64_t count = std::min(kBlock, list.count - begin);
    for (int64_t i = 0; i < count; i += lanes) {
      const V z = load(kD, list.z, begin + i, list.count, -INFINITY);
      hn::Store(buckets.of(z), di, bucket + i);
      if (measure == Measure::kCount) continue;
      const Masses m = drop_small(masses(z, distribution), distribution);
      const auto offset = hn::Set(du, std::bit_cast<uint64_t>(0x1p52));
      hn::Store(hn::Sub(hn::BitCast(du, m.high), offset), du, mass + i + lanes / 2);
      hn::Store(hn::Sub(hn::BitCast(du, m.low), offset), du, mass + i);
    }
    if (measure == Measure::kCount) {
      for (int64_t i = 0; i < count; ++i) ++histogram[bucket[i]];
    } else {
      for (int64_t i = 0; i < count; ++i) histogram[bucket[i]] += mass[i];
    }
  }
  return std::accumulate(histogram, histogram + kBuckets, uint64_t{0});
}

// Sets the cut of `distribution` where a walk over the list from the most likely token reaches `goal`, and
// returns what it has then reached; 0, and scratch.z is still whole, where the list falls short of the goal.
// `list` is in scratch.list_*.
// z_range: how far below z_max the cut is expected; a wrong guess costs time only.
uint64_t find_cut(const List& list, Measure measure, uint64_t goal, float z_range, const Scratch& scratch,
                  Distribution& distribution) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(kD));
  const DI di;
  int64_t gathered = 0;
  uint64_t before = 0;
  if (list.count <= kSortedDirectly) {
    uint64_t whole = 0;
    for (int64_t i = 0; i < list.count; ++i) whole += measure == Measure::kCount ? 1 : distribution.mass(list.z[i]);
    if (whole < goal) return 0;
    for (; gathered < list.count; ++gathered) {
      scratch.keys[gathered] = order_key(list.z[gathered], list.ids[gathered]);
    }
  } else {
    const Buckets buckets{distribution.z_max, static_cast<float>(kBuckets) / std::max(z_range, 1e-20f)};
    if (fill_histogram(list, buckets, measure, distribution, scratch.histogram) < goal) return 0;
    int32_t crossing = 0;
    while (before + scratch.histogram[crossing] < goal) before += scratch.histogram[crossing++];
    HWY_ALIGN float some_z[HWY_MAX_BYTES / 4];
    HWY_ALIGN int32_t some_ids[HWY_MAX_BYTES / 4];
    for (int64_t i = 0; i < list.count; i += lanes) {
      const V z = load(kD, list.z, i, list.count, -INFINITY);
      auto mask = hn::RebindMask(kD, hn::Eq(buckets.of(z), hn::Set(di, crossing)));
      if (i + lanes > list.count) mask = hn::And(mask, hn::FirstN(kD, static_cast<size_t>(list.count - i)));
      if (hn::AllFalse(kD, mask)) continue;
      const int64_t count = store_masked(z, load(di, list.ids, i, list.count, int32_t{0}), mask, some_z, some_ids);
      for (int64_t j = 0; j < count; ++j) scratch.keys[gathered++] = order_key(some_z[j], some_ids[j]);
    }
  }
  return before + cut_keys({scratch.keys, static_cast<size_t>(gathered)}, measure, goal - before, distribution);
}

// A lower bound of the k-th largest value: the k-th largest block maximum. -inf where there are fewer blocks.
float bound_of_top(int64_t k, int64_t count, const Scratch& scratch) {
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  if (k > blocks) return -INFINITY;
  std::copy_n(scratch.block_max, blocks, scratch.list_z);
  std::nth_element(scratch.list_z, scratch.list_z + (k - 1), scratch.list_z + blocks, std::greater<>());
  return scratch.list_z[k - 1];
}

// The kept token whose range of the cumulative mass holds `point`: by the blocks' sums, then one by one.
int32_t locate(const List& list, const Distribution& distribution, uint64_t point, const uint64_t* block_sums) {
  int64_t i = 0;
  for (; point >= block_sums[i / kBlock]; i += kBlock) point -= block_sums[i / kBlock];
  for (; i < list.count; ++i) {
    const int32_t token = list.ids != nullptr ? list.ids[i] : static_cast<int32_t>(i);
    const uint64_t mass = distribution.kept_mass(list.z[i], token);
    if (point < mass) return token;
    point -= mass;
  }
  HEARTH_CHECK(false, "the draw passed the end of {} tokens", list.count);
}

int32_t choose(const SampleRow& row, const float* z, int64_t vocab, float z_max, const Scratch& scratch) {
  const SamplingParams& params = row.params;
  Distribution distribution{
      .z_max = z_max, .inverse_temperature = 1.0f / params.temperature, .mass_least = min_mass(params.min_p)};
  const bool cuts_k = params.top_k > 0 && params.top_k < vocab, cuts_p = params.top_p < 1.0f;
  List list{z, nullptr, vocab};

  if (cuts_k || params.min_p > 0) {
    float least = cuts_k ? bound_of_top(params.top_k, vocab, scratch) : -INFINITY;
    if (params.min_p > 0) {
      // A little below where the mass falls under the bound; masses decide.
      const double x = std::log(static_cast<double>(params.min_p)) - 1e-3;
      const float bound = static_cast<float>(static_cast<double>(z_max) + x * static_cast<double>(params.temperature));
      least = std::max(least, std::nextafter(bound, -INFINITY));
    }
    const float low = *std::min_element(scratch.block_max, scratch.block_max + (vocab + kBlock - 1) / kBlock);
    list = narrow(z, vocab, least, scratch);
    if (cuts_k && params.top_k < list.count) {
      const float range = least > -INFINITY ? z_max - least : std::min(2 * (z_max - low), 3e38f);
      find_cut(list, Measure::kCount, static_cast<uint64_t>(params.top_k), range, scratch, distribution);
      list = drop(list, distribution, scratch);
      distribution.z_least = -INFINITY;
      distribution.id_last = std::numeric_limits<int32_t>::max();
    }
  }

  uint64_t total = sum(list, distribution, scratch.block_sums);
  if (cuts_p) {
    const uint64_t goal = top_p_goal(params.top_p, total);
    total = 0;
    if (list.ids == nullptr) {
      // Tokens below exp(-8) of the most likely are hardly ever in the set: try without them.
      list = narrow(z, vocab, z_max - 8 * params.temperature, scratch);
      total = find_cut(list, Measure::kMass, goal, 8 * params.temperature, scratch, distribution);
      if (total == 0) list = narrow(z, vocab, -INFINITY, scratch);
    }
    if (total == 0)
      total = find_cut(list, Measure::kMass, goal, kMassRange * params.temperature, scratch, distribution);
    HEARTH_CHECK(total > 0, "top_p is not reached by the whole distribution");
  }
  const uint64_t point = draw_point(params.seed, params.choice, row.position, total);
  if (cuts_p) sum(list, distribution, scratch.block_sums, point);
  return locate(list, distribution, point, scratch.block_sums);
}

void report_top(const SampleRow& row, const float* logits, int64_t vocab, float max, double log_sum,
                const Scratch& scratch, std::span<TokenLogprob> top) {
  const List list = narrow(logits, vocab, bound_of_top(row.top_logprobs, vocab, scratch), scratch);
  for (int64_t i = 0; i < list.count; ++i) scratch.keys[i] = order_key(list.z[i], list.ids[i]);
  std::partial_sort(scratch.keys, scratch.keys + row.top_logprobs, scratch.keys + list.count, std::greater<>());
  for (int32_t i = 0; i < row.top_logprobs; ++i) {
    const int32_t token = key_token(scratch.keys[i]);
    top[i] = {token, logprob_of(logits[token], max, log_sum)};
  }
}

// scratch.z = the logits of allowed tokens, -inf elsewhere.
void copy_allowed(const SampleRow& row, const float* logits, int64_t vocab, const Scratch& scratch) {
  if (row.allowed.empty()) {
    std::copy_n(logits, vocab, scratch.z);
    return;
  }
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(kD));
  const auto* bytes = reinterpret_cast<const uint8_t*>(row.allowed.data());
  const int64_t mask_bytes = (vocab + 31) / 32 * 4;
  const V none = hn::Set(kD, -INFINITY);
  int64_t i = 0;
  // LoadMaskBits may read 8 bytes, and fewer than 8 lanes would start within a byte.
  if (lanes >= 8) {
    for (; i / 8 + 8 <= mask_bytes && i + lanes <= vocab; i += lanes) {
      const auto mask = hn::LoadMaskBits(kD, bytes + i / 8);
      hn::StoreU(hn::IfThenElse(mask, hn::LoadU(kD, logits + i), none), kD, scratch.z + i);
    }
  }
  for (; i < vocab; ++i) scratch.z[i] = row.allowed[i / 32] >> (i % 32) & 1 ? logits[i] : -INFINITY;
}

void sample_row(const SampleRow& row, const float* logits, int64_t vocab, const Scratch& scratch,
                SampleResult& result) {
  result.token = -1;
  result.logprob = 0;
  result.outcome = SampleOutcome::kBadLogits;
  Scan found = scan(logits, vocab, scratch.block_max);
  if (found.broken || found.max == -INFINITY) return;
  const float raw_max = found.max;
  double log_sum = 0;
  if (row.top_logprobs >= 0) {
    log_sum = log_total(sum({logits, nullptr, vocab}, {.z_max = raw_max}, scratch.block_sums));
    if (row.top_logprobs > 0) report_top(row, logits, vocab, raw_max, log_sum, scratch, result.top);
  }

  if (row.forced_token >= 0) {
    result.token = row.forced_token;
  } else {
    const float* z = logits;
    if (!row.allowed.empty() || !row.logit_bias.empty() || !row.banned.empty() || row.params.penalises()) {
      copy_allowed(row, logits, vocab, scratch);
      adjust_sparse(row, vocab, scratch);
      z = scratch.z;
      found = scan(z, vocab, scratch.block_max);
      if (found.max == -INFINITY) {
        if (!leaves_a_token(row, vocab)) result.outcome = SampleOutcome::kNoToken;
        return;
      }
    }
    result.token = row.params.greedy() ? first_equal(z, vocab, scratch.block_max, found.max)
                                       : choose(row, z, vocab, found.max, scratch);
  }
  result.outcome = SampleOutcome::kOk;
  if (row.top_logprobs >= 0) result.logprob = logprob_of(logits[result.token], raw_max, log_sum);
}

}  // namespace hearth::sampling::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace hearth {
namespace sampling {

HWY_EXPORT(sample_row);

void run_row(const SampleRow& row, const float* logits, int64_t vocab, const Scratch& scratch, SampleResult& result) {
  HWY_DYNAMIC_DISPATCH(sample_row)(row, logits, vocab, scratch, result);
}

}  // namespace sampling

int64_t sample_cpu_workspace_bytes(int64_t vocab, int threads) { return sampling::Scratch::bytes(vocab) * threads; }

Status sample_cpu(const SampleArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args));
  const int64_t vocab = args.logits.cols(), bytes = sampling::Scratch::bytes(vocab);
  HEARTH_CHECK(exec.pool != nullptr, "sample_cpu runs on a thread pool");
  HEARTH_CHECK(static_cast<int64_t>(exec.workspace.size()) >= bytes * exec.pool->size(),
               "sample_cpu has {} bytes of workspace, wanted {}", exec.workspace.size(), bytes * exec.pool->size());
  exec.pool->parallel_for(std::ssize(args.rows), 1, [&](int64_t begin, int64_t end, int thread) {
    const sampling::Scratch scratch = sampling::Scratch::at(exec.workspace.data() + thread * bytes, vocab);
    for (int64_t r = begin; r < end; ++r) {
      sampling::run_row(args.rows[r], args.logits.row<float>(r), vocab, scratch, args.results[r]);
    }
  });
  return sample_status(args.results);
}

}  // namespace hearth
#endif  // HWY_ONCE
