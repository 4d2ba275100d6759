// SPDX-License-Identifier: Apache-2.0
// Reading quantized checkpoints: fixtures that the formats' own packages made (tests/fixtures/quantized/README.md),
// bit by bit, and the same files with something wrong.
#include "hearth/checkpoint/quantization.h"

#include <limits>

#include "hearth/checkpoint/quantized_test_util.h"

namespace hearth {
namespace {

using testing_util::dequantized;
using testing_util::EditableCheckpoint;
using testing_util::kQuantizedFixtures;
using testing_util::TempFolder;

constexpr const char* kQ = "model.layers.0.self_attn.q_proj";
constexpr const char* kDown = "model.layers.0.mlp.down_proj";

struct Wanted {
  const char* fixture;
  const char* module;
  const char* format;  // to_string
};

class QuantizedFixture : public ::testing::TestWithParam<Wanted> {};

TEST_P(QuantizedFixture, HasTheValuesOfItsPackage) {
  const Wanted& wanted = GetParam();
  const std::filesystem::path dir = kQuantizedFixtures / wanted.fixture;
  auto checkpoint = Checkpoint::open(dir);
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  auto quantization = Quantization::parse(*checkpoint);
  ASSERT_TRUE(quantization) << quantization.error().message;
  auto expected_file = SafetensorsFile::open(dir / "expected.safetensors");
  ASSERT_TRUE(expected_file) << expected_file.error().message;
  const auto entries = expected_file->tensors();
  const auto entry = std::ranges::find(entries, std::string(wanted.module), &TensorEntry::name);
  ASSERT_NE(entry, entries.end());
  const int64_t n = entry->shape[0], k = entry->shape[1];
  std::vector<float> expected(static_cast<size_t>(n * k));
  ASSERT_TRUE(expected_file->read(*entry, std::as_writable_bytes(std::span(expected))));

  auto format = quantization->format(*checkpoint, wanted.module, n, k);
  ASSERT_TRUE(format) << format.error().message;
  ASSERT_TRUE(format->has_value());
  EXPECT_EQ(to_string(**format), wanted.format);
  auto matrix = quantization->read(*checkpoint, wanted.module, n, k);
  ASSERT_TRUE(matrix) << matrix.error().message;
  EXPECT_EQ(matrix->format, **format);
  const std::vector<float> found = dequantized(*matrix);
  int64_t different = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    // By bits but for the sign of zero: a package has codes that are signed.
    if (found[i] != expected[i] && different++ < 5)
      ADD_FAILURE() << "row " << i / static_cast<size_t>(k) << " column " << i % static_cast<size_t>(k) << ": "
                    << found[i] << ", wanted " << expected[i];
  }
  EXPECT_EQ(different, 0);
  for (const std::string& name : quantization->tensors(*checkpoint, wanted.module))
    EXPECT_NE(checkpoint->find(name), nullptr) << name;

  // What the configuration alone tells.
  const auto described = quantization->described_format(wanted.module, n, k);
  ASSERT_TRUE(described) << described.error().message;
  ASSERT_TRUE(described->has_value());
  EXPECT_EQ((*described)->code, (*format)->code);
  EXPECT_EQ((*described)->group_k, (*format)->group_k);
  EXPECT_EQ((*described)->has_zero_point, (*format)->has_zero_point);
  EXPECT_EQ((*described)->act, (*format)->act);

