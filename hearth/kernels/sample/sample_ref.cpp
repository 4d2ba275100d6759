// SPDX-License-Identifier: Apache-2.0
// The obvious sampler: adjusts a copy of the row, sorts the whole vocabulary, cuts prefixes, walks the
// cumulative sum. Allocates; for tests and as the definition in code. Single-threaded.
#include <algorithm>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "hearth/kernels/sample/sample_math.h"

namespace hearth {
namespace {

using namespace sampling;

bool may_choose(const SampleRow& row, int32_t token) {
  if (!row.allowed.empty() && (row.allowed[token / 32] >> (token % 32) & 1) == 0) return false;
  return std::find(row.banned.begin(), row.banned.end(), token) == row.banned.end();
}

// The logits that the row samples from; -inf where a token may not be chosen.
std::vector<float> adjust(const SampleRow& row, std::span<const float> logits) {
  std::vector<float> z(logits.begin(), logits.end());
  for (const LogitBias& entry : row.logit_bias) z[entry.token] = biased(z[entry.token], entry.bias);
  if (row.params.penalises()) {
    std::unordered_map<int32_t, uint32_t> counts;
    for (const int32_t token : row.output_tokens) ++counts[token];
    std::unordered_set<int32_t> seen(row.prompt_tokens.begin(), row.prompt_tokens.end());
    seen.insert(row.output_tokens.begin(), row.output_tokens.end());
    for (const int32_t token : seen) {
      const auto found = counts.find(token);
      z[token] = penalised(z[token], row.params, true, found == counts.end() ? 0 : found->second);
    }
  }
  for (int32_t token = 0; token < std::ssize(z); ++token) {
    if (!may_choose(row, token)) z[token] = -INFINITY;
  }
  return z;
}

// Ids from most to least likely.
std::vector<int32_t> sorted_ids(std::span<const float> z) {
  std::vector<int32_t> ids(z.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  std::sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return order_key(z[a], a) > order_key(z[b], b); });
  return ids;
}

int32_t choose(const SampleRow& row, std::span<const float> z) {
  const SamplingParams& params = row.params;
  std::vector<int32_t> ids = sorted_ids(z);
  if (params.greedy()) return ids[0];

  const float z_max = z[ids[0]], inverse_temperature = 1.0f / params.temperature;
  const auto mass = [&](int32_t token) { return mass_of(z[token], z_max, inverse_temperature); };

  size_t kept = ids.size();
  while (mass(ids[kept - 1]) < min_mass(params.min_p)) --kept;
  if (params.top_k > 0) kept = std::min<size_t>(kept, params.top_k);

  uint64_t total = 0;
  for (size_t i = 0; i < kept; ++i) total += mass(ids[i]);
  if (params.top_p < 1.0f) {
    const uint64_t goal = top_p_goal(params.top_p, total);
    uint64_t sum = 0;
    size_t count = 0;
    while (sum < goal) sum += mass(ids[count++]);
    kept = count;
    total = sum;
  }

  ids.resize(kept);
  std::sort(ids.begin(), ids.end());
  const uint64_t point = draw_point(params.seed, params.choice, row.position, total);
  uint64_t sum = 0;
  for (const int32_t token : ids) {
    sum += mass(token);
    if (point < sum) return token;
  }
  HEARTH_CHECK(false, "draw point {} is not below the total mass {}", point, total);
}

void report_logprobs(const SampleRow& row, std::span<const float> logits, SampleResult& result) {
  const float max = *std::max_element(logits.begin(), logits.end());
  uint64_t total = 0;
  for (const float logit : logits) total += mass_of(logit, max, 1.0f);
  const double log_sum = log_total(total);
  result.logprob = logprob_of(logits[result.token], max, log_sum);
  if (row.top_logprobs == 0) return;
  const std::vector<int32_t> ids = sorted_ids(logits);
  for (int32_t i = 0; i < row.top_logprobs; ++i) {
    result.top[i] = {ids[i], logprob_of(logits[ids[i]], max, log_sum)};
  }
}

void sample_row(const SampleRow& row, std::span<const float> logits, SampleResult& result) {
  result.token = -1;
  result.logprob = 0;
  result.outcome = SampleOutcome::kBadLogits;
  const auto is_bad = [](float logit) { return std::isnan(logit) || logit == INFINITY; };
  if (std::any_of(logits.begin(), logits.end(), is_bad)) return;
  if (*std::max_element(logits.begin(), logits.end()) == -INFINITY) return;

  if (row.forced_token >= 0) {
    result.token = row.forced_token;
  } else {
    bool any = false;
    for (int32_t token = 0; token < std::ssize(logits); ++token) any = any || may_choose(row, token);
    if (!any) {
      result.outcome = SampleOutcome::kNoToken;
      return;
    }
    const std::vector<float> z = adjust(row, logits);
    if (*std::max_element(z.begin(), z.end()) == -INFINITY) return;
    result.token = choose(row, z);
  }
  result.outcome = SampleOutcome::kOk;
  if (row.top_logprobs >= 0) report_logprobs(row, logits, result);
}

}  // namespace

Status sample_ref(const SampleArgs& args, ExecContext&) {
  HEARTH_TRY(validate(args));
  const int64_t vocab = args.logits.cols();
  for (size_t r = 0; r < args.rows.size(); ++r) {
    sample_row(args.rows[r], {args.logits.row<float>(static_cast<int64_t>(r)), static_cast<size_t>(vocab)},
               args.results[r]);
  }
  return sample_status(args.results);
}

}  // namespace hearth
