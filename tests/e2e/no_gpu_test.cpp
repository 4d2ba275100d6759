// SPDX-License-Identifier: Apache-2.0
// --device cuda where there is no GPU to use, by a build with CUDA or without: a line that says so and its exit code,
// while all that needs none works. On a machine with GPUs they are hidden.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/e2e/process.h"

namespace hearth::e2e {
namespace {

using testing::AnyOf;
using testing::HasSubstr;
using testing::StartsWith;

constexpr int kUnsupported = 5, kUnavailable = 8;
constexpr const char* kModel = "models/fable-13m";

ProcessResult run_without_gpu(std::vector<std::string> args) {
  return run_hearth(std::move(args), {.environment = {{"CUDA_VISIBLE_DEVICES", "-1"}}});
}

TEST(NoGpu, EveryCommandSaysSo) {
  const std::string out = std::filesystem::path(testing::TempDir()) / "hearth_no_gpu";
  const std::vector<std::string> commands[] = {{"generate", kModel, "--prompt", "a", "--quiet"},
                                               {"chat", kModel, "--quiet"},
                                               {"serve", kModel, "--port", "0"},
                                               {"eval", "ppl", kModel, "--text", "README.md", "--quiet"},
                                               {"bench", "model", kModel},
                                               {"quantize", kModel, "--to", "fp8", "--out", out, "--quiet"}};
  for (std::vector<std::string> args : commands) {
    SCOPED_TRACE(args[0] + " " + args[1]);
    args.insert(args.end(), {"--device", "cuda"});
    const ProcessResult result = run_without_gpu(args);
    EXPECT_EQ(result.out, "");
    // The last line: what loads may have said how far it came.
    std::string text = result.err;
    ASSERT_TRUE(text.ends_with('\n')) << text;
    text.pop_back();
    text = text.substr(text.rfind('\n') + 1);
    EXPECT_THAT(text, StartsWith("hearth: error: "));
    if (result.exit_code == kUnsupported) {
      EXPECT_THAT(text, HasSubstr("this build has no CUDA"));
    } else {
      EXPECT_EQ(result.exit_code, kUnavailable);
      EXPECT_THAT(text, AnyOf(HasSubstr("no NVIDIA driver"), HasSubstr("no GPU that this process may use")));
    }
    EXPECT_FALSE(std::filesystem::exists(out));
  }
}

TEST(NoGpu, WhatNeedsNoneWorks) {
  EXPECT_EQ(run_without_gpu({"version"}).exit_code, 0);
  EXPECT_EQ(run_without_gpu({"inspect", kModel}).exit_code, 0);
  const ProcessResult text =
      run_without_gpu({"generate", kModel, "--prompt", "It was", "--max-tokens", "4", "--quiet"});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_NE(text.out, "");
}

}  // namespace
}  // namespace hearth::e2e
