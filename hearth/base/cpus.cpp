// SPDX-License-Identifier: Apache-2.0
// Affinity masks of Linux. The process's own is its first thread's, which nothing here narrows.
#include "hearth/base/cpus.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>

namespace hearth {
namespace {

std::vector<int> process_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (sched_getaffinity(getpid(), sizeof set, &set) != 0) return cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

}  // namespace

int team_threads(int wanted) { return wanted >= 1 ? wanted : std::max(1, static_cast<int>(process_cpus().size()) - 1); }

std::vector<int> cpus_beside_team(int team) {
  std::vector<int> cpus = process_cpus();
  cpus.erase(cpus.begin(), cpus.begin() + std::min<std::ptrdiff_t>(std::max(team, 0), std::ssize(cpus)));
  return cpus;
}

void keep_thread_on(int tid, const std::vector<int>& cpus) {
  if (cpus.empty()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus) CPU_SET(cpu, &set);
  sched_setaffinity(tid, sizeof set, &set);
}

}  // namespace hearth
