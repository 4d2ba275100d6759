// SPDX-License-Identifier: Apache-2.0
// The tile that is chosen is the one that was fastest on an H100, for every shape and number of tokens that was
// measured (bench/results/linear-nibble-sm90.jsonl). Host code.
#include "hearth/kernels/linear/linear_nibble_wide_tile.h"

#include <gtest/gtest.h>

namespace hearth::sm90 {
namespace {

constexpr int kH100 = 132;

WideTile chosen(int64_t tokens, int64_t n, int64_t k, bool e4m3, bool zeros = false) {
  return choose_wide_tile(
      {.tokens = tokens, .n = n, .k = k, .is_e4m3 = e4m3, .has_zeros = zeros, .multiprocessors = kH100});
}

TEST(LinearNibbleWideTile, IsTheFastestThatWasMeasured) {
  using enum WideTile;
  struct Case {
    int64_t tokens, n, k;
    WideTile e4m3, bf16;
  };
  // At n = k = 4096 with 64 tokens 64x64 and 128x32 were faster: see ARowsBitsDoNotDependOnTheTokensUpTo64.
  const Case cases[] = {{17, 28672, 4096, k128x32, k128x32},     {32, 28672, 4096, k128x32, k128x32},
                        {64, 28672, 4096, k128x64, k128x64},     {128, 28672, 4096, k192x128, k128x128},
                        {256, 28672, 4096, k192x128, k128x128},  {512, 28672, 4096, k192x128, k128x128},
                        {1024, 28672, 4096, k192x128, k128x128}, {4096, 28672, 4096, k192x128, k128x128},
                        {17, 4096, 14336, k128x32, k128x32},     {32, 4096, 14336, k128x32, k128x32},
                        {128, 4096, 14336, k128x64, k128x64},    {256, 4096, 14336, k128x128, k128x128},
                        {512, 4096, 14336, k128x128, k128x128},  {1024, 4096, 14336, k128x128, k128x128},
                        {128, 4096, 4096, k64x64, k128x64},      {256, 4096, 4096, k128x64, k128x128},
                        {512, 4096, 4096, k128x128, k128x128},   {1024, 4096, 4096, k128x128, k128x128},
                        {128, 6144, 4096, k128x64, k128x64},     {256, 6144, 4096, k128x128, k128x128},
                        {512, 6144, 4096, k192x128, k128x128}};
  for (const Case& one : cases) {
    EXPECT_EQ(chosen(one.tokens, one.n, one.k, true), one.e4m3) << one.tokens << " tokens, n " << one.n;
    EXPECT_EQ(chosen(one.tokens, one.n, one.k, false, true), one.bf16) << one.tokens << " tokens, n " << one.n;
  }
}

TEST(LinearNibbleWideTile, RoundsAreFullWithOneOfTenIdle) {
  EXPECT_TRUE(fills_rounds(132, kH100));
  EXPECT_TRUE(fills_rounds(119, kH100));
  EXPECT_FALSE(fills_rounds(118, kH100));
  EXPECT_FALSE(fills_rounds(133, kH100));
  EXPECT_TRUE(fills_rounds(238, kH100));
}

// One tile holds the tokens, whatever the weight: so all products of up to 64 tokens cut K at the same places.
TEST(LinearNibbleWideTile, ARowsBitsDoNotDependOnTheTokensUpTo64) {
  for (const int64_t n : {1, 128, 4096, 28672, 128256})
    for (int64_t tokens = 1; tokens <= 64; ++tokens)
      EXPECT_EQ(chosen(tokens, n, 4096, true), tokens <= 32 ? WideTile::k128x32 : WideTile::k128x64)
          << tokens << " tokens, n " << n;
}

TEST(LinearNibbleWideTile, HasNoKernelOf192RowsWhereThereIsNone) {
  for (const int64_t tokens : {129, 500, 100000})
    for (const bool e4m3 : {false, true})
      EXPECT_EQ(chosen(tokens, 28672, 4096, e4m3, true), WideTile::k128x128) << tokens << " tokens";
}

}  // namespace
}  // namespace hearth::sm90
