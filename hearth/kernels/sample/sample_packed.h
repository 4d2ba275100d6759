// SPDX-License-Identifier: Apache-2.0
// Sampling where the logits lie on a device: rows packed into one block that travels there, verdicts that come back.
// The host does what is done once a row (the random bits, fixed-point fractions, logarithms), the device what is done
// once a token; both with the arithmetic of sample_math.h, so that tokens and logprobs are the CPU sampler's.
// Host code without a device of its own; any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "hearth/kernels/exec.h"
#include "hearth/kernels/sample/sample_histories.h"

namespace hearth {

// Words from `begin` of the block.
struct PackedList {
  int32_t begin = 0, count = 0;
};

// A row as a device reads it.
struct PackedSampleRow {
  enum Flags : uint32_t { kGreedy = 1, kPenalises = 2, kAdjusts = 4, kAllowed = 8, kLogprobs = 16 };

  uint64_t random = 0;      // 64 bits: the draw's place in the mass of what is kept
  uint64_t mass_least = 0;  // min-p
  uint64_t top_p = 0;       // fixed point
  uint32_t flags = 0;
  float inverse_temperature = 1;
  float likely_range = 0;  // logits this far below the largest are looked at first for top-p
  float repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  int32_t top_k = 0;  // 0: all
  int32_t forced_token = -1;
  int32_t top_logprobs = 0;
  int32_t scratch_row = -1;  // of the scratch, with kAdjusts; in the order of rows
  PackedHistory history;     // with kPenalises: what the device has
  PackedList added, bumped;  // SampleHistories::Brought: entries of two words, token ids
  PackedList banned;         // token ids
  PackedList bias;           // pairs of words: id, the float's bits; count of pairs
  PackedList allowed;        // a bitset; with kAllowed, which alone is no adjustment
};

// What a device found for a row.
struct SampleVerdict {
  enum class Outcome : int32_t { kToken, kBadLogits, kNothingLeft };

  int32_t token = -1;
  Outcome outcome = Outcome::kBadLogits;
  float logit = 0;     // of token, as the model gave it
  float max = 0;       // the row's largest such logit
  uint64_t total = 0;  // masses of all of them; with kLogprobs
};
struct SampleCandidate {
  int32_t token = -1;
  float logit = 0;
};

// What a device can do; other rows are the CPU's.
inline constexpr int64_t kMaxPackedVocab = int64_t{1} << 18;
inline constexpr int64_t kMostListedChanges = 4096;  // biases and banned tokens of a row

// logits [rows, vocab] f32, vocab at most kMaxPackedVocab: rows with kAdjusts are changed meanwhile, and then as before;
// rows: `block` as pack_samples() filled it, to be used once where it has bumped tokens;
// verdicts [rows]; candidates [rows, kMaxTopLogprobs], most likely first, top_logprobs of each row written;
// all on the device. adjusted [most, vocab + kMostListedChanges] f32: scratch of the rows that change logits.
// histories [slots, entries]: brought up to date.
struct SamplePackedArgs {
  ConstTensorView logits;
  const std::byte* block = nullptr;
  SampleVerdict* verdicts = nullptr;
  SampleCandidate* candidates = nullptr;
  float* adjusted = nullptr;
  HistoryEntry* histories = nullptr;
};

struct PackedLimits {
  int64_t block_bytes = 0;
  int64_t adjusted_rows = 0;
};
// The bytes of the block; nullopt: more than the limits allow.
std::optional<int64_t> packed_bytes(std::span<const SampleRow> rows, int64_t vocab, const PackedLimits& limits,
                                    const SampleHistories& histories);
// REQUIRES: validated, packed_bytes() of them in `block`, aligned to 8.
void pack_samples(std::span<const SampleRow> rows, int64_t vocab, SampleHistories& histories,
                  std::span<std::byte> block);
// Whether a device needs the row's prompt and output tokens.
bool reads_history(const SampleRow& row);
// Results, as sample_cpu gives them, and their status. candidates [rows, kMaxTopLogprobs].
Status unpack_samples(const SampleArgs& args, std::span<const SampleVerdict> verdicts,
                      std::span<const SampleCandidate> candidates);

// The obvious loops, over host memory: for tests.
Status sample_packed_ref(const SamplePackedArgs& args, ExecContext& exec);
// Builds with CUDA only. Enqueues.
Status sample_packed_sm90(const SamplePackedArgs& args, ExecContext& exec);

}  // namespace hearth
