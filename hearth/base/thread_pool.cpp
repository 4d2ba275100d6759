// SPDX-License-Identifier: Apache-2.0
#include "hearth/base/thread_pool.h"

#include <sched.h>

#include <spdlog/spdlog.h>

#include <algorithm>
#include <exception>

namespace hearth {
namespace {

// About 50 us on current cores: longer than the gap between two loops of a decode step.
constexpr int kSpins = 2000;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until `value` is no longer `old`: spins, then sleeps.
template <class T>
void wait_while_equal(const std::atomic<T>& value, T old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

int ThreadPool::hardware_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads >= 1 ? num_threads : hardware_threads()) {
  try {
    workers_.reserve(static_cast<size_t>(num_threads_) - 1);
    for (int thread = 1; thread < num_threads_; ++thread) workers_.emplace_back([this, thread] { worker(thread); });
  } catch (const std::exception& e) {
    // A limit on processes or memory: fewer threads compute the same.
    const int started = static_cast<int>(workers_.size()) + 1;
    spdlog::warn("{} of {} threads could be started: {}", started, num_threads_, e.what());
    num_threads_ = started;
  }
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& thread : workers_) thread.join();
}

void ThreadPool::worker(int thread) {
  uint32_t seen = 0;
  while (true) {
    wait_while_equal(epoch_, seen);
    ++seen;
    if (stop_) return;
    (*body_)(thread);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
  }
}

void ThreadPool::run(FunctionRef<void(int)> body) {
  if (num_threads_ == 1) return body(0);
  body_ = &body;
  running_.store(num_threads_ - 1, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  body(0);
  for (int left = running_.load(std::memory_order_acquire); left != 0; left = running_.load(std::memory_order_acquire))
    wait_while_equal(running_, left);
}

void ThreadPool::parallel_for(int64_t count, int64_t grain, FunctionRef<void(int64_t, int64_t, int)> body) {
  if (count <= 0) return;
  const int64_t units = (count + grain - 1) / grain;
  const int64_t ranges = std::min<int64_t>(units, num_threads_);
  if (ranges <= 1) return body(0, count, 0);
  run([&](int thread) {
    const int64_t begin = std::min(count, units * thread / ranges * grain);
    const int64_t end = std::min(count, units * (thread + 1) / ranges * grain);
    if (thread < ranges && begin < end) body(begin, end, thread);
  });
}

}  // namespace hearth
