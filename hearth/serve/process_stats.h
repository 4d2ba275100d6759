// SPDX-License-Identifier: Apache-2.0
// What the system says of this process. Any thread.
#pragma once

#include <cstdint>

namespace hearth {

struct ProcessStats {
  double cpu_seconds = 0;  // user and system
  int64_t resident_bytes = 0;
  int64_t virtual_bytes = 0;
  int64_t open_fds = 0;
  int64_t max_fds = 0;       // the soft limit
  double start_seconds = 0;  // since 1970
};

// What cannot be read stays 0.
ProcessStats read_process_stats();

}  // namespace hearth
