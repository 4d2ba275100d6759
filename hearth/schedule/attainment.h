// SPDX-License-Identifier: Apache-2.0
// Which answers kept their targets, counted. docs/design/schedule.md says when one does.
#pragma once

#include <cstdint>

#include "hearth/schedule/slo.h"

namespace hearth {

// An answer that has ended.
struct EndedAnswer {
  enum class End : uint8_t { kComplete, kLeft, kFailed };  // kLeft: its client cancelled it
  End end = End::kComplete;
  int64_t arrival_us = 0;
  int64_t first_us = -1;  // of its first and last tokens; -1: it has none
  int64_t last_us = -1;
  int64_t tokens = 0;
  int64_t end_us = 0;
};

// Of answers with targets. One can be late and slow, and counts as both.
struct SloCounts {
  int64_t answers = 0;
  int64_t attained = 0;
  int64_t first_late = 0;   // the first token came late, or never
  int64_t pace_missed = 0;  // more than TPOT for each token after the first
  int64_t refused = 0;      // of first_late: refused because the first token would have been late

  // An answer whose client left counts only where its first token was late by then: who left earlier says nothing of
  // the targets. One that failed has not kept them. One that was to have no tokens does not count.
  void count(const EndedAnswer& a, const Slo& slo) {
    if (slo.ttft_us <= 0 && slo.tpot_us <= 0) return;
    const bool failed = a.end == EndedAnswer::End::kFailed;
    if (a.first_us < 0 && a.end == EndedAnswer::End::kComplete) return;
    const int64_t first_us = a.first_us < 0 ? a.end_us : a.first_us;
    const bool late = (failed && a.first_us < 0) || first_us > first_due_us(a.arrival_us, slo);
    if (a.end == EndedAnswer::End::kLeft && !late) return;
    ++answers;
    first_late += late;
    if (a.end == EndedAnswer::End::kComplete) {
      attained += hearth::attained(a.arrival_us, a.first_us, a.last_us, a.tokens, slo);
      pace_missed += !hearth::attained(a.first_us, a.first_us, a.last_us, a.tokens, slo);
    }
  }
};

}  // namespace hearth
