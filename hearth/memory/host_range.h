// SPDX-License-Identifier: Apache-2.0
// HostRange: a range of the host's addresses whose first bytes are memory, as many as its owner wants at the time.
//   I1. data() stays; so do the bytes in front of both ends when it is resized.
//   I2. What lies behind the end is no memory: the system has it back, and touching it ends the process.
// One owner, who resizes while nobody uses what comes or goes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "hearth/base/result.h"

namespace hearth {

class HostRange {
 public:
  static constexpr int64_t kAlignment = int64_t{2} << 20;  // of data(), and huge pages are asked for

  HostRange() = default;
  ~HostRange();
  HostRange(HostRange&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_bytes_(std::exchange(other.size_bytes_, 0)),
        limit_bytes_(std::exchange(other.limit_bytes_, 0)),
        reserved_(std::exchange(other.reserved_, nullptr)),
        reserved_bytes_(std::exchange(other.reserved_bytes_, 0)) {}
  HostRange& operator=(HostRange&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    std::swap(limit_bytes_, other.limit_bytes_);
    std::swap(reserved_, other.reserved_);
    std::swap(reserved_bytes_, other.reserved_bytes_);
    return *this;
  }

  // Addresses for `limit_bytes`, and memory for the first `size_bytes` of them, zeros. Errors as resize().
  static Result<HostRange> create(int64_t size_bytes, int64_t limit_bytes);

  // InvalidArgument: not 0 to limit_bytes(). ResourceExhausted where the machine has not so much (HostBuffer's check);
  // then nothing has changed.
  Status resize(int64_t size_bytes);

  std::byte* data() const { return data_; }
  int64_t size_bytes() const { return size_bytes_; }
  int64_t limit_bytes() const { return limit_bytes_; }

 private:
  std::byte* data_ = nullptr;
  int64_t size_bytes_ = 0, limit_bytes_ = 0;
  void* reserved_ = nullptr;  // what the system gave
  size_t reserved_bytes_ = 0;
};

}  // namespace hearth
