// SPDX-License-Identifier: Apache-2.0
// Tests of sampling: both backends against each other on random rows (tokens equal, logprobs equal), against
// probabilities in double, against golden cases, and at the edges. One thread unless said.
#include "hearth/kernels/sample/sample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/kernels/cpu/test_targets.h"
#include "hearth/kernels/sample/sample_math.h"
#include "hearth/kernels/sample/sample_test_cases.h"

namespace hearth {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

using SampleFn = Status (*)(const SampleArgs&, ExecContext&);

// Rows of logits with what each brings and gets. The workspace begins as garbage and ends at a guard zone.
struct Batch {
  Batch(int64_t row_count, int64_t vocab_size)
      : vocab(vocab_size), logits(row_count * vocab_size), rows(row_count), results(row_count), tops(row_count) {}

  std::span<float> row(int64_t r) { return std::span(logits).subspan(r * vocab, vocab); }

  Status run(SampleFn sample, ThreadPool& pool) {
    const int64_t bytes = sample_cpu_workspace_bytes(vocab, pool.size());
    constexpr std::byte kGarbage{0xA5};
    std::vector<std::byte> memory(bytes + 128, kGarbage);
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
    const auto guard =
        memory.begin() + static_cast<int64_t>(address - reinterpret_cast<uintptr_t>(memory.data())) + bytes;
    EXPECT_TRUE(std::all_of(guard, memory.end(), [](std::byte b) { return b == kGarbage; })) << "workspace overrun";
    return status;
  }

