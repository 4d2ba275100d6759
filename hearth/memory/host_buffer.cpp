// SPDX-License-Identifier: Apache-2.0
// Allocation of host memory, and what the machine says of how much there is left.
#include "hearth/memory/host_buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace hearth {
namespace {

constexpr int64_t kUnknown = std::numeric_limits<int64_t>::max();

// The number at the beginning of `text`, after blanks.
std::optional<int64_t> leading_number(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc()) return std::nullopt;
  return value;
}

// Lines "key value" or "key: value unit" of the kernel's files. Empty where there is no such file.
std::map<std::string, int64_t> read_fields(const std::filesystem::path& path) {
  std::map<std::string, int64_t> fields;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    const size_t end = line.find_first_of(": ");
    if (end == std::string::npos) continue;
    const size_t value = line.find_first_not_of(": ", end);
    if (value == std::string::npos) continue;
    if (const auto number = leading_number(std::string_view(line).substr(value))) fields[line.substr(0, end)] = *number;
  }
  return fields;
}

std::optional<int64_t> read_number(const std::filesystem::path& path) {
  std::ifstream in(path);
  std::string line;
  if (!std::getline(in, line)) return std::nullopt;
  return leading_number(line);  // "max" is none
}

struct CgroupFiles {
  const char* limit;
  const char* usage;
  const char* file_prefix;  // of the page cache's fields in memory.stat
};

// What the group at `group` under `mount` and the groups above it leave. The page cache counts as left:
// the kernel drops it first.
int64_t cgroup_left_bytes(const std::filesystem::path& mount, std::filesystem::path group, const CgroupFiles& files) {
  int64_t left = kUnknown;
  for (;; group = group.parent_path()) {
    const std::filesystem::path dir = mount / group;
    const auto limit = read_number(dir / files.limit), usage = read_number(dir / files.usage);
    if (limit && usage) {
      auto stat = read_fields(dir / "memory.stat");
      const std::string prefix = files.file_prefix;
      const int64_t cache = stat[prefix + "inactive_file"] + stat[prefix + "active_file"];
      left = std::min(left, std::max<int64_t>(0, *limit - std::max<int64_t>(0, *usage - cache)));
    }
    if (group.empty()) return left;
  }
}

}  // namespace

int64_t available_host_bytes(const std::filesystem::path& root) {
  int64_t available = kUnknown;
  const auto meminfo = read_fields(root / "proc/meminfo");
  if (const auto it = meminfo.find("MemAvailable"); it != meminfo.end()) {
    const auto swap = meminfo.find("SwapFree");
    available = (it->second + (swap == meminfo.end() ? 0 : swap->second)) * 1024;
  }
  // Lines "id:controllers:/group"; version 2 has id 0 and no controllers. In a container the group may be
  // named from the host's root and not be found below the mount: its own limit then is at the mount itself,
  // which the walk upwards ends at.
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = fmt::format(",{},", line.substr(first + 1, second - first - 1));
    const std::filesystem::path group = std::filesystem::path(line.substr(second + 1)).relative_path();
    if (controllers == ",,") {
      available =
          std::min(available, cgroup_left_bytes(root / "sys/fs/cgroup", group, {"memory.max", "memory.current", ""}));
    } else if (controllers.find(",memory,") != std::string::npos) {
      available = std::min(available, cgroup_left_bytes(root / "sys/fs/cgroup/memory", group,
                                                        {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_"}));
    }
  }
  return available;
}

Result<HostBuffer> HostBuffer::allocate(int64_t size_bytes) {
  if (size_bytes < 0) return invalid_argument("host memory of {} bytes; wanted 0 or more", size_bytes);
  if (size_bytes == 0) return HostBuffer();
  if (size_bytes >= kCheckedBytes) {
    if (const int64_t available = available_host_bytes(); size_bytes > available) {
      return resource_exhausted("host memory: {} bytes wanted, {} available", size_bytes, available);
    }
  }
  const int64_t alignment = size_bytes >= kHugePageBytes ? kHugePageBytes : kAlignment;
  if (size_bytes > std::numeric_limits<int64_t>::max() - alignment) {
    return resource_exhausted("host memory: {} bytes wanted, more than there are addresses", size_bytes);
  }
  const auto rounded = static_cast<size_t>((size_bytes + alignment - 1) / alignment * alignment);
  void* data = std::aligned_alloc(static_cast<size_t>(alignment), rounded);
  if (data == nullptr) return resource_exhausted("host memory: the system refused {} bytes", size_bytes);
  // Advice: without huge pages the memory is as usable, only slower.
  if (alignment == kHugePageBytes) (void)madvise(data, rounded, MADV_HUGEPAGE);
  return HostBuffer(static_cast<std::byte*>(data), size_bytes);
}

HostBuffer::~HostBuffer() { std::free(data_); }

}  // namespace hearth
