// SPDX-License-Identifier: Apache-2.0
// Inbox: what other threads tell the planner thread: new requests and models as messages, bounded by what the engine
// lets wait; everything else as a flag where it belongs (Submission) and a poke, so that cancelling a request and
// ending a text need no memory. Outlives the engine in the handles that callers keep, so that a late cancel() finds a
// closed box and not freed memory.
// Any thread may post; the planner alone takes.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/base/waits.h"

namespace hearth {

class Submission;
struct ModelState;

struct Message {
  enum class Kind : uint8_t {
    kSubmit,       // submission
    kAddModel,     // model
    kRemoveModel,  // model
    kAsk,          // ask
  };
  Kind kind = Kind::kSubmit;
  std::shared_ptr<Submission> submission{};
  std::shared_ptr<ModelState> model{};
  std::promise<Result<int64_t>> tokens{};  // kAddModel: what the KV pool holds of it, or why it is not added
  std::function<void()> ask{};             // called by the planner's thread, between two steps
};

class Inbox {
 public:
  // False, and nothing kept, after close().
  bool post(Message message) {
    {
      const std::lock_guard lock(mutex_);
      if (closed_) return false;
      messages_.push_back(std::move(message));
    }
    wake_.notify_one();
    return true;
  }

  // Wakes the planner without a message: a step has ended, a flag of a request was set, the engine is being destroyed.
  void poke() noexcept {
    {
      const std::lock_guard lock(mutex_);
      poked_ = true;
    }
    wake_.notify_one();
  }

  // What is there, at once.
  std::vector<Message> take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(messages_, {});
  }

  // Returns when there is a message or a poke since the last wait().
  void wait(const Waits& waits) {
    std::unique_lock lock(mutex_);
    waits.wait(wake_, lock, [this] { return poked_ || !messages_.empty(); });
    poked_ = false;
  }

  void close() {
    std::vector<Message> dropped;  // destroyed outside the lock
    const std::lock_guard lock(mutex_);
    closed_ = true;
    dropped.swap(messages_);
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Message> messages_;  // guarded by mutex_, as the rest
  bool poked_ = false;
  bool closed_ = false;
};

}  // namespace hearth
