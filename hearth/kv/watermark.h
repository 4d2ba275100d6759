// SPDX-License-Identifier: Apache-2.0
// Hysteresis between two levels: short from below `low` on, until at `high` again. One owning thread.
#pragma once

#include <cstdint>

namespace hearth {

class Watermark {
 public:
  // REQUIRES: low <= high.
  Watermark(int64_t low, int64_t high) : low_(low), high_(high) {}
  int64_t low() const { return low_; }
  int64_t high() const { return high_; }
  bool short_of() const { return short_; }
  void see(int64_t level) { short_ = short_ ? level < high_ : level < low_; }

 private:
  int64_t low_, high_;
  bool short_ = false;
};

}  // namespace hearth
