// SPDX-License-Identifier: Apache-2.0
#include "hearth/kernels/sample/device_sampler.h"

#include <algorithm>
#include <cstring>

#include "hearth/base/check.h"

namespace hearth {
namespace {

constexpr auto kVerdictBytes = static_cast<int64_t>(sizeof(SampleVerdict));
constexpr auto kCandidateBytes = static_cast<int64_t>(sizeof(SampleCandidate)) * kMaxTopLogprobs;

int64_t align64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

int64_t block_bytes(const DeviceSampler::Plan& plan) {
  return plan.rows * static_cast<int64_t>(sizeof(PackedSampleRow)) + 4 * plan.list_words;
}

template <class T>
T* at(const Buffer& buffer, int64_t offset = 0) {
  return static_cast<T*>(static_cast<void*>(buffer.data() + offset));
}

}  // namespace

Result<DeviceSampler> DeviceSampler::create(const Memory& memory, SamplePackedOp op, const Plan& plan) {
  HEARTH_CHECK(op && plan.vocab <= kMaxPackedVocab, "a device sampler for {} tokens", plan.vocab);
  DeviceSampler out;
  out.plan_ = plan;
  out.op_ = op;
  const int64_t results = align64(plan.rows * kVerdictBytes) + plan.rows * kCandidateBytes;
  HEARTH_TRY_ASSIGN(out.host_block_, memory.allocate_staging(block_bytes(plan)).with_context("sampling"));
  HEARTH_TRY_ASSIGN(out.block_, memory.allocate(block_bytes(plan)).with_context("sampling"));
  HEARTH_TRY_ASSIGN(out.host_results_, memory.allocate_staging(results).with_context("sampling"));
  HEARTH_TRY_ASSIGN(out.results_, memory.allocate(results).with_context("sampling"));
  const int64_t scratch = 4 * plan.adjusted_rows * (plan.vocab + kMostListedChanges);
  HEARTH_TRY_ASSIGN(out.scratch_, memory.allocate(scratch).with_context("sampling"));
  out.known_ = SampleHistories(plan.slots, plan.context, plan.vocab);
  out.fresh_rows_.reserve(static_cast<size_t>(plan.rows));
  HEARTH_TRY_ASSIGN(out.histories_, memory.allocate(out.known_.size_bytes()).with_context("histories of sampling"));
  // Candidates come back whole, also those that no row asked for.
  HEARTH_TRY_ASSIGN(const std::unique_ptr<Queue> queue, memory.create_queue().with_context("sampling"));
  std::memset(out.host_results_.data(), 0, static_cast<size_t>(results));
  HEARTH_TRY(queue->copy_in(out.results_.data(), {out.host_results_.data(), static_cast<size_t>(results)}));
  HEARTH_TRY(queue->synchronize());
  return out;
}

bool DeviceSampler::takes(std::span<const SampleRow> rows) const {
  return op_ && std::ssize(rows) <= plan_.rows &&
         packed_bytes(rows, plan_.vocab, {.block_bytes = block_bytes(plan_), .adjusted_rows = plan_.adjusted_rows},
                      known_);
}

SamplePackedArgs DeviceSampler::packed(ConstTensorView logits) const {
  return {.logits = logits,
          .block = block_.data(),
          .verdicts = at<SampleVerdict>(results_),
          .candidates = at<SampleCandidate>(results_, align64(plan_.rows * kVerdictBytes)),
          .adjusted = at<float>(scratch_),
          .histories = at<HistoryEntry>(histories_)};
}

// Tokens that the device knows were looked at when they came.
Status DeviceSampler::validate_fresh(const SampleArgs& args) {
  fresh_rows_.assign(args.rows.begin(), args.rows.end());
  for (SampleRow& row : fresh_rows_) {
    if (!reads_history(row)) continue;
    const int64_t known = known_.known(row), of_prompt = std::min(known, std::ssize(row.prompt_tokens));
    row.prompt_tokens = row.prompt_tokens.subspan(static_cast<size_t>(of_prompt));
    row.output_tokens = row.output_tokens.subspan(static_cast<size_t>(known - of_prompt));
  }
  return validate({.logits = args.logits, .rows = fresh_rows_, .results = args.results});
}

Status DeviceSampler::sample(const SampleArgs& args, Queue& queue, ExecContext exec) {
  const int64_t rows = std::ssize(args.rows), vocab = plan_.vocab, candidates_at = align64(plan_.rows * kVerdictBytes);
  const auto bytes =
      packed_bytes(args.rows, vocab, {.block_bytes = block_bytes(plan_), .adjusted_rows = plan_.adjusted_rows}, known_);
  HEARTH_CHECK(bytes && rows <= plan_.rows, "sampling {} rows; planned for {}, or for less in their lists", rows,
               plan_.rows);
  HEARTH_TRY(validate_fresh(args));
  HEARTH_CHECK(args.logits.cols() == vocab, "sampling rows of {}; planned for {}", args.logits.cols(), vocab);
  if (rows == 0) return queue.synchronize();
  const std::span<std::byte> block(host_block_.data(), static_cast<size_t>(*bytes));
  pack_samples(args.rows, vocab, known_, block);
  Status started = queue.copy_in(block_.data(), block);
  if (started) started = op_(packed(args.logits), exec);
  if (!started) {
    known_.forget();
    return started;
  }
  const bool with_top = std::ranges::any_of(args.rows, [](const SampleRow& row) { return row.top_logprobs > 0; });
  const int64_t wanted = with_top ? candidates_at + rows * kCandidateBytes : rows * kVerdictBytes;
  HEARTH_TRY(queue.copy_out({host_results_.data(), static_cast<size_t>(wanted)}, results_.data()));
  HEARTH_TRY(queue.synchronize());
  const auto count = static_cast<size_t>(rows);
  return unpack_samples(args, {at<SampleVerdict>(host_results_), count},
                        {at<SampleCandidate>(host_results_, candidates_at), count * kMaxTopLogprobs});
}

}  // namespace hearth
