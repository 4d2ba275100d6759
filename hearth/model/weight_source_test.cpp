// SPDX-License-Identifier: Apache-2.0
// Dummy weights, plain and quantized.
#include "hearth/model/weight_source.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "hearth/checkpoint/convert.h"
#include "hearth/checkpoint/json.h"
#include "hearth/memory/fake_device_for_test.h"
#include "hearth/memory/host_buffer.h"
#include "hearth/model/dummy_values.h"
#include "hearth/model/model.h"
#include "hearth/model/quantization_config_for_test.h"

namespace hearth {
namespace {

using nlohmann::json;

struct Moments {
  double mean = 0, deviation = 0, largest = 0;
};
Moments moments(std::span<const float> values) {
  double sum = 0, squares = 0, largest = 0;
  for (const float value : values) {
    const auto v = static_cast<double>(value);
    sum += v, squares += v * v, largest = std::max(largest, std::abs(v));
  }
  const auto count = static_cast<double>(values.size());
  return {sum / count, std::sqrt(squares / count - sum / count * (sum / count)), largest};
}

std::vector<float> plain_values(DType dtype, uint64_t seed, const std::string& name, int64_t count) {
  DummySource source(ModelConfig(), dtype, seed);
  const TensorEntry* entry = source.find(name, Shape{count});
  std::vector<std::byte> bytes(static_cast<size_t>(entry->size_bytes));
  EXPECT_TRUE(source.read_part(*entry, 0, bytes));
  std::vector<float> values(static_cast<size_t>(count));
  EXPECT_TRUE(convert_floats(dtype, bytes, DType::kF32, std::as_writable_bytes(std::span(values))));
  return values;
}

// With 1e6 values the mean's deviation is 2e-5 and that of the deviation 1e-5: five of each, and bf16's rounding.
TEST(DummyWeights, AreUniformWithTheirDeviation) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBf16}) {
    SCOPED_TRACE(dtype_name(dtype));
    const std::vector<float> values = plain_values(dtype, 3, "model.layers.7.mlp.up_proj.weight", 1'000'000);
    const Moments m = moments(values);
    EXPECT_NEAR(m.mean, 0, 1e-4);
    EXPECT_NEAR(m.deviation, 0.02, 1e-4);
    EXPECT_LE(m.largest, 0.0348);
    EXPECT_GT(m.largest, 0.0346 * 0.999);
    // Neighbours do not hang together, nor do values a word, a vector or a piece apart.
    for (const size_t distance : {1, 2, 4, 16, 2048}) {
      double product = 0;
      for (size_t i = 0; i + distance < values.size(); ++i)
        product += static_cast<double>(values[i]) * static_cast<double>(values[i + distance]);
      EXPECT_LT(std::abs(product / (0.02 * 0.02) / 1e6), 5e-3) << distance;
    }
    for (const float one : plain_values(dtype, 3, "model.norm.weight", 100)) EXPECT_EQ(one, 1.0f);
  }
}

TEST(DummyWeights, DependOnSeedNameAndIndexAlone) {
  const ModelConfig config;
  DummySource source(config, DType::kBf16, 5);
  // Across the border of a block of 2^24 bytes.
  const TensorEntry* entry = source.find("a.weight", Shape{(int64_t{1} << 23) + 5000});
  std::vector<std::byte> whole(static_cast<size_t>(entry->size_bytes));
  ASSERT_TRUE(source.read_part(*entry, 0, whole));
  for (const auto& [begin, size] : std::initializer_list<std::pair<int64_t, int64_t>>{
           {0, 2}, {2, 2}, {6, 4094}, {4090, 14}, {(1 << 24) - 6, 12}, {(1 << 24) - 8190, 16386}}) {
    std::vector<std::byte> part(static_cast<size_t>(size));
    ASSERT_TRUE(source.read_part(*entry, begin, part));
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + begin)) << begin;
  }
  const auto values = [](uint64_t seed, const char* name) { return plain_values(DType::kBf16, seed, name, 1000); };
  EXPECT_EQ(values(5, "a.weight"), values(5, "a.weight"));
  EXPECT_NE(values(5, "a.weight"), values(6, "a.weight"));
  EXPECT_NE(values(5, "a.weight"), values(5, "b.weight"));
  // The second block is no copy of the first.
  EXPECT_FALSE(std::equal(whole.begin(), whole.begin() + 8192, whole.begin() + (1 << 24)));
}

