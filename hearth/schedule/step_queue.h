// SPDX-License-Identifier: Apache-2.0
// StepQueue: when a device will be free, by what was predicted of the steps that it was given. What a step that ended
// really took is known by then, so that errors of predictions do not add up over steps.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>

#include "hearth/base/check.h"

namespace hearth {

class StepQueue {
 public:
  void launched(int64_t now_us, double predicted_us) {
    if (predicted_us_.empty()) begin_us_ = now_us;
    predicted_us_.push_back(predicted_us);
  }
  // The oldest one has; the next one begins.
  void ended(int64_t now_us) {
    HEARTH_CHECK(!predicted_us_.empty(), "a step has ended that was not launched");
    predicted_us_.pop_front();
    begin_us_ = now_us;
  }
  // Never before now.
  int64_t free_us(int64_t now_us) const {
    double free_us = static_cast<double>(now_us);
    for (size_t i = 0; i < predicted_us_.size(); ++i)
      free_us =
          i == 0 ? std::max(free_us, static_cast<double>(begin_us_) + predicted_us_[0]) : free_us + predicted_us_[i];
    return static_cast<int64_t>(free_us);
  }

 private:
  int64_t begin_us_ = 0;  // of the oldest
  std::deque<double> predicted_us_;
};

}  // namespace hearth
