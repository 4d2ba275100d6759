// SPDX-License-Identifier: Apache-2.0
// hearth bench model's numbers, and models made of a configuration alone.
#include "hearth/cli/bench_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "hearth/checkpoint/json.h"
#include "hearth/cli/bench_budget.h"
#include "hearth/cli/session.h"

namespace hearth {
namespace {

using ::testing::HasSubstr;

// As the publishers' safetensors files count them.
TEST(BenchModel, ParametersOfPublishedModels) {
  const std::pair<const char*, int64_t> published[] = {{"llama-2-7b", 6'738'415'616},   {"llama-3-8b", 8'030'261'248},
                                                       {"llama-3-70b", 70'553'706'496}, {"llama-3.2-1b", 1'235'814'400},
                                                       {"qwen2.5-7b", 7'615'616'512},   {"qwen3-8b", 8'190'735'360}};
  for (const auto& [name, wanted] : published) {
    const auto json = read_json_object(fmt::format("bench/configs/{}.json", name));
    ASSERT_TRUE(json) << json.error().message;
    const auto config = parse_model_config(*json);
    ASSERT_TRUE(config) << config.error().message;
    EXPECT_EQ(count_parameters(*config), wanted) << name;
  }
}

class DummyModel : public ::testing::Test {
 protected:
  DummyModel() : dir_(std::filesystem::path(::testing::TempDir()) / fmt::format("hearth_dummy_{}", getpid())) {
    std::filesystem::create_directories(dir_);
    write(config_);
  }
  ~DummyModel() override { std::filesystem::remove_all(dir_); }
  void write(const nlohmann::json& config) { std::ofstream(dir_ / "config.json") << config.dump(); }
  Result<std::shared_ptr<const ServedModel>> open(const std::filesystem::path& path) {
    return open_model({.model = path.string(), .load_format = "dummy", .quiet = true}, pool_);
  }

