// SPDX-License-Identifier: Apache-2.0
#include "hearth/kernels/linear/linear_lines_wide_tile.h"

#include <gtest/gtest.h>

namespace hearth::sm90 {
namespace {

// As measured on an H100 (docs/kernels/linear-sbvr-sm90.md).
TEST(LinearLinesWideTile, IsTheLeastThatHoldsTheTokens) {
  using enum LineTile;
  constexpr struct {
    int64_t tokens;
    LineTile tile;
  } kCases[] = {{1, k128x32},  {17, k128x32},  {32, k128x32},   {33, k128x64},
                {64, k128x64}, {65, k128x128}, {128, k128x128}, {4096, k128x128}};
  for (const auto& one : kCases) EXPECT_EQ(choose_line_tile(one.tokens), one.tile) << one.tokens << " tokens";
}

}  // namespace
}  // namespace hearth::sm90