  int64_t vocab;
  std::vector<float> logits;
  std::vector<SampleRow> rows;
  std::vector<SampleResult> results;
  std::vector<std::vector<TokenLogprob>> tops;
};

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
        if (::testing::Test::HasFatalFailure()) return;
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

TEST(Sample, EqualsGoldenCases) {
  std::ifstream file("tests/fixtures/sampling/golden.json");
  ASSERT_TRUE(file.is_open());
  const nlohmann::json golden = nlohmann::json::parse(file);
  const auto real = [](const nlohmann::json& value) { return std::bit_cast<float>(value.get<uint32_t>()); };
  ASSERT_GE(golden["cases"].size(), 100u);
  for_each_backend([&](SampleFn sample) {
    ThreadPool pool(1);
    for (const nlohmann::json& one : golden["cases"]) {
      SCOPED_TRACE(one.dump());
      Batch batch(1, static_cast<int64_t>(one["logits"].size()));
      for (size_t i = 0; i < batch.logits.size(); ++i) batch.logits[i] = real(one["logits"][i]);
      Extras extras{.prompt = one["prompt"], .output = one["output"], .banned = one["banned"]};
      for (const auto& pair : one["bias"]) extras.bias.push_back({pair[0], real(pair[1])});
      if (!one["allowed"].empty()) extras.allowed.resize((batch.logits.size() + 31) / 32);
      for (const int32_t token : one["allowed"]) extras.allowed[token / 32] |= 1u << (token % 32);
      batch.rows[0] = {.params = {.temperature = real(one["temperature"]),
                                  .top_k = one["top_k"],
                                  .top_p = real(one["top_p"]),
                                  .min_p = real(one["min_p"]),
                                  .repetition_penalty = real(one["repetition"]),
                                  .presence_penalty = real(one["presence"]),
                                  .frequency_penalty = real(one["frequency"]),
                                  .seed = one["seed"],
                                  .choice = one["choice"]},
                       .position = one["position"],
                       .prompt_tokens = extras.prompt,
                       .output_tokens = extras.output,
                       .logit_bias = extras.bias,
                       .banned = extras.banned,
                       .allowed = extras.allowed,
                       .top_logprobs = 5};
      ASSERT_TRUE(batch.run(sample, pool));
      const SampleResult& result = batch.results[0];
      ASSERT_EQ(result.token, one["token"]);
      // Golden logprobs are float64: an error of 1e-7 in each term of the sum, one rounding to f32 (values to 30).
      ASSERT_NEAR(result.logprob, one["logprob"].get<double>(), 1.1e-6);
      for (int i = 0; i < 5; ++i) {
        ASSERT_EQ(result.top[i].token, one["top"][i][0]);
        const nlohmann::json& logprob = one["top"][i][1];
        if (logprob.is_null()) {
          ASSERT_EQ(result.top[i].logprob, -kInf);
        } else {
          ASSERT_NEAR(result.top[i].logprob, logprob.get<double>(), 1.1e-6);
        }
      }
    }
  });
}

// Draws `count` tokens from one row of logits at positions 0, 1, ...
std::vector<int32_t> draw_many(SampleFn sample, std::span<const float> logits, SamplingParams params, int64_t count) {
  ThreadPool pool(1);
  std::vector<int32_t> tokens;
  Batch batch(1000, std::ssize(logits));
  for (int64_t r = 0; r < 1000; ++r) std::copy(logits.begin(), logits.end(), batch.row(r).begin());
  while (std::ssize(tokens) < count) {
    for (int64_t r = 0; r < 1000; ++r) {
      batch.rows[r] = {.params = params, .position = std::ssize(tokens) + r, .top_logprobs = kNoLogprobs};
    }
    EXPECT_TRUE(batch.run(sample, pool));
    for (const SampleResult& result : batch.results) tokens.push_back(result.token);
  }
  return tokens;
}

TEST(Sample, DrawsFollowTheDistribution) {
  constexpr uint64_t kSeed = 4;
  constexpr int64_t kDraws = 100000, kVocab = 40;
  Random random(kSeed);
  std::vector<float> logits(kVocab);
  for (float& logit : logits) logit = random.normal() * 2;
  // The independent formula: softmax in double over the kVocab logits, cut by sorting probabilities.
  const auto probabilities = [&](double temperature, size_t top_k, double top_p) {
    std::vector<std::pair<double, size_t>> sorted;
    for (size_t i = 0; i < logits.size(); ++i) sorted.emplace_back(std::exp(logits[i] / temperature), i);
    std::sort(sorted.rbegin(), sorted.rend());
    sorted.resize(top_k);
    double total = 0, kept = 0;
    for (const auto& [p, i] : sorted) total += p;
    std::vector<double> result(logits.size(), 0.0);
    for (const auto& [p, i] : sorted) {
      if (kept >= top_p * total) break;
      kept += p;
      result[i] = p;
    }
    for (double& p : result) p /= kept;
    return result;
  };
  for (const bool cut : {false, true}) {
    SamplingParams params{.seed = kSeed};
    if (cut) params = {.temperature = 1.5f, .top_k = 20, .top_p = 0.875f, .seed = kSeed};
    const std::vector<double> p = cut ? probabilities(1.5, 20, 0.875) : probabilities(1, kVocab, 1);
    for (const SampleFn sample : {sample_ref, sample_cpu}) {
      SCOPED_TRACE(fmt::format("seed {} cut {} {}", kSeed, cut, sample == sample_ref ? "ref" : "cpu"));
      std::vector<int64_t> counts(kVocab);
      for (const int32_t token : draw_many(sample, logits, params, kDraws)) ++counts[token];
      double chi_square = 0, rest_wanted = 0, rest_found = 0;
      int cells = 0;
      for (int64_t i = 0; i < kVocab; ++i) {
        const double wanted = p[i] * kDraws, found = static_cast<double>(counts[i]);
        if (p[i] == 0) {
          ASSERT_EQ(counts[i], 0) << "token " << i << " is cut";
        }
        if (wanted < 10) {
          rest_wanted += wanted, rest_found += found;
          continue;
        }
        chi_square += (found - wanted) * (found - wanted) / wanted;
        ++cells;
      }
      if (rest_wanted > 1) chi_square += (rest_found - rest_wanted) * (rest_found - rest_wanted) / rest_wanted;
      ASSERT_GT(cells, 8);
      // Mean cells, variance 2 cells; five standard deviations.
      EXPECT_LT(chi_square, cells + 5 * std::sqrt(2.0 * cells));
    }
  }
}

TEST(Sample, SeedChoiceAndPositionEachGiveOtherDraws) {
  const std::vector<float> logits(64, 0.0f);
  const auto drawn = [&](uint64_t seed, uint32_t choice) {
    return draw_many(sample_cpu, logits, {.seed = seed, .choice = choice}, 1000);
  };
  const std::vector<int32_t> first = drawn(1, 0);
  EXPECT_EQ(first, drawn(1, 0));
  for (const auto& other : {drawn(2, 0), drawn(1, 1), drawn(uint64_t{1} << 32, 0)}) {
    const auto equal =
        std::inner_product(first.begin(), first.end(), other.begin(), 0, std::plus<>(), std::equal_to<>());
    EXPECT_LT(equal, 45);  // 1000 / 64 expected
  }
  EXPECT_EQ(std::set<int32_t>(first.begin(), first.end()).size(), 64u);
}

TEST(Sample, DrawPointIsPhiloxTimesTheTotal) {
  // Random123's vectors for zeros and for the digits of pi.
  EXPECT_EQ(sampling::draw_point(0, 0, 0, uint64_t{1} << 32), 0x6627e8d5u);
  EXPECT_EQ(sampling::draw_point(0, 0, 0, uint64_t{1} << 63), 0x6627e8d5e169c58dull >> 1);
  EXPECT_EQ(sampling::draw_point(0, 0, 0, 1), 0u);
}

// The kept set of one row, found by drawing.
std::set<int32_t> kept_set(SampleFn sample, std::vector<float> logits, SamplingParams params) {
  const std::vector<int32_t> tokens = draw_many(sample, logits, params, 2000);
  return {tokens.begin(), tokens.end()};
}

TEST(Sample, TiesAtTheBordersGoToTheSmallerId) {
  for_each_backend([](SampleFn sample) {
    using Set = std::set<int32_t>;
    EXPECT_EQ(kept_set(sample, std::vector<float>(8, 1.5f), {.top_k = 3}), (Set{0, 1, 2}));
    EXPECT_EQ(kept_set(sample, {0, 5, 5, 0, 5, 0}, {.temperature = 5, .top_k = 4}), (Set{0, 1, 2, 4}));
    // Eight equal tokens: a quarter is reached by exactly two.
    EXPECT_EQ(kept_set(sample, std::vector<float>(8, -3.0f), {.top_p = 0.25f}), (Set{0, 1}));
    EXPECT_EQ(kept_set(sample, std::vector<float>(8, -3.0f), {.top_p = 0.2501f}), (Set{0, 1, 2}));
    EXPECT_EQ(kept_set(sample, {-0.0f, 0.0f, -0.0f, 0.0f}, {.top_k = 2}), (Set{0, 1}));
    // Probabilities 8/15, 4/15, 2/15, 1/15.
    const float ln2 = 0.693147181f;
    const std::vector<float> halves = {0, 3 * ln2, ln2, 2 * ln2};
    EXPECT_EQ(kept_set(sample, halves, {.top_p = 0.5f}), (Set{1}));
    EXPECT_EQ(kept_set(sample, halves, {.top_p = 0.54f}), (Set{1, 3}));
    EXPECT_EQ(kept_set(sample, halves, {.min_p = 0.49f}), (Set{1, 3}));
    EXPECT_EQ(kept_set(sample, halves, {.min_p = 1.0f}), (Set{1}));
    // top-p sees what top-k left: 8/12 and 4/12.
    EXPECT_EQ(kept_set(sample, halves, {.top_k = 2, .top_p = 0.66f}), (Set{1}));
    EXPECT_EQ(kept_set(sample, halves, {.top_k = 2, .top_p = 0.68f}), (Set{1, 3}));
    // ... and what min-p left: 8/14, 4/14, 2/14.
    EXPECT_EQ(kept_set(sample, halves, {.top_p = 0.86f, .min_p = 0.24f}), (Set{1, 2, 3}));
    EXPECT_EQ(kept_set(sample, halves, {.top_p = 0.85f, .min_p = 0.24f}), (Set{1, 3}));
    EXPECT_EQ(kept_set(sample, {1, -kInf, 1}, {.top_k = 100}), (Set{0, 2}));
    EXPECT_EQ(kept_set(sample, {3e38f, -3e38f, 3e38f}, {.temperature = 1000}), (Set{0, 2}));
  });
}

TEST(Sample, PenaltiesWorkedOutByHand) {
  for_each_backend([](SampleFn sample) {
    const std::vector<int32_t> prompt = {0, 3}, output = {1, 1, 1, 2};
    const std::vector<float> logits = {4, 6, 5, -1, 3};
    const auto best = [&](SamplingParams params) {
      params.temperature = 0;
      return sample_one(sample, logits, {.params = params, .prompt_tokens = prompt, .output_tokens = output});
    };
    EXPECT_EQ(best({}), 1);
    EXPECT_EQ(best({.frequency_penalty = 1.0f}), 0);   // 4, 3, 4, -1, 3: the tie goes to 0
    EXPECT_EQ(best({.presence_penalty = 2.0f}), 0);    // 4, 4, 3, -1, 3
    EXPECT_EQ(best({.repetition_penalty = 4.0f}), 4);  // 1, 1.5, 1.25, -4, 3
    EXPECT_EQ(best({.presence_penalty = -2.0f}), 1);
    // 4/3, 6/3 - 3, 5/3 - 1, -3, 3
    EXPECT_EQ(best({.repetition_penalty = 3.0f, .frequency_penalty = 1.0f}), 4);
    // The penalty of a negative logit pushes it down.
    EXPECT_EQ(sample_one(sample, {-1, -1.5f, -9},
                         {.params = {.temperature = 0, .repetition_penalty = 2}, .prompt_tokens = {prompt.data(), 1}}),
              1);
  });
}

TEST(Sample, BiasAllowedBannedAndForced) {
  for_each_backend([](SampleFn sample) {
    const std::vector<float> logits = {4, 6, 5, -1, 3};
    SampleRow row{.params = {.temperature = 0}};
    const std::vector<LogitBias> bias = {{3, 100.0f}, {1, -100.0f}};
    row.logit_bias = bias;
    EXPECT_EQ(sample_one(sample, logits, row), 3);
    const std::vector<int32_t> banned = {3, 3, 2};
    row.banned = banned;
    EXPECT_EQ(sample_one(sample, logits, row), 0);
    const std::vector<uint32_t> allowed = {~0b01001u};  // bits past the vocabulary are set too
    row.allowed = allowed;
    EXPECT_EQ(sample_one(sample, logits, row), 4);
    row.forced_token = 3;
    EXPECT_EQ(sample_one(sample, logits, row), 3);
  });
}

TEST(Sample, LogprobsAreOfTheRawLogits) {
  for_each_backend([](SampleFn sample) {
    ThreadPool pool(1);
    Batch batch(1, 3);
    batch.logits = {std::log(0.5f), std::log(0.125f), std::log(0.375f)};
    const std::vector<int32_t> banned = {0};
    batch.rows[0] = {.params = {.temperature = 0.01f}, .banned = banned, .top_logprobs = 3};
    ASSERT_TRUE(batch.run(sample, pool));
    const SampleResult& result = batch.results[0];
    EXPECT_EQ(result.token, 2);
    EXPECT_NEAR(result.logprob, std::log(0.375), 3e-7);
    EXPECT_EQ(result.top[0].token, 0);
    EXPECT_NEAR(result.top[0].logprob, std::log(0.5), 3e-7);
    EXPECT_EQ(result.top[1].token, 2);
    EXPECT_EQ(result.top[2].token, 1);
    EXPECT_NEAR(result.top[2].logprob, std::log(0.125), 3e-7);
  });
}

TEST(Sample, ARowDoesNotDependOnBatchOrThreads) {
  constexpr uint64_t kSeed = 31;
  constexpr int64_t kRows = 64, kVocab = 3001;
  SCOPED_TRACE(fmt::format("seed {}", kSeed));
  Random random(kSeed);
  Batch whole(kRows, kVocab);
  std::vector<Extras> extras(kRows);
  for (int64_t r = 0; r < kRows; ++r) {
    fill_logits(random, whole.row(r));
    fill_row(random, kVocab, whole.rows[r], extras[r]);
  }
  ThreadPool one(1), three(3);
  (void)whole.run(sample_cpu, one).has_value();
  Batch threaded = whole;
  (void)threaded.run(sample_cpu, three).has_value();
  for (int64_t r = 0; r < kRows; ++r) {
    SCOPED_TRACE(fmt::format("row {}", r));
    Batch alone(1, kVocab);
    std::copy(whole.row(r).begin(), whole.row(r).end(), alone.logits.begin());
    alone.rows[0] = whole.rows[r];
    (void)alone.run(sample_cpu, one).has_value();
    expect_same(whole.results[r], alone.results[0], whole.rows[r]);
    expect_same(whole.results[r], threaded.results[r], whole.rows[r]);
  }
}

TEST(Sample, CpuEqualsReferenceAtTheLargestVocabulary) {
  constexpr uint64_t kSeed = 77;
  constexpr int64_t kVocab = 152064, kRows = 16;
  SCOPED_TRACE(fmt::format("seed {}", kSeed));
  Random random(kSeed);
  ThreadPool pool(2);
  Batch wanted(kRows, kVocab);
  for (int64_t r = 0; r < kRows; ++r) {
    for (float& logit : wanted.row(r)) logit = random.normal() * (r % 4 == 0 ? 0.5f : 3.0f);
    if (r % 4 == 1) std::fill(wanted.row(r).begin(), wanted.row(r).end(), -7.25f);
    if (r % 4 == 2) {  // as a BF16 head gives them
      for (float& logit : wanted.row(r)) logit = std::bit_cast<float>(std::bit_cast<uint32_t>(logit) & 0xffff0000u);
    }
    wanted.rows[r] = {
        .params = {.top_k = r / 4 % 2 ? 3000 : 0, .top_p = r < 8 ? 0.9f : 0.4f, .seed = random.next_u64()},
        .position = r,
        .top_logprobs = 20};
  }
  ASSERT_TRUE(wanted.run(sample_ref, pool));
  Batch found = wanted;
  ASSERT_TRUE(found.run(sample_cpu, pool));
  for (int64_t r = 0; r < kRows; ++r) {
    SCOPED_TRACE(fmt::format("row {}", r));
    expect_same(wanted.results[r], found.results[r], wanted.rows[r]);
  }
}

TEST(Sample, ABadRowIsReportedAndTheOthersAreDone) {
  for_each_backend([](SampleFn sample) {
    ThreadPool pool(1);
    Batch batch(6, 200);
    batch.row(1)[150] = std::nanf("");
    batch.row(2)[199] = kInf;
    std::fill(batch.row(3).begin(), batch.row(3).end(), -kInf);
    const std::vector<uint32_t> nothing(7), only_last = {0, 0, 0, 0, 0, 0, 1u << 7};
    batch.rows[4].allowed = nothing;
    batch.row(5)[199] = -kInf;
    batch.rows[5].allowed = only_last;
    const Status status = batch.run(sample, pool);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, ErrorCode::kInternal);
    EXPECT_NE(status.error().message.find("row 1"), std::string::npos) << status.error().message;
    const std::array<SampleOutcome, 6> outcomes = {SampleOutcome::kOk,        SampleOutcome::kBadLogits,
                                                   SampleOutcome::kBadLogits, SampleOutcome::kBadLogits,
                                                   SampleOutcome::kNoToken,   SampleOutcome::kBadLogits};
    for (size_t r = 0; r < 6; ++r) {
      EXPECT_EQ(batch.results[r].outcome, outcomes[r]) << "row " << r;
      EXPECT_EQ(batch.results[r].token >= 0, outcomes[r] == SampleOutcome::kOk) << "row " << r;
    }
    const Status dead_end = sample_status(std::span(batch.results).subspan(4, 1));
    ASSERT_FALSE(dead_end);
    EXPECT_EQ(dead_end.error().code, ErrorCode::kInvalidArgument);
  });
}

