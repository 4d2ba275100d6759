// SPDX-License-Identifier: Apache-2.0
// Models that share one KV pool on a GPU: prefixes found, blocks evicted, moved and preempted leave every text as it is
// alone, in an engine without a cache. KV in f32, where a token's bits depend on nothing but the tokens before it.
// Label gpu: without a device every test here fails.
#include <gtest/gtest.h>

#include <thread>

#include "hearth/base/random.h"
#include "hearth/engine/test_util.h"

namespace hearth {
namespace {

using namespace engine_test;

constexpr int64_t kBlockBytes = 16 * 2 * 2 * 2 * 16 * 4;  // 16 tokens, 2 layers, K and V, 2 heads of 16, f32

std::unique_ptr<Engine> make_engine(const EngineOptions& options,
                                    const std::vector<std::shared_ptr<const ServedModel>>& models) {
  static const SteadyClock clock;
  auto engine = Engine::create(options, nullptr, clock);
  HEARTH_CHECK(engine.has_value(), "{}", engine.error().message);
  for (const auto& model : models) {
    const Status added = (*engine)->add_model(model);
    HEARTH_CHECK(added.has_value(), "{}", added.error().message);
  }
  return std::move(engine).value();
}

TEST(KvSharingCuda, EveryTextIsWhatItIsAlone) {
  constexpr uint64_t kSeed = 11;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  const OpTable* const ops = cuda_ops();
  ASSERT_NE(ops, nullptr);
  const std::vector<std::shared_ptr<const ServedModel>> models = {small_model("small", 1, *ops, 2, true),
                                                                  small_model("deeper", 5, *ops, 3, true)};
  const auto random_tokens = [&](int64_t count) {
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(random.below(256)));
    return tokens;
  };
  const std::vector<int32_t> beginnings[] = {random_tokens(150), random_tokens(150)};
  std::vector<Request> requests;
  for (int i = 0; i < 240; ++i) {
    const auto& beginning = beginnings[random.below(2)];
    Request r;
    r.id = "test";
    r.model = models[static_cast<size_t>(random.below(10) < (i / 40 % 2 == 0 ? 8 : 2) ? 0 : 1)];
    r.prompt.assign(beginning.begin(), beginning.begin() + random.below(150));
    for (const int32_t id : random_tokens(1 + random.below(20))) r.prompt.push_back(id);
    r.max_tokens = 1 + random.below(100);
    r.params.temperature = 1;
    r.params.seed = random.next_u64();
    requests.push_back(std::move(r));
  }
  EngineOptions options{.threads = 2, .max_sequences = 8, .step_tokens = 64, .kv_bytes = 96 * kBlockBytes};
  options.prefix_cache = false;
  std::vector<std::vector<int32_t>> alone;
  {
    auto engine = make_engine(options, models);
    for (const Request& request : requests) {
      const auto reader = std::make_shared<Reader>(1);
      auto handle = engine->submit(request, Reader::sink(reader));
      ASSERT_TRUE(handle) << handle.error().message;
      ASSERT_TRUE(reader->wait());
      alone.push_back(reader->choice().ids);
    }
  }
  options.prefix_cache = true;
  auto engine = make_engine(options, models);
  std::vector<std::pair<std::shared_ptr<Reader>, RequestHandle>> all;
  for (const Request& request : requests) {
    const auto reader = std::make_shared<Reader>(1);
    auto handle = engine->submit(request, Reader::sink(reader));
    ASSERT_TRUE(handle) << handle.error().message;
    all.emplace_back(reader, std::move(handle).value());
  }
  int64_t found = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    SCOPED_TRACE(i);
    ASSERT_TRUE(all[i].first->wait());
    EXPECT_FALSE(all[i].first->choice().error.has_value());
    EXPECT_EQ(all[i].first->choice().ids, alone[i]);
    found += all[i].first->choice().shared_prompt_tokens;
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(150));
  const auto last = std::make_shared<Reader>(1);
  auto handle = engine->submit(requests[0], Reader::sink(last));  // wakes the planner, which then tells how the pool is
  ASSERT_TRUE(handle);
  ASSERT_TRUE(last->wait());
  const std::vector<KvPoolStats> pools = engine->kv_stats();
  ASSERT_EQ(pools.size(), 1u);
  std::printf("%d requests: %d prompt tokens found, %d blocks moved\n", static_cast<int>(requests.size()),
              static_cast<int>(found), static_cast<int>(pools[0].moved_blocks));
  EXPECT_GT(found, 1000);
  EXPECT_GT(pools[0].moved_blocks, 0);
}

}  // namespace
}  // namespace hearth
