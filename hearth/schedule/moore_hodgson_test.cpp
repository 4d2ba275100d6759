// SPDX-License-Identifier: Apache-2.0
// Moore-Hodgson against all subsets, and an instance from a textbook.
#include "hearth/schedule/moore_hodgson.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <limits>

#include "hearth/base/random.h"

namespace hearth {
namespace {

using ::testing::ElementsAre;

// In due order, whether all are on time.
bool feasible(const std::vector<Job>& jobs, std::vector<int64_t> set) {
  std::ranges::sort(set, {}, [&](int64_t i) { return jobs[static_cast<size_t>(i)].due_us; });
  double end = 0;
  return std::ranges::all_of(set, [&](int64_t i) {
    end += jobs[static_cast<size_t>(i)].time_us;
    return end <= jobs[static_cast<size_t>(i)].due_us;
  });
}

// Pinedo, "Scheduling", example 3.3.3: times 7 8 4 6 6, due 9 17 18 19 21; three are on time, 3, 4 and 5.
TEST(MooreHodgson, ATextbooksInstance) {
  EXPECT_THAT(on_time_jobs(std::vector<Job>{{7, 9}, {8, 17}, {4, 18}, {6, 19}, {6, 21}}), ElementsAre(2, 3, 4));
}

TEST(MooreHodgson, NoDueTimeIsNeverLate) {
  constexpr double kNever = std::numeric_limits<double>::infinity();
  EXPECT_THAT(on_time_jobs(std::vector<Job>{{1e9, kNever}, {5, 4}, {1, 1}}), ElementsAre(2, 0));
}

TEST(MooreHodgson, AsManyAsTheBestSubset) {
  constexpr uint64_t kSeed = 5;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  int dropped = 0;
  for (int round = 0; round < 2000; ++round) {
    SCOPED_TRACE(round);
    std::vector<Job> jobs(static_cast<size_t>(1 + random.below(10)));
    for (Job& job : jobs)
      job = {.time_us = static_cast<double>(random.below(20)), .due_us = static_cast<double>(random.below(60) - 2)};
    const std::vector<int64_t> chosen = on_time_jobs(jobs);
    ASSERT_TRUE(feasible(jobs, chosen));
    int best = 0;
    for (uint32_t bits = 0; bits < 1u << jobs.size(); ++bits) {
      if (std::popcount(bits) <= best) continue;
      std::vector<int64_t> set;
      for (size_t i = 0; i < jobs.size(); ++i)
        if (bits >> i & 1) set.push_back(static_cast<int64_t>(i));
      if (feasible(jobs, set)) best = std::popcount(bits);
    }
    ASSERT_EQ(std::ssize(chosen), best);
    dropped += best < std::ssize(jobs);
  }
  EXPECT_GT(dropped, 500);
}

}  // namespace
}  // namespace hearth