  // Codes that need no conversion are those that read() gives.
  const auto codes = quantization->canonical_codes(*checkpoint, wanted.module, n, k);
  if (!codes) return;
  std::vector<uint8_t> straight(matrix->codes.size());
  ASSERT_EQ(codes->shape, (Shape{n, matrix->row_bytes()}));
  ASSERT_TRUE(checkpoint->read_part(*codes, 0, std::as_writable_bytes(std::span(straight))));
  EXPECT_EQ(straight, matrix->codes);
  const auto rest = quantization->read(*checkpoint, wanted.module, n, k, false);
  ASSERT_TRUE(rest) << rest.error().message;
  EXPECT_TRUE(rest->codes.empty());
  EXPECT_EQ(rest->scales, matrix->scales);
  EXPECT_EQ(rest->zeros, matrix->zeros);
  EXPECT_TRUE(matrix->k_order.empty());
}

INSTANTIATE_TEST_SUITE_P(
    All, QuantizedFixture,
    ::testing::Values(
        Wanted{"awq_g32", kQ, "u4 group-scale f16 g32 zero-point"},
        Wanted{"awq_g64", kQ, "u4 group-scale f16 g64 zero-point"},
        Wanted{"awq_g128", kQ, "u4 group-scale f16 g128 zero-point"},
        Wanted{"awq_row", kQ, "u4 row-scale f16 zero-point"}, Wanted{"awq_no_zero_point", kQ, "u4 group-scale f16 g32"},
        Wanted{"gptq_v1_sym", kQ, "u4 group-scale f16 g32"},
        Wanted{"gptq_v1_asym", kQ, "u4 group-scale f16 g32 zero-point"},
        Wanted{"gptq_v1_zero_0", kQ, "u4 group-scale f16 g32 zero-point"},
        Wanted{"gptq_v2", kQ, "u4 group-scale f16 g32 zero-point"}, Wanted{"gptq_v2_sym", kQ, "u4 group-scale f16 g32"},
        Wanted{"gptq_act_order", kQ, "u4 group-scale f16 g32"},
        Wanted{"gptq_act_order_asym", kQ, "u4 group-scale f16 g32 zero-point"},
        Wanted{"gptq_static_groups", kQ, "u4 group-scale f16 g32"}, Wanted{"gptq_row", kQ, "u4 row-scale f16"},
        Wanted{"gptq_dynamic", kQ, "u4 group-scale f16 g32"},
        Wanted{"gptq_dynamic", "model.layers.0.mlp.up_proj", "u4 group-scale f16 g64 zero-point"},
        Wanted{"ct_mixed", kQ, "u4 group-scale bf16 g32"},
        Wanted{"ct_mixed", "model.layers.0.self_attn.k_proj", "u4 group-scale f16 g32 zero-point"},
        Wanted{"ct_mixed", "model.layers.0.self_attn.v_proj", "u4 row-scale bf16"},
        Wanted{"ct_mixed", "model.layers.0.self_attn.o_proj", "u4 row-scale bf16 zero-point"},
        Wanted{"ct_mixed", "model.layers.0.mlp.gate_proj", "e4m3 row-scale f32 act e4m3-per-token"},
        Wanted{"ct_mixed", "model.layers.0.mlp.up_proj", "e4m3 tensor-scale bf16 act e4m3-static"},
        Wanted{"ct_mixed", kDown, "e4m3 block-scale f32 g32 act e4m3-per-token"},
        Wanted{"ct_w4a16", kQ, "u4 group-scale f16 g32"}, Wanted{"ct_actorder", kQ, "u4 group-scale f16 g32"},
        Wanted{"fp8_block", kDown, "e4m3 block-scale f32 g32 act e4m3-per-token"},
        Wanted{"fp8_block_bf16", kDown, "e4m3 block-scale bf16 g32 act e4m3-per-token"},
        Wanted{"fp8_static", kDown, "e4m3 tensor-scale f32 act e4m3-static"}),
    [](const auto& param) {
      std::string name = fmt::format("{}_{}", param.param.fixture, param.param.module);
      std::ranges::replace(name, '.', '_');
      return name;
    });

// A fixture, changed and opened.
class Changed : public ::testing::Test {
 protected:
  void load(const std::string& fixture) { edited_ = EditableCheckpoint::load(fixture); }
  Result<Quantization> parse() {
    auto checkpoint = edited_.write(folder_.path());
    HEARTH_CHECK(checkpoint.has_value(), "{}", checkpoint.error().message);
    checkpoint_.emplace(std::move(*checkpoint));
    return Quantization::parse(*checkpoint_);
  }
  Result<std::optional<WeightFormat>> format(const std::string& module, int64_t n, int64_t k) {
    HEARTH_TRY_ASSIGN(const Quantization quantization, parse());
    return quantization.format(*checkpoint_, module, n, k);
  }
  Result<QuantizedMatrix> read(const std::string& module, int64_t n, int64_t k) {
    HEARTH_TRY_ASSIGN(const Quantization quantization, parse());
    return quantization.read(*checkpoint_, module, n, k);
  }
  bool is_plain(const std::string& module) {
    auto found = format(module, 16, 32);
    EXPECT_TRUE(found) << found.error().message;
    return found && !found->has_value();
  }

