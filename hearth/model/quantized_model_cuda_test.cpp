// SPDX-License-Identifier: Apache-2.0
// Quantized models on a GPU: fable-13m, rounded here to every kind of format, against the reference. Label gpu: without
// a device every test here fails.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "hearth/checkpoint/test_util.h"
#include "hearth/model/golden_for_test.h"
#include "hearth/model/rounded_for_test.h"

namespace hearth {
namespace {

namespace fs = std::filesystem;
using testing::fp8;
using testing::groups_of;
using testing::sbvr;
using testing::write_rounded;
using testing_util::TempFolder;

// Logits of the golden prompts' first 80 ids, in f32.
std::vector<float> logits_of(const fs::path& dir, const OpTable& ops, size_t chunk) {
  ThreadPool pool(4);
  Runner runner = testing::make_runner(testing::load_model(dir, pool, {}, ops), pool, {.max_context = 80});
  std::vector<int32_t> ids;
  for (const testing::GoldenPrompt& golden : testing::read_golden(testing::kRoundedModel))
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

// Activations as they are: what differs is the order of sums, and the promise is that of plain models. Where
// activations are rounded, another order of sums moves some number over the middle between two codes; what follows from
// it moves others, until roundings are as good as independent. Two such runs differ by at most the square root of two
// of what rounding does to either; the CPU's logits, printed beside ours, show it too.
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