TEST(DummyWeights, CodesOfE4m3AreAllNumbersAndOfBothSigns) {
  std::vector<uint8_t> codes(100'000);
  DummyStream::make(1, "x", DummyKind::kE4m3).fill(0, std::as_writable_bytes(std::span(codes)));
  std::set<uint8_t> found(codes.begin(), codes.end());
  EXPECT_FALSE(found.contains(0x7F));
  EXPECT_FALSE(found.contains(0xFF));
  EXPECT_TRUE(found.contains(0x7E) && found.contains(0xFE));  // +-448
  EXPECT_GT(found.size(), 70u);
}

struct Described {
  const char* name;
  WeightFormat format;
};
const Described kFormats[] = {
    {"fp8 row", {.code = WeightCode::kE4m3, .scale_layout = ScaleLayout::kRow, .act = ActFormat::kE4m3PerToken}},
    {"fp8 tensor bf16", {.code = WeightCode::kE4m3, .scale_layout = ScaleLayout::kTensor, .scale_dtype = DType::kBf16}},
    {"fp8 block", {.code = WeightCode::kE4m3, .scale_layout = ScaleLayout::kBlock, .group_k = 128, .block_n = 128}},
    {"int4", {.code = WeightCode::kU4, .scale_layout = ScaleLayout::kGroup, .scale_dtype = DType::kF16, .group_k = 64}},
    {"int4 e4m3",
     {.code = WeightCode::kU4, .scale_layout = ScaleLayout::kGroup, .scale_dtype = DType::kE4m3, .group_k = 64}},
    {"int4 zeros",
     {.code = WeightCode::kU4,
      .scale_layout = ScaleLayout::kGroup,
      .scale_dtype = DType::kBf16,
      .group_k = 128,
      .has_zero_point = true}},
    {"fireq",
     {.code = WeightCode::kI4SignMagnitude,
      .scale_layout = ScaleLayout::kGroup,
      .scale_dtype = DType::kF16,
      .group_k = 128}},
    {"fireq-c4", {.code = WeightCode::kC4, .scale_layout = ScaleLayout::kRow, .scale_dtype = DType::kF16}},
    {"sbvr", {.code = WeightCode::kBitvectors, .group_k = 128, .bitvectors = 4, .lines = 200, .integer_lines = true}},
    {"sbvr f16", {.code = WeightCode::kBitvectors, .group_k = 128, .bitvectors = 3, .lines = 60}},
    {"sbvr wide",
     {.code = WeightCode::kBitvectors, .group_k = 128, .bitvectors = 8, .lines = 300, .integer_lines = true}},
};

// Values of a matrix of every format: mean 0 and a deviation near 0.02. Scales are uniform within a quarter, which
// raises it by 1 %; E4M3's three bits move scales of 0.004 by up to a tenth.
TEST(DummyWeights, EveryFormatHasItsDeviation) {
  constexpr int64_t kN = 256, kK = 1153;  // odd, and no whole number of groups
  for (const Described& described : kFormats) {
    SCOPED_TRACE(described.name);
    ASSERT_TRUE(described.format.validate(kN, kK));
    QuantizedMatrix matrix = dummy_parts(9, "m", described.format, kN, kK);
    ASSERT_TRUE(matrix.validate(false));
    matrix.codes.resize(static_cast<size_t>(kN * matrix.row_bytes()));
    dummy_codes(9, "m", described.format).fill(0, std::as_writable_bytes(std::span(matrix.codes)));
    ASSERT_TRUE(matrix.validate());
    std::vector<float> values(static_cast<size_t>(kN * kK));
    for (int64_t row = 0; row < kN; ++row)
      matrix.dequantize_row(row, std::span(values).subspan(static_cast<size_t>(row * kK), kK));
    const Moments m = moments(values);
    EXPECT_TRUE(std::isfinite(m.deviation));
    // A half step of u4 where all zeros are 8 is a tenth of the deviation.
    EXPECT_NEAR(m.mean, 0, 0.0025);
    EXPECT_NEAR(m.deviation, 0.02, 0.002);
    EXPECT_LT(m.largest, 0.1);
    // What is stored is what is computed with.
    for (const float scale : matrix.scales) {
      EXPECT_GT(scale, 0);
      if (described.format.scale_dtype == DType::kBf16) {
        EXPECT_EQ(bf16::from_float(scale).to_float(), scale);
      }
    }
  }
}

class DummyModels : public ::testing::Test {
 protected:
  DummyModels() : file_(std::filesystem::path(::testing::TempDir()) / fmt::format("hearth_source_{}.json", getpid())) {}
  ~DummyModels() override { std::filesystem::remove(file_); }

  static json config_of(const json& quantization) {
    return {{"architectures", {"LlamaForCausalLM"}},
            {"hidden_size", 128},
            {"intermediate_size", 256},
            {"num_hidden_layers", 2},
            {"num_attention_heads", 4},
            {"num_key_value_heads", 2},
            {"max_position_embeddings", 64},
            {"vocab_size", 320},
            {"quantization_config", quantization}};
  }
  Result<Quantization> quantization_of(const json& config) {
    std::ofstream(file_) << config.dump();
    return Quantization::parse_file(file_);
  }

  const std::filesystem::path file_;
  ThreadPool pool_{2};
};

// Configurations as their tools write them, and what they must be read as.
struct Published {
  const char* name;
  json quantization;
  WeightCode code;
  bool lm_head = false;
};
std::vector<Published> published() {
  json hearth_modules;
  for (const char* layer : {"0", "1"})
    for (const char* module : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                               "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"})
      hearth_modules[fmt::format("model.layers.{}.{}", layer, module)] = "f";
  const auto hearth_config = [&](const json& format) {
    return json{{"quant_method", "hearth"}, {"version", 1}, {"formats", {{"f", format}}}, {"modules", hearth_modules}};
  };
  json everything = testing::fp8_per_token();
  everything["ignore"] = json::array();
  return {
      {"fp8 channel", testing::fp8_per_token(), WeightCode::kE4m3},
      {"fp8 channel and lm_head", everything, WeightCode::kE4m3, true},
      {"fp8 block",
       {{"quant_method", "fp8"}, {"activation_scheme", "dynamic"}, {"weight_block_size", {128, 128}}},
       WeightCode::kE4m3},
      {"fp8 static", {{"quant_method", "fp8"}, {"activation_scheme", "static"}}, WeightCode::kE4m3},
      {"w4a16",
       {{"quant_method", "compressed-tensors"},
        {"format", "pack-quantized"},
        {"config_groups",
         {{"group_0",
           {{"targets", {"Linear"}},
            {"weights", {{"num_bits", 4}, {"type", "int"}, {"strategy", "group"}, {"group_size", 128}}}}}}},
        {"ignore", {"lm_head"}}},
       WeightCode::kU4},
      {"awq", {{"quant_method", "awq"}, {"bits", 4}, {"group_size", 128}, {"zero_point", true}}, WeightCode::kU4},
      {"gptq", {{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 32}, {"sym", false}}, WeightCode::kU4},
      {"fireq",
       hearth_config({{"code", "i4-sign-magnitude"},
                      {"scales", "group"},
                      {"scale_dtype", "f16"},
                      {"group", 128},
                      {"activations", "e4m3-per-token"}}),
       WeightCode::kI4SignMagnitude},
      {"fireq-c4",
       hearth_config({{"code", "c4"},
                      {"scales", "group"},
                      {"scale_dtype", "f16"},
                      {"group", 128},
                      {"activations", "e4m3-per-token"}}),
       WeightCode::kC4},
      {"sbvr",
       hearth_config({{"code", "bitvectors"},
                      {"group", 128},
                      {"bitvectors", 4},
                      {"integer_lines", true},
                      {"activations", "i8-per-group"}}),
       WeightCode::kBitvectors},
  };
}

