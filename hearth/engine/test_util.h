// SPDX-License-Identifier: Apache-2.0
// For the engine's tests: a small random model with a real tokenizer, a reader that keeps what it gets, and the
// same request computed alone, token by token, without an engine. Tests only.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/engine/engine.h"
#include "hearth/model/runner.h"
#include "hearth/text/detokenizer.h"

namespace hearth::engine_test {

inline constexpr int64_t kContext = 320;

// Hidden 64, the vocabulary of the demo model's tokenizer; or one of bytes, which needs no file.
inline std::shared_ptr<const ServedModel> small_model(const std::string& name = "small", uint64_t seed = 1,
                                                      const OpTable& ops = cpu_ops(), int64_t layers = 2,
                                                      bool bytes = false) {
  auto tokenizer = bytes ? Tokenizer::bytes() : Tokenizer::load("models/fable-13m");
  HEARTH_CHECK(tokenizer.has_value(), "{}", tokenizer.error().message);
  const ModelConfig config = parse_model_config({{"architectures", {"LlamaForCausalLM"}},
                                                 {"hidden_size", 64},
                                                 {"intermediate_size", 96},
                                                 {"num_hidden_layers", layers},
                                                 {"num_attention_heads", 4},
                                                 {"num_key_value_heads", 2},
                                                 {"max_position_embeddings", kContext},
                                                 {"vocab_size", bytes ? tokenizer->vocab_size() : 8192}})
                                 .value();
  ThreadPool pool(1);
  auto model = Model::dummy(config, ops, {}, DType::kF32, seed, pool);
  HEARTH_CHECK(model.has_value(), "{}", model.error().message);
  const int64_t vocab = config.vocab_size;
  auto grammars = GrammarCompiler::create(*tokenizer, vocab, tokenizer->eos_ids());
  HEARTH_CHECK(grammars.has_value(), "{}", grammars.error().message);
  return std::make_shared<const ServedModel>(ServedModel{.name = name,
                                                         .dir = "models/fable-13m",
                                                         .model = *model,
                                                         .tokenizer = *tokenizer,
                                                         .chat_template = {},
                                                         .grammars = *grammars,
                                                         .defaults = {},
                                                         .max_context = kContext,
                                                         .end_ids = tokenizer->eos_ids(),
                                                         .allowed = {}});
}

// Moves a millisecond whenever it is looked at, and never by itself.
class TickingClock final : public Clock {
 public:
  int64_t now_ns() const override { return now_ns_.fetch_add(1'000'000); }

 private:
  mutable std::atomic<int64_t> now_ns_ = 0;
};

// A choice as its reader sees it.
struct ReadChoice {
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
  std::vector<std::vector<TokenLogprob>> tops;
  std::vector<PromptLogprob> prompt;
  std::string text;
  std::optional<FinishReason> finish;
  std::optional<std::string> stop_text;
  std::optional<int32_t> stop_token;
  std::optional<Error> error;
  int64_t shared_prompt_tokens = 0;
  int pieces_after_end = 0;
};

// Keeps the outputs of one request. The engine calls, the test waits.
class Reader {
 public:
  explicit Reader(int32_t n) : choices_(static_cast<size_t>(n)) {}

  static OnOutput sink(const std::shared_ptr<Reader>& reader) {
    return [reader](Output&& output) { reader->take(std::move(output)); };
  }

  void take(Output&& output) {
    {
      const std::lock_guard lock(mutex_);
      ReadChoice& c = choices_.at(static_cast<size_t>(output.choice));
      c.pieces_after_end += c.finish.has_value();
      for (PromptLogprob& p : output.prompt) c.prompt.push_back(std::move(p));
      for (OutputToken& token : output.tokens) {
        c.ids.push_back(token.id);
        c.logprobs.push_back(token.logprob);
        c.tops.push_back(std::move(token.top));
        c.text += token.text;
      }
      c.text += output.rest;
      if (output.finish) c.finish = output.finish;
      if (output.stop_text) c.stop_text = output.stop_text;
      if (output.stop_token) c.stop_token = output.stop_token;
      if (output.error) c.error = std::move(output.error);
      if (output.finish) c.shared_prompt_tokens = output.shared_prompt_tokens;
    }
    changed_.notify_all();
  }

  // Every choice has ended; false after a minute.
  bool wait() {
    return wait_until(
        [this] { return std::ranges::all_of(choices_, [](const ReadChoice& c) { return c.finish.has_value(); }); });
  }
  bool wait_for_tokens(size_t count) {
    return wait_until([this, count] { return choices_[0].ids.size() >= count || choices_[0].finish.has_value(); });
  }
  size_t tokens(int32_t choice = 0) {
    const std::lock_guard lock(mutex_);
    return choices_.at(static_cast<size_t>(choice)).ids.size();
  }
  ReadChoice choice(int32_t index = 0) {
    const std::lock_guard lock(mutex_);
    return choices_.at(static_cast<size_t>(index));
  }

