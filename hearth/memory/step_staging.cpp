// SPDX-License-Identifier: Apache-2.0
#include "hearth/memory/step_staging.h"

#include <cstring>

namespace hearth {
namespace {

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

template <class T>
int64_t array_bytes(int64_t count) {
  return aligned(count * static_cast<int64_t>(sizeof(T)));
}

int64_t staged_bytes(const StagingLimits& limits) {
  return 2 * array_bytes<int32_t>(limits.tokens) + 3 * array_bytes<int32_t>(limits.sequences + 1) +
         array_bytes<int32_t>(limits.logit_rows) + array_bytes<int64_t>(limits.block_entries);
}

}  // namespace

Result<StepStaging> StepStaging::create(const Memory& memory, const StagingLimits& limits) {
  StepStaging out;
  out.limits_ = limits;
  const int64_t bytes = staged_bytes(limits);
  HEARTH_TRY_ASSIGN(out.host_, memory.allocate_staging(bytes).with_context("step arrays"));
  HEARTH_TRY_ASSIGN(out.device_, memory.allocate(bytes).with_context("step arrays"));
  return out;
}

Result<StepBatch> StepStaging::stage(const StepBatch& batch, Queue& queue) {
  const auto entries = static_cast<int64_t>(batch.block_table.size());
  if (batch.num_tokens() > limits_.tokens || batch.num_sequences() > limits_.sequences ||
      static_cast<int64_t>(batch.logit_rows.size()) > limits_.logit_rows || entries > limits_.block_entries)
    return invalid_argument(
        "step of {} tokens of {} sequences with {} logit rows and {} blocks; planned for {}, {}, {} and {}",
        batch.num_tokens(), batch.num_sequences(), batch.logit_rows.size(), entries, limits_.tokens, limits_.sequences,
        limits_.logit_rows, limits_.block_entries);
  int64_t used = 0;
  const auto put = [&]<class T>(std::span<const T> from) {
    T* const to = static_cast<T*>(static_cast<void*>(host_.data() + used));
    if (!from.empty()) std::memcpy(to, from.data(), from.size_bytes());
    used += array_bytes<T>(static_cast<int64_t>(from.size()));
    return std::span<const T>(to, from.size());
  };
  StepBatch out = batch;
  out.tokens = put(batch.tokens);
  out.positions = put(batch.positions);
  out.query_start = put(batch.query_start);
  out.context_len = put(batch.context_len);
  out.block_table = put(batch.block_table);
  out.logit_rows = put(batch.logit_rows);
  out.adapter = put(batch.adapter);
  HEARTH_TRY(queue.copy_in(device_.data(), {host_.data(), static_cast<size_t>(used)}));
  return out;
}

}  // namespace hearth