// Loads, runs a step, and gives finite logits that differ from id to id.
TEST_F(DummyModels, OfEveryQuantizedConfigurationRun) {
  for (const Published& p : published()) {
    SCOPED_TRACE(p.name);
    const json config_json = config_of(p.quantization);
    const auto config = parse_model_config(config_json);
    ASSERT_TRUE(config) << config.error().message;
    const auto quantization = quantization_of(config_json);
    ASSERT_TRUE(quantization) << quantization.error().message;
    const auto model = Model::dummy(*config, cpu_ops(), {}, DType::kBf16, 1, pool_, &*quantization);
    ASSERT_TRUE(model) << model.error().message;
    const ModelWeights& weights = (*model)->weights();
    for (const LayerWeights& layer : weights.layers) {
      EXPECT_EQ(layer.qkv.parts.size(), 3u);
      for (const LinearWeight& part : layer.qkv.parts) EXPECT_EQ(part.format.code, p.code);
      EXPECT_EQ(layer.o.parts[0].format.code, p.code);
    }
    EXPECT_EQ(weights.lm_head.parts[0].format.code, p.lm_head ? p.code : WeightCode::kBf16);
    EXPECT_EQ(weights.embedding.dtype, DType::kBf16);

    constexpr int64_t kTokens = 5;
    auto buffers = ForwardBuffers::create(
        **model, {.max_tokens = kTokens, .max_logit_rows = kTokens, .max_context = kTokens}, pool_);
    ASSERT_TRUE(buffers) << buffers.error().message;
    KvView kv;
    kv.layout = *KvLayout::make(KvFormatId::kF32, config->layers, config->kv_heads, config->head_dim, kTokens);
    auto memory = HostBuffer::allocate(kv.layout.block_bytes());
    kv.base = memory->data();
    const int32_t ids[] = {1, 17, 200, 3, 319}, rows[] = {0, 1, 2, 3, 4}, starts[] = {0, 5}, context[] = {5};
    const int64_t blocks[] = {0};
    const StepBatch batch{.tokens = ids,
                          .positions = rows,
                          .query_start = starts,
                          .context_len = context,
                          .block_table = blocks,
                          .block_table_stride = 1,
                          .logit_rows = rows};
    SingleRank comm;
    const auto logits = forward(**model, batch, kv, comm, *buffers);
    ASSERT_TRUE(logits) << logits.error().message;
    const Moments m = moments({static_cast<const float*>(logits->data), kTokens * 320});
    EXPECT_TRUE(std::isfinite(m.deviation));
    // lm_head is uniform with 0.02, the normalised hidden state has 128 values around 1.
    EXPECT_NEAR(m.deviation, 0.02 * std::sqrt(128.0), 0.1);
  }
}

