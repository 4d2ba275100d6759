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
#include <mutex>
#include <thread>
#include <vector>

namespace hearth {

class WorkerPool {
 public:
  // kBackground gives way to every other thread of the machine (nice 10): for work that may be large and must not
  // slow down those that compute.
  enum class Priority : uint8_t { kNormal, kBackground };

  // At least one thread. `max_waiting` bounds what try_post() takes.
  WorkerPool(int threads, int64_t max_waiting, Priority priority = Priority::kNormal);
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
  void work(Priority priority);

  const int64_t max_waiting_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;  // guarded by mutex_
  bool stopping_ = false;                    // guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace hearth
