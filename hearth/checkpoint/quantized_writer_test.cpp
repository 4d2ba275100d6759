// SPDX-License-Identifier: Apache-2.0
// Writing quantized checkpoints: what a package wrote is written again byte by byte, and what hearth writes in its own
// form is read back equal. HEARTH_KEEP_WRITTEN=DIR keeps a folder for tests/quant/check_compressed_tensors.py.
#include "hearth/checkpoint/quantized_writer.h"

#include <cstdlib>
#include <limits>
#include <random>

#include "hearth/checkpoint/quantized_test_util.h"

namespace hearth {
namespace {

using testing_util::dequantized;
using testing_util::EditableCheckpoint;
using testing_util::kQuantizedFixtures;
using testing_util::TempFolder;

constexpr uint64_t kSeed = 20261122;

void put(EditableCheckpoint& checkpoint, const std::vector<StoredTensor>& tensors) {
  for (const StoredTensor& tensor : tensors)
    checkpoint.tensors[tensor.spec.name] = {tensor.spec.dtype, tensor.spec.shape, tensor.bytes};
}

// A valid matrix of random codes and scales that the types hold.
QuantizedMatrix random_matrix(const WeightFormat& format, int64_t n, int64_t k, std::mt19937_64& random) {
  QuantizedMatrix matrix{.format = format, .n = n, .k = k};
  const auto scale = [&](DType dtype) {
    const float value = std::uniform_real_distribution<float>(0.01f, 0.5f)(random);
    if (dtype == DType::kF16) return f16::from_float(value).to_float();
    if (dtype == DType::kBf16) return bf16::from_float(value).to_float();
    if (dtype == DType::kE4m3) return e4m3::from_float(value).to_float();
    return value;
  };
  matrix.codes.resize(static_cast<size_t>(n * matrix.row_bytes()));
  for (uint8_t& code : matrix.codes) {
    code = static_cast<uint8_t>(random());
    if (format.code == WeightCode::kE4m3 && (code & 0x7F) == 0x7F) code = 0;
    if (format.bitvectors > 4) code &= static_cast<uint8_t>((1 << format.bitvectors) - 1);
    if (format.bitvectors == 2) code &= 0x33;
    if (format.bitvectors == 3) code &= 0x77;
  }
  if (k % 2 != 0 && format.code_bits() <= 4) {
    for (int64_t row = 0; row < n; ++row) matrix.codes[static_cast<size_t>((row + 1) * matrix.row_bytes() - 1)] &= 15;
  }
  matrix.scales.resize(static_cast<size_t>(format.scale_count(n, k)));
  for (float& value : matrix.scales) value = scale(format.scale_dtype);
  if (format.has_zero_point) matrix.zeros.resize(matrix.scales.size());
  for (uint8_t& zero : matrix.zeros) zero = static_cast<uint8_t>(random() % 16);
  if (format.code == WeightCode::kBitvectors) {
    matrix.lines.resize(static_cast<size_t>(format.lines * format.bitvectors));
    for (float& value : matrix.lines)
      value = format.integer_lines ? static_cast<float>(static_cast<int>(random() % 31) - 15) : -scale(DType::kF16);
    if (format.integer_lines) matrix.line_scales.resize(static_cast<size_t>(format.lines));
    for (float& value : matrix.line_scales) value = scale(DType::kF16);
    matrix.line_index.resize(static_cast<size_t>(n * ((k + format.group_k - 1) / format.group_k)));
    for (uint16_t& index : matrix.line_index)
      index = static_cast<uint16_t>(random() % static_cast<uint64_t>(format.lines));
    matrix.line_index.back() = static_cast<uint16_t>(format.lines - 1);
  }
  if (format.act == ActFormat::kE4m3Static) matrix.act_scale = 0.0123f;
  return matrix;
}

void expect_equal(const QuantizedMatrix& found, const QuantizedMatrix& wanted) {
  EXPECT_EQ(to_string(found.format), to_string(wanted.format));
  EXPECT_EQ(found.format, wanted.format);
  EXPECT_EQ(found.codes, wanted.codes);
  EXPECT_EQ(found.scales, wanted.scales);
  EXPECT_EQ(found.zeros, wanted.zeros);
  EXPECT_EQ(found.lines, wanted.lines);
  EXPECT_EQ(found.line_scales, wanted.line_scales);
  EXPECT_EQ(found.line_index, wanted.line_index);
  EXPECT_EQ(found.k_order, wanted.k_order);
  EXPECT_EQ(found.act_scale, wanted.act_scale);
}

WeightFormat fp8(ScaleLayout layout, ActFormat act) {
  WeightFormat format{.code = WeightCode::kE4m3, .scale_layout = layout, .act = act};
  if (layout == ScaleLayout::kBlock) format.group_k = format.block_n = 16;
  return format;
}
WeightFormat grouped(WeightCode code, DType scales, int64_t group, ActFormat act, bool zeros = false) {
  return {.code = code,
          .scale_layout = ScaleLayout::kGroup,
          .scale_dtype = scales,
          .group_k = group,
          .has_zero_point = zeros,
          .act = act};
}
WeightFormat bitvectors(int sums, int64_t lines, bool integers) {
  return {.code = WeightCode::kBitvectors,
          .group_k = 128,
          .bitvectors = sums,
          .lines = lines,
          .integer_lines = integers,
          .act = ActFormat::kI8PerGroup};
}

// Reads a package's modules and writes them: the same tensors, byte by byte.
TEST(QuantizedWriter, WritesWhatThePackageWrote) {
  auto checkpoint = Checkpoint::open(kQuantizedFixtures / "ct_mixed");
  ASSERT_TRUE(checkpoint);
  auto quantization = Quantization::parse(*checkpoint);
  ASSERT_TRUE(quantization);
  const EditableCheckpoint original = EditableCheckpoint::load("ct_mixed");
  for (const auto& [name, n, k] : {std::tuple{"self_attn.q_proj", 32, 64},
                                   {"self_attn.k_proj", 16, 64},
                                   {"self_attn.v_proj", 16, 40},
                                   {"self_attn.o_proj", 20, 44},
                                   {"mlp.gate_proj", 24, 48},
                                   {"mlp.up_proj", 24, 48},
                                   {"mlp.down_proj", 40, 56}}) {
    const std::string module = fmt::format("model.layers.0.{}", name);
    SCOPED_TRACE(module);
    auto matrix = quantization->read(*checkpoint, module, n, k);
    ASSERT_TRUE(matrix) << matrix.error().message;
    auto tensors = tensors_of(*matrix, module, CheckpointForm::kCompressedTensors);
    ASSERT_TRUE(tensors) << tensors.error().message;
    EXPECT_EQ(tensors->size(), quantization->tensors(*checkpoint, module).size());
    for (const StoredTensor& tensor : *tensors) {
      const auto& wanted = original.tensors.at(tensor.spec.name);
      EXPECT_EQ(tensor.spec.dtype, wanted.dtype) << tensor.spec.name;
      EXPECT_EQ(to_string(tensor.spec.shape), to_string(wanted.shape)) << tensor.spec.name;
      EXPECT_EQ(tensor.bytes, wanted.bytes) << tensor.spec.name;
    }
  }
}

struct Model {
  QuantizedModel description;
  std::vector<QuantizedMatrix> matrices;

