// SPDX-License-Identifier: Apache-2.0
// How threads wait for each other, as an argument: who owns time has to know when nobody does anything more.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>

namespace hearth {

class Waits {
 public:
  virtual ~Waits() = default;
  // Returns when `ready`, which is called with the lock held, as std::condition_variable::wait() does: whoever changes
  // what it looks at holds the lock's mutex meanwhile and notifies `changed`.
  virtual void wait(std::condition_variable& changed, std::unique_lock<std::mutex>& lock,
                    const std::function<bool()>& ready) const {
    changed.wait(lock, ready);
  }
  // The same, or after `patience`: for who looks from time to time at what nobody tells.
  virtual void wait_for(std::condition_variable& changed, std::unique_lock<std::mutex>& lock,
                        std::chrono::milliseconds patience, const std::function<bool()>& ready) const {
    changed.wait_for(lock, patience, ready);
  }
};

inline const Waits& plain_waits() {
  static const Waits waits;
  return waits;
}

}  // namespace hearth
