// SPDX-License-Identifier: Apache-2.0
// HostBuffer: the owner of a piece of host memory. Weights, KV pools and activations of the CPU backend
// lie in these.
//   I1. bytes() begins at a multiple of 64, of 2 MiB from kHugePageBytes on (and asks for huge pages).
//   I2. Moving keeps the address; the moved-from buffer is empty.
// One owner; any threads may use the bytes as they agree among themselves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <utility>

#include "hearth/base/result.h"

namespace hearth {

class HostBuffer {
 public:
  static constexpr int64_t kAlignment = 64;
  static constexpr int64_t kHugePageBytes = int64_t{2} << 20;

  // An empty buffer.
  HostBuffer() = default;
  ~HostBuffer();
  HostBuffer(HostBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_bytes_(std::exchange(other.size_bytes_, 0)) {}
  HostBuffer& operator=(HostBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    return *this;
  }
  HostBuffer(const HostBuffer&) = delete;
  HostBuffer& operator=(const HostBuffer&) = delete;

  // `size_bytes` of uninitialised memory; 0 is legal and allocates nothing. ResourceExhausted where the
  // machine cannot hold it: sizes from kCheckedBytes on are compared with available_host_bytes() first,
  // because Linux promises memory that it does not have and ends the process when it is used.
  static Result<HostBuffer> allocate(int64_t size_bytes);
  static constexpr int64_t kCheckedBytes = int64_t{64} << 20;

  int64_t size_bytes() const { return size_bytes_; }
  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  std::span<std::byte> bytes() { return {data_, static_cast<size_t>(size_bytes_)}; }
  std::span<const std::byte> bytes() const { return {data_, static_cast<size_t>(size_bytes_)}; }

 private:
  HostBuffer(std::byte* data, int64_t size_bytes) : data_(data), size_bytes_(size_bytes) {}

  std::byte* data_ = nullptr;
  int64_t size_bytes_ = 0;
};

// Bytes that this process can still bring into use: the kernel's MemAvailable plus free swap, and no more
// than what the control groups above the process leave. INT64_MAX where nothing is known. `root` is the
// folder that holds proc/ and sys/, "/" but for tests.
int64_t available_host_bytes(const std::filesystem::path& root = "/");

}  // namespace hearth
