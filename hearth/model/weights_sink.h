// SPDX-License-Identifier: Apache-2.0
// Where loaded weights go: one buffer in the memory in which a backend's ops want them. The host's is written in place;
// a device's through two pinned pieces, one of which is filled by any number of threads while the other travels.
//   I1. Pieces arrive in the order in which they were closed, and all of them before finish() returns.
//   I2. Beside the buffer itself only the two pieces are taken.
// One owner, which opens and closes; what is open may be written by any threads.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "hearth/base/result.h"
#include "hearth/memory/memory.h"

namespace hearth {

class WeightSink {
 public:
  // Large enough that a team of threads and the bus both work without a pause, and little to pin.
  static constexpr int64_t kPieceBytes = int64_t{64} << 20;

  // A buffer of `size_bytes`. ResourceExhausted where it or the pieces do not fit.
  static Result<WeightSink> create(const Memory& memory, int64_t size_bytes, int64_t piece_bytes = kPieceBytes);

  // Where byte `offset` lies for the ops.
  std::byte* address(int64_t offset) const { return buffer_.data() + offset; }
  // Whether address() may be written and read by the CPU.
  bool in_place() const { return lanes_[0].queue == nullptr; }
  // The most bytes that open() gives.
  int64_t piece_bytes() const;

  // Host memory to be filled with bytes [offset, offset + size_bytes), until close(). REQUIRES: nothing is open,
  // size_bytes <= piece_bytes().
  Result<std::span<std::byte>> open(int64_t offset, int64_t size_bytes);
  Status close();
  // Copies `bytes` to `offset`, in as many pieces as that takes.
  Status put(int64_t offset, std::span<const std::byte> bytes);

  // Waits for all pieces and gives the buffer up.
  Result<Buffer> finish();

 private:
  struct Lane {
    Buffer staging;
    std::unique_ptr<Queue> queue;
  };
  Buffer buffer_;
  std::array<Lane, 2> lanes_;  // without queues where the buffer is the host's
  size_t turn_ = 0;            // the lane that is open, or next
  int64_t offset_ = 0;
  std::span<std::byte> open_;
};

}  // namespace hearth
