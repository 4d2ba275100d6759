// SPDX-License-Identifier: Apache-2.0
// How the threads of a process share its CPUs: a team that computes waits for its slowest thread many times a step,
// so whatever runs beside it belongs on CPUs that the team does not need.
#pragma once

#include <vector>

namespace hearth {

// Threads of a team: `wanted`, or where that is below 1 one for each CPU of this process but one (at least 1).
int team_threads(int wanted);

// The CPUs that a team of `team` threads leaves free: the last ones of this process. Empty where it leaves none.
std::vector<int> cpus_beside_team(int team);

// Keeps thread `tid` (0: the caller) on `cpus`; any of the process where that is empty. A system that refuses changes nothing.
void keep_thread_on(int tid, const std::vector<int>& cpus);

}  // namespace hearth
