// SPDX-License-Identifier: Apache-2.0
// One queue under one mutex: tasks cost microseconds and more, so the lock is never what they wait for. A watcher
// looks after long tasks: it lowers their thread's policy from outside, because the code that takes so long knows
// nothing of it, and replaces the thread when its task has ended.
#include "hearth/base/worker_pool.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <system_error>
#include <utility>

#include "hearth/base/clock.h"
#include "hearth/base/cpus.h"
#include "hearth/base/log.h"

namespace hearth {

WorkerPool::WorkerPool(int threads, int64_t max_waiting, Priority priority, std::vector<int> cpus, const Waits& waits)
    : max_waiting_(max_waiting), priority_(priority), cpus_(std::move(cpus)), waits_(waits) {
  const std::lock_guard lock(mutex_);
  start_worker();  // without a single one the pool is of no use: that throws
  try {
    for (int i = 1; i < threads; ++i) start_worker();
    if (priority_ == Priority::kGivesWay) watcher_ = std::thread([this] { watch(); });
  } catch (const std::system_error& error) {
    SPDLOG_WARN("the system starts no more threads: {} of {} workers: {}", workers_.size(), threads, error.what());
  }
}

WorkerPool::~WorkerPool() {
  std::unique_lock lock(mutex_);
  stopping_ = true;
  wake_.notify_all();
  watch_.notify_all();
  const auto done = [this] { return workers_.empty() && (missing_ == 0 || tasks_.empty()); };
  watch_.wait(lock, done);
  lock.unlock();
  if (watcher_.joinable()) watcher_.join();
  for (Worker& worker : ended_) worker.thread.join();
}

void WorkerPool::start_worker() {
  Worker& worker = workers_.emplace_back();
  try {
    worker.thread = std::thread([this, &worker] { work(worker); });  // waits for mutex_, which we hold
  } catch (...) {
    workers_.pop_back();
    throw;
  }
}

bool WorkerPool::try_post(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    if (static_cast<int64_t>(tasks_.size()) >= max_waiting_) return false;
    tasks_.push_back(std::move(task));
  }
  wake_.notify_one();
  return true;
}

void WorkerPool::post(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  wake_.notify_one();
}

int64_t WorkerPool::waiting() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int64_t>(tasks_.size());
}

void WorkerPool::work(Worker& self) {
  keep_thread_on(0, cpus_);
  std::unique_lock lock(mutex_);
  self.tid = gettid();
  while (!self.gave_way) {
    waits_.wait(wake_, lock, [this] { return stopping_ || !tasks_.empty(); });
    if (tasks_.empty()) break;
    std::function<void()> task = std::move(tasks_.front());
    tasks_.pop_front();
    self.task_began_ns = std::max<int64_t>(SteadyClock().now_ns(), 1);
    if (running_++ == 0 && priority_ == Priority::kGivesWay) watch_.notify_all();
    lock.unlock();
    try {
      task();
    } catch (const std::exception& error) {
      SPDLOG_ERROR("a worker's task failed: {}", error.what());
    } catch (...) {
      SPDLOG_ERROR("a worker's task failed with what is no std::exception");
    }
    task = nullptr;  // what it holds is released outside the lock
    lock.lock();
    self.task_began_ns = 0;
    --running_;
  }
  missing_ += self.gave_way;
  const auto place = std::find_if(workers_.begin(), workers_.end(), [&](const Worker& w) { return &w == &self; });
  ended_.splice(ended_.end(), workers_, place);  // which needs no memory
  watch_.notify_all();
}

void WorkerPool::slow_down_the_long() {
  const int64_t now_ns = SteadyClock().now_ns();
  for (Worker& worker : workers_) {
    const bool slow = worker.task_began_ns != 0 && now_ns - worker.task_began_ns >= kPatienceMs * 1'000'000;
    if (!slow || worker.gave_way) continue;
    // Linux keeps a nice value for each thread. Not SCHED_IDLE: on a busy machine that stands still, perhaps with a lock
    // of the allocator in its hand.
    const auto thread = static_cast<id_t>(worker.tid);
    const int lower = std::max(kGivesWayNice, getpriority(PRIO_PROCESS, thread));
    worker.gave_way = setpriority(PRIO_PROCESS, thread, lower) == 0;
  }
}

// A thread inherits the nice value of the one that starts it, so workers that gave way are replaced from here.
void WorkerPool::watch() {
  std::unique_lock lock(mutex_);
  while (!stopping_ || !workers_.empty() || (missing_ > 0 && !tasks_.empty())) {
    if (running_ == 0 && ended_.empty() && missing_ == 0) {
      watch_.wait(lock);
      continue;
    }
    watch_.wait_for(lock, std::chrono::milliseconds(kPatienceMs) / 2);
    slow_down_the_long();
    try {
      for (; missing_ > 0; --missing_) start_worker();
    } catch (const std::exception& error) {
      SPDLOG_WARN("no thread for tasks that wait, trying again: {}", error.what());
    }
    std::list<Worker> ended = std::exchange(ended_, {});
    lock.unlock();
    for (Worker& worker : ended) worker.thread.join();
    lock.lock();
  }
}

}  // namespace hearth
