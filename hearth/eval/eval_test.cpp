// SPDX-License-Identifier: Apache-2.0
// Perplexity, KL and LAMBADA of the fixture models against golden log probabilities of transformers and
// against the plain computation, token by token.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "hearth/base/random.h"
#include "hearth/eval/kl.h"
#include "hearth/eval/lambada.h"
#include "hearth/eval/perplexity.h"

namespace hearth {
namespace {

using testing::HasSubstr;

constexpr uint64_t kSeed = 7;

std::shared_ptr<const Model> load(const std::string& name, ThreadPool& pool, DType activation = DType::kF32) {
  auto checkpoint = Checkpoint::open("tests/fixtures/" + name);
  if (!checkpoint) return ADD_FAILURE() << checkpoint.error().message, nullptr;
  auto model = Model::load(*checkpoint, cpu_ops(), {.activation = activation}, pool);
  if (!model) return ADD_FAILURE() << model.error().message, nullptr;
  return *model;
}

Runner make_runner(std::shared_ptr<const Model> model, int64_t ctx, ThreadPool& pool, int64_t slots = 1) {
  const RunnerOptions options = eval_runner_options(*model, ctx, KvFormatId::kF32, slots);
  auto runner = Runner::create(std::move(model), options, pool);
  HEARTH_CHECK(runner.has_value(), "{}", runner.error().message);
  return std::move(runner).value();
}

std::vector<int32_t> random_ids(int64_t count, int64_t vocab, uint64_t stream = 0) {
  Random random(kSeed, stream);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>(random.below(vocab)));
  return ids;
}

// log softmax of the next token after every prefix of `ids`, each fed alone.
std::vector<double> direct_logprobs(Runner& runner, std::span<const int32_t> ids, int32_t last) {
  std::vector<double> result;
  runner.cut(0, 0);
  for (size_t i = 0; i < ids.size(); ++i) {
    const auto logits = runner.feed(0, ids.subspan(i, 1));
    HEARTH_CHECK(logits.has_value(), "{}", logits.error().message);
    const float* row = logits->row<float>(0);
    double sum = 0;
    for (int64_t t = 0; t < logits->cols(); ++t) sum += std::exp(static_cast<double>(row[t]));
    result.push_back(static_cast<double>(row[i + 1 < ids.size() ? ids[i + 1] : last]) - std::log(sum));
  }
  return result;
}

class Fixture : public testing::TestWithParam<const char*> {};

TEST_P(Fixture, PerplexityEqualsTheGoldenLogProbabilities) {
  std::ifstream file(std::string("tests/fixtures/") + GetParam() + "/golden.json");
  const nlohmann::json golden = nlohmann::json::parse(file);
  ThreadPool pool(2);
  const auto model = load(GetParam(), pool);
  ASSERT_TRUE(model);
  for (const nlohmann::json& prompt : golden["prompts"]) {
    const auto ids = prompt["ids"].get<std::vector<int32_t>>();
    if (ids.size() < 2) continue;
    const int64_t ctx = std::ssize(ids) - 1;
    double nll = 0;
    for (size_t i = 1; i < ids.size(); ++i) nll -= prompt["token_logprobs"][i].get<double>();
    Runner runner = make_runner(model, ctx, pool);
    const std::vector<int64_t> windows = {0};
    const auto result = perplexity(runner, ids, ctx, windows);
    ASSERT_TRUE(result) << result.error().message;
    EXPECT_EQ(result->tokens, ctx);
    EXPECT_NEAR(result->nll_per_token, nll / static_cast<double>(ctx), 2e-5);
    EXPECT_DOUBLE_EQ(result->ppl, std::exp(result->nll_per_token));
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Fixture, testing::Values("llama3", "qwen2", "qwen3", "mistral_swa"));

TEST(Perplexity, ChosenWindowsEqualTheDirectComputation) {
  ThreadPool pool(2);
  const auto model = load("llama3", pool);
  ASSERT_TRUE(model);
  const int64_t ctx = 20;
  const std::vector<int32_t> ids = random_ids(5 * ctx + 7, model->config().vocab_size);
  Runner runner = make_runner(model, ctx, pool);
  const std::vector<int64_t> windows = {1, 4};
  std::vector<std::pair<int64_t, int64_t>> progress;
  const auto result = perplexity(runner, ids, ctx, windows, {.progress = [&](int64_t done, int64_t total) {
                                   progress.push_back({done, total});
                                 }});
  ASSERT_TRUE(result) << result.error().message;
  double nll = 0;
  for (const int64_t w : windows) {
    const auto window = std::span(ids).subspan(static_cast<size_t>(w * ctx), static_cast<size_t>(ctx));
    for (const double logprob : direct_logprobs(runner, window, ids[static_cast<size_t>((w + 1) * ctx)]))
      nll -= logprob;
  }
  EXPECT_NEAR(result->nll_per_token, nll / 40, 2e-6) << "seed " << kSeed;
  EXPECT_EQ(result->windows, 2);
  EXPECT_EQ(result->tokens, 40);
  EXPECT_THAT(progress, testing::ElementsAre(testing::Pair(0, 2), testing::Pair(1, 2), testing::Pair(2, 2)));
}

TEST(Perplexity, StopsAndNamesBadInput) {
  ThreadPool pool(1);
  const auto model = load("llama3", pool);
  ASSERT_TRUE(model);
  Runner runner = make_runner(model, 8, pool);
  std::vector<int32_t> ids = random_ids(33, model->config().vocab_size);
  const std::vector<int64_t> all = {0, 1, 2, 3}, beyond = {4}, none;
  const auto message = [&](int64_t ctx, std::span<const int64_t> windows) {
    const auto result = perplexity(runner, ids, ctx, windows);
    return result ? "no error" : result.error().message;
  };
  EXPECT_THAT(message(8, beyond), HasSubstr("window 4 is beyond the last window, 3"));
  EXPECT_THAT(message(8, none), HasSubstr("no windows"));
  EXPECT_THAT(message(9, all), HasSubstr("window of 9 tokens; the context holds 8"));
  ids[5] = static_cast<int32_t>(model->config().vocab_size);
  EXPECT_THAT(message(8, all), HasSubstr("token 5 of the text is id"));
  ids[5] = 0;
  std::atomic<bool> stop = false;
  const auto result =
      perplexity(runner, ids, 8, all, {.progress = [&](int64_t done, int64_t) { stop = done == 2; }, .stop = &stop});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ErrorCode::kCancelled);
  EXPECT_THAT(result.error().message, HasSubstr("2 of 4"));
}

TEST(Kl, ZeroAgainstItselfAndPositiveAgainstAnother) {
  ThreadPool pool(2);
  const auto model = load("llama3", pool), rounded = load("llama3", pool, DType::kBf16);
  ASSERT_TRUE(model && rounded);
  const int64_t ctx = 16;
  const std::vector<int32_t> ids = random_ids(3 * ctx + 1, model->config().vocab_size);
  const std::vector<int64_t> windows = {0, 2};
  Runner reference = make_runner(model, ctx, pool), same = make_runner(model, ctx, pool),
         other = make_runner(rounded, ctx, pool);
  const auto zero = kl_divergence(same, reference, ids, ctx, windows);
  ASSERT_TRUE(zero) << zero.error().message;
  EXPECT_EQ(zero->kl, 0.0);
  EXPECT_EQ(zero->same_top, 1.0);
  EXPECT_EQ(zero->tokens, 32);
  EXPECT_EQ(zero->nll_per_token, zero->nll_per_token_reference);
  const auto some = kl_divergence(other, reference, ids, ctx, windows);
  ASSERT_TRUE(some) << some.error().message;
  EXPECT_GT(some->kl, 1e-7);
  EXPECT_LT(some->kl, 0.1);
  EXPECT_GT(some->kl_standard_error, 0.0);
  EXPECT_GE(some->kl_max, some->kl);
  EXPECT_EQ(some->nll_per_token_reference, zero->nll_per_token);
  const auto ppl = perplexity(other, ids, ctx, windows);
  ASSERT_TRUE(ppl);
  EXPECT_NEAR(some->nll_per_token, ppl->nll_per_token, 1e-12);
}

TEST(Kl, NeedsOneVocabulary) {
  ThreadPool pool(1);
  const auto a = load("llama3", pool), b = load("llama2", pool);
  ASSERT_TRUE(a && b);
  if (a->config().vocab_size == b->config().vocab_size) GTEST_FAIL() << "the fixtures' vocabularies no longer differ";
  Runner ra = make_runner(a, 8, pool), rb = make_runner(b, 8, pool);
  const std::vector<int32_t> ids = random_ids(9, 16);
  const std::vector<int64_t> windows = {0};
  const auto result = kl_divergence(ra, rb, ids, 8, windows);
  ASSERT_FALSE(result);
  EXPECT_THAT(result.error().message, HasSubstr("vocabulary of"));
}

TEST(Lambada, EqualsTheDirectComputationForAnyNumberOfSlots) {
  ThreadPool pool(2);
  const auto model = load("qwen3", pool);
  ASSERT_TRUE(model);
  const int64_t vocab = model->config().vocab_size;
  Runner single = make_runner(model, 64, pool);
  std::vector<LambadaItem> items;
  std::vector<double> expected;
  int64_t correct = 0;
  for (uint64_t i = 0; i < 24; ++i) {
    LambadaItem item;
    item.context = random_ids(1 + static_cast<int64_t>(i * 2), vocab, i);
    // Half of the items are what the model says itself, some of them with a wrong last token.
    single.cut(0, 0);
    std::vector<int32_t> next = item.context;
    for (uint64_t k = 0; k <= i % 3; ++k) {
      const auto logits = single.feed(0, next);
      ASSERT_TRUE(logits) << logits.error().message;
      const float* row = logits->row<float>(0);
      next = {static_cast<int32_t>(std::max_element(row, row + vocab) - row)};
      item.continuation.push_back(next[0]);
    }
    const bool wrong = i % 2 == 1;
    if (wrong) item.continuation.back() = static_cast<int32_t>((item.continuation.back() + 1) % vocab);
    correct += !wrong;
    std::vector<int32_t> all = item.context;
    all.insert(all.end(), item.continuation.begin(), item.continuation.end());
    const auto logprobs = direct_logprobs(single, std::span(all).first(all.size() - 1), all.back());
    expected.push_back(0);
    for (size_t k = item.context.size() - 1; k < logprobs.size(); ++k) expected.back() += logprobs[k];
    items.push_back(std::move(item));
  }
  const auto one = lambada(single, items, 1);
  ASSERT_TRUE(one) << one.error().message;
  EXPECT_EQ(one->n, 24);
  EXPECT_EQ(one->correct, correct);
  EXPECT_DOUBLE_EQ(one->acc, 0.5);
  ASSERT_EQ(one->scores.size(), items.size());
  double sum = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    EXPECT_EQ(one->scores[i].hit, i % 2 == 0) << "item " << i;
    EXPECT_NEAR(one->scores[i].logprob, expected[i], 1e-5) << "item " << i << ", seed " << kSeed;
    sum += one->scores[i].logprob;
  }
  EXPECT_NEAR(one->nll_per_word, -sum / 24, 1e-12);
  Runner several = make_runner(model, longest_item(items), pool, 5);
  const auto batched = lambada(several, items, 5);
  ASSERT_TRUE(batched) << batched.error().message;
  EXPECT_EQ(batched->correct, one->correct);
  EXPECT_EQ(batched->nll_per_word, one->nll_per_word);
  ASSERT_EQ(batched->scores.size(), items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    EXPECT_EQ(batched->scores[i].hit, one->scores[i].hit) << "item " << i;
    EXPECT_EQ(batched->scores[i].logprob, one->scores[i].logprob) << "item " << i;
  }
  Runner small = make_runner(model, 8, pool);
  EXPECT_THAT(lambada(small, items, 1).error().message, HasSubstr("the context holds 8"));
  EXPECT_THAT(lambada(small, {}, 1).error().message, HasSubstr("no items"));
}

