// SPDX-License-Identifier: Apache-2.0
// Tests of sampling: both backends against each other on random rows (tokens equal, logprobs equal), against
// probabilities in double, against golden cases, and at the edges. One thread unless said.
#include "hearth/kernels/sample/sample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/kernels/cpu/test_targets.h"
#include "hearth/kernels/sample/sample_math.h"

namespace hearth {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

using SampleFn = Status (*)(const SampleArgs&, ExecContext&);

// Rows of logits with what each brings and gets. Workspace begins as garbage.
struct Batch {
  Batch(int64_t row_count, int64_t vocab_size)
      : vocab(vocab_size), logits(row_count * vocab_size), rows(row_count), results(row_count), tops(row_count) {}

  std::span<float> row(int64_t r) { return std::span(logits).subspan(r * vocab, vocab); }

  Status run(SampleFn sample, ThreadPool& pool) {
    const int64_t bytes = sample_cpu_workspace_bytes(vocab, pool.size());
    std::vector<std::byte> memory(bytes + 128, std::byte{0xA5});
    auto address = (reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64;
    ExecContext exec{.pool = &pool, .workspace = {reinterpret_cast<std::byte*>(address), static_cast<size_t>(bytes)}};
    for (size_t r = 0; r < rows.size(); ++r) {
      tops[r].assign(std::max(0, rows[r].top_logprobs), {});
      results[r] = {.top = tops[r]};
    }
    const int64_t count = std::ssize(rows);
    const std::vector<float> before = logits;
    Status status = sample({ConstTensorView(logits.data(), DType::kF32, Shape{count, vocab}), rows, results}, exec);
    EXPECT_EQ(std::memcmp(before.data(), logits.data(), before.size() * sizeof(float)), 0) << "logits were changed";
    return status;
  }

  int64_t vocab;
  std::vector<float> logits;
  std::vector<SampleRow> rows;
  std::vector<SampleResult> results;
  std::vector<std::vector<TokenLogprob>> tops;
};

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
void fill_logits(Random& random, std::span<float> logits) {
  const int64_t kind = random.below(8);
  const float width = pick(random, {0.01f, 1.0f, 3.0f, 10.0f, 100.0f});
  for (float& logit : logits) {
    logit = random.normal() * width;
    if (kind == 1) logit = std::round(logit);
    if (kind == 2) logit = std::bit_cast<float>(std::bit_cast<uint32_t>(logit) & 0xffff0000u);
    if (kind == 3) logit = 2.5f;
    if (kind == 4 && random.below(2) == 0) logit = -kInf;
    if (kind == 5) logit = random.below(2) == 0 ? 0.0f : -0.0f;
    if (kind == 6) logit = -std::fabs(logit);
  }
  if (kind == 7) {
    for (int i = 0; i < 20; ++i) logits[random.below(std::ssize(logits))] += 8 * width * random.uniform();
  }
}

void fill_row(Random& random, int64_t vocab, SampleRow& row, Extras& extras) {
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

void expect_same(const SampleResult& wanted, const SampleResult& found, const SampleRow& row) {
  ASSERT_EQ(wanted.outcome, found.outcome);
  ASSERT_EQ(wanted.token, found.token)
      << "temperature " << row.params.temperature << " top_k " << row.params.top_k << " top_p " << row.params.top_p
      << " min_p " << row.params.min_p << " penalties " << row.params.penalises() << " bias " << row.logit_bias.size()
      << " banned " << row.banned.size() << " allowed " << row.allowed.size();
  if (wanted.outcome != SampleOutcome::kOk) return;
  ASSERT_EQ(wanted.logprob, found.logprob);
  for (int32_t i = 0; i < row.top_logprobs; ++i) {
    ASSERT_EQ(wanted.top[i].token, found.top[i].token) << "top " << i;
    ASSERT_EQ(wanted.top[i].logprob, found.top[i].logprob) << "top " << i;
  }
}

TEST(Sample, CpuEqualsReferenceOnRandomRows) {
  constexpr uint64_t kSeed = 20;
  SCOPED_TRACE(fmt::format("seed {}", kSeed));
  Random random(kSeed);
  ThreadPool pool(1);
  int64_t ended_well = 0, total = 0;
  for (const int64_t vocab : {1, 2, 31, 64, 127, 128, 129, 1009, 5000, 32000}) {
    const int64_t count = vocab > 2000 ? 60 : 300;
    Batch wanted(count, vocab);
    std::vector<Extras> extras(count);
    for (int64_t r = 0; r < count; ++r) {
      fill_logits(random, wanted.row(r));
      fill_row(random, vocab, wanted.rows[r], extras[r]);
    }
    const Status status = wanted.run(sample_ref, pool);
    for_each_cpu_target([&] {
      Batch found = wanted;
      const Status found_status = found.run(sample_cpu, pool);
      EXPECT_EQ(status.has_value(), found_status.has_value());
      for (int64_t r = 0; r < count; ++r) {
        SCOPED_TRACE(fmt::format("vocab {} row {}", vocab, r));
        expect_same(wanted.results[r], found.results[r], wanted.rows[r]);
        if (testing::Test::HasFatalFailure()) return;
      }
    });
    for (const SampleResult& result : wanted.results) ended_well += result.outcome == SampleOutcome::kOk;
    total += count;
  }
  EXPECT_GT(ended_well, total * 3 / 4) << "most random rows must mean something";
}

// Runs the body for the reference and for sample_cpu on every target.
void for_each_backend(FunctionRef<void(SampleFn)> body) {
  {
    SCOPED_TRACE("sample_ref");
    body(sample_ref);
  }
  for_each_cpu_target([&] { body(sample_cpu); });
}

int32_t sample_one(SampleFn sample, std::vector<float> logits, SampleRow row) {
  ThreadPool pool(1);
  Batch batch(1, std::ssize(logits));
  batch.logits = std::move(logits);
  batch.rows[0] = row;
  const Status status = batch.run(sample, pool);
  EXPECT_TRUE(status) << (status ? "" : status.error().message);
  return batch.results[0].token;
}

TEST(Sample, GreedyTakesTheSmallestIdAmongEqualLogits) {
  for_each_backend([](SampleFn sample) {
    SampleRow row{.params = {.temperature = 0}};
    EXPECT_EQ(sample_one(sample, {1, 3, 2, 3}, row), 1);
    EXPECT_EQ(sample_one(sample, {-kInf, -0.0f, 0.0f}, row), 1);
    EXPECT_EQ(sample_one(sample, std::vector<float>(1000, -5.0f), row), 0);
    row.params.temperature = 9e-6f;  // below vLLM's epsilon
    EXPECT_EQ(sample_one(sample, {1, 1.000001f}, row), 1);
  });
}

}  // namespace
}  // namespace hearth
