// SPDX-License-Identifier: Apache-2.0
#include "hearth/tensor/weight_format.h"

#include <gtest/gtest.h>

namespace hearth {
namespace {

TEST(WeightFormat, BitsPerWeightFollowFromTheLayout) {
  EXPECT_EQ(WeightFormat::plain(DType::kBf16).bits_per_weight(384, 1024), 16);

  // INT4 g128 with F16 scales: 4 + 16/128; with 4-bit zero points another 4/128.
  WeightFormat int4{
      .code = WeightCode::kU4, .scale_layout = ScaleLayout::kGroup, .scale_dtype = DType::kF16, .group_k = 128};
  EXPECT_DOUBLE_EQ(int4.bits_per_weight(256, 1024), 4.125);
  int4.has_zero_point = true;
  EXPECT_DOUBLE_EQ(int4.bits_per_weight(256, 1024), 4.15625);

  // SBVR, 4 bitvectors of groups of 128 and 256 lines: 4 + 8/128 and 256 lines of 6 bytes over the matrix.
  const WeightFormat sbvr{
      .code = WeightCode::kBitvectors, .group_k = 128, .bitvectors = 4, .lines = 256, .integer_lines = true};
  EXPECT_DOUBLE_EQ(sbvr.bits_per_weight(4096, 4096), 4.0625 + 256 * 6 * 8.0 / (4096.0 * 4096.0));
}

TEST(WeightFormat, ScaleCountsRoundUp) {
  const WeightFormat block{
      .code = WeightCode::kE4m3, .scale_layout = ScaleLayout::kBlock, .group_k = 128, .block_n = 128};
  EXPECT_EQ(block.scale_count(129, 257), 2 * 3);
  const WeightFormat row{.code = WeightCode::kE4m3, .scale_layout = ScaleLayout::kRow};
  EXPECT_EQ(row.scale_count(129, 257), 129);
}

TEST(WeightFormat, ValidateNamesWhatIsWrong) {
  EXPECT_TRUE(WeightFormat::plain(DType::kF32).validate(1, 1));
  EXPECT_FALSE(WeightFormat::plain(DType::kF32).validate(0, 1));
  const WeightFormat bare_int4{.code = WeightCode::kU4};
  EXPECT_EQ(bare_int4.validate(8, 8).error().message, "weight format u4 needs scales");
  const WeightFormat lines{.code = WeightCode::kBitvectors, .group_k = 128, .bitvectors = 9, .lines = 1};
  EXPECT_EQ(lines.validate(8, 128).error().message, "9 bitvectors, wanted 2 to 8");
  const WeightFormat zeros{.code = WeightCode::kE4m3, .scale_layout = ScaleLayout::kRow, .has_zero_point = true};
  EXPECT_EQ(zeros.validate(8, 128).error().message, "weight format e4m3: only u4 has zero points");
}

TEST(WeightFormat, Prints) {
  const WeightFormat fp8{.code = WeightCode::kE4m3, .scale_layout = ScaleLayout::kRow, .act = ActFormat::kE4m3PerToken};
  EXPECT_EQ(to_string(fp8), "e4m3 row-scale f32 act e4m3-per-token");
}

}  // namespace
}  // namespace hearth
