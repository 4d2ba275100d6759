// SPDX-License-Identifier: Apache-2.0
// One queue under one mutex: tasks cost microseconds and more, so the lock is never what they wait for.
#include "hearth/base/worker_pool.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <exception>

#include "hearth/base/log.h"

namespace hearth {

WorkerPool::WorkerPool(int threads, int64_t max_waiting, Priority priority) : max_waiting_(max_waiting) {
  for (int i = 0; i < std::max(threads, 1); ++i) threads_.emplace_back([this, priority] { work(priority); });
}

WorkerPool::~WorkerPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
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

void WorkerPool::work(Priority priority) {
  // Linux keeps a nice value for each thread; where it cannot be set, the work is done at the usual one.
  constexpr int kBackgroundNice = 10;
  const auto self = static_cast<id_t>(gettid());
  if (priority == Priority::kBackground)
    (void)setpriority(PRIO_PROCESS, self, std::max(kBackgroundNice, getpriority(PRIO_PROCESS, self)));
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    std::function<void()> task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    try {
      task();
    } catch (const std::exception& error) {
      SPDLOG_ERROR("a worker's task failed: {}", error.what());
    }
    task = nullptr;  // what it holds is released outside the lock
    lock.lock();
  }
}

}  // namespace hearth
