// SPDX-License-Identifier: Apache-2.0
#include "hearth/model/config.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "hearth/model/architecture.h"
#include "hearth/model/rope_frequencies.h"

namespace hearth {
namespace {

using nlohmann::json;

json minimal(const char* architecture) {
  return {{"architectures", {architecture}}, {"vocab_size", 100},      {"hidden_size", 64},
          {"intermediate_size", 128},        {"num_hidden_layers", 4}, {"num_attention_heads", 32}};
}

ModelConfig parse(const json& config) {
  auto parsed = parse_model_config(config);
  HEARTH_CHECK(parsed.has_value(), "{}", parsed.error().message);
  return *std::move(parsed);
}

std::string message_of(const json& config, ErrorCode wanted) {
  const auto parsed = parse_model_config(config);
  if (parsed) return "no error";
  EXPECT_EQ(parsed.error().code, wanted) << parsed.error().message;
  return parsed.error().message;
}

// The values are those of transformers' configuration classes.
TEST(ModelConfig, DefaultsAreTheArchitectures) {
  const ModelConfig llama = parse(minimal("LlamaForCausalLM"));
  EXPECT_EQ(llama.kv_heads, 32);
  EXPECT_EQ(llama.head_dim, 2);
  EXPECT_EQ(llama.max_positions, 2048);
  EXPECT_EQ(llama.rms_norm_eps, 1e-6);
  EXPECT_EQ(llama.rope_theta, 10000);
  EXPECT_FALSE(llama.tie_word_embeddings || llama.qkv_bias || llama.o_bias || llama.mlp_bias || llama.qk_norm);

  const ModelConfig mistral = parse(minimal("MistralForCausalLM"));
  EXPECT_EQ(mistral.kv_heads, 8);
  EXPECT_EQ(mistral.windows, (std::vector<int64_t>{4096, 4096, 4096, 4096}));

  const ModelConfig qwen2 = parse(minimal("Qwen2ForCausalLM"));
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_FALSE(qwen2.o_bias);
  EXPECT_EQ(qwen2.windows, (std::vector<int64_t>{0, 0, 0, 0}));

  const ModelConfig qwen3 = parse(minimal("Qwen3ForCausalLM"));
  EXPECT_EQ(qwen3.head_dim, 128);
  EXPECT_TRUE(qwen3.qk_norm);
  EXPECT_FALSE(qwen3.qkv_bias);
}

TEST(ModelConfig, NullIsNotAbsent) {
  json config = minimal("MistralForCausalLM");
  config["sliding_window"] = nullptr;
  config["num_key_value_heads"] = nullptr;
  const ModelConfig mistral = parse(config);
  EXPECT_EQ(mistral.windows, (std::vector<int64_t>{0, 0, 0, 0}));
  EXPECT_EQ(mistral.kv_heads, 32);
}

TEST(ModelConfig, WindowsPerLayer) {
  json config = minimal("Qwen2ForCausalLM");
  config["sliding_window"] = 16;
  config["use_sliding_window"] = true;
  config["max_window_layers"] = 3;
  EXPECT_EQ(parse(config).windows, (std::vector<int64_t>{0, 0, 0, 16}));
  config["layer_types"] = {"sliding_attention", "full_attention", "full_attention", "full_attention"};
  EXPECT_EQ(parse(config).windows, (std::vector<int64_t>{16, 0, 0, 0}));
  config["use_sliding_window"] = false;
  EXPECT_EQ(message_of(config, ErrorCode::kInvalidArgument),
            "config.json: layer 0 is sliding_attention, but no window is in use");
  config["layer_types"] = {"full_attention"};
  EXPECT_EQ(message_of(config, ErrorCode::kInvalidArgument),
            "config.json: 'layer_types' is [\"full_attention\"]; wanted a list of 4 strings");
}

TEST(ModelConfig, OlderRopeSpellingWins) {
  json config = minimal("LlamaForCausalLM");
  config["rope_theta"] = 500.0;
  config["rope_parameters"] = {{"rope_type", "linear"}, {"factor", 4.0}, {"rope_theta", 700.0}};
  ModelConfig parsed = parse(config);
  EXPECT_EQ(parsed.rope_scaling.type, RopeScaling::Type::kLinear);
  EXPECT_EQ(parsed.rope_theta, 700);
  config["rope_scaling"] = {{"type", "linear"}, {"factor", 8.0}};
  parsed = parse(config);
  EXPECT_EQ(parsed.rope_scaling.factor, 8);
  EXPECT_EQ(parsed.rope_theta, 500);
}

TEST(ModelConfig, YarnAttentionFactorIsComputedWhereItIsLeftOut) {
  json config = minimal("LlamaForCausalLM");
  config["rope_scaling"] = {{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 512}};
  EXPECT_NEAR(parse(config).rope_scaling.attention_factor, 0.1 * std::log(4.0) + 1, 1e-12);
  config["rope_scaling"]["attention_factor"] = 1.25;
  EXPECT_EQ(parse(config).rope_scaling.attention_factor, 1.25);
}

TEST(ModelConfig, Llama3ScalingKeepsHighAndDividesLowFrequencies) {
  json config = minimal("LlamaForCausalLM");
  config["head_dim"] = 64;
  const std::vector<float> plain = rope_inv_freq(parse(config));
  config["rope_scaling"] = {{"rope_type", "llama3"},
                            {"factor", 8.0},
                            {"low_freq_factor", 1.0},
                            {"high_freq_factor", 4.0},
                            {"original_max_position_embeddings", 512}};
  const std::vector<float> scaled = rope_inv_freq(parse(config));
  EXPECT_EQ(scaled.front(), plain.front());
  EXPECT_EQ(scaled.back(), plain.back() / 8);
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_TRUE(scaled[i] <= plain[i] && scaled[i] >= plain[i] / 8) << i;
}

TEST(ModelConfig, RefusesWhatItDoesNotHave) {
  json config = minimal("FalconForCausalLM");
  EXPECT_EQ(message_of(config, ErrorCode::kUnsupported),
            "architecture 'FalconForCausalLM' is not supported; hearth supports LlamaForCausalLM, MistralForCausalLM, "
            "Qwen2ForCausalLM, Qwen3ForCausalLM");
  config.erase("architectures");
  EXPECT_TRUE(message_of(config, ErrorCode::kInvalidArgument).starts_with("config.json: 'architectures' is missing"));

  const auto with = [](const char* name, json value) {
    json out = minimal("LlamaForCausalLM");
    out[name] = std::move(value);
    return out;
  };
  EXPECT_EQ(message_of(with("hidden_act", "gelu"), ErrorCode::kUnsupported),
            "config.json: 'hidden_act' is \"gelu\"; hearth supports silu");
  EXPECT_EQ(message_of(with("sliding_window", 128), ErrorCode::kUnsupported),
            "config.json: 'sliding_window' is 128, but LlamaForCausalLM has none");
  EXPECT_EQ(message_of(with("rope_scaling", {{"rope_type", "dynamic"}, {"factor", 2.0}}), ErrorCode::kUnsupported),
            "config.json: rope type 'dynamic' is not supported; hearth supports default, linear, llama3 and yarn");
  EXPECT_EQ(message_of(with("rope_scaling", {{"rope_type", "linear"}}), ErrorCode::kInvalidArgument),
            "config.json: 'rope_scaling.factor' is missing; wanted a number in 1e-06..1000000000000");
  EXPECT_EQ(message_of(with("partial_rotary_factor", 0.5), ErrorCode::kUnsupported),
            "config.json: 'partial_rotary_factor' is 0.5, which changes the result and is not supported");
  EXPECT_TRUE(parse_model_config(with("partial_rotary_factor", 1.0)));
  EXPECT_EQ(message_of(with("logit_scale", 0.5), ErrorCode::kUnsupported),
            "config.json: 'logit_scale' is 0.5, which changes the result and is not supported");
  EXPECT_EQ(message_of(with("hidden_activation", "gelu"), ErrorCode::kUnsupported),
            "config.json: 'hidden_activation' is \"gelu\"; hearth supports silu");
  EXPECT_EQ(message_of(with("model_type", "qwen2"), ErrorCode::kUnsupported),
            "config.json: 'model_type' is \"qwen2\", but LlamaForCausalLM is \"llama\"");
  EXPECT_TRUE(parse_model_config(with("model_type", "llama")));
}

TEST(ModelConfig, NamesTheFieldThatIsWrong) {
  const auto with = [](const char* name, json value) {
    json out = minimal("LlamaForCausalLM");
    out[name] = std::move(value);
    return out;
  };
  for (const json& bad : {json(-1), json(0), json("64"), json(6.5), json(uint64_t{1} << 63), json(true)})
    EXPECT_TRUE(message_of(with("hidden_size", bad), ErrorCode::kInvalidArgument)
                    .starts_with("config.json: 'hidden_size' is " + bad.dump()))
        << bad;
  EXPECT_EQ(message_of(with("num_key_value_heads", 5), ErrorCode::kInvalidArgument),
            "config.json: 32 attention heads are not a multiple of 5 key-value heads");
  EXPECT_EQ(message_of(with("num_attention_heads", 30), ErrorCode::kInvalidArgument),
            "config.json: 'hidden_size' 64 is not a multiple of 'num_attention_heads' 30, and 'head_dim' is missing");
  json missing = minimal("LlamaForCausalLM");
  missing.erase("vocab_size");
  EXPECT_EQ(message_of(missing, ErrorCode::kInvalidArgument),
            "config.json: 'vocab_size' is missing; wanted an integer in 1..16777216");
  EXPECT_EQ(parse_model_config(json(3)).error().message, "config.json is 3; wanted an object");
}

TEST(ModelConfig, EosMayBeOneOrMany) {
  json config = minimal("LlamaForCausalLM");
  config["eos_token_id"] = {7, 9};
  EXPECT_EQ(parse(config).eos_token_ids, (std::vector<int32_t>{7, 9}));
  config["eos_token_id"] = 7;
  EXPECT_EQ(parse(config).eos_token_ids, (std::vector<int32_t>{7}));
}

// Elements of all tensors of a model.
int64_t parameters(const ModelConfig& c) {
  const int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  int64_t layer = c.hidden_size * (2 * q + 2 * kv) + 3 * c.hidden_size * c.intermediate_size + 2 * c.hidden_size;
  if (c.qkv_bias) layer += q + 2 * kv;
  if (c.qk_norm) layer += 2 * c.head_dim;
  return c.layers * layer + c.hidden_size + (c.tie_word_embeddings ? 1 : 2) * c.vocab_size * c.hidden_size;
}

// The numbers are those of the published checkpoints.
TEST(ModelConfig, BenchConfigurationsHaveThePublishedSizes) {
  const std::map<std::string, int64_t> published = {{"llama-2-7b", 6738415616},
                                                    {"llama-3-8b", 8030261248},
                                                    {"llama-3-8b-fp8", 8030261248},
                                                    {"llama-2-7b-fireq", 6738415616},
                                                    {"llama-3-8b-int4", 8030261248},
                                                    {"llama-3-8b-fireq", 8030261248},
                                                    {"llama-3-8b-fireq-c4", 8030261248},
                                                    {"llama-3-8b-sbvr", 8030261248},
                                                    {"llama-3-70b", 70553706496},
                                                    {"llama-3-8b-fp8-kv-fp8", 8030261248},
                                                    {"llama-3-8b-fireq-c4-kv-int4", 8030261248},
                                                    {"llama-3-8b-sbvr-kv-fp8", 8030261248},
                                                    {"llama-3.2-1b", 1235814400},
                                                    {"qwen3-8b", 8190735360},
                                                    {"qwen2.5-7b", 7615616512}};
  std::set<std::string> seen;
  for (const auto& entry : std::filesystem::directory_iterator("bench/configs")) {
    const std::string name = entry.path().stem();
    SCOPED_TRACE(name);
    std::ifstream file(entry.path());
    EXPECT_EQ(parameters(parse(json::parse(file))), published.at(name));
    seen.insert(name);
  }
  EXPECT_EQ(seen.size(), published.size());
}

}  // namespace
}  // namespace hearth
