// SPDX-License-Identifier: Apache-2.0
// Waiting: a call that looks again and again whether what it waits for is there, until its caller's patience ends.
// One thread.
#pragma once

#include <chrono>
#include <string>
#include <thread>

#include "hearth/base/clock.h"
#include "hearth/engine/engine.h"

namespace hearth {

class Waiting {
 public:
  Waiting(const Clock& clock, const Patience& patience)
      : clock_(clock),
        patience_(patience),
        until_ns_(clock.now_ns() + (patience.wait_us - patience.waited_us) * 1000) {}

  // After a moment, whether it may look again: Cancelled, DeadlineExceeded, with what `for_what()` says was waited for.
  template <class ForWhat>
  Status again(ForWhat for_what) const {
    if (patience_.stop != nullptr && patience_.stop->load())
      return cancelled("called off; it waited for {}", for_what());
    if (clock_.now_ns() >= until_ns_)
      return deadline_exceeded("not within {} ms: it waited for {}", patience_.wait_us / 1000, for_what());
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return {};
  }

 private:
  const Clock& clock_;
  const Patience patience_;
  const int64_t until_ns_;
};

}  // namespace hearth