TEST(Sample, ParametersOutOfRangeAreNamedAndNothingIsWritten) {
  const auto refused = [](std::string_view named, auto&& change) {
    ThreadPool pool(1);
    Batch batch(2, 10);
    change(batch.rows[1]);
    for (const SampleFn sample : {sample_ref, sample_cpu}) {
      const Status status = batch.run(sample, pool);
      ASSERT_FALSE(status) << named;
      EXPECT_EQ(status.error().code, ErrorCode::kInvalidArgument);
      EXPECT_NE(status.error().message.find(named), std::string::npos) << status.error().message;
      EXPECT_NE(status.error().message.find("row 1"), std::string::npos) << status.error().message;
      EXPECT_EQ(batch.results[0].token, -1) << "row 0 was written";
    }
  };
  const float nan = std::nanf("");
  for (const float bad : {-0.1f, 1001.0f, nan, kInf}) {
    refused("temperature", [&](SampleRow& row) { row.params.temperature = bad; });
  }
  refused("top_k", [](SampleRow& row) { row.params.top_k = -2; });
  for (const float bad : {0.0f, -0.5f, 1.01f, nan}) refused("top_p", [&](SampleRow& row) { row.params.top_p = bad; });
  for (const float bad : {-0.01f, 1.01f, nan}) refused("min_p", [&](SampleRow& row) { row.params.min_p = bad; });
  for (const float bad : {0.0f, -1.0f, kInf, nan}) {
    refused("repetition_penalty", [&](SampleRow& row) { row.params.repetition_penalty = bad; });
  }
  for (const float bad : {-2.01f, 2.01f, nan}) {
    refused("presence_penalty", [&](SampleRow& row) { row.params.presence_penalty = bad; });
    refused("frequency_penalty", [&](SampleRow& row) { row.params.frequency_penalty = bad; });
  }
  refused("position", [](SampleRow& row) { row.position = -1; });
  const std::vector<LogitBias> outside = {{10, 1}}, strong = {{1, 100.5f}}, twice = {{3, 1}, {1, 1}, {3, 2}};
  refused("logit_bias has token 10", [&](SampleRow& row) { row.logit_bias = outside; });
  refused("logit_bias of token 1", [&](SampleRow& row) { row.logit_bias = strong; });
  refused("token 3 twice", [&](SampleRow& row) { row.logit_bias = twice; });
  const std::vector<int32_t> negative = {2, -1};
  refused("banned has token -1", [&](SampleRow& row) { row.banned = negative; });
  refused("prompt_tokens", [&](SampleRow& row) { row.prompt_tokens = negative, row.params.repetition_penalty = 2; });
  refused("output_tokens", [&](SampleRow& row) { row.output_tokens = negative, row.params.presence_penalty = 1; });
  refused("top_logprobs", [](SampleRow& row) { row.top_logprobs = 11; });
  refused("top_logprobs", [](SampleRow& row) { row.top_logprobs = -2; });
  refused("forced_token", [](SampleRow& row) { row.forced_token = 10; });
}

