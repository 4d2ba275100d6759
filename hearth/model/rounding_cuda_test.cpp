// SPDX-License-Identifier: Apache-2.0
// FP8 models on a GPU whose norms and silu_mul round for the linears behind them, and whose Q, K and V are one launch,
// against the same models with linears that round what they read, one after the other: the same bits. Label gpu:
// without a device every test here fails.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "hearth/model/golden_for_test.h"
#include "hearth/model/quantization_config_for_test.h"

namespace hearth {
namespace {

using nlohmann::json;

constexpr uint64_t kSeed = 20361;

json config_of(const json& quantization) {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"hidden_size", 256},
          {"intermediate_size", 640},
          {"num_hidden_layers", 3},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"max_position_embeddings", 256},
          {"vocab_size", 320},
          {"quantization_config", quantization}};
}

json fp8_static() { return {{"quant_method", "fp8"}, {"activation_scheme", "static"}}; }

// CUDA's table without rounding ahead.
const OpTable& apart_ops() {
  static const OpTable ops = [] {
    OpTable made = *cuda_ops();
    made.rounds_outputs = false;
    return made;
  }();
  return ops;
}

class CudaRounding : public ::testing::Test {
 protected:
  std::shared_ptr<const Model> model(const json& quantization_json, const OpTable& ops) {
    const json config_json = config_of(quantization_json);
    const std::filesystem::path file =
        std::filesystem::path(::testing::TempDir()) / fmt::format("hearth_rounding_{}.json", getpid());
    std::ofstream(file) << config_json.dump();
    const auto quantization = Quantization::parse_file(file);
    std::filesystem::remove(file);
    HEARTH_CHECK(quantization.has_value(), "{}", quantization.error().message);
    const auto config = parse_model_config(config_json);
    HEARTH_CHECK(config.has_value(), "{}", config.error().message);
    auto made = Model::dummy(*config, ops, {.activation = DType::kBf16}, DType::kBf16, kSeed, pool_, &*quantization);
    HEARTH_CHECK(made.has_value(), "{}", made.error().message);
    return *std::move(made);
  }
  // Logits of a prompt of pieces of `chunk` tokens and of ten steps behind it.
  testing::Rows logits(const std::shared_ptr<const Model>& of, size_t chunk, std::vector<int64_t> recorded) {
    Runner runner = testing::make_runner(
        of, pool_, {.max_sequences = 2, .max_context = 200, .decode_batches = std::move(recorded)});
    std::vector<int32_t> ids;
    for (int32_t i = 0; i < 90; ++i) ids.push_back((i * 37 + 11) % 320);
    testing::Rows rows = testing::all_logits(runner, 0, std::span(ids).first(80), chunk);
    for (auto& row : testing::all_logits(runner, 0, std::span(ids).subspan(80), 1)) rows.push_back(std::move(row));
    return rows;
  }
  ThreadPool pool_{4};
};

TEST_F(CudaRounding, AheadHasTheBitsOfRoundingInTheLinear) {
  for (const bool is_static : {false, true}) {
    SCOPED_TRACE(is_static ? "static" : "per token");
    const json quantization = is_static ? fp8_static() : testing::fp8_per_token();
    const auto ahead = model(quantization, *cuda_ops()), apart = model(quantization, apart_ops());
    const BlockOps& ops = ahead->layer_ops(1);
    EXPECT_EQ(ops.qkv_input, is_static ? ActFormat::kNative : ActFormat::kE4m3PerToken);
    EXPECT_EQ(ops.down_input, is_static ? ActFormat::kE4m3Static : ActFormat::kE4m3PerToken);
    EXPECT_EQ(apart->layer_ops(1).down_input, ActFormat::kNative);
    // The kernel for up to 16 rows: a row's bits are its own.
    const testing::Rows wanted = logits(apart, 8, {});
    for (const std::vector<float>& row : wanted)
      for (const float logit : row) ASSERT_TRUE(std::isfinite(logit));
    EXPECT_EQ(logits(ahead, 8, {}), wanted);
    EXPECT_EQ(logits(ahead, 5, {}), wanted);
    EXPECT_EQ(logits(ahead, 16, {}), wanted);
    EXPECT_EQ(logits(ahead, 8, {1, 2}), wanted) << "recorded steps";
    // More rows: the order of sums may depend on the weights beside, in cuBLASLt on where x lies, whose sums have 13
    // bits.
    for (const size_t chunk : {40, 80}) {
      const testing::Rows wide = logits(ahead, chunk, {}), wide_wanted = logits(apart, chunk, {});
      float largest = 0, difference = 0;
      for (size_t r = 0; r < wide.size(); ++r)
        for (size_t v = 0; v < wide[r].size(); ++v) {
          largest = std::max(largest, std::abs(wide_wanted[r][v]));
          difference = std::max(difference, std::abs(wide[r][v] - wide_wanted[r][v]));
        }
      fmt::print("{} rows at once: logits differ by {} at most, the largest is {}\n", chunk, difference, largest);
      EXPECT_LE(difference, 0.05f * largest) << chunk;
    }
  }
}

}  // namespace
}  // namespace hearth
