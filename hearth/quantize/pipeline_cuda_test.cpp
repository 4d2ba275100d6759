// SPDX-License-Identifier: Apache-2.0
// The quantizer with its activations on a GPU, against the CPU, on fable-13m. Label gpu: without a device every test
// here fails.
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "hearth/checkpoint/test_util.h"
#include "hearth/quantize/calibrate_test_cases.h"
#include "hearth/quantize/pipeline.h"

namespace hearth {
namespace {

namespace fs = std::filesystem;
using testing_util::TempFolder;

QuantizeOptions options_on(const OpTable& ops) {
  QuantizeOptions options;
  options.to = "int4";
  options.calibration = CalibrationOptions{.file = "docs/design/engine.md", .samples = 8, .length = 256};
  options.ops = &ops;
  return options;
}

Result<QuantizeSummary> quantize_on(const OpTable& ops, const fs::path& out) {
  ThreadPool pool(4);
  return quantize_model(testing::kStreamModel, out, options_on(ops), pool, {});
}

std::map<std::string, nlohmann::json> report_of(const fs::path& dir) {
  std::map<std::string, nlohmann::json> report;
  std::ifstream in(dir / "quantize_report.jsonl");
  for (std::string line; std::getline(in, line);) {
    nlohmann::json json = nlohmann::json::parse(line);
    const std::string module = json["module"];
    report.emplace(module, std::move(json));
  }
  return report;
}

TEST(CudaStream, PartsGiveTheBitsOfTheWhole) { testing::expect_parts_are_the_whole(*cuda_ops()); }
TEST(CudaStream, NearTheReference) { testing::expect_near(*cuda_ops(), ref_ops()); }
TEST(CudaStream, NamesWhatIsNoNumber) { testing::expect_names_what_is_no_number(*cuda_ops()); }

// The formats are the same; a rounding elsewhere in the activations can turn a choice between two scales that are about
// as good, so that single linears' figures differ by a few percent; all of them together do not.
TEST(PipelineCuda, NearlyTheReportOfTheCpu) {
  const TempFolder folder;
  const auto cpu = quantize_on(cpu_ops(), folder.path() / "cpu"),
             cuda = quantize_on(*cuda_ops(), folder.path() / "cuda");
  ASSERT_TRUE(cpu) << cpu.error().message;
  ASSERT_TRUE(cuda) << cuda.error().message;
  EXPECT_EQ(cuda->bits_per_weight, cpu->bits_per_weight);
  EXPECT_NEAR(cuda->rel_error, cpu->rel_error, 0.01 * cpu->rel_error);
  const auto wanted = report_of(folder.path() / "cpu"), found = report_of(folder.path() / "cuda");
  ASSERT_EQ(found.size(), wanted.size());
  double most = 0, log_ratio = 0;
  for (const auto& [module, line] : wanted) {
    SCOPED_TRACE(module);
    ASSERT_TRUE(found.contains(module));
    const nlohmann::json& other = found.at(module);
    for (const char* key : {"format", "method", "shape"}) EXPECT_EQ(other[key], line[key]) << key;
    const double ratio = other["proxy"].get<double>() / line["proxy"].get<double>();
    EXPECT_NEAR(ratio, 1, 0.1);
    most = std::max(most, std::abs(ratio - 1));
    log_ratio += std::log(ratio) / static_cast<double>(wanted.size());
  }
  EXPECT_NEAR(log_ratio, 0, 0.02);
  fmt::print("proxy losses differ by {:.2g} at most and {:.2g} in all, relative errors {:.6g} and {:.6g}\n", most,
             log_ratio, cpu->rel_error, cuda->rel_error);
}

TEST(PipelineCuda, TheSameBytesInEveryRun) {
  const TempFolder folder;
  ASSERT_TRUE(quantize_on(*cuda_ops(), folder.path() / "one"));
  ASSERT_TRUE(quantize_on(*cuda_ops(), folder.path() / "two"));
  int files = 0;
  for (const auto& entry : fs::directory_iterator(folder.path() / "one")) {
    if (entry.path().extension() != ".safetensors") continue;
    ++files;
    EXPECT_TRUE(testing_util::read_bytes(entry.path()) ==
                testing_util::read_bytes(folder.path() / "two" / entry.path().filename()))
        << entry.path();
  }
  EXPECT_GT(files, 0);
}

}  // namespace
}  // namespace hearth
