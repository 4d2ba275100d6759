// SPDX-License-Identifier: Apache-2.0
#include "hearth/kernels/cpu/read_sum.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/kernels/cpu/test_targets.h"

namespace hearth {
namespace {

// Every byte counts once, whatever the number of threads: a sum that skipped some would be a soft floor.
TEST(ReadSum, ReadsEveryWordOnce) {
  constexpr uint64_t kSeed = 5;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  std::vector<std::vector<uint64_t>> data;
  for (const size_t size : {0, 1, 7, 8, 9, 63, 1000, 4097}) {
    data.emplace_back(size);
    for (uint64_t& word : data.back()) word = random.next_u64();
  }
  uint64_t wanted = 0;
  std::vector<std::span<const std::byte>> spans;
  for (const auto& words : data) {
    for (const uint64_t word : words) wanted += word;
    spans.push_back(std::as_bytes(std::span(words)));
  }
  for_each_cpu_target([&] {
    for (const int threads : {1, 2, 5}) {
      ThreadPool pool(threads);
      EXPECT_EQ(read_sum(spans, pool), wanted) << threads;
    }
  });
}

}  // namespace
}  // namespace hearth
