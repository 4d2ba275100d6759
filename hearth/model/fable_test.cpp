// SPDX-License-Identifier: Apache-2.0
// The fable models against golden.json: log probabilities, top logits, and 48 greedy tokens of 6 prompts each.
// fable-13m is part of the repository; fable-82m is found by HEARTH_DATA.
#include <gtest/gtest.h>

#include <cstdlib>

#include "hearth/model/golden_for_test.h"

namespace hearth {
namespace {

void expect_fable(const std::filesystem::path& dir) {
  const auto golden = testing::read_golden(dir);
  ASSERT_EQ(golden.size(), 6u);
  ThreadPool pool;
  Runner runner = testing::make_runner(testing::load_model(dir, pool), pool, {.max_context = 512});
  for (const auto& prompt : golden) ASSERT_EQ(prompt.greedy_ids.size(), 48u);
  testing::expect_golden(runner, golden, 1e-4, 512);
}

TEST(Fable13m, MatchesTransformersInFloat32) { expect_fable("models/fable-13m"); }

TEST(GoldenFable82m, MatchesTransformersInFloat32) {
  const char* data = std::getenv("HEARTH_DATA");
  if (data == nullptr) GTEST_SKIP() << "HEARTH_DATA is not set: it names the folder that holds models/fable-82m";
  expect_fable(std::filesystem::path(data) / "models/fable-82m");
}

}  // namespace
}  // namespace hearth