TEST(Sample, WrongSizesAreRefused) {
  std::vector<float> logits(20);
  std::vector<SampleRow> rows(2);
  std::vector<SampleResult> results(2);
  const auto check = [&](ConstTensorView view) { return validate({view, rows, results}).has_value(); };
  EXPECT_TRUE(check({logits.data(), DType::kF32, Shape{2, 10}}));
  EXPECT_FALSE(check({logits.data(), DType::kF32, Shape{4, 5}}));
  EXPECT_FALSE(check({logits.data(), DType::kBf16, Shape{2, 10}}));
  EXPECT_FALSE(check({logits.data(), DType::kF32, Shape{2, 0}}));
  EXPECT_FALSE(check({logits.data(), DType::kF32, Shape{2, kMaxSampleVocab + 1}}));
  EXPECT_FALSE(check({logits.data(), DType::kF32, Shape{20}}));
  const std::vector<uint32_t> short_mask(1);
  rows[0].allowed = short_mask;
  EXPECT_TRUE(check({logits.data(), DType::kF32, Shape{2, 10}}));
  EXPECT_FALSE(validate(rows[0], 33).has_value());
  rows[0].top_logprobs = 3;  // the result has no room
  EXPECT_FALSE(check({logits.data(), DType::kF32, Shape{2, 10}}));
}

