// SPDX-License-Identifier: Apache-2.0
// Targets of latency and when they make a token due. docs/design/schedule.md.
#pragma once

#include <cstdint>
#include <limits>

namespace hearth {

// Targets of latency; 0: none.
struct Slo {
  int64_t ttft_us = 0;  // until the first token
  int64_t tpot_us = 0;  // per token after it, on average over the answer
};

inline constexpr int64_t kNoDue = std::numeric_limits<int64_t>::max();

// When the first token is due.
inline int64_t first_due_us(int64_t arrival_us, const Slo& slo) {
  return slo.ttft_us > 0 ? arrival_us + slo.ttft_us : kNoDue;
}

// When the next token is due after `out` tokens, the first at first_us: TPOT is an average, so time won is kept.
inline int64_t next_due_us(int64_t first_us, int64_t out, const Slo& slo) {
  return slo.tpot_us > 0 ? first_us + out * slo.tpot_us : kNoDue;
}

// An answer under way.
struct AnswerProgress {
  int64_t arrival_us = 0;
  int64_t planned = 0, out = 0;       // tokens: those of steps under way included, and those that have come
  int64_t first_us = 0, last_us = 0;  // of those that have come, the first and the last
  bool late = false;                  // its first token came, or will come, late: no more can be attained than its pace
};

// When its next token is due that no step under way brings; those under way come at free_us.
inline int64_t due_us(const AnswerProgress& answer, const Slo& slo, int64_t free_us) {
  if (answer.planned == 0) return first_due_us(answer.arrival_us, slo);
  if (slo.tpot_us <= 0) return kNoDue;
  if (answer.out == 0) return free_us + slo.tpot_us;
  if (answer.late) return (answer.planned > answer.out ? free_us : answer.last_us) + slo.tpot_us;
  return next_due_us(answer.first_us, answer.planned, slo);
}

// Whether an answer of `out` tokens with its first and last at these times kept both. REQUIRES: out >= 1.
inline bool attained(int64_t arrival_us, int64_t first_us, int64_t last_us, int64_t out, const Slo& slo) {
  if (slo.ttft_us > 0 && first_us > arrival_us + slo.ttft_us) return false;
  return slo.tpot_us <= 0 || last_us - first_us <= (out - 1) * slo.tpot_us;
}

}  // namespace hearth