  void add(const std::string& name, const WeightFormat& format, int64_t n, int64_t k, std::mt19937_64& random) {
    description.quantized.push_back({name, format, n, k});
    matrices.push_back(random_matrix(format, n, k, random));
  }
};

// Writes the model in `form` and reads every module back.
void expect_round_trip(const Model& model, CheckpointForm form, const std::filesystem::path& dir) {
  EditableCheckpoint written;
  for (size_t i = 0; i < model.matrices.size(); ++i) {
    auto tensors = tensors_of(model.matrices[i], model.description.quantized[i].name, form);
    ASSERT_TRUE(tensors) << tensors.error().message;
    put(written, *tensors);
    // What the format says of its size is what lies there (compressed-tensors adds the shape and pads words).
    int64_t bytes = 0;
    for (const StoredTensor& tensor : *tensors) bytes += std::ssize(tensor.bytes);
    const QuantizedModule& module = model.description.quantized[i];
    if (form == CheckpointForm::kHearth && module.k % 32 == 0 && module.format.act != ActFormat::kE4m3Static &&
        model.matrices[i].k_order.empty()) {
      EXPECT_EQ(bytes, module.format.stored_bytes(module.n, module.k)) << module.name;
    }
  }
  for (const std::string& name : model.description.plain)
    written.tensors[name + ".weight"] = {DType::kBf16, {2, 2}, std::vector<std::byte>(8)};
  auto config = quantization_config(model.description, form);
  ASSERT_TRUE(config) << config.error().message;
  written.quantization() = *config;
  auto checkpoint = written.write(dir);
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  auto quantization = Quantization::parse(*checkpoint);
  ASSERT_TRUE(quantization) << quantization.error().message;
  EXPECT_EQ(quantization->kv_format(), model.description.kv);
  size_t tensors = model.description.plain.size();
  for (size_t i = 0; i < model.matrices.size(); ++i) {
    const QuantizedModule& module = model.description.quantized[i];
    SCOPED_TRACE(module.name);
    auto matrix = quantization->read(*checkpoint, module.name, module.n, module.k);
    ASSERT_TRUE(matrix) << matrix.error().message;
    expect_equal(*matrix, model.matrices[i]);
    tensors += quantization->tensors(*checkpoint, module.name).size();
  }
  EXPECT_EQ(tensors, checkpoint->tensors().size()) << "tensors that nobody reads";
  for (const std::string& name : model.description.plain) {
    auto format = quantization->format(*checkpoint, name, 2, 2);
    ASSERT_TRUE(format) << format.error().message;
    EXPECT_FALSE(format->has_value());
  }
}

TEST(QuantizedWriter, CompressedTensorsReadsBackEqual) {
  std::mt19937_64 random(kSeed);
  SCOPED_TRACE(kSeed);
  Model model;
  model.description.plain = {"lm_head"};
  model.description.kv = KvFormatId::kFp8;
  const auto native = ActFormat::kNative, token = ActFormat::kE4m3PerToken;
  model.add("a.q_proj", grouped(WeightCode::kU4, DType::kBf16, 32, native), 24, 96, random);
  model.add("a.k_proj", grouped(WeightCode::kU4, DType::kF16, 32, native, true), 17, 64, random);
  model.add("a.v_proj", {.code = WeightCode::kU4, .scale_layout = ScaleLayout::kRow, .scale_dtype = DType::kBf16}, 8,
            45, random);
  model.add("a.o_proj", fp8(ScaleLayout::kRow, token), 24, 33, random);
  model.add("a.up_proj", fp8(ScaleLayout::kTensor, ActFormat::kE4m3Static), 24, 40, random);
  model.add("a.down_proj", fp8(ScaleLayout::kBlock, token), 40, 40, random);
  EXPECT_EQ(choose_form(model.description), CheckpointForm::kCompressedTensors);
  const TempFolder folder;
  expect_round_trip(model, CheckpointForm::kCompressedTensors, folder.path());
  const char* const keep = std::getenv("HEARTH_KEEP_WRITTEN");
  if (keep == nullptr) return;
  expect_round_trip(model, CheckpointForm::kCompressedTensors, keep);
  EditableCheckpoint expected;
  for (size_t i = 0; i < model.matrices.size(); ++i) {
    const QuantizedMatrix& matrix = model.matrices[i];
    const std::vector<float> values = dequantized(matrix);
    const auto bytes = std::as_bytes(std::span(values));
    expected.tensors[model.description.quantized[i].name] = {
        DType::kF32, {matrix.n, matrix.k}, {bytes.begin(), bytes.end()}};
  }
  ASSERT_TRUE(expected.write(std::filesystem::path(keep) / "expected"));
}

TEST(QuantizedWriter, HearthFormReadsBackEqual) {
  std::mt19937_64 random(kSeed);
  SCOPED_TRACE(kSeed);
  Model model;
  model.description.plain = {"lm_head"};
  model.description.kv = KvFormatId::kInt4Fireq;
  const auto token = ActFormat::kE4m3PerToken;
  int i = 0;
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{8, 256}, {5, 160}, {3, 77}, {1, 1}}) {
    const auto add = [&](const WeightFormat& format) { model.add(fmt::format("m{}", i++), format, n, k, random); };
    add(grouped(WeightCode::kI4SignMagnitude, DType::kF16, 128, token));
    add(grouped(WeightCode::kC4, DType::kF16, 128, token));
    add(grouped(WeightCode::kU4, DType::kBf16, 128, ActFormat::kNative));
    add(grouped(WeightCode::kU4, DType::kF16, 64, ActFormat::kNative, true));
    add(grouped(WeightCode::kC4, DType::kE4m3, 32, ActFormat::kNative));
    add(fp8(ScaleLayout::kRow, token));
    add(fp8(ScaleLayout::kTensor, ActFormat::kE4m3Static));
    add(fp8(ScaleLayout::kBlock, token));
    for (const int sums : {2, 3, 4, 5, 8}) {
      add(bitvectors(sums, 256, true));
      add(bitvectors(sums, 257, false));
    }
    add(bitvectors(4, 4096, true));
    WeightFormat scaled = bitvectors(4, 7, true);  // a scale of its own for every group
    scaled.scale_layout = ScaleLayout::kGroup;
    scaled.scale_dtype = DType::kF16;
    add(scaled);
  }
  model.add("authors", bitvectors(4, 65536, false), 8, 256, random);
  model.add("ordered", grouped(WeightCode::kU4, DType::kF16, 16, ActFormat::kNative), 8, 32, random);
  std::vector<int32_t>& order = model.matrices.back().k_order;
  for (int32_t j = 0; j < 32; ++j) order.push_back(j * 5 % 32);
  EXPECT_EQ(choose_form(model.description), CheckpointForm::kHearth);
  const TempFolder folder;
  expect_round_trip(model, CheckpointForm::kHearth, folder.path());
}

