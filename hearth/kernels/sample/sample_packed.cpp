// SPDX-License-Identifier: Apache-2.0
#include "hearth/kernels/sample/sample_packed.h"

#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "hearth/kernels/sample/sample_math.h"

namespace hearth {
namespace {

using namespace sampling;

static_assert(std::is_trivially_copyable_v<PackedSampleRow> && sizeof(PackedSampleRow) % 8 == 0);
static_assert(sizeof(LogitBias) == 8 && offsetof(LogitBias, bias) == 4);
static_assert(sizeof(HistoryEntry) == 8 && offsetof(HistoryEntry, how) == 4);

bool masks(const SampleRow& row) { return row.forced_token < 0 && !row.allowed.empty(); }

// Changes single logits.
bool adjusts(const SampleRow& row) {
  return row.forced_token < 0 && (!row.logit_bias.empty() || !row.banned.empty() || row.params.penalises());
}

int64_t allowed_words(int64_t vocab) { return (vocab + 31) / 32; }

// Of all lists but `allowed`.
int64_t words_of(const SampleRow& row, const SampleHistories& histories) {
  if (!adjusts(row)) return 0;
  const int64_t words = std::ssize(row.banned) + 2 * std::ssize(row.logit_bias);
  return reads_history(row) ? words + histories.most_words(row) : words;
}

bool can_pack(const SampleRow& row, const SampleHistories& histories) {
  if (!adjusts(row)) return true;
  return std::ssize(row.banned) + std::ssize(row.logit_bias) <= kMostListedChanges &&
         (!reads_history(row) || histories.fits(row));
}

// Appends words behind each other.
class Words {
 public:
  explicit Words(std::span<std::byte> block, int64_t used) : block_(block), used_(used) {}
  // `count` elements of `words` words each.
  PackedList put(const void* from, int64_t count, int64_t words = 1) {
    const PackedList list{static_cast<int32_t>(used_ / 4), static_cast<int32_t>(count)};
    const int64_t bytes = 4 * count * words;
    HEARTH_CHECK(used_ + bytes <= std::ssize(block_), "a block of {} bytes for packed rows", block_.size());
    if (bytes > 0) std::memcpy(block_.data() + used_, from, static_cast<size_t>(bytes));
    used_ += bytes;
    return list;
  }

