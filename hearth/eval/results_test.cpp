// SPDX-License-Identifier: Apache-2.0
#include "hearth/eval/results.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

namespace hearth {
namespace {

using testing::HasSubstr;

TEST(Results, CommandsCanBeRunAgain) {
  const char* const args[] = {"hearth", "eval", "ppl", "a b", "it's", "", "--windows", "0-3,7"};
  EXPECT_EQ(command_line(args), "hearth eval ppl 'a b' 'it'\\''s' '' --windows 0-3,7");
}

TEST(Results, DatesAreUtc) {
  EXPECT_EQ(iso_date(0), "1970-01-01T00:00:00Z");
  EXPECT_EQ(iso_date(951782400), "2000-02-29T00:00:00Z");
}

TEST(Results, LinesHaveWhatAllLinesHave) {
  const nlohmann::json line = result_line("eval.quality", cpu_device(4), "hearth eval");
  EXPECT_EQ(line["bench"], "eval.quality");
  EXPECT_EQ(line["command"], "hearth eval");
  EXPECT_THAT(line["device"].get<std::string>(), HasSubstr(", 4 threads"));
  EXPECT_THAT(line["date"].get<std::string>(), testing::MatchesRegex("20..-..-..T..:..:..Z"));
  EXPECT_FALSE(line["commit"].get<std::string>().empty());
}

TEST(Results, Append) {
  const std::string path = testing::TempDir() + "hearth_results_test.jsonl";
  std::remove(path.c_str());
  ASSERT_TRUE(append_result(path, {{"n", 1}}));
  ASSERT_TRUE(append_result(path, {{"n", 0.1}, {"text", "\xFF"}}));
  std::ifstream file(path);
  std::string first, second, third;
  std::getline(file, first);
  std::getline(file, second);
  EXPECT_EQ(first, "{\"n\":1}");
  EXPECT_EQ(nlohmann::json::parse(second)["n"], 0.1);
  EXPECT_FALSE(std::getline(file, third));
  std::remove(path.c_str());
  const Status failed = append_result("/nowhere/results.jsonl", {{"n", 1}});
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(failed.error().message, HasSubstr("/nowhere/results.jsonl"));
}

}  // namespace
}  // namespace hearth
