// SPDX-License-Identifier: Apache-2.0
#include "hearth/client/judge.h"

#include <cmath>

namespace hearth {
namespace {

using Outcome = RequestRecord::Outcome;

int64_t microseconds(double seconds) { return std::llround(seconds * 1e6); }

}  // namespace

SloCounts judge(const RequestRecord& r, const Slo& slo) {
  SloCounts counts;
  if (r.outcome == Outcome::kNotSent) return counts;
  const bool any = r.events > 0;
  counts.count({.end = r.outcome == Outcome::kDone        ? EndedAnswer::End::kComplete
                       : r.outcome == Outcome::kCancelled ? EndedAnswer::End::kLeft
                                                          : EndedAnswer::End::kFailed,
                .arrival_us = microseconds(r.due_s),
                .first_us = any ? microseconds(r.first_s) : -1,
                .last_us = any ? microseconds(r.last_s) : -1,
                .tokens = r.output_tokens,
                .end_us = microseconds(r.end_s)},
               slo);
  return counts;
}

void for_each_event(const RequestRecord& r, FunctionRef<void(double at_s, double tokens)> take) {
  if (r.events == 0) return;
  const double tokens = static_cast<double>(r.output_tokens) / static_cast<double>(r.events);
  double at_s = r.first_s;
  take(at_s, tokens);
  for (const float gap : r.gaps_s) take(at_s += static_cast<double>(gap), tokens);
}

}  // namespace hearth