 private:
  template <class Condition>
  bool wait_until(Condition condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(60), condition);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<ReadChoice> choices_;
};

// The request's choice computed alone by a Runner, one token at a time.
inline ReadChoice run_alone(const Request& request, int32_t choice) {
  ThreadPool pool(1);
  const ServedModel& served = *request.model;
  auto runner = Runner::create(
      served.model, {.max_sequences = 1, .max_context = kContext, .chunk_tokens = kContext, .max_logit_rows = kContext},
      pool);
  HEARTH_CHECK(runner.has_value(), "{}", runner.error().message);
  ReadChoice out;
  const auto sample = [&](ConstTensorView logits, const SampleRow& row) {
    std::vector<TokenLogprob> top(static_cast<size_t>(std::max(row.top_logprobs, 0)));
    SampleResult result;
    result.top = top;
    const Status status =
        served.model->ops().sample({.logits = logits, .rows = {&row, 1}, .results = {&result, 1}}, runner->exec());
    HEARTH_CHECK(status.has_value(), "{}", status.error().message);
    return std::tuple(result.token, result.logprob, top);
  };
  const SlotTokens all{.slot = 0, .tokens = request.prompt, .all_logits = true};
  auto logits = runner->step({&all, 1});
  HEARTH_CHECK(logits.has_value(), "{}", logits.error().message);
  const int64_t size = std::ssize(request.prompt);
  if (request.prompt_logprobs != kNoLogprobs && choice == 0) {
    for (int64_t i = 1; i < size; ++i) {
      SampleRow row;
      row.forced_token = request.prompt[static_cast<size_t>(i)];
      row.top_logprobs = request.prompt_logprobs;
      auto [id, logprob, top] = sample(logits->slice_rows(i - 1, 1), row);
      out.prompt.push_back({.logprob = logprob, .top = top});
    }
  }
  auto detokenizer = Detokenizer::create(served.tokenizer, {.continues_text = true, .stop = request.stop});
  ConstTensorView last = logits->slice_rows(size - 1, 1);
  out.finish = FinishReason::kLength;
  while (std::ssize(out.ids) < request.max_tokens) {
    SampleRow row;
    row.params = request.params;
    row.params.choice = static_cast<uint32_t>(choice);
    row.position = size + std::ssize(out.ids);
    row.prompt_tokens = request.prompt;
    row.output_tokens = out.ids;
    row.logit_bias = request.logit_bias;
    if (std::ssize(out.ids) < request.min_tokens) row.banned = request.end_ids;
    row.top_logprobs = request.logprobs;
    auto [id, logprob, top] = sample(last, row);
    out.ids.push_back(id);
    out.logprobs.push_back(logprob);
    out.tops.push_back(top);
    if (std::ranges::binary_search(request.end_ids, id)) {
      out.finish = FinishReason::kStop;
      out.stop_token = id;
      break;
    }
    out.text += detokenizer->push(id).value();
    if (const auto hit = detokenizer->stop_hit()) {
      out.finish = FinishReason::kStop;
      out.stop_text = request.stop[static_cast<size_t>(*hit)];
      break;
    }
    const SlotTokens one{.slot = 0, .tokens = {&id, 1}};
    if (std::ssize(out.ids) == request.max_tokens) break;
    last = runner->step({&one, 1}).value();
  }
  out.text += detokenizer->flush().value();
  return out;
}

inline bool same_top(const std::vector<TokenLogprob>& a, const std::vector<TokenLogprob>& b) {
  return std::ranges::equal(
      a, b, [](const TokenLogprob& x, const TokenLogprob& y) { return x.token == y.token && x.logprob == y.logprob; });
}

// Of the demo model's vocabulary.
inline std::vector<int32_t> random_prompt(Random& random, int64_t tokens) {
  std::vector<int32_t> prompt;
  for (int64_t i = 0; i < tokens; ++i) prompt.push_back(static_cast<int32_t>(random.below(8192)));
  return prompt;
}

struct Running {
  Request request;
  std::shared_ptr<Reader> reader;
  RequestHandle handle;
};

// REQUIRES: the engine takes it.
inline Running start(Engine& engine, const Request& request) {
  Running running{request, std::make_shared<Reader>(request.n), {}};
  auto handle = engine.submit(request, Reader::sink(running.reader));
  HEARTH_CHECK(handle.has_value(), "{}", handle.error().message);
  running.handle = std::move(handle).value();
  return running;
}

// The model's numbers once `done` holds, or after a minute.
template <class Done>
ModelStats stats_when(const Engine& engine, size_t model, Done done) {
  for (int i = 0; i < 6000; ++i) {
    const std::vector<ModelStats> stats = engine.stats();
    if (stats.size() > model && done(stats[model])) return stats[model];
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return engine.stats().at(model);
}

// Bit for bit.
inline void expect_same(const ReadChoice& found, const ReadChoice& wanted) {
  EXPECT_EQ(found.ids, wanted.ids);
  EXPECT_EQ(found.logprobs, wanted.logprobs);
  EXPECT_EQ(found.text, wanted.text);
  EXPECT_EQ(found.finish, wanted.finish) << (found.error ? found.error->message : "");
  EXPECT_EQ(found.stop_text, wanted.stop_text);
  EXPECT_EQ(found.stop_token, wanted.stop_token);
  EXPECT_EQ(found.pieces_after_end, 0);
  EXPECT_TRUE(std::ranges::equal(found.tops, wanted.tops, same_top));
  ASSERT_EQ(found.prompt.size(), wanted.prompt.size());
  for (size_t i = 0; i < found.prompt.size(); ++i) {
    EXPECT_EQ(found.prompt[i].logprob, wanted.prompt[i].logprob) << i;
    EXPECT_TRUE(same_top(found.prompt[i].top, wanted.prompt[i].top)) << i;
  }
}

}  // namespace hearth::engine_test