// docs/formats/hearth-quantized.md, by hand: column 32 of two bitvectors in the second block of words.
TEST(QuantizedWriter, BitvectorsLieAsDocumented) {
  std::mt19937_64 random(kSeed);
  QuantizedMatrix matrix = random_matrix(bitvectors(2, 3, true), 2, 34, random);
  std::ranges::fill(matrix.codes, uint8_t{0});
  put_nibble(std::span(matrix.codes).subspan(17), 0, 2);   // row 1, column 0: bitvector 0
  put_nibble(std::span(matrix.codes).subspan(17), 33, 1);  // row 1, column 33: bitvector 1
  matrix.line_index = {2, 1};
  auto tensors = tensors_of(matrix, "m", CheckpointForm::kHearth);
  ASSERT_TRUE(tensors) << tensors.error().message;
  const auto find = [&](const char* name) {
    return *std::ranges::find_if(*tensors, [&](const StoredTensor& tensor) { return tensor.spec.name == name; });
  };
  const StoredTensor bits = find("m.sbvr_bits");
  EXPECT_EQ(to_string(bits.spec.shape), "[2, 2, 2]");
  std::vector<uint32_t> words(8), wanted(8);
  std::memcpy(words.data(), bits.bytes.data(), 32);
  wanted[0 * 4 + 1 * 2 + 0] = 1;        // block 0, row 1, bitvector 0, bit 0
  wanted[1 * 4 + 1 * 2 + 1] = 1u << 1;  // block 1, row 1, bitvector 1, bit 1
  EXPECT_EQ(words, wanted);
  const StoredTensor index = find("m.sbvr_index");
  EXPECT_EQ(to_string(index.spec.shape), "[1, 2]");
  EXPECT_EQ(index.bytes, (std::vector<std::byte>{std::byte{2}, std::byte{1}}));
}

