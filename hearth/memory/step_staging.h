// SPDX-License-Identifier: Apache-2.0
// StepStaging: brings the arrays of a StepBatch to where kernels read them, in one copy. The batch that stage()
// returns points into a host copy, so that ops can check it as ever; a kernel finds the device's copy of any of its
// arrays at the same distance from the device block's start (StagedMemory).
//   I1. Addresses are those of creation: a captured graph finds the arrays of every later step.
//   I2. The counters are zero when a step begins, and an op leaves them so.
//   I3. Copies start from one of two blocks by turns, so that a step can be staged while the copy of the one before is
//       still in the queue.
// One owner, who waits for a step's copy before the stage() after next.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "hearth/base/result.h"
#include "hearth/memory/memory.h"
#include "hearth/tensor/step_batch.h"

namespace hearth {

// `size_bytes` at `host` that are at `device` too, and counters with which the blocks of a kernel share out work.
struct StagedMemory {
  static constexpr int64_t kCounters = 512;

  const std::byte* host = nullptr;
  const std::byte* device = nullptr;
  int64_t size_bytes = 0;
  uint32_t* counters = nullptr;  // [kCounters], on the device; I2
};

// The largest batch.
struct StagingLimits {
  int64_t tokens = 0;
  int64_t sequences = 0;
  int64_t logit_rows = 0;
  int64_t block_entries = 0;  // of the block table, all sequences together
};

// A decode step of fixed shape: so many sequences of one token, each with its row of logits.
struct PaddedShape {
  int64_t sequences = 0;
  int64_t max_context = 0;   // StepBatch::max_context
  int64_t block_stride = 0;  // entries of a sequence's block table
  int64_t dummy_block = 0;   // byte offset of the block that slots without a sequence have (KvView)
};

class StepStaging {
 public:
  StepStaging() = default;
  static Result<StepStaging> create(const Memory& memory, const StagingLimits& limits);

  // InvalidArgument where the batch is larger than planned.
  Result<StepBatch> stage(const StepBatch& batch, Queue& queue);
  // The same for a decode step, padded to `shape` with token 0 at position 0 of the dummy block. The arrays of a shape
  // always lie in the same places. REQUIRES: no more sequences than the shape's, no context longer than its blocks.
  Result<StepBatch> stage_padded(const StepBatch& batch, const PaddedShape& shape, Queue& queue);
  StagedMemory memory() const {
    return {host_.data(), device_.data(), device_.size_bytes(),
            static_cast<uint32_t*>(static_cast<void*>(device_.data()))};
  }

 private:
  Status check(int64_t tokens, int64_t sequences, int64_t rows, int64_t entries) const;
  // Zeros for the counters, first of all; the bytes that they take.
  int64_t clear_counters();
  // Room for `count` values behind `used` bytes.
  template <class T>
  std::span<T> place(int64_t count, int64_t& used);
  StagingLimits limits_;
  Status upload(int64_t bytes, Queue& queue);
  Buffer host_, device_;
  std::array<Buffer, 2> sources_;  // of copies; I3
  size_t turn_ = 0;
};

}  // namespace hearth
