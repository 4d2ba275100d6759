// SPDX-License-Identifier: Apache-2.0
// A step that fails costs the requests that were in it, with its error, and nobody else: docs/design/faults.md.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <new>
#include <stdexcept>
#include <thread>

#include "hearth/base/random.h"
#include "hearth/engine/test_util.h"
#include "hearth/memory/fake_device_for_test.h"

namespace hearth {
namespace {

using namespace engine_test;
using ::testing::HasSubstr;

enum class Fault : uint8_t { kNone, kError, kLateError, kNoMemory, kException };

std::atomic<Fault> next_fault{Fault::kNone};

// The CPU's ops, but that one attention fails in the way that next_fault says.
const OpTable& failing_ops() {
  static const OpTable table = [] {
    OpTable ops = cpu_ops();
    ops.attention = [](const AttentionArgs& args, ExecContext& exec) -> Status {
      switch (next_fault.exchange(Fault::kNone)) {
        case Fault::kLateError: std::this_thread::sleep_for(std::chrono::milliseconds(50)); [[fallthrough]];
        case Fault::kError: return internal_error("the attention failed");
        case Fault::kNoMemory: throw std::bad_alloc();
        case Fault::kException: throw std::runtime_error("the attention threw");
        case Fault::kNone: break;
      }
      return attention_cpu(args, exec);
    };
    return ops;
  }();
  return table;
}

Request request_of(Random& random, std::shared_ptr<const ServedModel> model, int64_t max_tokens) {
  Request r;
  r.id = "test";
  r.model = std::move(model);
  r.prompt = random_prompt(random, 20);
  r.max_tokens = max_tokens;
  r.params.temperature = 1;
  r.params.seed = random.next_u64();
  return r;
}

TEST(Faults, AStepThatFailsCostsItsOwnRequests) {
  static const SteadyClock clock;
  auto engine = Engine::create({.threads = 2, .max_sequences = 8, .step_tokens = 64}, nullptr, clock);
  ASSERT_TRUE(engine) << engine.error().message;
  const auto failing = small_model("failing", 1, failing_ops());
  const auto sound = small_model("sound", 2);
  ASSERT_TRUE((*engine)->add_model(failing));
  ASSERT_TRUE((*engine)->add_model(sound));
  struct Case {
    Fault fault;
    ErrorCode code;
    const char* message;
  };
  Random random(41);
  for (const Case& c : {Case{Fault::kError, ErrorCode::kInternal, "the attention failed"},
                        Case{Fault::kNoMemory, ErrorCode::kResourceExhausted, "out of memory in a step"},
                        Case{Fault::kException, ErrorCode::kInternal, "the attention threw"}}) {
    SCOPED_TRACE(c.message);
    Running hit = start(**engine, request_of(random, failing, 280));
    Running beside = start(**engine, request_of(random, sound, 60));
    ASSERT_TRUE(hit.reader->wait_for_tokens(3));
    next_fault = c.fault;
    ASSERT_TRUE(hit.reader->wait());
    const ReadChoice choice = hit.reader->choice();
    EXPECT_EQ(choice.finish, FinishReason::kError);
    ASSERT_TRUE(choice.error);
    EXPECT_EQ(choice.error->code, c.code);
    EXPECT_THAT(choice.error->message, HasSubstr(c.message));
    EXPECT_EQ(choice.pieces_after_end, 0);
    ASSERT_TRUE(beside.reader->wait());
    expect_same(beside.reader->choice(), run_alone(beside.request, 0));
    // The model itself goes on as if nothing had been.
    Running after = start(**engine, request_of(random, failing, 40));
    ASSERT_TRUE(after.reader->wait());
    expect_same(after.reader->choice(), run_alone(after.request, 0));
    const auto none_held = [](const ModelStats& stats) { return stats.kv.live == 0; };
    for (const size_t model : {0, 1}) EXPECT_EQ(stats_when(**engine, model, none_held).kv.live, 0);
  }
}

// The step behind it was launched already and reads what was never written: nothing of either is ever found.
TEST(Faults, NothingOfAFailedPromptIsFound) {
  static const SteadyClock clock;
  auto engine = Engine::create({.threads = 2, .max_sequences = 8, .step_tokens = 64}, nullptr, clock);
  ASSERT_TRUE(engine) << engine.error().message;
  const auto model = small_model("failing", 1, failing_ops());
  ASSERT_TRUE((*engine)->add_model(model));
  Random random(43);
  Request request = request_of(random, model, 20);
  request.prompt = random_prompt(random, 190);  // three steps
  next_fault = Fault::kLateError;
  Running hit = start(**engine, request);
  ASSERT_TRUE(hit.reader->wait());
  EXPECT_EQ(hit.reader->choice().finish, FinishReason::kError);
  EXPECT_EQ(stats_when(**engine, 0, [](const ModelStats& stats) { return stats.kv.live == 0; }).kv.live, 0);
  Running again = start(**engine, request);
  ASSERT_TRUE(again.reader->wait());
  EXPECT_EQ(again.reader->choice().shared_prompt_tokens, 0);
  expect_same(again.reader->choice(), run_alone(request, 0));
}

// Nobody can say whose blocks are right when some of their copies were not made: all of the pool's requests end, and
// what the cache had of others is not found again.
TEST(Faults, ACopyOfKvThatFailsCostsWhatItsPoolHolds) {
  constexpr uint64_t kSeed = 42;
  SCOPED_TRACE(kSeed);
  static hearth::testing::FakeDevice device(int64_t{64} << 20);
  static const OpTable ops = [] {
    OpTable table = cpu_ops();
    table.memory = []() -> const Memory& { return device; };
    return table;
  }();
  constexpr int64_t kBlockBytes = 16 * 3 * 2 * 2 * 16 * 4;  // 16 tokens, 3 layers, K and V, 2 heads of 16, f32
  static const SteadyClock clock;
  auto engine = Engine::create({.threads = 2,
                                .max_sequences = 8,
                                .step_tokens = 64,
                                .kv_bytes = 32 * kBlockBytes,
                                .kv_swap_bytes = int64_t{4} << 20,
                                .decode_graphs = false},
                               nullptr, clock);
  ASSERT_TRUE(engine) << engine.error().message;
  const auto on_device = small_model("deeper", 5, ops, 3), on_host = small_model("deeper", 5, cpu_ops(), 3);
  ASSERT_TRUE((*engine)->add_model(on_device));
  Random random(kSeed);
  std::vector<Request> requests;
  for (int i = 0; i < 16; ++i) requests.push_back(request_of(random, on_device, 100));
  int64_t failed = 0;
  const auto play = [&] {
    std::vector<Running> all;
    for (const Request& request : requests) all.push_back(start(**engine, request));
    for (Running& one : all) {
      ASSERT_TRUE(one.reader->wait());
      const ReadChoice choice = one.reader->choice();
      if (choice.error) {
        EXPECT_EQ(choice.error->code, ErrorCode::kInternal);
        EXPECT_THAT(choice.error->message, HasSubstr("a copy of 12288 bytes failed"));
        ++failed;
      } else {
        one.request.model = on_host;
        expect_same(choice, run_alone(one.request, 0));
      }
    }
  };
  device.failing_copy_bytes = kBlockBytes;
  device.failing_copies = 1;
  // Copies are made once the cost model knows that they are quicker.
  for (int round = 0; round < 20 && device.failing_copies > 0; ++round) play();
  ASSERT_EQ(device.failing_copies, 0);
  EXPECT_GT(failed, 1);
  failed = 0;
  play();
  EXPECT_EQ(failed, 0);
  const auto none_held = [](const ModelStats& stats) { return stats.kv.live == 0 && stats.swap_bytes == 0; };
  const ModelStats stats = stats_when(**engine, 0, none_held);
  EXPECT_EQ(stats.kv.live, 0);
  EXPECT_EQ(stats.swap_bytes, 0);
}

}  // namespace
}  // namespace hearth