TEST(QuantizedWriter, TheFormIsChosenByWhatItCanSay) {
  const auto native = ActFormat::kNative;
  const WeightFormat int4 = grouped(WeightCode::kU4, DType::kBf16, 128, native);
  const auto form = [](const WeightFormat& format, int64_t k, std::optional<KvFormatId> kv) {
    return choose_form({.quantized = {{"m", format, 8, k}}, .plain = {}, .kv = kv});
  };
  const auto foreign = CheckpointForm::kCompressedTensors, own = CheckpointForm::kHearth;
  EXPECT_EQ(form(int4, 256, std::nullopt), foreign);
  EXPECT_EQ(form(int4, 256, KvFormatId::kBf16), foreign);
  EXPECT_EQ(form(int4, 256, KvFormatId::kFp8), foreign);
  EXPECT_EQ(form(int4, 256, KvFormatId::kInt4), own);
  EXPECT_EQ(form(int4, 200, std::nullopt), own);
  EXPECT_EQ(form(grouped(WeightCode::kC4, DType::kF16, 128, native), 256, std::nullopt), own);
  EXPECT_EQ(form(bitvectors(4, 16, true), 256, std::nullopt), own);
}

TEST(QuantizedWriter, RefusesWhatTheFormCannotSay) {
  std::mt19937_64 random(kSeed);
  const auto foreign = CheckpointForm::kCompressedTensors;
  QuantizedMatrix matrix = random_matrix(grouped(WeightCode::kU4, DType::kBf16, 32, ActFormat::kNative), 4, 48, random);
  EXPECT_ERROR(tensors_of(matrix, "m", foreign), kUnsupported, "m:", "48 columns");
  EXPECT_ERROR(quantization_config({.quantized = {{"m", matrix.format, 4, 48}}, .plain = {}}, foreign), kUnsupported,
               "48 columns");
  matrix = random_matrix(matrix.format, 4, 32, random);
  for (int32_t j = 0; j < 32; ++j) matrix.k_order.push_back(31 - j);
  EXPECT_ERROR(tensors_of(matrix, "m", foreign), kUnsupported, "column order");
  matrix.k_order.clear();
  matrix.scales[2] = 0.1f;
  EXPECT_ERROR(tensors_of(matrix, "m", foreign), kInvalidArgument, "m.weight_scale", "element 2", "bf16");
  matrix.scales[2] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_ERROR(tensors_of(matrix, "m", CheckpointForm::kHearth), kInvalidArgument, "weight_scale", "nan");
  matrix.scales.pop_back();
  EXPECT_ERROR(tensors_of(matrix, "m", foreign), kInvalidArgument, "m:", "scales, wanted 4");
  QuantizedMatrix lines = random_matrix(bitvectors(4, 3, true), 2, 128, random);
  lines.lines[1] = 128;
  EXPECT_ERROR(tensors_of(lines, "m", CheckpointForm::kHearth), kInvalidArgument, "-127 to 127");
}

