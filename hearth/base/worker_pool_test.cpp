// SPDX-License-Identifier: Apache-2.0
// WorkerPool: nothing that was taken is lost, what is refused was really too much, one bad task harms no other.
#include "hearth/base/worker_pool.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <latch>
#include <new>
#include <stdexcept>

#include "hearth/base/clock.h"

namespace hearth {
namespace {

// I1
TEST(WorkerPool, RunsWhatItTookBeforeItEnds) {
  std::atomic<int> done = 0;
  {
    WorkerPool pool(3, 1000);
    for (int i = 0; i < 500; ++i) pool.post([&] { ++done; });
  }
  EXPECT_EQ(done, 500);
}

TEST(WorkerPool, RefusesWhatWouldWaitBeyondItsLimit) {
  std::latch started(1), go(1);
  WorkerPool pool(1, 2);
  pool.post([&] {
    started.count_down();
    go.wait();
  });
  started.wait();
  std::atomic<int> done = 0;
  EXPECT_TRUE(pool.try_post([&] { ++done; }));
  EXPECT_TRUE(pool.try_post([&] { ++done; }));
  EXPECT_FALSE(pool.try_post([&] { ++done; }));
  EXPECT_EQ(pool.waiting(), 2);
  pool.post([&] { ++done; });  // belongs to a request already taken
  go.count_down();
  std::latch end(1);
  pool.post([&] { end.count_down(); });
  end.wait();
  EXPECT_EQ(done, 3);
}

// I2
TEST(WorkerPool, OutlivesTasksThatThrow) {
  std::atomic<int> done = 0;
  {
    WorkerPool pool(1, 10);
    pool.post([] { throw std::runtime_error("as the test wants"); });
    pool.post([] { throw std::bad_alloc(); });
    pool.post([&] { ++done; });
  }
  EXPECT_EQ(done, 1);
}

TEST(WorkerPool, ALongTaskGivesWayAndTheNextOneDoesNot) {
  constexpr int kTasks = 6;
  const auto nice_value = [] { return getpriority(PRIO_PROCESS, static_cast<id_t>(gettid())); };
  const int usual = nice_value();
  if (usual >= WorkerPool::kGivesWayNice) GTEST_SKIP() << "the tests run at nice " << usual << " themselves";
  std::atomic<int> gave_way = 0, back = 0, short_normal = 0;
  {
    WorkerPool pool(1, 100, WorkerPool::Priority::kGivesWay);
    for (int i = 0; i < kTasks; ++i) {
      pool.post([&] {
        back += nice_value() == usual;
        const SteadyClock clock;
        const int64_t begin_ns = clock.now_ns();
        // A busy machine may let the watcher wait for long.
        while (nice_value() == usual && clock.now_ns() - begin_ns < 20'000'000'000) {}
        gave_way += nice_value() == std::max(usual, WorkerPool::kGivesWayNice);
      });
      pool.post([&] { short_normal += nice_value() == usual; });
    }
  }
  EXPECT_EQ(gave_way, kTasks);
  EXPECT_EQ(back, kTasks);
  EXPECT_EQ(short_normal, kTasks);
  EXPECT_EQ(nice_value(), usual);
}

}  // namespace
}  // namespace hearth
