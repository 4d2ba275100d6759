// SPDX-License-Identifier: Apache-2.0
// StepThread: computes steps in the order of their launch: forward, then sampling. The ids that a step samples
// go into the next one without leaving this side. On a device the next step of a model is put behind the one that runs,
// where its ids can stay there too (ForwardBuffers::can_follow()), so that the device does not wait for the host.
// launch() and finished() belong to the planner thread.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "hearth/base/clock.h"
#include "hearth/base/thread_pool.h"
#include "hearth/engine/step.h"

namespace hearth {

class StepThread {
 public:
  // `on_finished` is called on this thread after each step.
  StepThread(int threads, const Clock& clock, std::function<void()> on_finished);
  // Computes what was launched, then joins.
  ~StepThread();
  StepThread(const StepThread&) = delete;
  StepThread& operator=(const StepThread&) = delete;

  int threads() const { return pool_.size(); }
  // For buffers that are planned for this team.
  ThreadPool& pool() { return pool_; }

  void launch(std::unique_ptr<Step> step);
  // The oldest step that has ended and was not taken yet; null: none.
  std::unique_ptr<Step> finished();

 private:
  void work();
  // Whether `next` can be started now.
  bool can_start(const Step& next) const;
  void start(std::unique_ptr<Step> step);
  Status compute(Step& step);
  Status resize(Step& step);
  // Waits for the oldest step under way and takes it in.
  std::unique_ptr<Step> finish_oldest();
  void keep_ids(Step& step);

  ThreadPool pool_;  // run by thread_ alone
  const Clock& clock_;
  std::function<void()> on_finished_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::unique_ptr<Step>> launched_, finished_;  // guarded by mutex_
  bool stopping_ = false;                                  // guarded by mutex_
  std::deque<std::unique_ptr<Step>> under_way_;            // thread_'s: started, all of one model
  int64_t last_ns_ = 0;                                    // thread_'s: when the step before was taken in
  std::thread thread_;                                     // last: starts when all else is there
};

}  // namespace hearth
