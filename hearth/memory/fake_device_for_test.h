// SPDX-License-Identifier: Apache-2.0
// A device for machines without one: memory that the CPU may not touch by the interface, though it is the host's, and a
// queue that does its work at once and can record. With it the CPU's ops run as a device's: staging, padding and
// recordings can be tested without a GPU. Tests only; a queue is used by one thread at a time.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <new>
#include <thread>

#include "hearth/memory/host_buffer.h"
#include "hearth/memory/host_range.h"
#include "hearth/memory/memory.h"

namespace hearth::testing {

class FakeDevice final : public Memory {
 public:
  // What tests count.
  struct Counts {
    std::atomic<int64_t> allocations = 0, recorded = 0, replayed = 0;
    void reset() { allocations = recorded = replayed = 0; }
  };
  // Of so many bytes; staging memory is not counted.
  explicit FakeDevice(int64_t total_bytes = int64_t{1} << 30) : total_bytes_(total_bytes) {}
  static FakeDevice& instance() {
    static FakeDevice device;
    return device;
  }
  mutable Counts counts;
  // So many of the next copies of this size fail.
  mutable std::atomic<int64_t> failing_copies = 0, failing_copy_bytes = 0;
  // What such a copy takes.
  mutable std::atomic<int64_t> slow_copy_ms = 0;
  // So many of the next allocations of staging memory throw, as a host without memory does.
  mutable std::atomic<int64_t> throwing_stagings = 0;
  // What it takes to free an allocation.
  std::atomic<int64_t> free_ms = 0;
  int64_t held_bytes() const { return held_bytes_; }

  std::string_view name() const override { return "fake"; }
  std::string device_name() const override { return "a fake device"; }
  Result<int64_t> available_bytes() const override { return total_bytes_ - held_bytes_; }
  bool is_host() const override { return false; }
  Result<Buffer> allocate(int64_t size_bytes) const override { return allocate_resizable(size_bytes, size_bytes); }
  Result<Buffer> allocate_resizable(int64_t size_bytes, int64_t limit_bytes) const override {
    ++counts.allocations;
    Owner owner(*this);
    HEARTH_TRY_ASSIGN(owner.range, HostRange::create(0, limit_bytes));
    HEARTH_TRY(owner.resize(size_bytes));
    return Buffer(std::move(owner));
  }
  Result<Buffer> allocate_staging(int64_t size_bytes) const override {
    ++counts.allocations;
    if (throwing_stagings > 0 && throwing_stagings-- > 0) throw std::bad_alloc();
    HEARTH_TRY_ASSIGN(HostBuffer buffer, HostBuffer::allocate(size_bytes));
    std::ranges::fill(buffer.bytes(), std::byte{0xFF});
    return Buffer(std::move(buffer));
  }
  Result<std::unique_ptr<hearth::Queue>> create_queue() const override {
    return std::unique_ptr<hearth::Queue>(std::make_unique<Queue>(*this));
  }

 private:
  struct Owner {
    explicit Owner(const FakeDevice& of) : device(&of) {}
    Owner(Owner&&) noexcept = default;
    ~Owner() {
      if (range.size_bytes() > 0 && device->free_ms > 0)
        std::this_thread::sleep_for(std::chrono::milliseconds(device->free_ms));
      device->held_bytes_ -= range.size_bytes();
    }
    std::byte* data() const { return range.data(); }
    int64_t size_bytes() const { return range.size_bytes(); }
    Status resize(int64_t bytes) {
      const int64_t before = range.size_bytes(), more = bytes - before;
      if (more > device->total_bytes_ - device->held_bytes_)
        return resource_exhausted("a fake device of {} bytes holds {}; {} more do not fit", device->total_bytes_,
                                  device->held_bytes_.load(), more);
      HEARTH_TRY(range.resize(bytes));
      device->held_bytes_ += more;
      if (more > 0) std::memset(range.data() + before, 0xFF, static_cast<size_t>(more));  // f32 and bf16 NaN
      return {};
    }
    const FakeDevice* device;
    HostRange range;
  };

  class Replay final : public Recording {
   public:
    Replay(std::function<Status()> body, Counts& counts) : body_(std::move(body)), counts_(counts) {}
    Status run() override {
      ++counts_.replayed;
      return body_();
    }

   private:
    std::function<Status()> body_;
    Counts& counts_;
  };

  class Queue final : public hearth::Queue {
   public:
    explicit Queue(const FakeDevice& device) : device_(device) {}
    void* stream() const override { return nullptr; }
    Status copy_in(std::byte* to, std::span<const std::byte> from) override {
      HEARTH_TRY(fail(std::ssize(from)));
      if (!from.empty()) std::memcpy(to, from.data(), from.size());
      return {};
    }
    Status copy_out(std::span<std::byte> to, const std::byte* from) override {
      HEARTH_TRY(fail(std::ssize(to)));
      if (!to.empty()) std::memcpy(to.data(), from, to.size());
      return {};
    }
    Status copy_within(std::byte* to, const std::byte* from, int64_t size_bytes) override {
      HEARTH_TRY(fail(size_bytes));
      if (size_bytes > 0) std::memcpy(to, from, static_cast<size_t>(size_bytes));
      return {};
    }
    Status synchronize() override { return {}; }
    Result<std::unique_ptr<Recording>> record(std::function<Status()> body) override {
      ++device_.counts.recorded;
      return std::unique_ptr<Recording>(std::make_unique<Replay>(std::move(body), device_.counts));
    }

   private:
    Status fail(int64_t bytes) {
      if (bytes != device_.failing_copy_bytes) return {};
      if (device_.slow_copy_ms > 0) std::this_thread::sleep_for(std::chrono::milliseconds(device_.slow_copy_ms));
      if (device_.failing_copies <= 0) return {};
      --device_.failing_copies;
      return internal_error("a copy of {} bytes failed", bytes);
    }
    const FakeDevice& device_;
  };

  const int64_t total_bytes_;
  mutable std::atomic<int64_t> held_bytes_ = 0;
};

inline const Memory& fake_device() { return FakeDevice::instance(); }

}  // namespace hearth::testing
