// SPDX-License-Identifier: Apache-2.0
// The engine against the same requests computed alone, under load, preemption, cancellation and readers that do
// not read. Everything must agree bit for bit.
#include "hearth/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "hearth/base/random.h"
#include "hearth/engine/test_util.h"
#include "hearth/memory/fake_device_for_test.h"

namespace hearth {
namespace {

using engine_test::expect_same;
using engine_test::kContext;
using engine_test::random_prompt;
using engine_test::ReadChoice;
using engine_test::Reader;
using engine_test::run_alone;
using engine_test::Running;
using engine_test::small_model;
using engine_test::start;
using ::testing::HasSubstr;

const std::shared_ptr<const ServedModel>& model() {
  static const std::shared_ptr<const ServedModel> served = small_model();
  return served;
}

Request request_of(std::vector<int32_t> prompt, int64_t max_tokens) {
  Request request;
  request.id = "test";
  request.model = model();
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  return request;
}

// Any combination of what a request can ask for.
Request random_request(Random& random) {
  Request r = request_of(random_prompt(random, 1 + random.below(random.below(3) ? 40 : 200)), 1 + random.below(60));
  r.params.temperature = random.below(4) ? random.uniform(0.5f, 1.5f) : 0.0f;
  r.params.seed = random.next_u64();
  if (random.below(3) == 0) r.params.top_p = random.uniform(0.3f, 1.0f);
  if (random.below(3) == 0) r.params.top_k = static_cast<int32_t>(1 + random.below(50));
  if (random.below(3) == 0) r.params.repetition_penalty = 1.2f;
  if (random.below(3) == 0) r.params.frequency_penalty = 0.5f;
  if (random.below(3) == 0) r.logprobs = static_cast<int32_t>(random.below(5));
  if (random.below(4) == 0) r.prompt_logprobs = static_cast<int32_t>(random.below(4));
  if (random.below(3) == 0) r.stop = {"e", "th"};
  if (random.below(4) == 0) r.n = static_cast<int32_t>(2 + random.below(3));
  // Tokens that end the text, frequent enough to be met.
  for (int64_t i = random.below(2) * 400; i > 0; --i) r.end_ids.push_back(static_cast<int32_t>(random.below(8192)));
  std::ranges::sort(r.end_ids);
  if (random.below(3) == 0) r.min_tokens = std::min<int64_t>(5, r.max_tokens);
  return r;
}

std::unique_ptr<Engine> make_engine(const EngineOptions& options, EngineObserver* observer = nullptr) {
  static const SteadyClock clock;
  auto engine = Engine::create(options, observer, clock);
  HEARTH_CHECK(engine.has_value(), "{}", engine.error().message);
  const Status added = (*engine)->add_model(model());
  HEARTH_CHECK(added.has_value(), "{}", added.error().message);
  return std::move(engine).value();
}

EngineOptions small_options() {
  return {.threads = 2, .text_workers = 2, .max_sequences = 8, .step_tokens = 64, .kv_bytes = int64_t{1} << 20};
}

// Bytes of a KV pool that holds `tokens`.
int64_t kv_bytes_for(int64_t tokens) {
  const auto& c = model()->model->config();
  return KvLayout::make(KvFormatId::kF32, c.layers, c.kv_heads, c.head_dim, 16)->bytes_per_token() * tokens;
}

// KV blocks in use, once nothing runs any more; -1 if that does not come.
int64_t blocks_left_in_use(Engine& engine) {
  for (int i = 0; i < 2000; ++i) {
    const auto stats = engine.stats();
    if (!stats.empty() && stats[0].running == 0 && stats[0].waiting == 0) return stats[0].kv_blocks_used;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return -1;
}

TEST(Engine, OneRequestIsWhatItsModelComputes) {
  Random random(1);
  auto engine = make_engine(small_options());
  Request request = request_of(random_prompt(random, 100), 40);
  request.params.seed = 5;
  request.logprobs = 3;
  request.prompt_logprobs = 2;
  Running running = start(*engine, request);
  ASSERT_TRUE(running.reader->wait());
  expect_same(running.reader->choice(), run_alone(request, 0));
}

// I2, I3: more than fits, of every kind, with a pool that is far too small for all.
TEST(Engine, UnderLoadEveryTextIsItsSingleRun) {
  constexpr uint64_t kSeed = 20261122;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  struct Counter final : EngineObserver {
    std::atomic<int64_t> preemptions = 0, steps = 0, finished = 0, shared = 0;
    void on_step(const StepRecord& record) override {
      preemptions += record.preemptions;
      ++steps;
    }
    void on_choice(const ChoiceRecord& record) override {
      ++finished;
      shared += record.shared_prompt_tokens;
    }
  } counter;
  EngineOptions options = small_options();
  options.kv_bytes = kv_bytes_for(384);
  auto engine = make_engine(options, &counter);
  std::vector<Running> all;
  int64_t choices = 0, shared = 0;
  for (int i = 0; i < 60; ++i) {
    all.push_back(start(*engine, random_request(random)));
    choices += all.back().request.n;
    if (random.below(3) == 0) std::this_thread::sleep_for(std::chrono::milliseconds(random.below(10)));
  }
  for (size_t i = 0; i < all.size(); ++i) {
    SCOPED_TRACE(i);
    ASSERT_TRUE(all[i].reader->wait());
    for (int32_t c = 0; c < all[i].request.n; ++c) {
      expect_same(all[i].reader->choice(c), run_alone(all[i].request, c));
      shared += all[i].reader->choice(c).shared_prompt_tokens;
    }
  }
  EXPECT_EQ(blocks_left_in_use(*engine), 0);
  engine.reset();
  EXPECT_GT(shared, 0);
  EXPECT_EQ(counter.shared, shared);
  EXPECT_GT(counter.preemptions, 0) << "the pool was not small enough for this test";
  EXPECT_EQ(counter.finished, choices);
}

// The CPU's ops on a device that is none: pool, buffers, step arrays and rows to be sampled go the way of a GPU, decode
// steps are padded and replayed, and every bit is the CPU's; also of sequences that were preempted, whose histories are
// brought anew.
TEST(Engine, OnADeviceEveryTextIsTheSame) {
  OpTable ops = cpu_ops();
  ops.memory = testing::fake_device;
  static std::atomic<int64_t> packed;
  packed = 0;
  ops.sample_packed = [](const SamplePackedArgs& args, ExecContext& exec) {
    ++packed;
    return sample_packed_ref(args, exec);
  };
  const auto on_device = small_model("device", 1, ops);
  auto& counts = testing::FakeDevice::instance().counts;
  counts.reset();
  struct Counter final : EngineObserver {
    std::atomic<int64_t> preemptions = 0;
    void on_step(const StepRecord& record) override { preemptions += record.preemptions; }
    void on_choice(const ChoiceRecord&) override {}
  } counter;
  auto engine = make_engine(
      {.threads = 2, .max_sequences = 6, .step_tokens = 48, .block_tokens = 4, .kv_bytes = kv_bytes_for(kContext)},
      &counter);
  const Status added = engine->add_model(on_device);
  ASSERT_TRUE(added) << added.error().message;
  EXPECT_EQ(counts.recorded, 4);  // 1, 2, 4 and 6 sequences
  const int64_t allocations = counts.allocations;
  constexpr uint64_t kSeed = 30501;
  Random random(kSeed);
  struct Pending {
    Request request;
    std::shared_ptr<Reader> reader;
    RequestHandle handle;
  };
  std::vector<Pending> pending;
  for (int i = 0; i < 12; ++i) {
    Request request = random_request(random);
    request.n = 1;
    auto reader = std::make_shared<Reader>(1);
    Request moved = request;
    moved.model = on_device;
    auto handle = engine->submit(std::move(moved), Reader::sink(reader));
    ASSERT_TRUE(handle) << handle.error().message;
    pending.push_back({std::move(request), std::move(reader), *std::move(handle)});
  }
  for (size_t i = 0; i < pending.size(); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", request " << i);
    ASSERT_TRUE(pending[i].reader->wait());
    expect_same(pending[i].reader->choice(), run_alone(pending[i].request, 0));
  }
  EXPECT_GT(counts.replayed, 20);
  EXPECT_EQ(counts.allocations, allocations) << "a step allocated";
  EXPECT_GT(packed, 20);
  engine.reset();
  EXPECT_GT(counter.preemptions, 0) << "the pool was not small enough for this test";
}

// Histories stay on the device, by place: the next request there, with a prompt as long, brings its own.
TEST(Engine, AnotherRequestInAPlaceHasItsOwnPenalties) {
  OpTable ops = cpu_ops();
  ops.memory = testing::fake_device;
  ops.sample_packed = sample_packed_ref;
  const auto on_device = small_model("device", 1, ops);
  auto engine = make_engine({.threads = 2, .max_sequences = 1, .step_tokens = 48, .block_tokens = 4});
  ASSERT_TRUE(engine->add_model(on_device));
  constexpr uint64_t kSeed = 5;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  for (int i = 0; i < 20; ++i) {
    Request request = random_request(random);
    request.n = 1;
    request.grammar.reset();
    request.logit_bias = {};
    request.prompt.resize(20);
    for (int32_t& t : request.prompt) t = static_cast<int32_t>(random.below(300));
    request.max_tokens = 1 + i % 2;
    request.min_tokens = 0;
    request.params.repetition_penalty = 0.01f;
    request.params.temperature = 0;
    auto reader = std::make_shared<Reader>(1);
    Request moved = request;
    moved.model = on_device;
    auto handle = engine->submit(std::move(moved), Reader::sink(reader));
    ASSERT_TRUE(handle) << handle.error().message;
    ASSERT_TRUE(reader->wait());
    expect_same(reader->choice(), run_alone(request, 0));
  }
}

TEST(Engine, ChoicesShareTheirPromptsBlocks) {
  Random random(3);
  auto engine = make_engine(small_options());
  Request request = request_of(random_prompt(random, 100), 8);
  request.n = 4;
  request.params.seed = 9;
  Running running = start(*engine, request);
  ASSERT_TRUE(running.reader->wait());
  for (int32_t c = 0; c < 4; ++c) {
    SCOPED_TRACE(c);
    expect_same(running.reader->choice(c), run_alone(request, c));
    EXPECT_EQ(running.reader->choice(c).shared_prompt_tokens, c == 0 ? 0 : 96);
  }
  EXPECT_NE(running.reader->choice(0).ids, running.reader->choice(1).ids);
  EXPECT_EQ(blocks_left_in_use(*engine), 0);
}

// I1, I3
TEST(Engine, CancellationAtAnyMomentGivesEverythingBack) {
  constexpr uint64_t kSeed = 7;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  EngineOptions options = small_options();
  options.kv_bytes = kv_bytes_for(512);
  auto engine = make_engine(options);
  std::vector<Running> all;
  for (int i = 0; i < 80; ++i) {
    Request request = random_request(random);
    request.stop.clear();
    request.end_ids.clear();
    request.max_tokens = kContext - std::ssize(request.prompt);
    request.min_tokens = 0;
    all.push_back(start(*engine, request));
    if (random.below(2) == 0) std::this_thread::sleep_for(std::chrono::microseconds(random.below(5000)));
    const size_t victim = static_cast<size_t>(random.below(std::ssize(all)));
    if (random.below(2) == 0) {
      all[victim].handle.cancel();
      all[victim].handle.cancel();
    } else {
      all[victim].handle = {};  // the reader goes away
    }
  }
  for (Running& running : all) running.handle.cancel();
  int cancelled = 0;
  for (Running& running : all) {
    ASSERT_TRUE(running.reader->wait());
    for (int32_t c = 0; c < running.request.n; ++c) {
      const ReadChoice found = running.reader->choice(c);
      EXPECT_EQ(found.pieces_after_end, 0);
      cancelled += found.finish == FinishReason::kCancelled;
      // What was said before is the beginning of the single run.
      Request part = running.request;
      part.max_tokens = std::ssize(found.ids);
      if (random.below(8) == 0) {
        EXPECT_EQ(found.ids, run_alone(part, c).ids);
      }
    }
  }
  EXPECT_GT(cancelled, 40);
  EXPECT_EQ(blocks_left_in_use(*engine), 0);
}

// I4
TEST(Engine, AReaderThatDoesNotReadDelaysNobody) {
  Random random(5);
  EngineOptions options = small_options();
  options.max_sequences = 2;
  options.max_unread = 10;
  auto engine = make_engine(options);
  Running slow = start(*engine, request_of(random_prompt(random, 20), 100));
  Running slower = start(*engine, request_of(random_prompt(random, 20), 100));
  ASSERT_TRUE(slow.reader->wait_for_tokens(10));
  ASSERT_TRUE(slower.reader->wait_for_tokens(10));
  // Both places are taken by readers that do not read; others still get theirs.
  for (int i = 0; i < 4; ++i) {
    Running other = start(*engine, request_of(random_prompt(random, 20), 9));
    ASSERT_TRUE(other.reader->wait());
    expect_same(other.reader->choice(), run_alone(other.request, 0));
  }
  EXPECT_LE(slow.reader->tokens(), 12u);
  EXPECT_FALSE(slow.reader->choice().finish.has_value());
  for (size_t read = 0; !slow.reader->choice().finish;) {
    ASSERT_TRUE(slow.reader->wait_for_tokens(read + 1));
    const size_t now = slow.reader->tokens();
    slow.handle.consumed(0, static_cast<int64_t>(now - read));
    read = now;
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  expect_same(slow.reader->choice(), run_alone(slow.request, 0));
}

TEST(Engine, OnlyThePromptsLogprobs) {
  Random random(6);
  auto engine = make_engine(small_options());
  for (const int64_t tokens : {1, 2, 17, 200}) {
    Request request = request_of(random_prompt(random, tokens), 0);
    request.prompt_logprobs = 1;
    Running running = start(*engine, request);
    ASSERT_TRUE(running.reader->wait());
    expect_same(running.reader->choice(), run_alone(request, 0));
  }
  // Several choices: only the first has the prompt's logprobs, and none has anything to draw.
  Request several = request_of(random_prompt(random, 33), 0);
  several.prompt_logprobs = 0;
  several.n = 3;
  Running running = start(*engine, several);
  ASSERT_TRUE(running.reader->wait());
  EXPECT_EQ(running.reader->choice(0).prompt.size(), 32u);
  for (int32_t c = 0; c < 3; ++c) EXPECT_EQ(running.reader->choice(c).finish, FinishReason::kLength);
  EXPECT_EQ(blocks_left_in_use(*engine), 0);
}

// A prefix kept for choices that wait, all of whose blocks the first choice uses too, is in everybody's way.
TEST(Engine, APrefixKeptForOthersStopsNobody) {
  Random random(14);
  EngineOptions options = small_options();
  options.max_sequences = 2;
  options.step_tokens = 2;
  options.kv_bytes = kv_bytes_for(5 * 16);
  auto engine = make_engine(options);
  Running alone = start(*engine, request_of(random_prompt(random, 1), 79));
  Request pair = request_of(random_prompt(random, 33), 8);
  pair.n = 2;
  Running two = start(*engine, pair);
  ASSERT_TRUE(alone.reader->wait());
  ASSERT_TRUE(two.reader->wait());
  expect_same(alone.reader->choice(), run_alone(alone.request, 0));
  for (int32_t c = 0; c < 2; ++c) expect_same(two.reader->choice(c), run_alone(pair, c));
  EXPECT_EQ(blocks_left_in_use(*engine), 0);
}

// Takes what the readers have, one after the other, until all have ended.
void read_in_turns(std::vector<Running>& all) {
  std::vector<std::vector<size_t>> read;
  for (const Running& running : all) read.emplace_back(static_cast<size_t>(running.request.n));
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  for (bool open = true; open && std::chrono::steady_clock::now() < deadline;) {
    open = false;
    for (size_t i = 0; i < all.size(); ++i) {
      for (int32_t c = 0; c < all[i].request.n; ++c) {
        const ReadChoice choice = all[i].reader->choice(c);
        size_t& taken = read[i][static_cast<size_t>(c)];
        const size_t there = choice.ids.size() + choice.prompt.size();
        if (there > taken) all[i].handle.consumed(c, static_cast<int64_t>(there - taken));
        taken = there;
        open |= !choice.finish;
      }
    }
  }
}

// The smallest steps and the smallest pools: whatever stands in whose way, everybody comes to an end.
TEST(Engine, NothingStandsStillWhereEverythingIsTight) {
  constexpr uint64_t kSeed = 99;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  for (int round = 0; round < 12; ++round) {
    SCOPED_TRACE(round);
    EngineOptions options = small_options();
    options.max_sequences = 1 + random.below(4);
    options.step_tokens = 1 + random.below(20);
    options.max_unread = 1 + random.below(40);
    options.kv_bytes = kv_bytes_for(112 + 16 * random.below(6));
    auto engine = make_engine(options);
    std::vector<Running> all;
    for (int i = 0; i < 10; ++i) {
      Request request = request_of(random_prompt(random, 1 + random.below(70)), random.below(30));
      request.params.seed = random.next_u64();
      request.n = static_cast<int32_t>(1 + random.below(4));
      if (random.below(3) == 0 || request.max_tokens == 0) request.prompt_logprobs = 0;
      all.push_back(start(*engine, request));
    }
    read_in_turns(all);
    for (Running& running : all)
      for (int32_t c = 0; c < running.request.n; ++c)
        expect_same(running.reader->choice(c), run_alone(running.request, c));
    EXPECT_EQ(blocks_left_in_use(*engine), 0);
  }
}

TEST(Engine, AGrammarIsKept) {
  Random random(8);
  auto engine = make_engine(small_options());
  auto grammar = model()->grammars->compile({.kind = GrammarKind::kRegex, .source = "(yes|no), [0-9]{3}"});
  ASSERT_TRUE(grammar) << grammar.error().message;
  std::vector<Running> all;
  for (int i = 0; i < 6; ++i) {
    Request request = request_of(random_prompt(random, 30), 100);
    request.grammar = *grammar;
    request.end_ids = model()->end_ids;
    request.params.seed = static_cast<uint64_t>(i);
    request.n = i % 2 + 1;
    all.push_back(start(*engine, request));
    all.push_back(start(*engine, random_request(random)));
  }
  std::set<std::string> texts;
  for (Running& running : all) {
    ASSERT_TRUE(running.reader->wait());
    for (int32_t c = 0; c < running.request.n; ++c) {
      const ReadChoice found = running.reader->choice(c);
      if (!running.request.grammar) {
        expect_same(found, run_alone(running.request, c));
        continue;
      }
      EXPECT_THAT(found.text, ::testing::MatchesRegex("(yes|no), [0-9][0-9][0-9]"));
      EXPECT_EQ(found.finish, FinishReason::kStop);
      texts.insert(found.text);
    }
  }
  EXPECT_GT(texts.size(), 3u);
}

TEST(Engine, AGrammarBeyondItsLimitsIsTheRequestsFault) {
  auto grammar =
      model()->grammars->compile({.kind = GrammarKind::kRegex, .source = "(((x{0,300}){0,300}){0,300}){0,300}"});
  if (!grammar) return;  // refused even before
  auto engine = make_engine(small_options());
  Request request = request_of({1, 2, 3}, 50);
  request.grammar = *grammar;
  request.params.temperature = 0;
  request.logit_bias = {{*model()->tokenizer.token_to_id("x"), 100.0f}};
  Running running = start(*engine, request);
  ASSERT_TRUE(running.reader->wait());
  const ReadChoice choice = running.reader->choice();
  EXPECT_EQ(choice.finish, FinishReason::kError);
  ASSERT_TRUE(choice.error.has_value());
  EXPECT_EQ(choice.error->code, ErrorCode::kInvalidArgument) << choice.error->message;
}

TEST(Engine, ModelsShareTheStepLoop) {
  Random random(9);
  auto engine = make_engine(small_options());
  const auto other = small_model("other", 2);
  ASSERT_TRUE(engine->add_model(other));
  EXPECT_THAT(engine->add_model(other).error().message, HasSubstr("has a model 'other' already"));
  std::vector<Running> all;
  for (int i = 0; i < 12; ++i) {
    Request request = random_request(random);
    if (i % 2) request.model = other;
    all.push_back(start(*engine, request));
  }
  ASSERT_TRUE(engine->remove_model("other"));
  EXPECT_EQ(engine->remove_model("other").error().code, ErrorCode::kNotFound);
  Request late = random_request(random);
  late.model = other;
  EXPECT_EQ(engine->submit(late, {}).error().code, ErrorCode::kNotFound);
  for (Running& running : all) {
    ASSERT_TRUE(running.reader->wait());
    for (int32_t c = 0; c < running.request.n; ++c)
      expect_same(running.reader->choice(c), run_alone(running.request, c));
  }
  for (int i = 0; i < 1000 && engine->stats().size() > 1; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  EXPECT_EQ(engine->stats().size(), 1u) << "a model that has left still holds its memory";
}

TEST(Engine, RefusesWhatItCannotDo) {
  EngineOptions options = small_options();
  options.kv_bytes = kv_bytes_for(64);
  options.max_waiting = 3;
  auto engine = make_engine(options);
  const auto why = [&](Request request) {
    auto handle = engine->submit(std::move(request), {});
    return handle ? std::string("taken") : handle.error().message;
  };
  EXPECT_THAT(why(request_of({}, 1)), HasSubstr("no tokens"));
  EXPECT_THAT(why(request_of({8192}, 1)), HasSubstr("token 8192; the model's vocabulary is 0 to 8191"));
  EXPECT_THAT(why(request_of({-1}, 1)), HasSubstr("token -1"));
  EXPECT_THAT(why(request_of({1}, kContext)), HasSubstr("more than the model's context of 320"));
  EXPECT_THAT(why(request_of({1, 2}, 100)), HasSubstr("need a KV cache of 102 tokens; it holds 64"));
  Request many = request_of({1}, 4);
  many.n = 4;
  EXPECT_THAT(why(many), HasSubstr("at most 3 choices can wait"));
  Request adapter = request_of({1}, 4);
  adapter.adapter = 0;
  EXPECT_THAT(why(adapter), HasSubstr("adapter 0"));
  Request hot = request_of({1}, 4);
  hot.params.temperature = -1;
  EXPECT_THAT(why(hot), HasSubstr("temperature"));
  Request stop = request_of({1}, 4);
  stop.stop = {""};
  EXPECT_THAT(why(stop), HasSubstr("stop"));
  EXPECT_EQ(engine->kv_tokens(*model()), 64);
  EXPECT_EQ(engine->kv_tokens(*small_model("other")), 0);
  engine->drain();
  EXPECT_EQ(engine->submit(request_of({1}, 4), {}).error().code, ErrorCode::kUnavailable);
}

// I1
TEST(Engine, EndsEveryTextWhenItIsDestroyed) {
  Random random(10);
  std::vector<Running> all;
  {
    auto engine = make_engine(small_options());
    for (int i = 0; i < 30; ++i) all.push_back(start(*engine, request_of(random_prompt(random, 50), 200)));
    ASSERT_TRUE(all[0].reader->wait_for_tokens(3));
  }
  for (Running& running : all) {
    EXPECT_TRUE(running.reader->choice().finish.has_value());
    running.handle.cancel();  // late, and harmless
  }
}

// A device that is lost in the middle: what runs and what waits ends with that, as does what comes later.
std::atomic<int64_t> attentions_left = 0;
const OpTable& lost_device_ops() {
  static const OpTable table = [] {
    OpTable ops = cpu_ops();
    ops.attention = [](const AttentionArgs& args, ExecContext& exec) -> Status {
      if (--attentions_left < 0) return device_lost("cudaStreamSynchronize: unspecified launch failure");
      return attention_cpu(args, exec);
    };
    return ops;
  }();
  return table;
}

TEST(Engine, ALostDeviceEndsAllRequestsNowAndLater) {  // I5, I1
  static const SteadyClock clock;
  EngineOptions options = small_options();
  options.max_sequences = 4;
  auto engine = Engine::create(options, nullptr, clock);
  ASSERT_TRUE(engine);
  const auto served = small_model("small", 1, lost_device_ops());
  ASSERT_TRUE((*engine)->add_model(served));
  attentions_left = 60;  // of two layers: a few steps
  Random random(14);
  std::vector<Running> all;
  for (int i = 0; i < 12; ++i) {
    Request request = request_of(random_prompt(random, 20), 200);
    request.model = served;
    request.n = 1 + i % 2;
    auto reader = std::make_shared<Reader>(request.n);
    auto handle = (*engine)->submit(request, Reader::sink(reader));
    if (!handle) {  // the device was quicker
      EXPECT_EQ(handle.error().code, ErrorCode::kDeviceLost);
      continue;
    }
    all.push_back({request, reader, std::move(*handle)});
  }
  ASSERT_FALSE(all.empty());
  for (Running& running : all) {
    ASSERT_TRUE(running.reader->wait());
    for (int32_t i = 0; i < running.request.n; ++i) {
      const ReadChoice choice = running.reader->choice(i);
      EXPECT_EQ(choice.finish, FinishReason::kError);
      ASSERT_TRUE(choice.error);
      EXPECT_EQ(choice.error->code, ErrorCode::kDeviceLost) << choice.error->message;
      EXPECT_EQ(choice.pieces_after_end, 0);
    }
  }
  EXPECT_EQ((*engine)->device().error().code, ErrorCode::kDeviceLost);
  // Not even when the device seems to be back.
  attentions_left = 1'000'000;
  Request late = request_of({1}, 4);
  late.model = served;
  const auto refused = (*engine)->submit(late, {});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kDeviceLost);
  EXPECT_THAT(refused.error().message, HasSubstr("unspecified launch failure"));
  EXPECT_EQ(blocks_left_in_use(**engine), 0);
  bool drained = false;
  for (int i = 0; i < 2000 && !drained; ++i) {
    drained = (*engine)->drain();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_TRUE(drained);
}

TEST(Engine, StepsAreRecordedAndPredicted) {
  struct Records final : EngineObserver {
    std::mutex mutex;
    std::vector<StepRecord> steps;
    void on_step(const StepRecord& record) override {
      const std::lock_guard lock(mutex);
      steps.push_back(record);
    }
    void on_choice(const ChoiceRecord&) override {}
  } records;
  Random random(12);
  auto engine = make_engine(small_options(), &records);
  Running running = start(*engine, request_of(random_prompt(random, 100), 30));
  ASSERT_TRUE(running.reader->wait());
  engine.reset();
  int64_t generated = 0, prefill = 0, predicted = 0;
  for (const StepRecord& step : records.steps) {
    generated += step.generated_tokens;
    prefill += step.features.prefill_tokens;
    predicted += step.predicted_us > 0;
    EXPECT_GT(step.measured_us, 0);
  }
  EXPECT_EQ(generated, 30);
  EXPECT_EQ(prefill, 99);
  EXPECT_GT(predicted, 20);
}

}  // namespace
}  // namespace hearth
