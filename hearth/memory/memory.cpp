// SPDX-License-Identifier: Apache-2.0
// Host memory behind the interface of memory.h: HostBuffers, and copies that are done when the call returns.
#include "hearth/memory/memory.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "hearth/memory/host_buffer.h"
#include "hearth/memory/host_range.h"

namespace hearth {
namespace {

class HostQueue final : public Queue {
 public:
  void* stream() const override { return nullptr; }
  Status copy_in(std::byte* to, std::span<const std::byte> from) override {
    if (!from.empty()) std::memcpy(to, from.data(), from.size());
    return {};
  }
  Status copy_out(std::span<std::byte> to, const std::byte* from) override {
    if (!to.empty()) std::memcpy(to.data(), from, to.size());
    return {};
  }
  Status copy_within(std::byte* to, const std::byte* from, int64_t size_bytes) override {
    if (size_bytes > 0) std::memcpy(to, from, static_cast<size_t>(size_bytes));
    return {};
  }
  Status synchronize() override { return {}; }
  Result<std::unique_ptr<Recording>> record(std::function<Status()>) override {
    return unsupported("the host's work cannot be recorded");
  }
};

class HostMemory final : public Memory {
 public:
  std::string_view name() const override { return "host"; }
  std::string device_name() const override { return {}; }
  Result<int64_t> available_bytes() const override { return available_host_bytes(); }
  int64_t cache_bytes() const override { return std::max(0L, sysconf(_SC_LEVEL3_CACHE_SIZE)); }
  bool is_host() const override { return true; }
  Result<Buffer> allocate(int64_t size_bytes) const override {
    HEARTH_TRY_ASSIGN(HostBuffer buffer, HostBuffer::allocate(size_bytes));
    return Buffer(std::move(buffer));
  }
  Result<Buffer> allocate_resizable(int64_t size_bytes, int64_t limit_bytes) const override {
    HEARTH_TRY_ASSIGN(HostRange range, HostRange::create(size_bytes, limit_bytes));
    return Buffer(std::move(range));
  }
  Result<Buffer> allocate_staging(int64_t size_bytes) const override { return allocate(size_bytes); }
  Result<std::unique_ptr<Queue>> create_queue() const override {
    return std::unique_ptr<Queue>(std::make_unique<HostQueue>());
  }
};

}  // namespace

Status Buffer::resize(int64_t size_bytes) {
  if (resize_ == nullptr) return unsupported("a buffer of {} bytes cannot be resized", size_bytes_);
  HEARTH_TRY(resize_(owner_.get(), size_bytes));
  size_bytes_ = size_bytes;
  return {};
}

Status resize_in_steps(Buffer& buffer, int64_t size_bytes) {
  const int64_t before = buffer.size_bytes();
  while (buffer.size_bytes() != size_bytes) {
    const int64_t step = std::clamp(size_bytes - buffer.size_bytes(), -kResizeStepBytes, kResizeStepBytes);
    if (Status resized = buffer.resize(buffer.size_bytes() + step); !resized) {
      if (buffer.size_bytes() != before) (void)buffer.resize(before);
      return resized;
    }
    if (buffer.size_bytes() != size_bytes) let_others_start_work();
  }
  return {};
}

void let_others_start_work() { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }

Result<std::unique_ptr<QueueMark>> Queue::create_mark() {
  class Reached final : public QueueMark {
    Status set() override { return {}; }
    Result<bool> reached() override { return true; }
    Status wait() override { return {}; }
  };
  return std::unique_ptr<QueueMark>(std::make_unique<Reached>());
}

Result<std::vector<double>> Queue::time_each(int64_t count, const std::function<Status()>& body, const Clock& clock) {
  HEARTH_TRY(synchronize());
  std::vector<double> times_us;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin_ns = clock.now_ns();
    HEARTH_TRY(body());
    HEARTH_TRY(synchronize());
    times_us.push_back(static_cast<double>(clock.now_ns() - begin_ns) * 1e-3);
  }
  return times_us;
}

const Memory& host_memory() {
  static const HostMemory memory;
  return memory;
}

}  // namespace hearth
