// SPDX-License-Identifier: Apache-2.0
// How a caller follows and ends an evaluation. The evaluating thread calls progress; any thread or a
// signal handler may set stop.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

#include "hearth/base/result.h"

namespace hearth {

struct EvalControl {
  std::function<void(int64_t done, int64_t total)> progress;  // windows or items; may be empty
  const std::atomic<bool>* stop = nullptr;                    // true ends the run with Cancelled

  void report(int64_t done, int64_t total) const {
    if (progress) progress(done, total);
  }
  Status check(int64_t done, int64_t total) const {
    if (stop != nullptr && stop->load(std::memory_order_relaxed))
      return cancelled("stopped after {} of {}", done, total);
    return {};
  }
};

}  // namespace hearth
