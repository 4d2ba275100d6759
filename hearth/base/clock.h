// SPDX-License-Identifier: Apache-2.0
// Time as an argument: policies and the engine take a Clock&, so that tests and simulators can own time.
#pragma once

#include <chrono>
#include <cstdint>

#include "hearth/base/waits.h"

namespace hearth {

// Monotonic time in nanoseconds since an arbitrary start. Threads that go by it wait for each other by it, so that a
// clock which does not run by itself can know when all that happens at one time has happened.
class Clock : public Waits {
 public:
  virtual int64_t now_ns() const = 0;
};

class SteadyClock final : public Clock {
 public:
  int64_t now_ns() const override {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
};

// A clock that moves only when told to.
class ManualClock final : public Clock {
 public:
  int64_t now_ns() const override { return now_ns_; }
  void advance_ns(int64_t delta_ns) { now_ns_ += delta_ns; }

 private:
  int64_t now_ns_ = 0;
};

}  // namespace hearth