TEST(SampleMath, ExpIsAccurateAndNonDecreasing) {
  using sampling::exp_f32;
  EXPECT_EQ(exp_f32(0.0f), 1.0f);
  EXPECT_EQ(sampling::mass_of(3.0f, 3.0f, 0.7f), sampling::kMassOne);
  EXPECT_EQ(sampling::mass_of(-kInf, 3.0f, 0.7f), 0u);
  const uint32_t last = std::bit_cast<uint32_t>(-30.0f);
  double worst = 0;
  const auto check = [&](uint32_t bits) {
    const float x = std::bit_cast<float>(bits), below = std::bit_cast<float>(bits + 1);
    worst = std::max(worst, std::fabs(exp_f32(x) / std::exp(static_cast<double>(x)) - 1));
    return exp_f32(below) <= exp_f32(x);
  };
  for (uint32_t bits = 0x80000000u; bits < last; bits += 997) ASSERT_TRUE(check(bits)) << std::bit_cast<float>(bits);
  // Where one piece of the polynomial ends and the next begins.
  for (int n = 0; n < 43; ++n) {
    const uint32_t border = std::bit_cast<uint32_t>(static_cast<float>(-(n + 0.5) * 0.6931471805599453));
    for (uint32_t bits = border - 1000; bits < border + 1000; ++bits) {
      ASSERT_TRUE(check(bits)) << std::bit_cast<float>(bits);
    }
  }
  EXPECT_LT(worst, 1e-7);
}

}  // namespace
}  // namespace hearth
