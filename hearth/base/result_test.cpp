// SPDX-License-Identifier: Apache-2.0
#include "hearth/base/result.h"

#include <gtest/gtest.h>

#include <memory>

namespace hearth {
namespace {

Result<int> half(int x) {
  if (x % 2 != 0) return invalid_argument("{} is not a multiple of 2", x);
  return x / 2;
}

Result<int> quarter(int x) {
  HEARTH_TRY_ASSIGN(const int h, half(x).with_context("first"));
  HEARTH_TRY_ASSIGN(const int q, half(h).with_context("second"));
  return q;
}

Status only_even(int x) {
  HEARTH_TRY(half(x));
  return {};
}

TEST(Result, CarriesValueOrError) {
  EXPECT_EQ(*quarter(8), 2);
  EXPECT_TRUE(only_even(4));
  const auto odd = quarter(6);
  ASSERT_FALSE(odd);
  EXPECT_EQ(odd.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(odd.error().message, "second: 3 is not a multiple of 2");
  EXPECT_FALSE(only_even(3));
}

TEST(Result, RemembersWhereTheErrorWasMade) {
  const Error error = not_found("nothing");
  const int line = __LINE__ - 1;
  EXPECT_EQ(error.where.line, line);
  EXPECT_NE(std::string_view(error.where.file).find("result_test.cpp"), std::string_view::npos);
}

TEST(Result, HoldsMoveOnlyValues) {
  Result<std::unique_ptr<int>> owned = std::make_unique<int>(7);
  std::unique_ptr<int> taken = std::move(owned).value();
  EXPECT_EQ(*taken, 7);
}

TEST(Result, EveryCodeHasItsOwnNameAndExitCode) {
  std::vector<std::string_view> names;
  std::vector<int> exits;
  for (int code = 0; code <= static_cast<int>(ErrorCode::kInternal); ++code) {
    for (auto name : names) EXPECT_NE(name, error_code_name(ErrorCode(code)));
    for (int e : exits) EXPECT_NE(e, exit_code(ErrorCode(code)));
    names.push_back(error_code_name(ErrorCode(code)));
    exits.push_back(exit_code(ErrorCode(code)));
    EXPECT_GT(exits.back(), 1);
  }
}

TEST(ResultDeathTest, ValueOfAnErrorIsOurBug) {
  EXPECT_DEATH((void)half(3).value(), "CHECK failed.*3 is not a multiple of 2");
}

}  // namespace
}  // namespace hearth
