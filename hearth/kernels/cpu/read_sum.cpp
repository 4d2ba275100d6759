// SPDX-License-Identifier: Apache-2.0
#include "hearth/kernels/cpu/read_sum.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "hearth/base/check.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "hearth/kernels/cpu/read_sum.cpp"
#include "hearth/kernels/cpu/targets.h"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace hearth {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Four streams of two vectors: more pages in flight for the hardware prefetcher than one stream has.
uint64_t sum_words(const uint64_t* words, int64_t count) {
  const hn::ScalableTag<uint64_t> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t part = count / 4 / (2 * lanes) * (2 * lanes);
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0;
  for (int64_t i = 0; i < part; i += 2 * lanes) {
    const uint64_t* at = words + i;
    s0 = hn::Add(s0, hn::LoadU(d, at));
    s1 = hn::Add(s1, hn::LoadU(d, at + lanes));
    s2 = hn::Add(s2, hn::LoadU(d, at + part));
    s3 = hn::Add(s3, hn::LoadU(d, at + part + lanes));
    s4 = hn::Add(s4, hn::LoadU(d, at + 2 * part));
    s5 = hn::Add(s5, hn::LoadU(d, at + 2 * part + lanes));
    s6 = hn::Add(s6, hn::LoadU(d, at + 3 * part));
    s7 = hn::Add(s7, hn::LoadU(d, at + 3 * part + lanes));
  }
  const auto low = hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)), high = hn::Add(hn::Add(s4, s5), hn::Add(s6, s7));
  // SumOfLanes may add as int64_t, whose overflow is undefined.
  std::array<uint64_t, hn::MaxLanes(d)> sums;
  hn::StoreU(hn::Add(low, high), d, sums.data());
  uint64_t sum = std::accumulate(sums.begin(), sums.begin() + lanes, uint64_t{0});
  for (int64_t i = 4 * part; i < count; ++i) sum += words[i];
  return sum;
}

}  // namespace HWY_NAMESPACE
}  // namespace hearth
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace hearth {

HWY_EXPORT(sum_words);

uint64_t read_sum(std::span<const std::span<const std::byte>> pieces, ThreadPool& pool) {
  constexpr int kMaxThreads = 256;
  HEARTH_CHECK(pool.size() <= kMaxThreads, "read_sum with {} threads", pool.size());
  struct alignas(64) Sum {
    uint64_t value = 0;
  };
  std::array<Sum, kMaxThreads> sums;
  int64_t total = 0;
  for (const auto& piece : pieces) total += static_cast<int64_t>(piece.size() / 8);
  pool.parallel_for(total, 512, [&](int64_t begin, int64_t end, int thread) {
    int64_t first = 0;  // the piece's place among all words
    for (const auto& piece : pieces) {
      const auto count = static_cast<int64_t>(piece.size() / 8);
      const int64_t from = std::max(begin, first), to = std::min(end, first + count);
      const auto* words = static_cast<const uint64_t*>(static_cast<const void*>(piece.data()));
      if (from < to) sums[thread].value += HWY_DYNAMIC_DISPATCH(sum_words)(words + (from - first), to - from);
      first += count;
    }
  });
  uint64_t sum = 0;
  for (const Sum& part : sums) sum += part.value;
  return sum;
}

}  // namespace hearth
#endif  // HWY_ONCE