TEST(Lambada, ParsesLines) {
  const auto tokenizer = Tokenizer::load("models/fable-13m");
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  const std::string text =
      "{\"context\":\"It was a\",\"continuation\":\"ship\"}\n\n{\"context\":\"b\",\"continuation\":\"c\"}";
  const auto items = parse_lambada(text, *tokenizer);
  ASSERT_TRUE(items) << items.error().message;
  ASSERT_EQ(items->size(), 2u);
  EXPECT_EQ((*items)[0].context, *tokenizer->encode("It was a"));
  EXPECT_EQ((*items)[0].context[0], *tokenizer->bos_id());
  EXPECT_EQ((*items)[0].continuation, *tokenizer->encode(" ship", {.add_special_tokens = false}));
  EXPECT_EQ(parse_lambada(text, *tokenizer, 1)->size(), 1u);
  EXPECT_THAT(parse_lambada("{\"context\":\"a\"}", *tokenizer).error().message,
              HasSubstr("line 1: no string 'continuation'"));
  EXPECT_THAT(parse_lambada(text + "\n[1]", *tokenizer).error().message, HasSubstr("line 4: no string 'context'"));
  EXPECT_EQ(parse_lambada("nonsense", *tokenizer).error().code, ErrorCode::kCorrupt);
}

}  // namespace
}  // namespace hearth
