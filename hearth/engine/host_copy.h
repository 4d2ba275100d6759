// SPDX-License-Identifier: Apache-2.0
// HostCopy: what lay in a device's memory, in pinned host memory meanwhile: the weights of a model that sleeps. It is
// pinned in pieces, with pauses between: the driver keeps everybody who starts work on the device waiting while it pins
// or gives back, and other models go on meanwhile.
#pragma once

#include <vector>

#include "hearth/memory/memory.h"

namespace hearth {

class HostCopy {
 public:
  // More than what malloc() keeps for later.
  static constexpr int64_t kPieceBytes = int64_t{64} << 20;

  // Of `from`, which lies in `memory`. ResourceExhausted where the host has not so much; what the queue says else.
  static Result<HostCopy> take(const Memory& memory, std::span<const std::byte> from);
  HostCopy(HostCopy&&) noexcept = default;
  HostCopy& operator=(HostCopy&&) = delete;
  // Gives the host's memory back, with the pauses.
  ~HostCopy();

  int64_t size_bytes() const { return size_bytes_; }
  // Copies all of it to `to`, size_bytes() of the memory that it was taken from, and waits for that.
  Status put_back(std::byte* to) const;

 private:
  explicit HostCopy(const Memory& memory) : memory_(&memory) {}

  const Memory* memory_;
  std::vector<Buffer> pieces_;
  int64_t size_bytes_ = 0;
};

}  // namespace hearth