// hearth's own form with something wrong.
class HearthForm : public ::testing::Test {
 protected:
  void SetUp() override {
    std::mt19937_64 random(kSeed);
    Model model;
    model.add("m", bitvectors(4, 9, true), 4, 128, random);
    model.add("c", grouped(WeightCode::kC4, DType::kF16, 128, ActFormat::kE4m3PerToken), 4, 128, random);
    for (size_t i = 0; i < 2; ++i)
      put(edited_, *tensors_of(model.matrices[i], model.description.quantized[i].name, CheckpointForm::kHearth));
    edited_.quantization() = *quantization_config(model.description, CheckpointForm::kHearth);
  }
  Result<QuantizedMatrix> read(const std::string& module) {
    HEARTH_TRY_ASSIGN(const Checkpoint checkpoint, edited_.write(folder_.path()));
    HEARTH_TRY_ASSIGN(const Quantization quantization, Quantization::parse(checkpoint));
    HEARTH_TRY(quantization.format(checkpoint, module, 4, 128));
    return quantization.read(checkpoint, module, 4, 128);
  }
  TempFolder folder_;
  EditableCheckpoint edited_;
};

TEST_F(HearthForm, LaterVersionsAreRefused) {
  ASSERT_TRUE(read("m"));
  edited_.quantization()["version"] = 2;
  EXPECT_ERROR(read("m"), kUnsupported, "version 2; wanted 1");
  edited_.quantization()["version"] = 1;
  edited_.quantization()["rotation"] = "hadamard";
  EXPECT_ERROR(read("m"), kUnsupported, "'rotation'");
  edited_.quantization().erase("rotation");
  edited_.quantization()["formats"]["c4"]["code"] = "c5";
  EXPECT_ERROR(read("m"), kUnsupported, "'c5'", "c4");
  edited_.quantization()["formats"]["c4"]["code"] = "c4";
  edited_.quantization()["kv_format"] = "int3";
  EXPECT_ERROR(read("m"), kUnsupported, "'int3'");
}

