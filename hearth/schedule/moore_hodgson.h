// SPDX-License-Identifier: Apache-2.0
// The most jobs that one machine can finish in time. J. M. Moore, "An n job, one machine sequencing algorithm for
// minimizing the number of late jobs", Management Science 15 (1968), in Hodgson's form.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace hearth {

struct Job {
  double time_us = 0;  // on the machine; >= 0
  double due_us = 0;   // from now; infinite: never late
};

// Indices of a largest set that can all be on time, by due time (equal ones in their order): in this order they are.
// O(n log n).
std::vector<int64_t> on_time_jobs(std::span<const Job> jobs);

}  // namespace hearth
