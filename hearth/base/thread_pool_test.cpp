// SPDX-License-Identifier: Apache-2.0
#include "hearth/base/thread_pool.h"

#include <gtest/gtest.h>

#include <chrono>
#include <numeric>

namespace hearth {
namespace {

TEST(ThreadPool, EveryThreadRunsOnceAndWritesAreVisible) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    ASSERT_EQ(pool.size(), threads);
    std::vector<int> runs(threads);
    for (int round = 0; round < 200; ++round) pool.run([&](int thread) { ++runs[thread]; });
    for (int count : runs) EXPECT_EQ(count, 200);
  }
}

TEST(ThreadPool, ParallelForCoversTheRangeOnceAtGrainBorders) {
  ThreadPool pool(3);
  for (int64_t count : {0, 1, 2, 7, 64, 65, 1000}) {
    for (int64_t grain : {1, 4, 64}) {
      std::vector<int> hits(count);
      pool.parallel_for(count, grain, [&](int64_t begin, int64_t end, int) {
        EXPECT_EQ(begin % grain, 0);
        EXPECT_TRUE(end % grain == 0 || end == count);
        for (int64_t i = begin; i < end; ++i) ++hits[i];
      });
      EXPECT_EQ(std::accumulate(hits.begin(), hits.end(), int64_t{0}), count);
      for (int hit : hits) EXPECT_EQ(hit, 1);
    }
  }
}

TEST(ThreadPool, WakesSleepingWorkers) {
  ThreadPool pool(4);
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // long enough for the workers to sleep
    std::atomic<int> count{0};
    pool.run([&](int) { count.fetch_add(1); });
    EXPECT_EQ(count.load(), 4);
  }
}

}  // namespace
}  // namespace hearth
