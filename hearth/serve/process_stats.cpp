// SPDX-License-Identifier: Apache-2.0
// From /proc and the system calls beside it; what is missing or unreadable counts as 0. Any thread.
#include "hearth/serve/process_stats.h"

#include <dirent.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <unistd.h>

#include <cstdlib>
#include <ctime>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>

namespace hearth {
namespace {

int64_t count_fds() {
  DIR* const dir = opendir("/proc/self/fd");
  if (dir == nullptr) return 0;
  int64_t count = 0;
  while (const dirent* entry = readdir(dir))
    if (entry->d_name[0] != '.') ++count;
  closedir(dir);
  return count - 1;  // the folder's own
}

// Field 22 of /proc/self/stat: ticks between the system's start and ours. The name, field 2, may hold anything.
double start_ticks() {
  std::ifstream file("/proc/self/stat");
  const std::string text(std::istreambuf_iterator<char>(file), {});
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return 0;
  std::istringstream fields(text.substr(name_end + 1));
  std::string field;
  for (int i = 3; i <= 22; ++i) fields >> field;
  return fields ? std::strtod(field.c_str(), nullptr) : 0;
}

double system_start_seconds() {
  std::ifstream file("/proc/stat");
  std::string word;
  double value = 0;
  while (file >> word) {
    if (word == "btime" && file >> value) return value;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return 0;
}

double process_start_seconds() {
  const double ticks = start_ticks(), system = system_start_seconds();
  if (ticks <= 0 || system <= 0) return 0;
  return system + ticks / static_cast<double>(sysconf(_SC_CLK_TCK));
}

}  // namespace

ProcessStats read_process_stats() {
  ProcessStats stats;
  timespec cpu{};
  if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu) == 0)
    stats.cpu_seconds = static_cast<double>(cpu.tv_sec) + static_cast<double>(cpu.tv_nsec) * 1e-9;
  std::ifstream memory("/proc/self/statm");
  int64_t all_pages = 0, resident_pages = 0;
  if (memory >> all_pages >> resident_pages) {
    const int64_t page_bytes = sysconf(_SC_PAGESIZE);
    stats.virtual_bytes = all_pages * page_bytes;
    stats.resident_bytes = resident_pages * page_bytes;
  }
  stats.open_fds = count_fds();
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur <= std::numeric_limits<int64_t>::max())
    stats.max_fds = static_cast<int64_t>(limit.rlim_cur);
  static const double start_seconds = process_start_seconds();
  stats.start_seconds = start_seconds;
  return stats;
}

}  // namespace hearth