 private:
  std::span<std::byte> block_;
  int64_t used_;
};

// All but `allowed`.
PackedSampleRow pack(const SampleRow& row, int64_t vocab, SampleHistories& histories, Words& words) {
  const SamplingParams& p = row.params;
  PackedSampleRow out;
  out.random = draw_bits(p.seed, p.choice, row.position);
  out.mass_least = min_mass(p.min_p);
  out.top_p = fraction_to_fixed(p.top_p);
  out.top_k = p.top_k > 0 && p.top_k < vocab ? p.top_k : 0;
  out.forced_token = row.forced_token;
  out.top_logprobs = std::max(row.top_logprobs, 0);
  if (row.top_logprobs >= 0) out.flags |= PackedSampleRow::kLogprobs;
  if (p.greedy()) {
    out.flags |= PackedSampleRow::kGreedy;
  } else {
    out.inverse_temperature = 1.0f / p.temperature;
    out.likely_range = 8 * p.temperature;
  }
  if (!adjusts(row)) return out;
  out.flags |= PackedSampleRow::kAdjusts;
  out.bias = words.put(row.logit_bias.data(), std::ssize(row.logit_bias), 2);
  out.banned = words.put(row.banned.data(), std::ssize(row.banned));
  if (reads_history(row)) {
    out.flags |= PackedSampleRow::kPenalises;
    out.repetition_penalty = p.repetition_penalty;
    out.presence_penalty = p.presence_penalty;
    out.frequency_penalty = p.frequency_penalty;
    const SampleHistories::Brought brought = histories.bring(row);
    out.history = brought.before;
    out.added = words.put(brought.added.data(), std::ssize(brought.added), 2);
    out.bumped = words.put(brought.bumped.data(), std::ssize(brought.bumped));
  }
  return out;
}

}  // namespace

bool reads_history(const SampleRow& row) { return row.forced_token < 0 && row.params.penalises(); }

std::optional<int64_t> packed_bytes(std::span<const SampleRow> rows, int64_t vocab, const PackedLimits& limits,
                                    const SampleHistories& histories) {
  int64_t bytes = std::ssize(rows) * static_cast<int64_t>(sizeof(PackedSampleRow)), adjusted = 0;
  const uint32_t* mask = nullptr;  // rows one behind the other often share theirs
  for (const SampleRow& row : rows) {
    if (!can_pack(row, histories)) return std::nullopt;
    bytes += 4 * words_of(row, histories);
    if (masks(row) && row.allowed.data() != std::exchange(mask, row.allowed.data())) bytes += 4 * allowed_words(vocab);
    adjusted += adjusts(row);
  }
  return bytes <= limits.block_bytes && adjusted <= limits.adjusted_rows ? std::optional(bytes) : std::nullopt;
}

void pack_samples(std::span<const SampleRow> rows, int64_t vocab, SampleHistories& histories,
                  std::span<std::byte> block) {
  constexpr auto kRowBytes = static_cast<int64_t>(sizeof(PackedSampleRow));
  Words words(block, std::ssize(rows) * kRowBytes);
  int32_t adjusted = 0;
  const uint32_t* mask = nullptr;
  PackedList allowed;
  for (size_t r = 0; r < rows.size(); ++r) {
    PackedSampleRow row = pack(rows[r], vocab, histories, words);
    if (row.flags & PackedSampleRow::kAdjusts) row.scratch_row = adjusted++;
    if (masks(rows[r])) {
      if (rows[r].allowed.data() != std::exchange(mask, rows[r].allowed.data()))
        allowed = words.put(mask, allowed_words(vocab));
      row.flags |= PackedSampleRow::kAllowed;
      row.allowed = allowed;
    }
    std::memcpy(block.data() + r * kRowBytes, &row, sizeof(row));
  }
}

Status unpack_samples(const SampleArgs& args, std::span<const SampleVerdict> verdicts,
                      std::span<const SampleCandidate> candidates) {
  const int64_t vocab = args.logits.cols();
  for (size_t r = 0; r < args.rows.size(); ++r) {
    const SampleRow& row = args.rows[r];
    const SampleVerdict& verdict = verdicts[r];
    SampleResult& result = args.results[r];
    result.token = -1;
    result.logprob = 0;
    result.outcome = SampleOutcome::kBadLogits;
    if (verdict.outcome == SampleVerdict::Outcome::kBadLogits) continue;
    const double log_sum = row.top_logprobs >= 0 ? log_total(verdict.total) : 0;
    for (int32_t i = 0; i < row.top_logprobs; ++i) {
      const SampleCandidate& one = candidates[r * kMaxTopLogprobs + static_cast<size_t>(i)];
      result.top[static_cast<size_t>(i)] = {one.token, logprob_of(one.logit, verdict.max, log_sum)};
    }
    if (verdict.outcome == SampleVerdict::Outcome::kNothingLeft) {
      if (!leaves_a_token(row, vocab)) result.outcome = SampleOutcome::kNoToken;
      continue;
    }
    HEARTH_CHECK(verdict.token >= 0 && verdict.token < vocab, "sample: row {} has token {} of {}", r, verdict.token,
                 vocab);
    result.token = verdict.token;
    result.outcome = SampleOutcome::kOk;
    if (row.top_logprobs >= 0) result.logprob = logprob_of(verdict.logit, verdict.max, log_sum);
  }
  return sample_status(args.results);
}

namespace {

// One row of the block, and what stands behind it.
struct RefRow {
  const PackedSampleRow& row;
  const std::byte* block;
  std::span<const HistoryEntry> history;

  uint32_t word(int64_t index) const {
    uint32_t value;
    std::memcpy(&value, block + 4 * index, 4);
    return value;
  }
  std::vector<int32_t> tokens(PackedList list) const {
    std::vector<int32_t> out;
    for (int64_t i = 0; i < list.count; ++i) out.push_back(static_cast<int32_t>(word(list.begin + i)));
    return out;
  }

