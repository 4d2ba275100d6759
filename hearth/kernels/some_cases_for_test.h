// SPDX-License-Identifier: Apache-2.0
// Test support: fewer cases of long lists, for tools under which a case takes a hundred times as long
// (scripts/gpu_check.sh sanitize). Tests only; one thread.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace hearth {

// One case in so many is run: HEARTH_ONE_CASE_IN, or 1. A prime is best: lists go through formats and types by turns.
inline int64_t one_case_in() {
  static const int64_t n = [] {
    const char* const text = std::getenv("HEARTH_ONE_CASE_IN");
    const int64_t number = text == nullptr ? 1 : std::atoll(text);
    return number < 1 ? 1 : number;
  }();
  return n;
}

// For each case of the process in turn: whether it is left out. The first is not.
inline bool leave_out_case() {
  static int64_t seen = 0;
  return seen++ % one_case_in() != 0;
}

}  // namespace hearth
