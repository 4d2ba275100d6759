// SPDX-License-Identifier: Apache-2.0
#include "hearth/simulate/step_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

namespace hearth {
namespace {

using ::testing::HasSubstr;

Result<std::vector<ModelSteps>> read(const std::string& text) {
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "hearth_step_file_test.jsonl";
  std::ofstream(path) << text;
  return read_steps(path);
}

const std::string kStep =
    R"({"model": "a", "step": 1, "prefill_tokens": 7, "sequences": 2, "context_tokens": 90, "prefill_pairs": 21, "measured_us": 1500})";

TEST(StepFile, HasTheStepsOfEachModel) {
  std::string other = kStep;
  other.replace(other.find("\"a\""), 3, "\"b\"");
  const auto models = read(kStep + "\n" + other + "\n\n" + kStep + "\n");
  ASSERT_TRUE(models) << models.error().message;
  ASSERT_EQ(models->size(), 2u);
  EXPECT_EQ((*models)[0].model, "a");
  ASSERT_EQ((*models)[0].steps.size(), 2u);
  EXPECT_EQ((*models)[1].steps.size(), 1u);
  const StepObservation& step = (*models)[0].steps[0];
  EXPECT_EQ(step.load.prefill_tokens, 7);
  EXPECT_EQ(step.load.sequences, 2);
  EXPECT_EQ(step.load.context_tokens, 90);
  EXPECT_EQ(step.load.prefill_pairs, 21);
  EXPECT_EQ(step.us, 1500);
}

TEST(StepFile, SaysWhichLineIsWrong) {
  const auto expect = [](const std::string& text, const char* message) {
    const auto found = read(text);
    ASSERT_FALSE(found) << text;
    EXPECT_THAT(found.error().message, HasSubstr(message)) << text;
  };
  expect("", "no step in it");
  expect(kStep + "\n{\"model\"\n", ":2: no object of JSON");
  expect("[1]\n", ":1: no object of JSON");
  expect("{\"sequences\": 1}\n", ":1: no model's name");
  expect("{\"model\": \"a\"}\n", ":1: no prefill_tokens");
  std::string negative = kStep;
  negative.replace(negative.find("90"), 2, "-9");
  expect(negative, ":1: context_tokens is -9; wanted a number, 0 or more");
  EXPECT_THAT(read_steps("/nowhere/steps.jsonl").error().message, HasSubstr("no such file"));
}

}  // namespace
}  // namespace hearth
