// SPDX-License-Identifier: Apache-2.0
// Two FP8 models on one GPU at the same time, each with its own thread, stream and recordings, at 9 to 64 tokens a
// step, where blocks of a linear wait for blocks of lower numbers: each has the bits that it has alone, and both come
// to an end (a wait without one loses the device after a while, patience.cuh). Label gpu: without a device every test
// here fails.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <latch>
#include <thread>

#include "hearth/base/clock.h"
#include "hearth/model/golden_for_test.h"
#include "hearth/model/quantization_config_for_test.h"

namespace hearth {
namespace {

using nlohmann::json;

// Llama-3-8B's layers, two of them: linears that want every multiprocessor.
constexpr int64_t kVocab = 2048, kSlots = 64;

std::shared_ptr<const Model> make_model(uint64_t seed) {
  const json config_json = {{"architectures", {"LlamaForCausalLM"}},
                            {"hidden_size", 4096},
                            {"intermediate_size", 14336},
                            {"num_hidden_layers", 2},
                            {"num_attention_heads", 32},
                            {"num_key_value_heads", 8},
                            {"max_position_embeddings", 512},
                            {"vocab_size", kVocab},
                            {"quantization_config", testing::fp8_per_token()}};
  const std::filesystem::path file =
      std::filesystem::path(::testing::TempDir()) / fmt::format("hearth_two_models_{}.json", getpid());
  std::ofstream(file) << config_json.dump();
  const auto quantization = Quantization::parse_file(file);
  std::filesystem::remove(file);
  HEARTH_CHECK(quantization.has_value(), "{}", quantization.error().message);
  const auto config = parse_model_config(config_json);
  HEARTH_CHECK(config.has_value(), "{}", config.error().message);
  ThreadPool pool(8);
  auto made =
      Model::dummy(*config, *cuda_ops(), {.activation = DType::kBf16}, DType::kBf16, seed, pool, &*quantization);
  HEARTH_CHECK(made.has_value(), "{}", made.error().message);
  return *std::move(made);
}

// Prompts of 9 to 40 tokens, then steps of 9 to 64 sequences: logits of all of them.
testing::Rows run(const std::shared_ptr<const Model>& model, bool recorded) {
  ThreadPool pool(1);
  Runner runner =
      testing::make_runner(model, pool,
                           {.max_sequences = kSlots,
                            .max_context = 256,
                            .kv_format = KvFormatId::kBf16,
                            .decode_batches = recorded ? std::vector<int64_t>{16, 40, 64} : std::vector<int64_t>()});
  testing::Rows rows;
  const auto step = [&](std::span<const SlotTokens> feeds) {
    const auto logits = runner.step(feeds);
    ASSERT_TRUE(logits) << logits.error().message;
    for (std::vector<float>& row : testing::copy_rows(*logits)) rows.push_back(std::move(row));
  };
  for (int64_t slot = 0; slot < kSlots; ++slot) {
    std::vector<int32_t> ids(static_cast<size_t>(9 + slot % 32));
    for (size_t i = 0; i < ids.size(); ++i)
      ids[i] = static_cast<int32_t>((slot * 131 + static_cast<int64_t>(i) * 37) % kVocab);
    const SlotTokens feed{slot, ids};
    step({&feed, 1});
  }
  for (int round = 0; round < 10; ++round)
    for (const size_t count : {64, 33, 9, 40, 16, 57}) {
      std::vector<int32_t> ids(count);
      std::vector<SlotTokens> feeds;
      for (size_t i = 0; i < count; ++i) {
        ids[i] = static_cast<int32_t>((round * 17 + static_cast<int>(i) * 11) % kVocab);
        feeds.push_back({static_cast<int64_t>(i), {&ids[i], 1}});
      }
      step(feeds);
    }
  return rows;
}

struct Side {
  std::shared_ptr<const Model> model;
  bool recorded;
};

// `times` runs of each at the same time.
void expect_the_bits_of_each_alone(const Side (&sides)[2]) {
  constexpr int kTimes = 3;
  const SteadyClock clock;
  testing::Rows wanted[2], found[2][kTimes];
  const int64_t begin_ns = clock.now_ns();
  for (int s = 0; s < 2; ++s) wanted[s] = run(sides[s].model, sides[s].recorded);
  const int64_t middle_ns = clock.now_ns();
  std::latch both(2);
  std::vector<std::thread> threads;
  for (int s = 0; s < 2; ++s)
    threads.emplace_back([&, s] {
      both.arrive_and_wait();
      for (testing::Rows& rows : found[s]) rows = run(sides[s].model, sides[s].recorded);
    });
  for (std::thread& thread : threads) thread.join();
  fmt::print("a run of each alone {:.2f} s together, {} of each at the same time {:.2f} s\n",
             static_cast<double>(middle_ns - begin_ns) * 1e-9, kTimes,
             static_cast<double>(clock.now_ns() - middle_ns) * 1e-9);
  for (int s = 0; s < 2; ++s) {
    SCOPED_TRACE(::testing::Message() << "side " << s << (sides[s].recorded ? ", recorded" : ", eager"));
    ASSERT_EQ(wanted[s].size(), static_cast<size_t>(kSlots + 10 * (64 + 33 + 9 + 40 + 16 + 57)));
    for (const std::vector<float>& row : wanted[s])
      for (const float logit : row) ASSERT_TRUE(std::isfinite(logit));
    for (const testing::Rows& rows : found[s]) {
      ASSERT_EQ(rows.size(), wanted[s].size());
      for (size_t r = 0; r < rows.size(); ++r) ASSERT_EQ(rows[r], wanted[s][r]) << "row " << r;
    }
  }
}

TEST(TwoModels, HaveTheBitsOfEachAlone) {
  const auto a = make_model(1), b = make_model(2);
  for (const auto& [first, second] : {std::pair{true, true}, {false, false}, {true, false}}) {
    SCOPED_TRACE(::testing::Message() << "recorded " << first << second);
    expect_the_bits_of_each_alone({{a, first}, {b, second}});
    if (::testing::Test::HasFatalFailure()) return;
  }
}

TEST(TwoModels, OneModelWithTwoRunners) {
  const auto model = make_model(3);
  expect_the_bits_of_each_alone({{model, true}, {model, true}});
}

}  // namespace
}  // namespace hearth
