// SPDX-License-Identifier: Apache-2.0
// Weights of bitvectors by many tokens on the INT8 tensor cores: products against the double reference (bitvectors,
// lines, every tile, edges of m, n and k), exact integers, which are those of the kernel for few tokens, a row's bits,
// bad rows. Label gpu: without a device every test here fails.
#include "hearth/kernels/linear/linear_lines_wide_sm90.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "hearth/kernels/gpu_test.h"
#include "hearth/kernels/linear/device_weight_for_test.h"
#include "hearth/kernels/linear/gpu_linear_for_test.h"
#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/kernels/linear/quantized_for_test.h"

namespace hearth {
namespace {

using namespace testing;  // quantized_for_test.h
using sm90::LineTile;

constexpr LineTile kTiles[] = {LineTile::k128x32, LineTile::k128x64, LineTile::k128x128};

WeightFormat lines_format(int bitvectors, int64_t lines) {
  WeightFormat format = line_format(bitvectors, 128, true);
  format.lines = lines, format.act = ActFormat::kI8PerGroup;
  return format;
}

Status run_gpu(const LinearWeight& weight, TestTensor& x, TestTensor* residual, TestTensor& out, int64_t begin,
               int64_t rows, LineTile tile = LineTile::kChosen, bool counters = true) {
  const auto twice = [&](const LinearArgs& args, ExecContext& exec) -> Status {
    if (!counters) exec.staged.counters = nullptr;
    if (!sm90::fits_lines_wide(args)) return unsupported("does not fit");
    // What the first launch leaves in the counters, the second one finds.
    for (int i = 0; i < (residual == &out ? 1 : 2); ++i)
      HEARTH_TRY(sm90::linear_lines_wide_sm90({&args, 1}, exec, tile));
    return {};
  };
  return run_linear(twice, sm90::lines_wide_workspace_bytes(rows, weight.k), weight, x, residual, out, begin, rows);
}

Status run_few(const LinearWeight& weight, TestTensor& x, TestTensor& out, int64_t begin, int64_t rows) {
  return run_linear(linear_lines_sm90, linear_lines_sm90_workspace_bytes(rows, weight.n, weight.k, 1), weight, x,
                    nullptr, out, begin, rows);
}

// A unit's sum is exact; what f32 loses is 2^-24 of the sums so far a unit, and bf16 rounds the result.
void check(const LinearCase& c, uint64_t seed, LineTile tile = LineTile::kChosen) {
  SCOPED_TRACE(fmt::format("tile {}", static_cast<int>(tile)));
  check_linear(c, seed, c.out == DType::kF32 ? 1e-6 : 0x1p-8,
               [&](PlacedWeight& placed, TestTensor* bias, TestTensor& x, TestTensor* residual, TestTensor& out) {
                 const PackedLines device(placed, bias);
                 return run_gpu(device.weight, x, residual, out, 0, c.m, tile, seed % 2 == 0);
               });
}

// One line for all, one scale, small integers in x: golden by a loop in integers.
QuantizedMatrix exact_matrix(int64_t n, int64_t k, Random& random) {
  QuantizedMatrix matrix = random_matrix(lines_format(4, 50), n, k, false, random);
  std::ranges::fill(matrix.line_scales, 0.25f);
  // The largest sums that the format allows, too.
  for (int s = 0; s < 4; ++s) matrix.lines[static_cast<size_t>(s)] = s == 0 ? 64.0f : 21.0f;
  for (int s = 0; s < 4; ++s) matrix.lines[static_cast<size_t>(4 + s)] = s == 3 ? -127.0f : 0.0f;
  for (int s = 0; s < 4; ++s) matrix.lines[static_cast<size_t>(8 + s)] = s == 0 ? -127.0f : 0.0f;
  for (int s = 0; s < 4; ++s) matrix.lines[static_cast<size_t>(12 + s)] = s == 0 ? -127.0f : s == 1 ? 127.0f : 0.0f;
  return matrix;
}

// Golden: with one scale for all lines, a power of two, and groups of x whose scale is 1, sums are integers times it.
TEST(LinearLinesWideSm90, IntegersAreExactAndThoseOfFewTokens) {
  for (const LineTile tile : kTiles)
    for (const int64_t m : {1, 33, 130})
      for (const int64_t k : {128, 256, 1024}) {
        SCOPED_TRACE(fmt::format("tile {} m {} k {}", static_cast<int>(tile), m, k));
        Random random(static_cast<uint64_t>(m + k));
        const QuantizedMatrix matrix = exact_matrix(140, k, random);
        ASSERT_TRUE(matrix.validate());
        PlacedWeight placed(matrix);
        const PackedLines device(placed);
        TestTensor x(DType::kBf16, m, k, 8), out(DType::kF32, m, 140), few(DType::kF32, m, 140);
        for (int64_t r = 0; r < m; ++r)
          for (int64_t i = 0; i < k; ++i)
            x.set(r, i, i % 128 == r % 128 ? 127 : static_cast<float>(random.below(255) - 127));
        ASSERT_TRUE(run_gpu(device.weight, x, nullptr, out, 0, m, tile));
        for (int64_t begin = 0; begin < m; begin += 16)
          ASSERT_TRUE(run_few(device.weight, x, few, begin, std::min<int64_t>(16, m - begin)));
        EXPECT_TRUE(out.same_bits(few));
        std::vector<float> values(static_cast<size_t>(k));
        for (int64_t n = 0; n < 140; ++n) {
          matrix.dequantize_row(n, values);
          for (int64_t r = 0; r < m; ++r) {
            double sum = 0;
            for (int64_t i = 0; i < k; ++i) sum += double{values[static_cast<size_t>(i)]} * x.at(r, i);
            ASSERT_EQ(out.at(r, n), sum) << "row " << r << " column " << n;
          }
        }
      }
}

TEST(LinearLinesWideSm90, MatchesTheReference) {
  uint64_t seed = 100;
  for (const WeightFormat& format :
       {lines_format(2, 9), lines_format(3, 256), lines_format(4, 1), lines_format(4, 4096)})
    for (const int64_t m : {1, 17, 31, 32, 33, 64, 65, 127, 129}) {
      check({format, m, 48, 1024}, ++seed);
      check({format, m, 33, 128}, ++seed);
      check({format, m, 257, 384, DType::kBf16, true}, ++seed);
      check({format, m, 128, 640, DType::kBf16, true}, ++seed);
      check({format, m, 5, 3584}, ++seed);
    }
}

TEST(LinearLinesWideSm90, EveryTileMatchesTheReference) {
  uint64_t seed = 300;
  for (const LineTile tile : kTiles)
    for (const int64_t m : {1, 40, 200}) {
      check({lines_format(4, 4096), m, 300, 896}, ++seed, tile);
      check({lines_format(3, 7), m, 1100, 256, DType::kBf16, true}, ++seed, tile);
      check({lines_format(4, 100), m, 256, 2048, DType::kF32, true}, ++seed, tile);
    }
}

// Stages that go round, tiles that blocks share, waves of whole tiles.
TEST(LinearLinesWideSm90, MatchesTheReferenceOnModelShapes) {
  uint64_t seed = 400;
  for (const int64_t m : {20, 64, 300}) {
    check({lines_format(4, 4096), m, 4096, 512, DType::kBf16, true}, ++seed);
    check({lines_format(4, 4096), m, 600, 7168}, ++seed);
    check({lines_format(4, 4096), m, 17000, 256}, ++seed);
  }
}

TEST(LinearLinesWideSm90, ARowIsItsOwnUpTo64) {
  for (const int64_t k : {3072, 7168}) {
    const auto seed = static_cast<uint64_t>(500 + k);
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Random random(seed);
    constexpr int64_t kRows = 64, kCols = 700;
    PlacedWeight placed(random_matrix(lines_format(4, 4096), kCols, k, false, random));
    const PackedLines device(placed);
    TestTensor x(DType::kBf16, kRows, k, 8), all(DType::kF32, kRows, kCols), some(DType::kF32, kRows, kCols);
    x.fill(random);
    ASSERT_TRUE(run_gpu(device.weight, x, nullptr, all, 0, kRows));
    ASSERT_TRUE(run_gpu(device.weight, x, nullptr, some, 5, 30));
    for (int64_t r = 5; r < 35; ++r) ASSERT_TRUE(some.same_row_bits(r, all, r)) << "row " << r;
  }
}

TEST(LinearLinesWideSm90, BadAndEmptyRowsStayAlone) {
  Random random(600);
  PlacedWeight placed(random_matrix(lines_format(4, 50), 40, 384, false, random));
  const PackedLines device(placed);
  TestTensor x(DType::kBf16, 20, 384, 8), out(DType::kF32, 20, 40);
  x.fill(random);
  x.set(1, 200, std::numeric_limits<float>::quiet_NaN()), x.set(2, 383, std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < 384; ++i) x.set(3, i, 0), x.set(4, i, i % 2 == 0 ? 0x1p-126f : 0x1p-130f);
  ASSERT_TRUE(run_gpu(device.weight, x, nullptr, out, 0, 20));
  for (int64_t n = 0; n < 40; ++n) {
    EXPECT_TRUE(std::isfinite(out.at(0, n)) && std::isfinite(out.at(19, n)));
    EXPECT_TRUE(std::isnan(out.at(1, n)) && std::isnan(out.at(2, n)));
    EXPECT_EQ(out.at(3, n), 0) << "zeros";
    EXPECT_EQ(out.at(4, n), 0) << "numbers that count for nothing";
  }
}

TEST(LinearLinesWideSm90, ResidualMayBeOut) {
  Random random(700);
  PlacedWeight placed(random_matrix(lines_format(4, 50), 130, 256, false, random));
  const PackedLines device(placed);
  TestTensor x(DType::kBf16, 35, 256, 8), residual(DType::kBf16, 35, 130), apart(DType::kBf16, 35, 130);
  x.fill(random), residual.fill(random);
  TestTensor same = residual;
  ASSERT_TRUE(run_gpu(device.weight, x, &residual, apart, 0, 35));
  ASSERT_TRUE(run_gpu(device.weight, x, &same, same, 0, 35));
  EXPECT_TRUE(same.same_bits(apart));
}

}  // namespace
}  // namespace hearth