  std::vector<float> adjust(std::span<const float> logits) const {
    std::vector<float> z(logits.begin(), logits.end());
    for (size_t t = 0; row.flags & PackedSampleRow::kAllowed && t < z.size(); ++t)
      if (!(word(row.allowed.begin + static_cast<int64_t>(t / 32)) >> (t % 32) & 1)) z[t] = -INFINITY;
    for (int64_t i = 0; i < row.bias.count; ++i) {
      float& one = z[word(row.bias.begin + 2 * i)];
      one = biased(one, std::bit_cast<float>(word(row.bias.begin + 2 * i + 1)));
    }
    if (row.flags & PackedSampleRow::kPenalises) {
      const SamplingParams params{.repetition_penalty = row.repetition_penalty,
                                  .presence_penalty = row.presence_penalty,
                                  .frequency_penalty = row.frequency_penalty};
      for (const auto& [token, how] : history) {
        float& one = z[static_cast<size_t>(token)];
        one = penalised(one, params, true, how & ~HistoryEntry::kOfPrompt);
      }
    }
    for (const int32_t t : tokens(row.banned)) z[static_cast<size_t>(t)] = -INFINITY;
    return z;
  }
};

// What the row's history is now.
std::span<const HistoryEntry> update_history(const SamplePackedArgs& args, const PackedSampleRow& row) {
  const auto before = static_cast<size_t>(row.history.entries), added = static_cast<size_t>(row.added.count);
  const std::span history(args.histories + row.history.begin, before + added);
  if (added > 0) std::memcpy(&history[before], args.block + 4 * row.added.begin, added * sizeof(HistoryEntry));
  for (const int32_t token : RefRow{row, args.block, {}}.tokens(row.bumped))
    ++std::ranges::find(history, token, &HistoryEntry::token)->how;
  return history;
}

std::vector<uint64_t> sorted_keys(std::span<const float> z) {
  std::vector<uint64_t> keys;
  for (size_t t = 0; t < z.size(); ++t) keys.push_back(order_key(z[t], static_cast<int32_t>(t)));
  std::sort(keys.rbegin(), keys.rend());
  return keys;
}

int32_t choose(const PackedSampleRow& row, std::span<const float> z) {
  std::vector<uint64_t> keys = sorted_keys(z);
  if (row.flags & PackedSampleRow::kGreedy) return key_token(keys.front());
  const float max = key_logit(keys.front());
  const auto mass = [&](uint64_t key) {
    const uint64_t value = mass_of(key_logit(key), max, row.inverse_temperature);
    return value >= row.mass_least ? value : 0;
  };
  if (row.top_k > 0) keys.resize(static_cast<size_t>(row.top_k));
  uint64_t total = 0, sum = 0;
  for (const uint64_t key : keys) total += mass(key);
  if (row.top_p < kMassOne) {
    const uint64_t goal = goal_of(row.top_p, total);
    size_t kept = 0;
    while (sum < goal) sum += mass(keys[kept++]);
    keys.resize(kept);
    total = std::exchange(sum, 0);
  }
  std::ranges::sort(keys, {}, key_token);
  const uint64_t point = draw_point(row.random, total);
  for (const uint64_t key : keys)
    if (sum += mass(key); point < sum) return key_token(key);
  HEARTH_CHECK(false, "draw point {} is not below the total mass {}", point, total);
}

}  // namespace

Status sample_packed_ref(const SamplePackedArgs& args, ExecContext&) {
  const int64_t vocab = args.logits.cols();
  for (int64_t r = 0; r < args.logits.rows(); ++r) {
    PackedSampleRow row;
    std::memcpy(&row, args.block + r * static_cast<int64_t>(sizeof(row)), sizeof(row));
    const std::span<const HistoryEntry> history = update_history(args, row);
    const std::span<const float> logits(args.logits.row<float>(r), static_cast<size_t>(vocab));
    SampleVerdict& verdict = args.verdicts[r] = {};
    const auto fine = [](float logit) { return logit < INFINITY; };
    verdict.max = *std::ranges::max_element(logits);
    if (!std::ranges::all_of(logits, fine) || verdict.max == -INFINITY) continue;
    if (row.flags & PackedSampleRow::kLogprobs)
      for (const float logit : logits) verdict.total += mass_of(logit, verdict.max, 1.0f);
    if (row.top_logprobs > 0) {
      const std::vector<uint64_t> keys = sorted_keys(logits);
      for (int32_t i = 0; i < row.top_logprobs; ++i) {
        const int32_t token = key_token(keys[static_cast<size_t>(i)]);
        args.candidates[r * kMaxTopLogprobs + i] = {token, logits[static_cast<size_t>(token)]};
      }
    }
    verdict.outcome = SampleVerdict::Outcome::kToken;
    verdict.token = row.forced_token;
    if (row.forced_token < 0) {
      const std::vector<float> z = RefRow{row, args.block, history}.adjust(logits);
      if (*std::ranges::max_element(z) == -INFINITY) {
        verdict.outcome = SampleVerdict::Outcome::kNothingLeft;
        continue;
      }
      verdict.token = choose(row, z);
    }
    verdict.logit = logits[static_cast<size_t>(verdict.token)];
  }
  return {};
}

}  // namespace hearth
