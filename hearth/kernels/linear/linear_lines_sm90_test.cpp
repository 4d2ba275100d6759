// SPDX-License-Identifier: Apache-2.0
// Weights of bitvectors on the GPU's tensor cores: units as packed on the host, products against the double reference
// (bitvectors, lines, edges of n and m, both places of x), exact integers, a row's bits, several
// weights in one launch. Label gpu: without a device every test here fails.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <list>

#include "hearth/kernels/gpu_test.h"
#include "hearth/kernels/linear/device_weight_for_test.h"
#include "hearth/kernels/linear/gpu_linear_for_test.h"
#include "hearth/kernels/linear/line_units.h"
#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/kernels/linear/quantized_for_test.h"

namespace hearth {
namespace {

using namespace testing;  // quantized_for_test.h

WeightFormat lines_format(int bitvectors, int64_t lines) {
  WeightFormat format = line_format(bitvectors, 128, true);
  format.lines = lines, format.act = ActFormat::kI8PerGroup;
  return format;
}

Status run_gpu(const LinearWeight& weight, TestTensor& x, TestTensor* residual, TestTensor& out, int64_t begin,
               int64_t rows) {
  return run_linear(linear_lines_sm90, linear_lines_sm90_workspace_bytes(rows, weight.n, weight.k, 1), weight, x,
                    residual, out, begin, rows);
}

// A unit's sum is exact; what f32 loses is 2^-24 of the sums so far a unit, and bf16 rounds the result.
void check(const LinearCase& c, uint64_t seed) {
  ASSERT_TRUE(supports_linear_lines_sm90(c.format, DType::kBf16));
  check_linear(c, seed, c.out == DType::kF32 ? 1e-6 : 0x1p-8,
               [&](PlacedWeight& placed, TestTensor* bias, TestTensor& x, TestTensor* residual, TestTensor& out) {
                 const PackedLines device(placed, bias);
                 return run_gpu(device.weight, x, residual, out, 0, c.m);
               });
}

TEST(LinearLinesSm90, UnitsAreThoseOfTheHost) {
  uint64_t seed = 10;
  for (const int bitvectors : {2, 3, 4})
    for (const int64_t n : {1, 16, 37}) {
      Random random(++seed);
      const WeightFormat format = lines_format(bitvectors, 300);
      PlacedWeight placed(random_matrix(format, n, 384, false, random));
      const PackedLines packed(placed);
      const LinearWeight& weight = packed.weight;
      EXPECT_TRUE(weight.units && !weight.codes && !weight.lines && !weight.line_scales && !weight.line_index);
      std::vector<uint8_t> wanted(static_cast<size_t>(line_units_bytes(format, n, 384))), found(wanted.size());
      pack_line_units_ref(placed.weight, wanted);
      ASSERT_TRUE(packed.units().copy_to_host(std::as_writable_bytes(std::span(found))));
      EXPECT_EQ(found, wanted) << "seed " << seed << " bitvectors " << bitvectors << " n " << n;
    }
}

TEST(LinearLinesSm90, MatchesTheReference) {
  uint64_t seed = 100;
  for (const WeightFormat& format :
       {lines_format(2, 9), lines_format(3, 256), lines_format(4, 1), lines_format(4, 4096)})
    for (const int64_t m : {1, 2, 7, 8, 9, 16, 17, 40}) {
      check({format, m, 48, 1024}, ++seed);
      check({format, m, 33, 128}, ++seed);
      check({format, m, 17, 384, DType::kBf16, true}, ++seed);
      check({format, m, 5, 3584}, ++seed);
    }
}

// More strips than blocks take at once, rings that go round, x that stays in global memory (16 rows of 7168 columns and
// more).
TEST(LinearLinesSm90, MatchesTheReferenceOnModelShapes) {
  uint64_t seed = 300;
  for (const WeightFormat& format : {lines_format(4, 4096), lines_format(3, 40)})
    for (const int64_t m : {1, 5, 16}) {
      check({format, m, 4096 + 40, 256}, ++seed);
      check({format, m, 7000, 2688}, ++seed);
      check({format, m, 100, 7168}, ++seed);
      check({format, m, 40, 8192}, ++seed);
      check({format, m, 4400, 8320, DType::kBf16, true}, ++seed);
      check({format, m, 88, 14336}, ++seed);
    }
}

// Golden: with one scale for all lines, a power of two, and groups of x whose scale is 1, sums are integers times it.
TEST(LinearLinesSm90, IntegersAreExact) {
  for (const int64_t m : {1, 9})
    for (const int64_t k : {128, 1024}) {
      Random random(static_cast<uint64_t>(m + k));
      QuantizedMatrix matrix = random_matrix(lines_format(4, 50), 40, k, false, random);
      std::ranges::fill(matrix.line_scales, 0.25f);
      // The largest sums that the format allows, too.
      for (int s = 0; s < 4; ++s) matrix.lines[static_cast<size_t>(s)] = s == 0 ? 64.0f : 21.0f;
      for (int s = 0; s < 4; ++s) matrix.lines[static_cast<size_t>(4 + s)] = s == 3 ? -127.0f : 0.0f;
      ASSERT_TRUE(matrix.validate());
      PlacedWeight placed(matrix);
      const PackedLines device(placed);
      TestTensor x(DType::kBf16, m, k), out(DType::kF32, m, 40);
      for (int64_t r = 0; r < m; ++r)
        for (int64_t i = 0; i < k; ++i) x.set(r, i, i % 128 == r ? 127 : static_cast<float>(random.below(255) - 127));
      ASSERT_TRUE(run_gpu(device.weight, x, nullptr, out, 0, m));
      std::vector<float> values(static_cast<size_t>(k));
      for (int64_t n = 0; n < 40; ++n) {
        matrix.dequantize_row(n, values);
        for (int64_t r = 0; r < m; ++r) {
          double sum = 0;
          for (int64_t i = 0; i < k; ++i) sum += double{values[static_cast<size_t>(i)]} * x.at(r, i);
          ASSERT_EQ(out.at(r, n), sum) << "m " << m << " k " << k << " row " << r << " column " << n;
        }
      }
    }
}

TEST(LinearLinesSm90, ARowIsItsOwn) {
  uint64_t seed = 500;
  for (const int64_t k : {3072, 7168, 9216}) {
    SCOPED_TRACE(fmt::format("seed {} k {}", ++seed, k));
    Random random(seed);
    constexpr int64_t kRows = 16, kCols = 2200;
    PlacedWeight placed(random_matrix(lines_format(4, 4096), kCols, k, false, random));
    const PackedLines device(placed);
    TestTensor x(DType::kBf16, kRows, k), all(DType::kF32, kRows, kCols), some(DType::kF32, kRows, kCols);
    x.fill(random);
    ASSERT_TRUE(run_gpu(device.weight, x, nullptr, all, 0, kRows));
    ASSERT_TRUE(run_gpu(device.weight, x, nullptr, some, 5, 7));
    for (int64_t r = 5; r < 12; ++r) ASSERT_TRUE(some.same_row_bits(r, all, r)) << "row " << r;
    for (const int64_t r : {0, 8, 15}) {
      TestTensor one(DType::kF32, kRows, kCols);
      ASSERT_TRUE(run_gpu(device.weight, x, nullptr, one, r, 1));
      ASSERT_TRUE(one.same_row_bits(r, all, r)) << "row " << r;
    }
  }
}

TEST(LinearLinesSm90, BadAndEmptyRowsStayAlone) {
  Random random(600);
  PlacedWeight placed(random_matrix(lines_format(4, 50), 40, 384, false, random));
  const PackedLines device(placed);
  TestTensor x(DType::kBf16, 5, 384), out(DType::kF32, 5, 40);
  x.fill(random);
  x.set(1, 200, std::numeric_limits<float>::quiet_NaN()), x.set(2, 383, std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < 384; ++i) x.set(3, i, 0), x.set(4, i, i % 2 == 0 ? 0x1p-126f : 0x1p-130f);
  ASSERT_TRUE(run_gpu(device.weight, x, nullptr, out, 0, 5));
  for (int64_t n = 0; n < 40; ++n) {
    EXPECT_TRUE(std::isfinite(out.at(0, n)));
    EXPECT_TRUE(std::isnan(out.at(1, n)) && std::isnan(out.at(2, n)));
    EXPECT_EQ(out.at(3, n), 0) << "zeros";
    EXPECT_EQ(out.at(4, n), 0) << "numbers that count for nothing";
  }
}

TEST(LinearLinesSm90, ResidualMayBeOut) {
  Random random(700);
  PlacedWeight placed(random_matrix(lines_format(4, 50), 130, 256, false, random));
  const PackedLines device(placed);
  TestTensor x(DType::kBf16, 3, 256), residual(DType::kBf16, 3, 130), apart(DType::kBf16, 3, 130);
  x.fill(random), residual.fill(random);
  TestTensor same = residual;
  ASSERT_TRUE(run_gpu(device.weight, x, &residual, apart, 0, 3));
  ASSERT_TRUE(run_gpu(device.weight, x, &same, same, 0, 3));
  EXPECT_TRUE(same.same_bits(apart));
}

// Q, K and V: weights of different sizes and numbers of lines, in one launch, with the bits of each alone.
TEST(LinearLinesSm90, TakesSeveralWeights) {
  constexpr int64_t kCols[] = {2100, 70, 1}, kLines[] = {4096, 7, 256}, kAll = 2171;
  uint64_t seed = 800;
  for (const int64_t k : {512, 8192})
    for (const int64_t m : {1, 12, 20}) {
      SCOPED_TRACE(fmt::format("seed {} k {} m {}", ++seed, k, m));
      Random random(seed);
      TestTensor x(DType::kBf16, m, k), together(DType::kF32, m, kAll), apart(DType::kF32, m, kAll);
      x.fill(random);
      OnDevice device_x(x), device_together(together), device_apart(apart);
      std::list<PlacedWeight> placed;
      std::list<PackedLines> weights;
      for (int i = 0; i < 3; ++i)
        weights.emplace_back(
            placed.emplace_back(random_matrix(lines_format(4, kLines[i]), kCols[i], k, false, random)));
      const auto parts_into = [&](const TensorView& out) {
        std::vector<LinearArgs> parts;
        int64_t col = 0;
        for (const PackedLines& one : weights) {
          parts.push_back(
              {.x = device_x.view(),
               .weight = &one.weight,
               .out = TensorView(out.row<float>(0) + col, DType::kF32, Shape{m, one.weight.n}, out.row_stride)});
          col += one.weight.n;
        }
        return parts;
      };
      GpuExec gpu({}, linear_lines_sm90_workspace_bytes(m, kAll, k, 1));
      ASSERT_TRUE(linear_lines_sm90_parts(parts_into(device_together.view()), gpu.exec()));
      for (const LinearArgs& args : parts_into(device_apart.view())) ASSERT_TRUE(linear_lines_sm90(args, gpu.exec()));
      ASSERT_TRUE(gpu.synchronize());
      device_together.copy_back(), device_apart.copy_back();
      EXPECT_TRUE(together.same_bits(apart));
    }
}

// A weight with another order of columns is not packed, and is the general kernel's.
TEST(LinearLinesSm90, WeightsWithAColumnOrderStayAsTheyAre) {
  Random random(900);
  PlacedWeight placed(random_matrix(lines_format(4, 50), 20, 256, true, random));
  DeviceWeight device(placed);
  ASSERT_TRUE(linear_lines_sm90_pack(device.weight, nullptr, nullptr));
  ASSERT_FALSE(device.weight.units);
  TestTensor x(DType::kBf16, 2, 256), out(DType::kF32, 2, 20), exact(DType::kF32, 2, 20);
  x.fill(random);
  std::vector<std::byte> scratch(static_cast<size_t>(linear_quantized_ref_workspace_bytes(2, 20, 256, 1)));
  ExecContext exec{.workspace = scratch};
  ASSERT_TRUE(linear_quantized_ref({.x = x.view(), .weight = &placed.weight, .out = exact.view()}, exec));
  ASSERT_TRUE(run_gpu(device.weight, x, nullptr, out, 0, 2));
  EXPECT_LE(max_error(out, exact), 1e-4);
}

}  // namespace
}  // namespace hearth
