// SPDX-License-Identifier: Apache-2.0
#include "hearth/kernels/sample/device_sampler.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "hearth/base/check.h"

namespace hearth {
namespace {

constexpr auto kVerdictBytes = static_cast<int64_t>(sizeof(SampleVerdict));
constexpr auto kCandidateBytes = static_cast<int64_t>(sizeof(SampleCandidate)) * kMaxTopLogprobs;

int64_t align64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

int64_t block_bytes(const DeviceSampler::Plan& plan, int64_t rows) {
  return rows * static_cast<int64_t>(sizeof(PackedSampleRow)) + 4 * plan.list_words;
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
  for (Begun& turn : out.turns_) {
    HEARTH_TRY_ASSIGN(turn.block, memory.allocate_staging(block_bytes(plan, plan.rows)).with_context("sampling"));
    HEARTH_TRY_ASSIGN(turn.results, memory.allocate_staging(results).with_context("sampling"));
    std::memset(turn.results.data(), 0, static_cast<size_t>(results));
  }
  HEARTH_TRY_ASSIGN(out.block_, memory.allocate(block_bytes(plan, plan.rows)).with_context("sampling"));
  HEARTH_TRY_ASSIGN(out.results_, memory.allocate(results).with_context("sampling"));
  const int64_t scratch = 4 * plan.adjusted_rows * (plan.vocab + kMostListedChanges);
  HEARTH_TRY_ASSIGN(out.scratch_, memory.allocate(scratch).with_context("sampling"));
  out.known_ = SampleHistories(plan.slots, plan.context, plan.vocab);
  out.fresh_rows_.reserve(static_cast<size_t>(plan.rows));
  HEARTH_TRY_ASSIGN(out.histories_, memory.allocate(out.known_.size_bytes()).with_context("histories of sampling"));
  // Candidates come back whole, also those that no row asked for.
  HEARTH_TRY_ASSIGN(const std::unique_ptr<Queue> queue, memory.create_queue().with_context("sampling"));
  HEARTH_TRY(queue->copy_in(out.results_.data(), {out.turns_[0].results.data(), static_cast<size_t>(results)}));
  HEARTH_TRY(queue->synchronize());
  return out;
}

std::optional<int64_t> DeviceSampler::bytes_of(std::span<const SampleRow> rows) const {
  return packed_bytes(rows, plan_.vocab,
                      {.block_bytes = block_bytes(plan_, std::ssize(rows)), .adjusted_rows = plan_.adjusted_rows},
                      known_);
}

bool DeviceSampler::takes(std::span<const SampleRow> rows) const {
  return op_ && std::ssize(rows) <= plan_.rows && std::ranges::all_of(rows, [&](const SampleRow& row) {
           return bytes_of({&row, 1}).has_value();
         });
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
  const int64_t rows = std::ssize(args.rows);
  HEARTH_CHECK(begun_ == ended_, "sampling behind {} samples that have not ended", begun_ - ended_);
  HEARTH_CHECK(rows <= plan_.rows, "sampling {} rows; planned for {}", rows, plan_.rows);
  HEARTH_TRY(validate_fresh(args));
  if (rows == 0) return queue.synchronize();
  Status first_bad;  // of the rows' own, whose logits say nothing
  for (int64_t begin = 0, count = 0; begin < rows; begin += count) {
    const auto some_of = [&](auto all) { return all.subspan(static_cast<size_t>(begin), static_cast<size_t>(count)); };
    // All at once, unless many bring whole histories.
    count = rows - begin;
    while (count > 1 && !bytes_of(some_of(args.rows))) count /= 2;
    const SampleArgs some{
        .logits = args.logits.slice_rows(begin, count), .rows = some_of(args.rows), .results = some_of(args.results)};
    Status sampled = enqueue(some, queue, exec);
    if (sampled) sampled = queue.synchronize();
    if (!sampled) {
      ended_ = begun_;
      known_.forget();
      return sampled;
    }
    Status unpacked = end();
    if (first_bad) first_bad = std::move(unpacked);
  }
  return first_bad;
}

bool DeviceSampler::takes_at_once(std::span<const SampleRow> rows) const {
  return takes(rows) && (rows.empty() || bytes_of(rows));
}

Status DeviceSampler::begin(const SampleArgs& args, Queue& queue, ExecContext exec) {
  HEARTH_CHECK(begun_ - ended_ < kMostBegun, "more than {} samples under way", kMostBegun);
  HEARTH_TRY(validate_fresh(args));
  Status begun = enqueue(args, queue, exec);
  if (!begun) known_.forget();
  return begun;
}

Status DeviceSampler::end() {
  HEARTH_CHECK(ended_ < begun_, "no sample is under way");
  const Begun& turn = turns_[static_cast<size_t>(ended_++ % kMostBegun)];
  const size_t rows = turn.args.rows.size();
  return unpack_samples(
      turn.args, {at<SampleVerdict>(turn.results), rows},
      {at<SampleCandidate>(turn.results, align64(plan_.rows * kVerdictBytes)), rows * kMaxTopLogprobs});
}

void DeviceSampler::drop() {
  ++ended_;
  known_.forget();
}

SampledIds DeviceSampler::ids() const {
  static_assert(offsetof(SampleVerdict, token) == 0 && kVerdictBytes % 4 == 0);
  return {.first = at<int32_t>(results_), .stride = kVerdictBytes / 4, .rows = plan_.rows};
}

// The work of a sample, which counts as begun.
Status DeviceSampler::enqueue(const SampleArgs& args, Queue& queue, ExecContext exec) {
  const int64_t rows = std::ssize(args.rows), candidates_at = align64(plan_.rows * kVerdictBytes);
  Begun& turn = turns_[static_cast<size_t>(begun_ % kMostBegun)];
  turn.args = args;
  if (rows == 0) return ++begun_, Status();
  const std::optional<int64_t> bytes = bytes_of(args.rows);
  HEARTH_CHECK(bytes && args.logits.cols() == plan_.vocab, "sampling {} rows of {} tokens; planned for {} of {}", rows,
               args.logits.cols(), plan_.rows, plan_.vocab);
  const std::span<std::byte> block(turn.block.data(), static_cast<size_t>(*bytes));
  pack_samples(args.rows, plan_.vocab, known_, block);
  HEARTH_TRY(queue.copy_in(block_.data(), block));
  HEARTH_TRY(op_(packed(args.logits), exec));
  const bool with_top = std::ranges::any_of(args.rows, [](const SampleRow& row) { return row.top_logprobs > 0; });
  const int64_t wanted = with_top ? candidates_at + rows * kCandidateBytes : rows * kVerdictBytes;
  HEARTH_TRY(queue.copy_out({turn.results.data(), static_cast<size_t>(wanted)}, results_.data()));
  ++begun_;
  return {};
}

}  // namespace hearth
