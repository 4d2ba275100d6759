// SPDX-License-Identifier: Apache-2.0
// The injected model computes the same f32 logits bit for bit, and has the outliers. On fable-13m, and on fable-82m
// where HEARTH_DATA says where its folder models/ is.
#include "tools/outliers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>

#include "hearth/base/random.h"
#include "hearth/checkpoint/convert.h"
#include "hearth/checkpoint/safetensors_writer.h"
#include "hearth/checkpoint/test_util.h"
#include "hearth/model/runner.h"

namespace hearth {
namespace {

using testing::HasSubstr;
using testing_util::TempFolder;

constexpr uint64_t kSeed = 31;

// Logits of 48 random tokens, in f32.
std::vector<float> logits_of(const std::filesystem::path& dir) {
  ThreadPool pool(2);
  const auto checkpoint = Checkpoint::open(dir);
  HEARTH_CHECK(checkpoint.has_value(), "{}", checkpoint.error().message);
  const auto model = Model::load(*checkpoint, cpu_ops(), {}, pool);
  HEARTH_CHECK(model.has_value(), "{}", model.error().message);
  Random random(kSeed);
  std::vector<int32_t> ids;
  for (int i = 0; i < 48; ++i) ids.push_back(static_cast<int32_t>(random.below((*model)->config().vocab_size)));
  auto runner = Runner::create(*model, {.max_context = 64}, pool);
  HEARTH_CHECK(runner.has_value(), "{}", runner.error().message);
  const SlotTokens feed = {.slot = 0, .tokens = ids, .all_logits = true};
  const auto logits = runner->step({&feed, 1});
  HEARTH_CHECK(logits.has_value(), "{}", logits.error().message);
  const float* begin = logits->row<float>(0);
  return {begin, begin + logits->rows() * logits->cols()};
}

std::vector<float> tensor_of(const Checkpoint& checkpoint, const std::string& name) {
  const TensorEntry* entry = checkpoint.find(name);
  HEARTH_CHECK(entry != nullptr, "{}", name);
  std::vector<std::byte> bytes(static_cast<size_t>(entry->size_bytes));
  std::vector<float> values(static_cast<size_t>(entry->shape.count()));
  HEARTH_CHECK(checkpoint.read(*entry, bytes).has_value(), "{}", name);
  HEARTH_CHECK(convert_floats(entry->dtype, bytes, DType::kF32, std::as_writable_bytes(std::span(values))).has_value(),
               "{}", name);
  return values;
}

void expect_same_logits(const std::filesystem::path& model, const std::filesystem::path& changed) {
  const std::vector<float> before = logits_of(model), after = logits_of(changed);
  ASSERT_EQ(before.size(), after.size());
  EXPECT_EQ(std::memcmp(before.data(), after.data(), before.size() * sizeof(float)), 0) << "seed " << kSeed;
}

TEST(Outliers, KeepTheLogitsOfFable13m) {
  const TempFolder dir;
  ASSERT_TRUE(inject_outliers("models/fable-13m", dir.path() / "out", {}));
  expect_same_logits("models/fable-13m", dir.path() / "out");
}

TEST(Outliers, KeepTheLogitsOfFable82m) {
  const char* const data = std::getenv("HEARTH_DATA");
  if (data == nullptr) GTEST_SKIP() << "HEARTH_DATA is not set";
  const std::filesystem::path model = std::filesystem::path(data) / "models" / "fable-82m";
  const TempFolder dir;
  const Status status = inject_outliers(model, dir.path() / "out", {});
  ASSERT_TRUE(status) << status.error().message;
  expect_same_logits(model, dir.path() / "out");
}

// Bias, several shards.
TEST(Outliers, KeepTheLogitsOfOtherModels) {
  for (const char* fixture : {"qwen2", "llama_sharded", "llama_bias"}) {
    const TempFolder dir;
    const std::filesystem::path model = std::filesystem::path("tests/fixtures") / fixture;
    const Status status = inject_outliers(model, dir.path() / "out", {.pairs = 1});
    ASSERT_TRUE(status) << fixture << ": " << status.error().message;
    expect_same_logits(model, dir.path() / "out");
  }
}

TEST(Outliers, AreThere) {
  const TempFolder dir;
  const auto out = dir.path() / "out";
  ASSERT_TRUE(inject_outliers("models/fable-13m", out, {}));
  const auto before = Checkpoint::open("models/fable-13m"), after = Checkpoint::open(out);
  ASSERT_TRUE(before && after);
  const ModelConfig config = *parse_model_config(before->config());
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    for (const auto& [norm, readers] :
         {std::pair<std::string, std::vector<std::string>>{"input_layernorm", {"self_attn.v_proj"}},
          {"post_attention_layernorm", {"mlp.gate_proj", "mlp.up_proj"}}}) {
      const auto a = tensor_of(*before, prefix + norm + ".weight"), b = tensor_of(*after, prefix + norm + ".weight");
      std::map<float, int> factors;
      std::map<size_t, int> in_group;
      for (size_t i = 0; i < a.size(); ++i) {
        ++factors[b[i] / a[i]];
        if (b[i] != a[i]) ++in_group[i / 128];
      }
      EXPECT_EQ(factors[32], 4);
      EXPECT_EQ(factors[64], 3);
      EXPECT_EQ(factors[1], 384 - 7);
      int most = 0;
      for (const auto& [group, count] : in_group) most = std::max(most, count);
      EXPECT_GE(most, 4);
      for (const std::string& reader : readers) {
        const auto w = tensor_of(*before, prefix + reader + ".weight"),
                   x = tensor_of(*after, prefix + reader + ".weight");
        for (size_t i = 0; i < w.size(); ++i) ASSERT_EQ(x[i] * b[i % a.size()], w[i] * a[i % a.size()]);
      }
    }
    // Rows of K that are scaled: two pairs of each of two heads, by 8 and 16, beside the columns' factors.
    const auto k = tensor_of(*before, prefix + "self_attn.k_proj.weight"),
               l = tensor_of(*after, prefix + "self_attn.k_proj.weight"),
               n = tensor_of(*before, prefix + "input_layernorm.weight"),
               m = tensor_of(*after, prefix + "input_layernorm.weight");
    std::map<float, int> rows;
    for (size_t r = 0; r < 128; ++r) {
      size_t c = 0;
      while (k[r * 384 + c] == 0) ++c;
      ++rows[l[r * 384 + c] * m[c] / (k[r * 384 + c] * n[c])];
    }
    EXPECT_EQ(rows[8], 4);
    EXPECT_EQ(rows[16], 4);
    EXPECT_EQ(rows[1], 120);
  }
  EXPECT_EQ(after->config()["injected_outliers"]["seed"], 4);
}

TEST(Outliers, AreTheSameForASeed) {
  const TempFolder dir;
  const auto bytes = [&](const char* name, uint64_t seed) {
    EXPECT_TRUE(inject_outliers("tests/fixtures/llama3", dir.path() / name, {.seed = seed, .pairs = 1}));
    return testing_util::read_bytes(dir.path() / name / "model.safetensors");
  };
  const std::string a = bytes("a", 4), b = bytes("b", 4), c = bytes("c", 5);
  EXPECT_EQ(a, b);
  EXPECT_NE(a, c);
}

TEST(Outliers, RefuseWhatTheyWouldChange) {
  const TempFolder dir;
  const auto message = [&](const std::string& from, const OutlierOptions& options = {}) {
    const Status status = inject_outliers(from, dir.path() / "out", options);
    return status ? "no error" : status.error().message;
  };
  EXPECT_THAT(message("tests/fixtures/qwen3"), HasSubstr("normalises Q and K"));
  EXPECT_THAT(message("models/fable-13m", {.clustered = 129}), HasSubstr("129 channels in a group of 128"));
  EXPECT_THAT(message("models/fable-13m", {.pairs = 33}), HasSubstr("33 RoPE pairs; a head has 32"));
  EXPECT_THAT(message("models/none"), HasSubstr("models/none"));
  EXPECT_FALSE(std::filesystem::exists(dir.path() / "out"));
  dir.put("out/file", "");
  EXPECT_THAT(message("models/fable-13m"), HasSubstr("is not empty"));
}

TEST(Outliers, RefuseWeightsThatWouldUnderflow) {
  const TempFolder dir;
  const auto from = dir.path() / "from";
  std::filesystem::copy("tests/fixtures/llama3", from);
  // The smallest normal bf16 in every element of one matrix.
  const auto checkpoint = Checkpoint::open("tests/fixtures/llama3");
  ASSERT_TRUE(checkpoint);
  std::vector<std::vector<std::byte>> bytes;
  std::vector<TensorData> tensors;
  for (const TensorEntry& tensor : checkpoint->tensors()) {
    bytes.emplace_back(static_cast<size_t>(tensor.size_bytes));
    ASSERT_TRUE(checkpoint->read(tensor, bytes.back()));
    if (tensor.name == "model.layers.0.mlp.up_proj.weight") {
      const std::vector<float> tiny(static_cast<size_t>(tensor.shape.count()), 0x1p-126f);
      ASSERT_TRUE(convert_floats(DType::kF32, std::as_bytes(std::span(tiny)), tensor.dtype, bytes.back()));
    }
  }
  for (size_t i = 0; i < bytes.size(); ++i) {
    const TensorEntry& tensor = checkpoint->tensors()[i];
    tensors.push_back({.spec = {tensor.name, tensor.dtype, tensor.shape}, .bytes = bytes[i]});
  }
  ASSERT_TRUE(write_safetensors(from / "model.safetensors", tensors));
  const Status status = inject_outliers(from, dir.path() / "out", {.pairs = 1});
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(status.error().message, HasSubstr("model.layers.0.mlp.up_proj.weight"));
  EXPECT_FALSE(std::filesystem::exists(dir.path() / "out" / "config.json"));
}

}  // namespace
}  // namespace hearth
