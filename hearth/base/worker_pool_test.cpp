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

TEST(WorkerPool, BackgroundThreadsGiveWay) {
  std::atomic<int> background = -100, normal = -100;
  {
    WorkerPool quiet(1, 1, WorkerPool::Priority::kBackground), usual(1, 1);
    quiet.post([&] { background = getpriority(PRIO_PROCESS, static_cast<id_t>(gettid())); });
    usual.post([&] { normal = getpriority(PRIO_PROCESS, static_cast<id_t>(gettid())); });
  }
  EXPECT_EQ(normal, getpriority(PRIO_PROCESS, 0));
  EXPECT_EQ(background, std::max(10, normal.load()));
}

}  // namespace
}  // namespace hearth
