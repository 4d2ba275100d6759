// SPDX-License-Identifier: Apache-2.0
// Take jobs by due time; whenever the last one is late, the longest taken so far goes.
#include "hearth/schedule/moore_hodgson.h"

#include <algorithm>
#include <numeric>
#include <queue>

namespace hearth {

std::vector<int64_t> on_time_jobs(std::span<const Job> jobs) {
  const auto job = [&](int64_t i) -> const Job& { return jobs[static_cast<size_t>(i)]; };
  std::vector<int64_t> order(jobs.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, {}, [&](int64_t i) { return job(i).due_us; });
  std::vector<bool> taken(jobs.size(), false);
  std::priority_queue<std::pair<double, int64_t>> longest;
  double end_us = 0;
  for (const int64_t i : order) {
    taken[static_cast<size_t>(i)] = true;
    longest.emplace(job(i).time_us, i);
    end_us += job(i).time_us;
    if (end_us <= job(i).due_us) continue;
    end_us -= longest.top().first;
    taken[static_cast<size_t>(longest.top().second)] = false;
    longest.pop();
  }
  std::erase_if(order, [&](int64_t i) { return !taken[static_cast<size_t>(i)]; });
  return order;
}

}  // namespace hearth