  TempFolder folder_;
  EditableCheckpoint edited_;
  std::optional<Checkpoint> checkpoint_;
};

TEST_F(Changed, WithoutConfigurationNothingIsQuantized) {
  load("awq_g32");
  edited_.config.erase("quantization_config");
  auto quantization = parse();
  ASSERT_TRUE(quantization) << quantization.error().message;
  EXPECT_EQ(quantization->method(), "");
  EXPECT_EQ(*quantization->format(*checkpoint_, kQ, 64, 96), std::nullopt);
  EXPECT_TRUE(quantization->tensors(*checkpoint_, kQ).empty());
}

TEST_F(Changed, OlderConfigurationsLieBesideConfigJson) {
  load("awq_g64");
  edited_.config.erase("quantization_config");
  folder_.put("quant_config.json", R"({"zero_point": true, "q_group_size": 64, "w_bit": 4, "version": "GEMM"})");
  auto quantization = parse();
  ASSERT_TRUE(quantization) << quantization.error().message;
  EXPECT_EQ(quantization->method(), "awq");
  EXPECT_TRUE(quantization->read(*checkpoint_, kQ, 32, 128));
  folder_.put("quantize_config.json", R"({"bits": 4, "group_size": 64})");
  EXPECT_EQ(parse()->method(), "gptq");
  folder_.put("quantize_config.json", "{");
  EXPECT_ERROR(parse(), kCorrupt, "quantize_config.json");
}

TEST_F(Changed, AnotherMethodIsNamed) {
  load("awq_g32");
  edited_.quantization()["quant_method"] = "bitsandbytes";
  EXPECT_ERROR(parse(), kUnsupported, "'bitsandbytes'", "wanted awq");
  edited_.quantization().erase("quant_method");
  EXPECT_ERROR(parse(), kCorrupt, "quant_method");
  edited_.quantization() = 4;
  EXPECT_ERROR(parse(), kCorrupt, "wanted an object");
}

TEST_F(Changed, PlainModules) {
  load("awq_g32");
  EXPECT_TRUE(is_plain(kDown));
  EXPECT_TRUE(is_plain("lm_head"));
  load("gptq_dynamic");
  EXPECT_TRUE(is_plain("model.layers.1.mlp.up_proj"));
  load("ct_mixed");
  EXPECT_TRUE(is_plain("lm_head"));
  EXPECT_TRUE(is_plain("model.layers.1.mlp.gate_proj"));
  load("fp8_block");
  EXPECT_TRUE(is_plain("lm_head"));
  EXPECT_TRUE(is_plain("model.layers.1.mlp.down_proj"));
}

TEST_F(Changed, AQuantizedModuleThatIsExcludedIsAContradiction) {
  load("awq_g32");
  edited_.quantization()["modules_to_not_convert"] = {"q_proj"};
  EXPECT_ERROR(format(kQ, 64, 96), kCorrupt, "qweight", "modules_to_not_convert");
  load("gptq_dynamic");
  edited_.quantization()["dynamic"] = {{"-:.*q_proj", nlohmann::ordered_json::object()}};
  EXPECT_ERROR(format(kQ, 32, 128), kCorrupt, "qweight", "dynamic");
  load("ct_mixed");
  edited_.quantization()["ignore"] = {"re:.*"};
  EXPECT_ERROR(format(kQ, 32, 64), kCorrupt, "weight_packed", "no config group");
  load("fp8_block");
  edited_.quantization()["modules_to_not_convert"] = {"model.layers.0"};
  EXPECT_ERROR(format(kDown, 40, 72), kCorrupt, "e4m3", "modules_to_not_convert");
}

TEST_F(Changed, OtherAwqVersionsAndBitsAreNamed) {
  for (const char* const version : {"gemv", "gemv_fast", "marlin", "exllama"}) {
    load("awq_g32");
    edited_.quantization()["version"] = version;
    EXPECT_ERROR(parse(), kUnsupported, version, "gemm");
  }
  load("awq_g32");
  edited_.quantization()["bits"] = 3;
  EXPECT_ERROR(parse(), kUnsupported, "3 bits");
  edited_.quantization()["bits"] = "4";
  EXPECT_ERROR(parse(), kCorrupt, "bits", "whole number");
}

TEST_F(Changed, OtherGptqFormsAreNamed) {
  load("gptq_v1_sym");
  for (const int bits : {2, 3, 8}) {
    edited_.quantization()["bits"] = bits;
    EXPECT_ERROR(parse(), kUnsupported, fmt::format("{} bits", bits));
  }
  load("gptq_v1_sym");
  edited_.quantization()["checkpoint_format"] = "marlin";
  EXPECT_ERROR(parse(), kUnsupported, "marlin");
  load("gptq_v1_sym");
  edited_.quantization()["pack_dtype"] = "int64";
  EXPECT_ERROR(parse(), kUnsupported, "int64");
  load("gptq_dynamic");
  edited_.quantization()["dynamic"] = {{"+:.*q_proj", {{"bits", 8}}}};
  EXPECT_ERROR(format(kQ, 32, 128), kUnsupported, "q_proj", "8 bits");
  edited_.quantization()["dynamic"] = {{"+:(", {{"bits", 8}}}};
  EXPECT_ERROR(parse(), kUnsupported, "pattern '('");
}

TEST_F(Changed, TheFirstDynamicRuleThatMatchesCounts) {
  load("gptq_dynamic");
  // In the order of the alphabet the second would come first.
  edited_.quantization()["dynamic"] = {{"model.*up_proj", {{"group_size", 64}, {"sym", false}}},
                                       {".*up_proj", {{"group_size", 16}}}};
  auto found = format("model.layers.0.mlp.up_proj", 32, 128);
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_EQ((*found)->group_k, 64);
}

TEST_F(Changed, GroupSizesAreNotBelieved) {
  for (const int64_t group :
       {int64_t{0}, int64_t{-2}, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()}) {
    load("gptq_v1_sym");
    edited_.quantization()["group_size"] = group;
    EXPECT_ERROR(parse(), kInvalidArgument, "group_size");
    load("awq_g32");
    edited_.quantization()["group_size"] = group;
    EXPECT_ERROR(parse(), kInvalidArgument, "group_size");
  }
  load("gptq_v1_sym");
  edited_.quantization()["group_size"] = 16;  // half of what the tensors have
  EXPECT_ERROR(format(kQ, 32, 128), kInvalidArgument, "qzeros", "[4, 4]", "wanted [8, 4]");
}

TEST_F(Changed, MissingTensorsAreNamed) {
  for (const auto& [fixture, module, suffix] : {std::tuple{"awq_g32", kQ, "qweight"},
                                                {"awq_g32", kQ, "qzeros"},
                                                {"awq_g32", kQ, "scales"},
                                                {"gptq_v2", kQ, "qweight"},
                                                {"gptq_v2", kQ, "qzeros"},
                                                {"gptq_v2", kQ, "scales"},
                                                {"ct_w4a16", kQ, "weight_packed"},
                                                {"ct_w4a16", kQ, "weight_scale"},
                                                {"ct_w4a16", kQ, "weight_shape"},
                                                {"fp8_block", kDown, "weight"},
                                                {"fp8_static", kDown, "input_scale"},
                                                {"fp8_static", kDown, "weight"}}) {
    load(fixture);
    const std::string name = fmt::format("{}.{}", module, suffix);
    ASSERT_EQ(edited_.tensors.erase(name), 1u);
    auto quantization = parse();
    ASSERT_TRUE(quantization);
    const Shape shape = fixture == std::string("awq_g32")     ? Shape{64, 96}
                        : fixture == std::string("gptq_v2")   ? Shape{32, 128}
                        : fixture == std::string("ct_w4a16")  ? Shape{16, 96}
                        : fixture == std::string("fp8_block") ? Shape{40, 72}
                                                              : Shape{24, 40};
    SCOPED_TRACE(fmt::format("{} {}", fixture, suffix));
    EXPECT_ERROR(quantization->format(*checkpoint_, module, shape[0], shape[1]), kNotFound, name, module);
  }
}

TEST_F(Changed, WrongShapesAndTypesAreNamed) {
  load("awq_g32");
  EXPECT_ERROR(format(kQ, 64, 128), kInvalidArgument, "qweight", "[96, 8]", "[128, 8]");
  EXPECT_ERROR(format(kQ, 60, 96), kUnsupported, "60", "multiple of 8");
  EXPECT_ERROR(format(kQ, 0, 96), kInvalidArgument, "0 x 96");
  EXPECT_ERROR(format(kQ, 64, int64_t{1} << 62), kInvalidArgument, "wanted 1 to");
  edited_.tensors.at(std::string(kQ) + ".scales").dtype = DType::kI16;
  EXPECT_ERROR(format(kQ, 64, 96), kInvalidArgument, "scales", "i16", "f16 or bf16 or f32");
  load("ct_w4a16");
  EXPECT_ERROR(format(kQ, 16, 104), kInvalidArgument, "weight_packed", "[16, 12]", "[16, 13]");
  edited_.resize(std::string(kQ) + ".weight_scale", {16, 0});
  EXPECT_ERROR(format(kQ, 16, 96), kInvalidArgument, "weight_scale", "[16, 0]", "[16, 3]");
  load("ct_w4a16");
  edited_.values<int64_t>(std::string(kQ) + ".weight_shape")[1] = int64_t{1} << 60;
  EXPECT_ERROR(read(kQ, 16, 96), kCorrupt, "weight_shape", "wanted [16, 96]");
  load("fp8_block");
  edited_.quantization()["weight_block_size"] = {16, 16};
  EXPECT_ERROR(format(kDown, 40, 72), kInvalidArgument, "weight_scale_inv", "[3, 3]", "[3, 5]");
  edited_.quantization()["weight_block_size"] = {0, 128};
  EXPECT_ERROR(parse(), kCorrupt, "weight_block_size");
}

TEST_F(Changed, ScalesMustBeFinite) {
  for (const auto& [fixture, suffix] :
       {std::pair{"awq_g64", "scales"}, {"gptq_v1_zero_0", "scales"}, {"ct_actorder", "weight_scale"}}) {
    load(fixture);
    edited_.values<uint16_t>(fmt::format("{}.{}", kQ, suffix))[5] = 0x7E00;
    auto checkpoint = edited_.write(folder_.path());
    const int64_t n = fixture == std::string("ct_actorder") ? 16 : 32;
    EXPECT_ERROR(read(kQ, n, 128), kCorrupt, suffix, "element 5", "not a number");
  }
  load("fp8_block");
  edited_.values<float>(std::string(kDown) + ".weight_scale_inv")[1] = std::numeric_limits<float>::infinity();
  EXPECT_ERROR(read(kDown, 40, 72), kCorrupt, "weight_scale_inv", "element 1");
  load("fp8_block");
  edited_.values<uint8_t>(std::string(kDown) + ".weight")[7] = 0xFF;
  EXPECT_ERROR(read(kDown, 40, 72), kCorrupt, "weight", "element 7", "not a number");
  load("fp8_static");
  edited_.values<float>(std::string(kDown) + ".input_scale")[0] = -1;
  EXPECT_ERROR(read(kDown, 24, 40), kCorrupt, "input_scale", "-1");
}

TEST_F(Changed, ColumnsMustLieInTheirGroups) {
  for (const auto& [fixture, suffix] : {std::pair{"gptq_act_order", "g_idx"}, {"ct_actorder", "weight_g_idx"}}) {
    const int64_t n = fixture == std::string("ct_actorder") ? 16 : 32;
    const std::string name = fmt::format("{}.{}", kQ, suffix);
    for (const int32_t bad : {4, -1, std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::min()}) {
      load(fixture);
      edited_.values<int32_t>(name)[3] = bad;
      EXPECT_ERROR(read(kQ, n, 128), kCorrupt, suffix, fmt::format("column 3 is in group {}", bad), "0 to 3");
    }
    load(fixture);
    edited_.values<int32_t>(name)[3] ^= 1;
    EXPECT_ERROR(read(kQ, n, 128), kCorrupt, suffix, "columns; wanted 32");
  }
}

TEST_F(Changed, AColumnOrderIsMadeOnlyWhereThereIsOne) {
  load("gptq_static_groups");
  EXPECT_TRUE(read(kQ, 32, 128)->k_order.empty());
  load("gptq_act_order");
  EXPECT_EQ(read(kQ, 32, 128)->k_order.size(), 128u);
  // The mark of a map that was never used.
  load("ct_actorder");
  std::fill_n(edited_.values<int32_t>(std::string(kQ) + ".weight_g_idx"), 128, -1);
  auto matrix = read(kQ, 16, 128);
  ASSERT_TRUE(matrix) << matrix.error().message;
  EXPECT_TRUE(matrix->k_order.empty());
}

TEST_F(Changed, SymmetricMeansZeroPointsOfEight) {
  load("gptq_v1_sym");
  edited_.values<uint32_t>(std::string(kQ) + ".qzeros")[2] = 0x77777767;
  EXPECT_ERROR(read(kQ, 32, 128), kCorrupt, "sym is true", "qzeros");
  load("awq_no_zero_point");
  edited_.values<uint32_t>(std::string(kQ) + ".qzeros")[2] = 0x88888788;
  EXPECT_ERROR(read(kQ, 32, 64), kCorrupt, "zero_point is false", "qzeros");
  edited_.tensors.erase(std::string(kQ) + ".qzeros");
  EXPECT_TRUE(read(kQ, 32, 64));
}

TEST_F(Changed, OtherCompressedTensorsSchemesAreNamed) {
  const auto expect = [&](const std::string& pointer, const nlohmann::ordered_json& value, const std::string& reason) {
    SCOPED_TRACE(pointer);
    load("ct_w4a16");
    edited_.quantization()[nlohmann::ordered_json::json_pointer(pointer)] = value;
    EXPECT_ERROR(parse(), kUnsupported, reason);
  };
  const std::string group = "/config_groups/group_0";
  expect(group + "/weights/num_bits", 8, "of 8 bits");
  expect(group + "/weights/type", "float", "of 4 bits");
  expect(group + "/weights/strategy", "tensor_group", "'tensor_group'");
  expect(group + "/weights/dynamic", true, "dynamic weights");
  expect(group + "/format", "marlin-24", "'marlin-24'");
  expect(group + "/input_activations", {{"num_bits", 8}, {"type", "int"}}, "int activations");
  expect(group + "/output_activations", {{"num_bits", 8}}, "output_activations");
  expect(group + "/targets/0", "re:(?<=x)y", "pattern");
  expect("/kv_cache_scheme", {{"num_bits", 4}, {"type", "int"}}, "int of 4 bits");
  expect("/transform_config", {{"config_groups", {{"u", 1}}}}, "transform_config");
  expect("/sparsity_config", {{"format", "sparse-24-bitmask"}}, "sparse-24-bitmask");
}

TEST_F(Changed, KvFormats) {
  load("ct_mixed");
  EXPECT_EQ(parse()->kv_format(), KvFormatId::kFp8);
  load("ct_w4a16");
  EXPECT_EQ(parse()->kv_format(), std::nullopt);
}

TEST_F(Changed, APatternThatBacktracksIsNoTrap) {
  load("ct_w4a16");
  edited_.quantization()["ignore"] = {"re:(a*)*b"};
  auto quantization = parse();
  ASSERT_TRUE(quantization);
  // Exponential in a backtracking engine: it would not return.
  EXPECT_ERROR(quantization->format(*checkpoint_, std::string(40, 'a'), 8, 8), kNotFound, "weight_packed");
}

}  // namespace
}  // namespace hearth
