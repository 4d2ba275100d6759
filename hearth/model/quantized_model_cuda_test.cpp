// SPDX-License-Identifier: Apache-2.0
// Quantized models on a GPU: fable-13m, rounded here to every kind of format, against the reference. Label gpu: without a
// device every test here fails.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "hearth/checkpoint/convert.h"
#include "hearth/checkpoint/quantized_writer.h"
#include "hearth/checkpoint/test_util.h"
#include "hearth/model/golden_for_test.h"

namespace hearth {
namespace {

namespace fs = std::filesystem;
using testing_util::TempFolder;

constexpr const char* kModel = "models/fable-13m";
constexpr int64_t kGroup = 128;

// Two's complement as bitvectors.
constexpr std::array<float, 4> kLine = {-8, 4, 2, 1};

// What a 4-bit code means before its scale.
std::array<float, 16> levels(const WeightFormat& format) {
  std::array<float, 16> values = code_values(format.code);
  if (format.code == WeightCode::kBitvectors) subset_sums(kLine, values);
  if (format.code == WeightCode::kU4)
    for (float& v : values) v -= 8;
  return values;
}

// Round to nearest, by the largest magnitude of a group (4-bit codes) or a row (E4M3).
QuantizedMatrix round_weights(const WeightFormat& format, std::span<const float> weights, int64_t n, int64_t k) {
  QuantizedMatrix matrix;
  matrix.format = format;
  matrix.n = n, matrix.k = k;
  matrix.codes.assign(static_cast<size_t>(n * matrix.row_bytes()), 0);
  const bool is_e4m3 = format.code == WeightCode::kE4m3;
  const std::array<float, 16> table = levels(format);
  const float largest_level = is_e4m3 ? 448 : *std::ranges::max_element(table);
  const int64_t group = is_e4m3 ? k : kGroup;
  for (int64_t row = 0; row < n; ++row) {
    const std::span<uint8_t> codes(matrix.codes.data() + row * matrix.row_bytes(),
                                   static_cast<size_t>(matrix.row_bytes()));
    for (int64_t begin = 0; begin < k; begin += group) {
      const std::span<const float> part =
          weights.subspan(static_cast<size_t>(row * k + begin), static_cast<size_t>(std::min(group, k - begin)));
      float largest = 1e-4f;
      for (const float w : part) largest = std::max(largest, std::abs(w));
      const float scale = f16::from_float(largest / largest_level).to_float();
      matrix.scales.push_back(scale);
      for (size_t j = 0; j < part.size(); ++j) {
        if (is_e4m3) {
          codes[j] = e4m3::from_float(part[j] / scale).bits;
          continue;
        }
        const auto off = [&](float level) { return std::abs(part[j] - scale * level); };
        const auto nearest = std::ranges::min_element(table, {}, off) - table.begin();
        put_nibble(codes, begin + static_cast<int64_t>(j), static_cast<uint8_t>(nearest));
      }
    }
  }
  if (format.code == WeightCode::kBitvectors) {
    matrix.lines.assign(kLine.begin(), kLine.end());
    matrix.line_scales = {1};
    matrix.line_index.assign(matrix.scales.size(), 0);
  }
  if (format.act == ActFormat::kE4m3Static) matrix.act_scale = 0.02f;
  return matrix;
}

// fable-13m with its layers' linears in `format`.
void write_rounded(const fs::path& dir, const WeightFormat& format) {
  const auto checkpoint = Checkpoint::open(kModel);
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  std::vector<StoredTensor> tensors;
  QuantizedModel model{.plain = {"lm_head"}};
  for (const TensorEntry& entry : checkpoint->tensors()) {
    std::vector<std::byte> bytes(static_cast<size_t>(entry.size_bytes));
    ASSERT_TRUE(checkpoint->read(entry, bytes));
    if (!entry.name.ends_with("_proj.weight")) {
      tensors.push_back({{entry.name, entry.dtype, entry.shape}, std::move(bytes)});
      continue;
    }
    const std::string module = entry.name.substr(0, entry.name.size() - std::string_view(".weight").size());
    const int64_t n = entry.shape[0], k = entry.shape[1];
    std::vector<float> weights(static_cast<size_t>(n * k));
    ASSERT_TRUE(convert_floats(entry.dtype, bytes, DType::kF32, std::as_writable_bytes(std::span(weights))));
    model.quantized.push_back({module, format, n, k});
    auto parts = tensors_of(round_weights(format, weights, n, k), module, CheckpointForm::kHearth);
    ASSERT_TRUE(parts) << parts.error().message;
    for (StoredTensor& part : *parts) tensors.push_back(std::move(part));
  }
  auto config = quantization_config(model, CheckpointForm::kHearth);
  ASSERT_TRUE(config) << config.error().message;
  nlohmann::json whole = checkpoint->config();
  whole["quantization_config"] = *config;
  std::ofstream(dir / "config.json") << whole;
  std::vector<TensorData> list;
  for (const StoredTensor& tensor : tensors) list.push_back({tensor.spec, tensor.bytes});
  ASSERT_TRUE(write_safetensors(dir / "model.safetensors", list));
}

WeightFormat groups_of(WeightCode code, ActFormat act) {
  return {.code = code, .scale_layout = ScaleLayout::kGroup, .scale_dtype = DType::kF16, .group_k = kGroup, .act = act};
}
WeightFormat sbvr(ActFormat act) {
  WeightFormat format = groups_of(WeightCode::kBitvectors, act);
  format.bitvectors = 4, format.lines = 1, format.integer_lines = true;
  return format;
}
WeightFormat fp8(ActFormat act) {
  return {.code = WeightCode::kE4m3, .scale_layout = ScaleLayout::kRow, .scale_dtype = DType::kF32, .act = act};
}

// Logits of the golden prompts' first 80 ids, in f32.
std::vector<float> logits_of(const fs::path& dir, const OpTable& ops, size_t chunk) {
  ThreadPool pool(4);
  Runner runner = testing::make_runner(testing::load_model(dir, pool, {}, ops), pool, {.max_context = 80});
  std::vector<int32_t> ids;
  for (const testing::GoldenPrompt& golden : testing::read_golden(kModel))
    ids.insert(ids.end(), golden.ids.begin(), golden.ids.end());
  HEARTH_CHECK(ids.size() >= 80, "{} ids", ids.size());
  ids.resize(80);
  std::vector<float> all;
  for (const std::vector<float>& row : testing::all_logits(runner, 0, ids, chunk))
    all.insert(all.end(), row.begin(), row.end());
  return all;
}

struct Difference {
  double mean = 0, largest = 0;
};
Difference difference(const std::vector<float>& a, const std::vector<float>& b) {
  Difference found;
  EXPECT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = std::abs(double{a[i]} - b[i]);
    found.mean += d / static_cast<double>(a.size());
    found.largest = std::max(found.largest, d);
  }
  return found;
}

class CudaQuantized : public ::testing::TestWithParam<WeightFormat> {};

// Activations as they are: what differs is the order of sums, and the promise is that of plain models. Where activations
// are rounded, another order of sums moves some number over the middle between two codes; what follows from it moves
// others, until roundings are as good as independent. Two such runs differ by at most the square root of two of what
// rounding does to either; the CPU's logits, printed beside ours, show it too.
TEST_P(CudaQuantized, LogitsAreThoseOfTheReference) {
  const WeightFormat format = GetParam();
  const TempFolder folder;
  const fs::path dir = folder.path() / "rounded", native_dir = folder.path() / "native";
  fs::create_directory(dir), fs::create_directory(native_dir);
  ASSERT_NO_FATAL_FAILURE(write_rounded(dir, format));
  const std::vector<float> wanted = logits_of(dir, ref_ops(), 80), cpu = logits_of(dir, cpu_ops(), 80);
  const std::vector<float> gpu = logits_of(dir, *cuda_ops(), 80);
  const Difference ours = difference(gpu, wanted), theirs = difference(cpu, wanted);
  if (format.act == ActFormat::kNative) {
    EXPECT_LE(ours.largest, 1e-4);
  } else {
    WeightFormat native = format;
    native.act = ActFormat::kNative;
    ASSERT_NO_FATAL_FAILURE(write_rounded(native_dir, native));
    const double rounding = difference(logits_of(native_dir, cpu_ops(), 80), cpu).mean;
    EXPECT_LE(ours.mean, 1.5 * rounding);
    fmt::print("{}: rounded activations move logits by {:.2g} in the mean\n", to_string(format), rounding);
  }
  fmt::print(
      "{}: logits differ from the reference's by {:.2g} in the mean, {:.2g} at most; the CPU's by {:.2g}, {:.2g}\n",
      to_string(format), ours.mean, ours.largest, theirs.mean, theirs.largest);
  // Row independence (decision 0004): one token at a time, other tiles, the same bits.
  const std::vector<float> single = logits_of(dir, *cuda_ops(), 1);
  EXPECT_EQ(single, gpu);
}

INSTANTIATE_TEST_SUITE_P(Formats, CudaQuantized,
                         ::testing::Values(groups_of(WeightCode::kU4, ActFormat::kNative),
                                           groups_of(WeightCode::kI4SignMagnitude, ActFormat::kE4m3PerToken),
                                           groups_of(WeightCode::kC4, ActFormat::kE4m3PerToken),
                                           fp8(ActFormat::kE4m3PerToken), fp8(ActFormat::kE4m3Static),
                                           sbvr(ActFormat::kNative), sbvr(ActFormat::kI8PerGroup)),
                         [](const auto& tested) {
                           std::string name = to_string(tested.param);
                           std::erase_if(name, [](char c) { return std::isalnum(static_cast<unsigned char>(c)) == 0; });
                           return name;
                         });

}  // namespace
}  // namespace hearth
