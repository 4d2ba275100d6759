// SPDX-License-Identifier: Apache-2.0
// Targets of latency in the engine, under a clock that moves a millisecond whenever it is looked at: texts stay what they
// are alone, and who has missed its target ends all the same.
#include <gtest/gtest.h>

#include "hearth/base/random.h"
#include "hearth/engine/test_util.h"

namespace hearth {
namespace {

using namespace engine_test;

TEST(EngineSchedule, TargetsChangeNoText) {
  constexpr uint64_t kSeed = 12;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  const auto first = small_model("first", 1), second = small_model("second", 5, cpu_ops(), 3);
  // None, one that cannot be met, one that can.
  constexpr Slo kSlos[] = {{}, {.ttft_us = 1, .tpot_us = 1}, {.ttft_us = 3'600'000'000, .tpot_us = 60'000'000}};
  for (const char* schedule : {"slo", "fcfs", "fineserve"}) {
    SCOPED_TRACE(schedule);
    const TickingClock clock;
    auto engine =
        Engine::create({.threads = 2, .max_sequences = 4, .step_tokens = 32, .schedule = schedule}, nullptr, clock);
    ASSERT_TRUE(engine) << engine.error().message;
    ASSERT_TRUE((*engine)->add_model(first));
    ASSERT_TRUE((*engine)->add_model(second));
    std::vector<Request> requests;
    std::vector<std::shared_ptr<Reader>> readers;
    std::vector<RequestHandle> handles;
    for (int i = 0; i < 24; ++i) {
      Request r;
      r.model = i % 2 == 0 ? first : second;
      for (int64_t k = 1 + random.below(100); k > 0; --k) r.prompt.push_back(static_cast<int32_t>(random.below(8192)));
      r.max_tokens = 1 + random.below(20);
      r.params.temperature = 1;
      r.slo = kSlos[i % 3];
      readers.push_back(std::make_shared<Reader>(1));
      auto handle = (*engine)->submit(r, Reader::sink(readers.back()));
      ASSERT_TRUE(handle) << handle.error().message;
      handles.push_back(std::move(handle).value());
      requests.push_back(std::move(r));
    }
    for (size_t i = 0; i < readers.size(); ++i) {
      ASSERT_TRUE(readers[i]->wait()) << "request " << i;
      expect_same(readers[i]->choice(), run_alone(requests[i], 0));
    }
  }
}

TEST(EngineSchedule, AnUnknownScheduleIsRefused) {
  const TickingClock clock;
  const auto engine = Engine::create({.schedule = "best"}, nullptr, clock);
  ASSERT_FALSE(engine);
  EXPECT_EQ(engine.error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace hearth
