// SPDX-License-Identifier: Apache-2.0
// VirtualClock: time that stands still while any thread of an engine has something to do, and then goes to where its
// owner says. What happens at one time takes none of it.
//   I1. From conduct() on one thread runs at a time: one that waits hands on to who has waited longest of those that can
//       go on. So equal inputs give equal outcomes, and nobody is woken in vain.
//   I2. After settle() every thread waits, none of them for something that is already there; so until the owner does
//       something nobody does, and what was to be done at this time is done.
//   I3. Time never goes back.
// wait() and sleep() are for the engine's threads, the rest for the owner's.
#pragma once

#include <atomic>
#include <optional>
#include <set>
#include <vector>

#include "hearth/base/clock.h"

namespace hearth::virtual_time {

class VirtualClock final : public Clock {
 public:
  // Of an engine that has so many threads that wait by it.
  explicit VirtualClock(size_t threads) : threads_(threads) {}

  int64_t now_ns() const override { return now_ns_.load(); }
  void wait(std::condition_variable& changed, std::unique_lock<std::mutex>& lock,
            const std::function<bool()>& ready) const override;
  // What nobody tells does not happen here: whoever looks from time to time is told, or waits.
  void wait_for(std::condition_variable& changed, std::unique_lock<std::mutex>& lock, std::chrono::milliseconds,
                const std::function<bool()>& ready) const override {
    wait(changed, lock, ready);
  }
  // Returns when it is so much later, or at once after let_go().
  void sleep(int64_t ns) const;

  // Until then threads run as they like, so that an engine can begin and its models come. From then on none may wait for
  // another but by wait(), as who adds a model does.
  void conduct();
  // Returns once nobody can do anything more at this time. After conduct().
  void settle();
  // When the first that sleeps wakes; nullopt: nobody sleeps. After settle().
  std::optional<int64_t> next_wake_ns() const;
  void advance_to(int64_t ns);
  // From now on nobody sleeps and threads run as they like, so that an engine can end.
  void let_go();

 private:
  struct Waiting {
    std::mutex* mutex;
    std::condition_variable* changed;
    const std::function<bool()>* ready;
    bool called = false;
    std::condition_variable turn{};
  };
  // Both with mutex_ held.
  static bool can_go_on(const Waiting& waiting);
  void hand_on() const;

  const size_t threads_;
  // Behind those of the threads that wait; the other way only tries.
  mutable std::mutex mutex_;
  mutable std::condition_variable owner_;
  mutable std::vector<Waiting*> waiting_;  // guarded by mutex_, as the next
  mutable bool settled_ = false;
  bool conducted_ = false;
  mutable std::mutex sleep_mutex_;
  mutable std::condition_variable slept_;
  mutable std::multiset<int64_t> wakes_;  // guarded by sleep_mutex_, as the next
  std::atomic<int64_t> now_ns_ = 0;
  bool let_go_ = false;
};

}  // namespace hearth::virtual_time