  const std::filesystem::path dir_;
  ThreadPool pool_{2};
  nlohmann::json config_ = {{"architectures", {"LlamaForCausalLM"}},
                            {"hidden_size", 64},
                            {"intermediate_size", 96},
                            {"num_hidden_layers", 2},
                            {"num_attention_heads", 4},
                            {"num_key_value_heads", 2},
                            {"max_position_embeddings", 128},
                            {"vocab_size", 300}};
};

TEST_F(DummyModel, AConfigurationIsEnough) {
  for (const auto& path : {dir_, dir_ / "config.json"}) {
    const auto served = open(path);
    ASSERT_TRUE(served) << served.error().message;
    EXPECT_EQ((*served)->tokenizer.vocab_size(), 256);
    EXPECT_EQ((*served)->model->weights().layers.front().qkv.parts.front().format.code, WeightCode::kBf16);
  }
  EXPECT_THAT(open(dir_ / "config.json").value()->name, "config");
}

TEST_F(DummyModel, WhatIsWrongIsSaid) {
  config_["quantization_config"] = {{"quant_method", "unheard-of"}};
  write(config_);
  const auto quantized = open(dir_);
  ASSERT_FALSE(quantized);
  EXPECT_EQ(quantized.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(quantized.error().message, HasSubstr("unheard-of"));
  write({{"architectures", {"OtherModel"}}});
  EXPECT_THAT(open(dir_).error().message, HasSubstr("config.json"));
  std::filesystem::remove(dir_ / "config.json");
  EXPECT_EQ(open(dir_).error().code, ErrorCode::kNotFound);
  EXPECT_FALSE(open_model({.model = "bench/configs/llama-3-8b.json", .quiet = true}, pool_))
      << "only for dummy weights";
}

// Time moves by a millisecond a look: a repetition of pp is one millisecond, a step of tg too.
class CountingClock final : public Clock {
 public:
  int64_t now_ns() const override { return now_ += 1'000'000; }

 private:
  mutable int64_t now_ = 0;
};

TEST_F(DummyModel, SpeedsAreTokensOverTime) {
  const auto served = open(dir_);
  ASSERT_TRUE(served) << served.error().message;
  const CountingClock clock;
  const ModelBench bench{.model = (*served)->model,
                         .kv_format = (*served)->kv_format,
                         .pool = &pool_,
                         .clock = &clock,
                         .step_tokens = 16,
                         .repetitions = 3};
  const auto prompt = run_model_bench(bench, {.tokens = 40, .depth = 20}, 0);
  ASSERT_TRUE(prompt) << prompt.error().message;
  EXPECT_NEAR(prompt->tokens_per_s, 40'000, 1);
  EXPECT_NEAR(prompt->us_p90, 1000, 0.01);
  EXPECT_EQ(prompt->floor_tokens_per_s, 0);
  // Six steps of 16 tokens, some of them of two prompts.
  const auto prompts = run_model_bench(bench, {.tokens = 30, .batch = 3, .depth = 20}, 0);
  ASSERT_TRUE(prompts) << prompts.error().message;
  EXPECT_NEAR(prompts->tokens_per_s, 90'000, 1);
  const auto decode = run_model_bench(bench, {.decode = true, .tokens = 9, .batch = 5, .depth = 20}, 1e9);
  ASSERT_TRUE(decode) << decode.error().message;
  EXPECT_NEAR(decode->tokens_per_s, 5000, 1);
  EXPECT_NEAR(decode->us, 1000, 0.01);
  // A step reads the weights and 5 contexts of 25 tokens: 2 layers, K and V, 2 heads of 16 in f32.
  const double bytes = static_cast<double>((*served)->model->weights().bytes_per_token()) + 5 * 25 * 2 * 2 * 2 * 16 * 4;
  EXPECT_NEAR(decode->floor_tokens_per_s, 5e9 / bytes, 1);
}

// By the same clock every round of a part is a millisecond, and so is the step.
TEST_F(DummyModel, ABudgetIsOfOneStep) {
  const auto served = open(dir_);
  ASSERT_TRUE(served) << served.error().message;
  const CountingClock clock;
  const ModelBench bench{
      .model = (*served)->model, .kv_format = (*served)->kv_format, .pool = &pool_, .clock = &clock, .step_tokens = 16};
  const auto decode = run_budget(bench, {.decode = true, .tokens = 9, .batch = 5, .depth = 20});
  ASSERT_TRUE(decode) << decode.error().message;
  ASSERT_EQ(std::ssize(decode->rows), kStepParts);
  const auto part = [](const Budget& budget, StepPart wanted) { return budget.rows[static_cast<size_t>(wanted)]; };
  EXPECT_EQ(part(*decode, StepPart::kNorm).calls, 5);
  EXPECT_EQ(part(*decode, StepPart::kDown).calls, 2);
  EXPECT_EQ(part(*decode, StepPart::kEmbedding).part, "embedding");
  EXPECT_NEAR(part(*decode, StepPart::kDown).us, 1000, 0.01);
  EXPECT_NEAR(decode->parts_us, 1000 * kStepParts, 0.1);
  EXPECT_NEAR(decode->step_us, 1000, 0.01);
  EXPECT_NEAR(decode->called_us, 1000, 0.01);
  EXPECT_NEAR(decode->rest_us(), -1000, 0.01);  // the clock does not know that sampling is a part of it
  // 5 contexts of 21 tokens in 2 layers, K and V, 2 heads of 16 in f32; queries and results of 64.
  EXPECT_EQ(part(*decode, StepPart::kAttention).bytes, 5 * 21 * 2 * 2 * 2 * 16 * 4 + 2 * 2 * 5 * 64 * 4);
  // 2 layers of 64 x 96 in bf16; the input, the output twice.
  EXPECT_EQ(part(*decode, StepPart::kDown).bytes, 2 * (64 * 96 * 2 + 5 * (96 + 2 * 64) * 4));
  EXPECT_EQ(part(*decode, StepPart::kDown).flops, 2.0 * 2 * 5 * 64 * 96);
  // Nothing is rounded for a linear on the CPU: hidden in and out; gate, up and out.
  EXPECT_EQ(part(*decode, StepPart::kNorm).bytes, 2 * (2 * 2 + 1) * 5 * 64 * 4);
  EXPECT_EQ(part(*decode, StepPart::kSiluMul).bytes, 2 * 3 * 5 * 96 * 4);
  EXPECT_EQ(part(*decode, StepPart::kLmHead).bytes, 300 * 64 * 2 + 5 * (64 * 4 + 300 * 4));

  const auto prompt = run_budget(bench, {.tokens = 16});
  ASSERT_TRUE(prompt) << prompt.error().message;
  EXPECT_EQ(part(*prompt, StepPart::kGateUp).flops, 2.0 * 2 * 16 * 64 * 2 * 96);
  EXPECT_EQ(part(*prompt, StepPart::kLmHead).flops, 2.0 * 300 * 64);
  const auto prompts = run_budget(bench, {.tokens = 8, .batch = 2});
  ASSERT_TRUE(prompts) << prompts.error().message;
  EXPECT_EQ(part(*prompts, StepPart::kGateUp).flops, 2.0 * 2 * 16 * 64 * 2 * 96);
  EXPECT_EQ(part(*prompts, StepPart::kAttention).flops, part(*prompt, StepPart::kAttention).flops / 2);
  EXPECT_THAT(run_budget(bench, {.tokens = 9, .batch = 2}).error().message, HasSubstr("of 18 tokens"));
  EXPECT_THAT(run_budget(bench, {.tokens = 17}).error().message, HasSubstr("at most the 16"));
}

}  // namespace
}  // namespace hearth
