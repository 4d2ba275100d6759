// SPDX-License-Identifier: Apache-2.0
#include "hearth/base/cpus.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <set>
#include <thread>

#include "hearth/base/thread_pool.h"
#include "hearth/base/worker_pool.h"

namespace hearth {
namespace {

std::set<int> cpus_of_caller() {
  cpu_set_t set;
  CPU_ZERO(&set);
  EXPECT_EQ(sched_getaffinity(gettid(), sizeof set, &set), 0);
  std::set<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.insert(cpu);
  }
  return cpus;
}

TEST(Cpus, ATeamLeavesOneCpuWhereItCan) {
  const int cpus = ThreadPool::hardware_threads();
  EXPECT_EQ(team_threads(0), cpus > 1 ? cpus - 1 : 1);
  EXPECT_EQ(team_threads(-1), team_threads(0));
  EXPECT_EQ(team_threads(cpus + 3), cpus + 3);
}

TEST(Cpus, BesideATeamAreTheLastOnes) {
  const std::set<int> all = cpus_of_caller();
  for (int team = 0; team <= static_cast<int>(all.size()) + 2; ++team) {
    const std::vector<int> beside = cpus_beside_team(team);
    const int left = std::max(0, static_cast<int>(all.size()) - team);
    ASSERT_EQ(std::ssize(beside), left) << team;
    EXPECT_TRUE(std::equal(beside.rbegin(), beside.rend(), all.rbegin())) << team;
  }
}

TEST(Cpus, WorkersKeepToTheirsAndNobodyElseDoes) {
  const std::set<int> all = cpus_of_caller();
  const std::vector<int> last = {*all.rbegin()};
  std::atomic<int> kept = 0;
  {
    WorkerPool pool(2, 100, WorkerPool::Priority::kNormal, last);
    for (int i = 0; i < 10; ++i)
      pool.post([&] { kept += cpus_of_caller() == std::set<int>(last.begin(), last.end()); });
  }
  EXPECT_EQ(kept, 10);
  EXPECT_EQ(cpus_of_caller(), all);
  std::thread([&] {
    keep_thread_on(0, {});
    EXPECT_EQ(cpus_of_caller(), all);
  }).join();
}

}  // namespace
}  // namespace hearth
