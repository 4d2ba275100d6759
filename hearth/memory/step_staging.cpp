// SPDX-License-Identifier: Apache-2.0
#include "hearth/memory/step_staging.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "hearth/base/check.h"

namespace hearth {
namespace {

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

template <class T>
int64_t array_bytes(int64_t count) {
  return aligned(count * static_cast<int64_t>(sizeof(T)));
}

int64_t staged_bytes(const StagingLimits& limits) {
  return array_bytes<uint32_t>(StagedMemory::kCounters) + 2 * array_bytes<int32_t>(limits.tokens) +
         3 * array_bytes<int32_t>(limits.sequences + 1) + array_bytes<int32_t>(limits.logit_rows) +
         array_bytes<int64_t>(limits.block_entries);
}

}  // namespace

Result<StepStaging> StepStaging::create(const Memory& memory, const StagingLimits& limits) {
  StepStaging out;
  out.limits_ = limits;
  const int64_t bytes = staged_bytes(limits);
  HEARTH_TRY_ASSIGN(out.host_, host_memory().allocate(bytes).with_context("step arrays"));
  for (Buffer& source : out.sources_) {
    HEARTH_TRY_ASSIGN(source, memory.allocate_staging(bytes).with_context("step arrays"));
  }
  HEARTH_TRY_ASSIGN(out.device_, memory.allocate(bytes).with_context("step arrays"));
  return out;
}

Status StepStaging::check(int64_t tokens, int64_t sequences, int64_t rows, int64_t entries) const {
  if (tokens <= limits_.tokens && sequences <= limits_.sequences && rows <= limits_.logit_rows &&
      entries <= limits_.block_entries)
    return {};
  return invalid_argument(
      "step of {} tokens of {} sequences with {} logit rows and {} blocks; planned for {}, {}, {} and {}", tokens,
      sequences, rows, entries, limits_.tokens, limits_.sequences, limits_.logit_rows, limits_.block_entries);
}

template <class T>
std::span<T> StepStaging::place(int64_t count, int64_t& used) {
  T* const at = static_cast<T*>(static_cast<void*>(host_.data() + used));
  used += array_bytes<T>(count);
  return {at, static_cast<size_t>(count)};
}

// The first `bytes` of the host's block to the device.
Status StepStaging::upload(int64_t bytes, Queue& queue) {
  const std::span<std::byte> source(sources_[turn_].data(), static_cast<size_t>(bytes));
  turn_ = 1 - turn_;
  std::memcpy(source.data(), host_.data(), source.size());
  return queue.copy_in(device_.data(), source);
}

int64_t StepStaging::clear_counters() {
  int64_t used = 0;
  std::ranges::fill(place<uint32_t>(StagedMemory::kCounters, used), 0);
  return used;
}

Result<StepBatch> StepStaging::stage(const StepBatch& batch, Queue& queue) {
  HEARTH_TRY(
      check(batch.num_tokens(), batch.num_sequences(), std::ssize(batch.logit_rows), std::ssize(batch.block_table)));
  int64_t used = clear_counters();
  const auto put = [&]<class T>(std::span<const T> from) {
    const std::span<T> to = place<T>(std::ssize(from), used);
    if (!from.empty()) std::memcpy(to.data(), from.data(), from.size_bytes());
    return std::span<const T>(to);
  };
  StepBatch out = batch;
  out.tokens = put(batch.tokens);
  out.positions = put(batch.positions);
  out.query_start = put(batch.query_start);
  out.context_len = put(batch.context_len);
  out.block_table = put(batch.block_table);
  out.logit_rows = put(batch.logit_rows);
  out.adapter = put(batch.adapter);
  HEARTH_TRY(upload(used, queue));
  return out;
}

Result<StepBatch> StepStaging::stage_padded(const StepBatch& batch, const PaddedShape& shape, Queue& queue) {
  const int64_t given = batch.num_sequences(), count = shape.sequences, stride = shape.block_stride;
  HEARTH_CHECK(given <= count && batch.num_tokens() == given, "{} sequences of {} tokens padded to {}", given,
               batch.num_tokens(), count);
  HEARTH_TRY(check(count, count, count, count * stride));
  int64_t used = clear_counters();
  const auto put = [&](std::span<const int32_t> from, int32_t padding) {
    const std::span<int32_t> to = place<int32_t>(count, used);
    std::fill(std::copy(from.begin(), from.end(), to.begin()), to.end(), padding);
    return std::span<const int32_t>(to);
  };
  const auto ascending = [&](int64_t size) {
    const std::span<int32_t> to = place<int32_t>(size, used);
    std::iota(to.begin(), to.end(), 0);
    return std::span<const int32_t>(to);
  };
  StepBatch out;
  out.tokens = put(batch.tokens, 0);
  out.positions = put(batch.positions, 0);
  out.query_start = ascending(count + 1);
  out.context_len = put(batch.context_len, 1);
  out.logit_rows = ascending(count);
  const std::span<int64_t> table = place<int64_t>(count * stride, used);
  for (int64_t s = 0; s < count; ++s) {
    const std::span<int64_t> row = table.subspan(static_cast<size_t>(s * stride), static_cast<size_t>(stride));
    std::span<const int64_t> blocks = s < given ? batch.blocks(s) : std::span<const int64_t>();
    if (std::ssize(blocks) > stride) blocks = blocks.first(static_cast<size_t>(stride));
    std::fill(std::copy(blocks.begin(), blocks.end(), row.begin()), row.end(), shape.dummy_block);
  }
  out.block_table = table;
  out.block_table_stride = stride;
  out.max_context = shape.max_context;
  out.sampled = batch.sampled;
  HEARTH_TRY(upload(used, queue));
  return out;
}

}  // namespace hearth