// Through pieces of less than a row, and into host memory with another number of threads.
TEST_F(DummyModels, AreTheSameOnADevice) {
  for (const Published& p : published()) {
    SCOPED_TRACE(p.name);
    const json config_json = config_of(p.quantization);
    const auto config = parse_model_config(config_json);
    const auto quantization = quantization_of(config_json);
    ASSERT_TRUE(quantization) << quantization.error().message;
    ThreadPool one(1);
    DummySource source(*config, DType::kBf16, 1, &*quantization), again(*config, DType::kBf16, 1, &*quantization);
    const auto wanted = load_weights(source, *config, {}, one);
    const auto found = load_weights(again, *config, {.memory = &testing::fake_device(), .piece_bytes = 100}, pool_);
    ASSERT_TRUE(wanted) << wanted.error().message;
    ASSERT_TRUE(found) << found.error().message;
    const auto expect_same = [](const ConstTensorView& a, const ConstTensorView& b) {
      ASSERT_EQ(a.size_bytes(), b.size_bytes());
      if (a) {
        EXPECT_EQ(std::memcmp(a.data, b.data, static_cast<size_t>(a.size_bytes())), 0);
      }
    };
    for (size_t i = 0; i < wanted->layers.size(); ++i) {
      const Linear &a = std::get<DenseFfn>(wanted->layers[i].ffn).down,
                   &b = std::get<DenseFfn>(found->layers[i].ffn).down;
      expect_same(a.parts[0].codes, b.parts[0].codes);
      expect_same(a.parts[0].scales, b.parts[0].scales);
      expect_same(a.parts[0].zeros, b.parts[0].zeros);
      expect_same(a.parts[0].lines, b.parts[0].lines);
      expect_same(a.parts[0].line_index, b.parts[0].line_index);
    }
  }
}

