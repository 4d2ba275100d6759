// SPDX-License-Identifier: Apache-2.0
// Random rows for the tests of samplers, and what equal results are. Tests only; one Random a thread.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/kernels/sample/sample.h"

namespace hearth {

// What a random row owns.
struct Extras {
  std::vector<int32_t> prompt, output, banned;
  std::vector<LogitBias> bias;
  std::vector<uint32_t> allowed;
};

template <class T>
T pick(Random& random, std::initializer_list<T> values) {
  return values.begin()[random.below(static_cast<int64_t>(values.size()))];
}

// Logits as they come: Gaussian of any width, few values (ties), bf16 steps, all equal, -inf among them.
inline void fill_logits(Random& random, std::span<float> logits) {
  const int64_t kind = random.below(8);
  const float width = pick(random, {0.01f, 1.0f, 3.0f, 10.0f, 100.0f});
  for (float& logit : logits) {
    logit = random.normal() * width;
    if (kind == 1) logit = std::round(logit);
    if (kind == 2) logit = std::bit_cast<float>(std::bit_cast<uint32_t>(logit) & 0xffff0000u);
    if (kind == 3) logit = 2.5f;
    if (kind == 4 && random.below(2) == 0) logit = -std::numeric_limits<float>::infinity();
    if (kind == 5) logit = random.below(2) == 0 ? 0.0f : -0.0f;
    if (kind == 6) logit = -std::fabs(logit);
  }
  if (kind == 7) {
    for (int i = 0; i < 20; ++i) logits[random.below(std::ssize(logits))] += 8 * width * random.uniform();
  }
}

inline void fill_row(Random& random, int64_t vocab, SampleRow& row, Extras& extras) {
  SamplingParams& params = row.params;
  params.temperature = pick(random, {0.0f, 1e-5f, 0.1f, 0.7f, 1.0f, 1.0f, 2.0f, 50.0f});
  params.top_k = pick<int32_t>(random, {0, 0, -1, 1, 2, 20, 50, 300, static_cast<int32_t>(vocab), 1 << 30});
  if (random.below(4) == 0) params.top_k = static_cast<int32_t>(1 + random.below(vocab));
  params.top_p = pick(random, {1.0f, 1.0f, 0.95f, 0.5f, 1e-9f, 0.9999f, random.uniform(0.01f, 1.0f)});
  params.min_p = pick(random, {0.0f, 0.0f, 0.05f, 1.0f, 1e-10f, random.uniform()});
  params.seed = random.next_u64();
  params.choice = random.next_u32();
  row.position = random.below(int64_t{1} << 62);
  row.top_logprobs = pick<int32_t>(random, {-1, 0, 1, 5, 20, kMaxTopLogprobs});
  row.top_logprobs = static_cast<int32_t>(std::min<int64_t>(row.top_logprobs, vocab));
  if (random.below(10) == 0) row.forced_token = static_cast<int32_t>(random.below(vocab));
  const auto token = [&] { return static_cast<int32_t>(random.below(vocab)); };
  if (random.below(2) == 0) {
    params.repetition_penalty = pick(random, {1.0f, 1.1f, 0.5f, 3.0f, 1e38f, 1e-38f});
    params.frequency_penalty = pick(random, {0.0f, 0.3f, -2.0f, 2.0f});
    params.presence_penalty = pick(random, {0.0f, 0.7f, -2.0f, 2.0f});
    for (int64_t n = random.below(60); n > 0; --n) extras.prompt.push_back(token());
    for (int64_t n = random.below(60); n > 0; --n) extras.output.push_back(token());
    for (int64_t n = random.below(9); n > 0 && !extras.output.empty(); --n) extras.output.push_back(extras.output[0]);
  }
  if (random.below(4) == 0) {
    for (int32_t t = 0; t < vocab && std::ssize(extras.bias) < 300; t += static_cast<int32_t>(1 + random.below(9))) {
      extras.bias.push_back({t, random.uniform(-100.0f, 100.0f)});
    }
  }
  if (random.below(4) == 0) {
    for (int64_t n = random.below(5); n > 0; --n) extras.banned.push_back(token());
  }
  if (random.below(4) == 0) {
    const bool sparse = random.below(2) == 0;
    for (int64_t w = 0; w < (vocab + 31) / 32; ++w) {
      extras.allowed.push_back(sparse && random.below(10) != 0 ? 0 : random.next_u32());
    }
  }
  row.prompt_tokens = extras.prompt;
  row.output_tokens = extras.output;
  row.banned = extras.banned;
  row.logit_bias = extras.bias;
  row.allowed = extras.allowed;
}

inline void expect_same(const SampleResult& wanted, const SampleResult& found, const SampleRow& row) {
  ASSERT_EQ(wanted.outcome, found.outcome);
  ASSERT_EQ(wanted.token, found.token) << "temperature " << row.params.temperature << " top_k " << row.params.top_k
                                       << " top_p " << row.params.top_p << " min_p " << row.params.min_p
                                       << " penalties " << row.params.penalises() << " bias " << row.logit_bias.size()
                                       << " banned " << row.banned.size() << " allowed " << row.allowed.size();
  if (wanted.outcome != SampleOutcome::kOk) return;
  ASSERT_EQ(wanted.logprob, found.logprob);
  for (int32_t i = 0; i < row.top_logprobs; ++i) {
    ASSERT_EQ(wanted.top[i].token, found.top[i].token) << "top " << i;
    ASSERT_EQ(wanted.top[i].logprob, found.top[i].logprob) << "top " << i;
  }
}

}  // namespace hearth
