// SPDX-License-Identifier: Apache-2.0
#include "hearth/memory/host_range.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <limits>

#include "hearth/base/log.h"
#include "hearth/memory/host_buffer.h"

namespace hearth {
namespace {

constexpr int64_t kPage = 64 << 10;  // a multiple of every page size that Linux is built with here

int64_t pages_up(int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

}  // namespace

Result<HostRange> HostRange::create(int64_t size_bytes, int64_t limit_bytes) {
  if (limit_bytes < 0) return invalid_argument("a range of {} bytes of host memory; wanted 0 or more", limit_bytes);
  HostRange range;
  range.limit_bytes_ = limit_bytes;
  if (limit_bytes == 0) return range;
  if (limit_bytes > std::numeric_limits<int64_t>::max() - 2 * kAlignment)
    return resource_exhausted("host memory: {} bytes wanted, more than there are addresses", limit_bytes);
  const auto reserved_bytes = static_cast<size_t>(pages_up(limit_bytes) + kAlignment);
  void* const at = mmap(nullptr, reserved_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED)
    return resource_exhausted("host memory: no addresses for {} bytes: {}", limit_bytes, std::strerror(errno));
  range.reserved_ = at;
  range.reserved_bytes_ = reserved_bytes;
  const auto address = reinterpret_cast<uintptr_t>(at);
  const uintptr_t aligned = (address + kAlignment - 1) / kAlignment * kAlignment;
  range.data_ = static_cast<std::byte*>(at) + (aligned - address);
  HEARTH_TRY(range.resize(size_bytes));
  return range;
}

Status HostRange::resize(int64_t size_bytes) {
  if (size_bytes < 0 || size_bytes > limit_bytes_)
    return invalid_argument("host memory: {} bytes of a range of {}; wanted 0 to that", size_bytes, limit_bytes_);
  const int64_t before = pages_up(size_bytes_), after = pages_up(size_bytes);
  if (after > before) {
    const auto more = static_cast<size_t>(after - before);
    if (const int64_t left = available_host_bytes();
        after - before >= HostBuffer::kCheckedBytes && after - before > left)
      return resource_exhausted("host memory: {} bytes wanted, {} available", after - before, left);
    if (mprotect(data_ + before, more, PROT_READ | PROT_WRITE) != 0)
      return resource_exhausted("host memory: the system refused {} bytes: {}", after - before, std::strerror(errno));
    // Advice: without huge pages the memory is as usable, only slower.
    (void)madvise(data_ + before, more, MADV_HUGEPAGE);
  } else if (after < before) {
    // New addresses in place of the old: their memory is free.
    void* const at = mmap(data_ + after, static_cast<size_t>(before - after), PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    if (at == MAP_FAILED)
      return resource_exhausted("host memory: the system did not take {} bytes back: {}", before - after,
                                std::strerror(errno));
  }
  size_bytes_ = size_bytes;
  return {};
}

HostRange::~HostRange() {
  if (reserved_ != nullptr && munmap(reserved_, reserved_bytes_) != 0)
    spdlog::warn("host memory: {} bytes were not given back: {}", reserved_bytes_, std::strerror(errno));
}

}  // namespace hearth
