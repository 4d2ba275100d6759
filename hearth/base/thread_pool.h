// SPDX-License-Identifier: Apache-2.0
// ThreadPool: a fixed team of threads for the data-parallel loops of the CPU backend. The caller is
// thread 0 of the team. Work is split by thread index alone, so that which thread computes what is a
// function of the sizes and never of timing.
//   I1. One run() at a time, from one owning thread; the body does not call run() again.
//   I2. run() returns after every thread finished its body; their writes are visible to the caller.
// Between runs the workers spin for a short while (a decode step has a loop every few microseconds),
// then sleep.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "hearth/base/function_ref.h"

namespace hearth {

class ThreadPool {
 public:
  // num_threads counts the caller; values below 1 mean hardware_threads(). Where the system refuses to
  // start that many, the team is smaller and a warning says so.
  explicit ThreadPool(int num_threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return num_threads_; }

  // Calls body(thread) once on every thread of the team, thread in [0, size()).
  void run(FunctionRef<void(int thread)> body);

  // Splits [0, count) into at most size() contiguous ranges whose borders are multiples of `grain` and
  // calls body(begin, end, thread) for those that are not empty. Runs inline when one range is enough.
  void parallel_for(int64_t count, int64_t grain, FunctionRef<void(int64_t begin, int64_t end, int thread)> body);

  // CPUs that this process may run on (its affinity mask), at least 1.
  static int hardware_threads();

 private:
  void worker(int thread);

  int num_threads_;  // fixed after construction
  std::vector<std::thread> workers_;
  const FunctionRef<void(int)>* body_ = nullptr;  // written by the owner before epoch_ moves
  alignas(64) std::atomic<uint32_t> epoch_{0};    // moved by the owner: a run starts, or stop_ is set
  alignas(64) std::atomic<int> running_{0};       // workers still in the body
  bool stop_ = false;                             // written by the owner before epoch_ moves
};

}  // namespace hearth
