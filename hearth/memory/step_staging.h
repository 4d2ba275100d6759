// SPDX-License-Identifier: Apache-2.0
// StepStaging: brings the arrays of a StepBatch to where kernels read them, in one copy. The batch that stage()
// returns points into a host copy, so that ops can check it as ever; a kernel finds the device's copy of any of its
// arrays at the same distance from the device block's start (StagedMemory).
//   I1. Addresses are those of creation: a captured graph finds the arrays of every later step.
// One owner; the caller synchronises the queue between one stage() and the next.
#pragma once

#include <cstddef>
#include <cstdint>

#include "hearth/base/result.h"
#include "hearth/memory/memory.h"
#include "hearth/tensor/step_batch.h"

namespace hearth {

// `size_bytes` at `host` that are at `device` too.
struct StagedMemory {
  const std::byte* host = nullptr;
  const std::byte* device = nullptr;
  int64_t size_bytes = 0;
};

// The largest batch.
struct StagingLimits {
  int64_t tokens = 0;
  int64_t sequences = 0;
  int64_t logit_rows = 0;
  int64_t block_entries = 0;  // of the block table, all sequences together
};

class StepStaging {
 public:
  StepStaging() = default;
  static Result<StepStaging> create(const Memory& memory, const StagingLimits& limits);

  // InvalidArgument where the batch is larger than planned.
  Result<StepBatch> stage(const StepBatch& batch, Queue& queue);
  StagedMemory memory() const { return {host_.data(), device_.data(), device_.size_bytes()}; }

 private:
  StagingLimits limits_;
  Buffer host_, device_;
};

}  // namespace hearth