// Dummy weights with one code that is no number.
class NanSource final : public WeightSource {
 public:
  NanSource(const ModelConfig& config, const Quantization& quantization)
      : plain_(config, DType::kBf16, 1, &quantization) {}
  const TensorEntry* find(const std::string& name, const Shape& wanted) override { return plain_.find(name, wanted); }
  Status read_part(const TensorEntry& entry, int64_t begin, std::span<std::byte> dst) const override {
    HEARTH_TRY(plain_.read_part(entry, begin, dst));
    const int64_t at = 77 * 128 + 5 - begin;
    if (entry.name == "model.layers.1.mlp.up_proj" && at >= 0 && at < std::ssize(dst))
      dst[static_cast<size_t>(at)] = std::byte{0xFF};
    return {};
  }
  Result<std::optional<WeightFormat>> quantized_format(const std::string& module, int64_t n, int64_t k) override {
    return plain_.quantized_format(module, n, k);
  }
  std::optional<TensorEntry> canonical_codes(const std::string& module, int64_t n, int64_t k) const override {
    return plain_.canonical_codes(module, n, k);
  }
  Result<QuantizedMatrix> read_quantized(const std::string& module, int64_t n, int64_t k) const override {
    return plain_.read_quantized(module, n, k);
  }
  std::string name() const override { return "a test"; }

 private:
  DummySource plain_;
};

TEST_F(DummyModels, CodesReadStraightToTheirPlaceAreChecked) {
  const json config_json = config_of(testing::fp8_per_token());
  const auto config = parse_model_config(config_json);
  const auto quantization = quantization_of(config_json);
  for (const Memory* memory : {&host_memory(), static_cast<const Memory*>(&testing::fake_device())}) {
    NanSource source(*config, *quantization);
    const auto weights = load_weights(source, *config, {.memory = memory, .piece_bytes = 3000}, pool_);
    ASSERT_FALSE(weights);
    EXPECT_EQ(weights.error().code, ErrorCode::kCorrupt);
    EXPECT_NE(weights.error().message.find("up_proj' is nan at [77, 5]"), std::string::npos) << weights.error().message;
  }
}

TEST_F(DummyModels, RefuseWhatNoCheckpointCouldBe) {
  const auto eight_bits = quantization_of(config_of({{"quant_method", "gptq"}, {"bits", 8}, {"group_size", 128}}));
  ASSERT_FALSE(eight_bits);
  EXPECT_EQ(eight_bits.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(eight_bits.error().message.find(file_.string()), std::string::npos) << eight_bits.error().message;
}

// The shipped configurations: Llama-3-8B's 6,979,321,856 weights of linears in FP8 and INT4.
TEST(BenchConfigs, OfQuantizedModelsDescribeEveryLinear) {
  for (const auto& [name, code] :
       {std::pair{"llama-3-8b-fp8", WeightCode::kE4m3}, std::pair{"llama-3-8b-int4", WeightCode::kU4}}) {
    SCOPED_TRACE(name);
    const std::string file = fmt::format("bench/configs/{}.json", name);
    const auto config_json = read_json_object(file);
    ASSERT_TRUE(config_json) << config_json.error().message;
    const auto config = parse_model_config(*config_json);
    ASSERT_TRUE(config) << config.error().message;
    const auto quantization = Quantization::parse_file(file);
    ASSERT_TRUE(quantization) << quantization.error().message;
    const auto projection = quantization->described_format("model.layers.31.mlp.down_proj", 4096, 14336);
    ASSERT_TRUE(projection && *projection);
    EXPECT_EQ((*projection)->code, code);
    if (code == WeightCode::kE4m3) {
      EXPECT_EQ((*projection)->scale_layout, ScaleLayout::kRow);
      EXPECT_EQ((*projection)->act, ActFormat::kE4m3PerToken);
    }
    const auto head = quantization->described_format("lm_head", 128256, 4096);
    ASSERT_TRUE(head);
    EXPECT_FALSE(*head);
  }
}

}  // namespace
}  // namespace hearth
