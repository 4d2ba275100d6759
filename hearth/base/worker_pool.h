// SPDX-License-Identifier: Apache-2.0
// WorkerPool: threads for independent tasks of any length (tokenizing, templates, grammars, text), away from
// the threads that must not wait. Tasks start in the order of their posting.
//   I1. A task that was taken is run, also when the pool is destroyed meanwhile.
//   I2. What a task throws ends that task alone and is logged.
// Any thread may post.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <mutex>
#include <thread>
#include <vector>

#include "hearth/base/waits.h"

namespace hearth {

class WorkerPool {
 public:
  // kGivesWay: a task that takes longer than kPatienceMs goes on at nice kGivesWayNice, so that an expensive task takes
  // little from the other threads. Short tasks never notice.
  enum class Priority : uint8_t { kNormal, kGivesWay };
  static constexpr int64_t kPatienceMs = 2;
  static constexpr int kGivesWayNice = 10;

  // At least one thread. `max_waiting` bounds what try_post() takes. The threads keep to `cpus`; empty: to none.
  // A low priority alone does not keep them out of a team's way: Linux balances threads, not their weights, so a
  // worker of nice 10 gets a whole CPU and two threads of the team share one.
  // Between tasks they wait by `waits`.
  WorkerPool(int threads, int64_t max_waiting, Priority priority = Priority::kNormal, std::vector<int> cpus = {},
             const Waits& waits = plain_waits());
  // Runs what waits, then joins.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // For work that may be refused (a new request): false where max_waiting tasks wait.
  [[nodiscard]] bool try_post(std::function<void()> task);
  // For work that belongs to a request already taken; its owner bounds how much of it there is.
  void post(std::function<void()> task);

  int64_t waiting() const;

 private:
  struct Worker {
    std::thread thread;
    int64_t tid = 0;
    int64_t task_began_ns = 0;  // 0: between tasks
    bool gave_way = false;      // for good: Linux lets no thread come back without a privilege. It ends after its task
  };

  void start_worker();  // holding mutex_, as the next
  void slow_down_the_long();
  void work(Worker& self);
  void watch();

  const int64_t max_waiting_;
  const Priority priority_;
  const std::vector<int> cpus_;
  const Waits& waits_;
  mutable std::mutex mutex_;
  std::condition_variable wake_, watch_;
  std::deque<std::function<void()>> tasks_;  // guarded by mutex_, as all below
  std::list<Worker> workers_;
  std::list<Worker> ended_;  // to be joined
  int64_t running_ = 0;      // tasks
  int64_t missing_ = 0;      // workers that gave way and are to be replaced
  bool stopping_ = false;
  std::thread watcher_;  // with kGivesWay
};

}  // namespace hearth