TEST_F(HearthForm, ModulesMustHaveAFormatAndTheirTensors) {
  edited_.quantization()["modules"]["m"] = "missing";
  EXPECT_ERROR(read("m"), kCorrupt, "missing");
  edited_.quantization()["modules"].erase("m");
  EXPECT_ERROR(read("m"), kCorrupt, "m.sbvr_bits", "does not name");
  for (const char* const name :
       {"m.sbvr_bits", "m.sbvr_index", "m.sbvr_lines", "m.sbvr_line_scale", "c.weight_codes", "c.weight_scale"}) {
    edited_ = {};
    SetUp();
    ASSERT_EQ(edited_.tensors.erase(name), 1u) << name;
    EXPECT_ERROR(read(std::string(1, name[0])), kNotFound, name);
  }
}

TEST_F(HearthForm, IndicesAndCoefficientsStayInRange) {
  edited_.values<uint8_t>("m.sbvr_index")[1] = 9;
  EXPECT_ERROR(read("m"), kCorrupt, "line 9 of 9");
  edited_.values<uint8_t>("m.sbvr_index")[1] = 8;
  edited_.values<int8_t>("m.sbvr_lines")[3] = -128;
  EXPECT_ERROR(read("m"), kCorrupt, "sbvr_lines", "element 3 is -128");
  edited_.values<int8_t>("m.sbvr_lines")[3] = 0;
  for (const int element : {4, 6}) edited_.values<int8_t>("m.sbvr_lines")[element] = 100;
  EXPECT_ERROR(read("m"), kCorrupt, "coefficients of line 1 add up to", "wanted -127 to 127");
  for (const int element : {4, 6}) edited_.values<int8_t>("m.sbvr_lines")[element] = 0;
  edited_.values<uint16_t>("m.sbvr_line_scale")[2] = 0x7C00;
  EXPECT_ERROR(read("m"), kCorrupt, "sbvr_line_scale", "element 2");
  edited_.resize("m.sbvr_lines", {0, 4});
  EXPECT_ERROR(read("m"), kInvalidArgument, "0 coefficient lines");
  edited_.resize("m.sbvr_lines", {70000, 4});
  EXPECT_ERROR(read("m"), kInvalidArgument, "70000 coefficient lines");
  edited_.resize("m.sbvr_lines", {9, 4});
  edited_.resize("m.sbvr_bits", {4, 4, 3});
  EXPECT_ERROR(read("m"), kInvalidArgument, "sbvr_bits", "[4, 4, 3]", "wanted [4, 4, 4]");
  edited_.values<uint16_t>("c.weight_scale")[0] = 0x7E00;
  EXPECT_ERROR(read("c"), kCorrupt, "weight_scale", "element 0");
}

}  // namespace
}  // namespace hearth
