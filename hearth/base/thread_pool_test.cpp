// SPDX-License-Identifier: Apache-2.0
#include "hearth/base/thread_pool.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
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

// In a process of its own: the limit cannot be taken back. Address space, because root is above RLIMIT_NPROC.
TEST(ThreadPoolDeathTest, StartsSmallerWhereThreadsAreRefused) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers need the address space that this test takes away";
#endif
  const auto run_with_little_memory = [] {
    rlimit limit;
    limit.rlim_cur = limit.rlim_max = 512 << 20;  // room for some stacks of 8 MiB
    setrlimit(RLIMIT_AS, &limit);
    ThreadPool pool(1000);
    std::atomic<int> count{0};
    pool.run([&](int) { count.fetch_add(1); });
    std::_Exit(pool.size() < 1000 && count.load() == pool.size() ? 0 : 1);
  };
  EXPECT_EXIT(run_with_little_memory(), ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace hearth
