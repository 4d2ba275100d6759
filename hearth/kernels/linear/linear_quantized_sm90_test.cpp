// SPDX-License-Identifier: Apache-2.0
// The GPU's linear op for quantized weights against the double reference: every format, activation, edge and tile, with
// the error of a naive f32 loop as the measure; a row's bits; rounding of activations; exact integers. Label gpu:
// without a device every test here fails.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "hearth/kernels/gpu_test.h"
#include "hearth/kernels/linear/act_quantize.h"
#include "hearth/kernels/linear/device_weight_for_test.h"
#include "hearth/kernels/linear/gpu_linear_for_test.h"
#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/kernels/linear/linear_sm90_plan.h"
#include "hearth/kernels/linear/quantized_for_test.h"
#include "hearth/kernels/some_cases_for_test.h"

namespace hearth {
namespace {

using namespace testing;  // quantized_for_test.h

Status run_gpu(const LinearWeight& weight, TestTensor& x, TestTensor* residual, TestTensor& out, int64_t begin,
               int64_t rows) {
  return run_linear(linear_quantized_sm90, linear_quantized_sm90_workspace_bytes(rows, weight.n, weight.k, 1), weight,
                    x, residual, out, begin, rows);
}

void check(const Case& test, uint64_t seed) {
  if (leave_out_case()) return;
  SCOPED_TRACE(describe(test, seed));
  Random random(seed);
  const QuantizedMatrix matrix = random_matrix(test.format, test.n, test.k, test.has_k_order, random);
  ASSERT_TRUE(matrix.validate());
  PlacedWeight placed(matrix);
  TestTensor x(test.x, test.m, test.k, 3), residual(test.out, test.m, test.n, 1);
  TestTensor bias(test.bias == DType::kBool ? DType::kF32 : test.bias, 1, test.n);
  x.fill(random), residual.fill(random), bias.fill(random);
  TestTensor out(test.out, test.m, test.n, 2), exact(test.out, test.m, test.n), naive(test.out, test.m, test.n);
  const bool with_bias = test.bias != DType::kBool;
  LinearWeight host = placed.weight;
  if (with_bias) host.bias = bias.vector();
  std::vector<std::byte> scratch(static_cast<size_t>(linear_quantized_ref_workspace_bytes(test.m, test.n, test.k, 1)));
  ExecContext exec{.workspace = scratch};
  ASSERT_TRUE(linear_quantized_ref({.x = x.view(),
                                    .weight = &host,
                                    .residual = test.has_residual ? residual.view() : TensorView(),
                                    .out = exact.view()},
                                   exec));
  plain_loop<float>(matrix, x, with_bias ? &bias : nullptr, test.has_residual ? &residual : nullptr, naive);

  const DeviceWeight device(placed, with_bias ? &bias : nullptr);
  const Status status = run_gpu(device.weight, x, test.has_residual ? &residual : nullptr, out, 0, test.m);
  ASSERT_TRUE(status) << status.error().message;
  EXPECT_LE(max_error(out, exact), allowed_error(matrix, naive, exact, random));
}

// At the edges of k: less than a chunk of 8, odd rows of codes, a short last group, groups that no chunk divides.
TEST(LinearQuantizedSm90, MatchesTheReferenceForEveryFormatAndActivation) {
  uint64_t seed = 1;
  for (WeightFormat format : weight_formats())
    for (ActFormat act : kActs) {
      format.act = act;
      for (int64_t k : {1, 7, 33, 128, 200, 515}) check({format, 2, 5, k, k % 2 == 1}, ++seed);
      check({format, 20, 6, 130}, ++seed);
      check({format, 1, 35, 384}, ++seed);
    }
  for (int64_t group : {1, 3, 12, 100})
    for (int64_t k : {5, 130})
      for (int64_t m : {1, 20}) {
        check({int4_format(WeightCode::kU4, group, true), m, 5, k}, ++seed);
        check({line_format(4, group, true), m, 5, k}, ++seed);
        check({e4m3_format(ScaleLayout::kBlock, group, 2), m, 5, k}, ++seed);
      }
}

// Tiles of 8 x 32 and 64 x 64, their edges, and models' K: fable's 384, Qwen2.5-7B's 3584.
TEST(LinearQuantizedSm90, MatchesTheReferenceForEveryTile) {
  uint64_t seed = 1000;
  for (const WeightFormat& format : main_formats()) {
    for (int64_t m : {1, 3, 8, 9, 16, 17, 64, 65, 130}) check({format, m, 37, 136}, ++seed);
    for (int64_t n : {1, 31, 32, 33, 63, 65, 129}) {
      check({format, 3, n, 72}, ++seed);
      check({format, 18, n, 72}, ++seed);
    }
    check({format, 64, 64, 384}, ++seed);
    check({format, 3, 12, 3584}, ++seed);
    check({format, 20, 12, 3584}, ++seed);
  }
}

TEST(LinearQuantizedSm90, MatchesTheReferenceWithBiasResidualAndBf16) {
  uint64_t seed = 2000;
  for (const WeightFormat& format : main_formats())
    for (DType x : {DType::kF32, DType::kBf16})
      for (DType out : {DType::kF32, x})
        for (DType bias : {DType::kBool, DType::kF32, DType::kBf16, DType::kF16})
          for (int64_t m : {1, 19}) check({format, m, 21, 80, false, x, out, bias, bias != DType::kF32}, ++seed);
}

// Invariant I1 of linear_tile_sm90.cuh, over all three tiles: the large one wants 200 blocks.
TEST(LinearQuantizedSm90, ARowIsItsOwn) {
  constexpr int64_t kRows = 1300, kCols = 2310;
  ASSERT_EQ(choose_tile(kRows, kCols, multiprocessors()), TileSize::kLarge);
  ASSERT_EQ(choose_tile(67, kCols, multiprocessors()), TileSize::kMedium);
  ASSERT_EQ(choose_tile(1, kCols, multiprocessors()), TileSize::kDecode);
  uint64_t seed = 3000;
  std::vector<WeightFormat> formats = main_formats();
  formats.push_back(int4_format(WeightCode::kU4, 24, true));
  formats.push_back(line_format(6, 128, true));
  for (size_t i = 0, count = formats.size(); i < count; ++i) {
    formats.push_back(formats[i]);
    formats.back().act = formats[i].act == ActFormat::kI8PerGroup ? ActFormat::kNative : ActFormat::kI8PerGroup;
  }
  for (const WeightFormat& format : formats) {
    SCOPED_TRACE(fmt::format("seed {} {}", ++seed, to_string(format)));
    if (leave_out_case()) continue;
    Random random(seed);
    PlacedWeight placed(random_matrix(format, kCols, 97, false, random));
    const DeviceWeight device(placed);
    TestTensor x(DType::kF32, kRows, 97), all(DType::kF32, kRows, kCols), some(DType::kF32, kRows, kCols);
    x.fill(random);
    ASSERT_TRUE(run_gpu(device.weight, x, nullptr, all, 0, kRows));
    ASSERT_TRUE(run_gpu(device.weight, x, nullptr, some, 1001, 67));
    for (int64_t r = 1001; r < 1068; ++r) ASSERT_TRUE(some.same_row_bits(r, all, r)) << "row " << r;
    for (int64_t r : {int64_t{0}, int64_t{63}, int64_t{128}, kRows - 1}) {
      TestTensor one(DType::kF32, kRows, kCols);
      ASSERT_TRUE(run_gpu(device.weight, x, nullptr, one, r, 1));
      ASSERT_TRUE(one.same_row_bits(r, all, r)) << "row " << r;
    }
  }
}

// The large tile's numbers are right, not only the same: columns of a matrix that the reference can afford.
TEST(LinearQuantizedSm90, LargeTilesMatchTheReference) {
  uint64_t seed = 3500;
  for (const WeightFormat& format : main_formats()) {
    ASSERT_EQ(choose_tile(1700, 1900, multiprocessors()), TileSize::kLarge);
    check({format, 1700, 1900, 24}, ++seed);
  }
}

// Golden: with integer lines and INT8 activations one group's sum is an integer, exactly, times two scales.
TEST(LinearQuantizedSm90, IntegerLinesGiveExactIntegers) {
  for (int64_t m : {1, 20})
    for (int64_t k : {128, 77}) {
      Random random(static_cast<uint64_t>(m + k));
      QuantizedMatrix matrix = random_matrix(line_format(4, 128, true), 9, k, false, random);
      matrix.format.act = ActFormat::kI8PerGroup;
      std::fill(matrix.line_scales.begin(), matrix.line_scales.end(), 0.25f);
      PlacedWeight placed(matrix);
      const DeviceWeight device(placed);
      TestTensor x(DType::kF32, m, k), out(DType::kF32, m, 9);
      for (int64_t r = 0; r < m; ++r)
        for (int64_t i = 0; i < k; ++i) x.set(r, i, static_cast<float>(i == r ? 127 : random.below(255) - 127));
      ASSERT_TRUE(run_gpu(device.weight, x, nullptr, out, 0, m));
      std::vector<float> values(static_cast<size_t>(k));
      for (int64_t n = 0; n < 9; ++n) {
        matrix.dequantize_row(n, values);
        for (int64_t r = 0; r < m; ++r) {
          double sum = 0;  // of multiples of 0.25 below 2^51: exact
          for (int64_t i = 0; i < k; ++i) sum += double{values[static_cast<size_t>(i)]} * x.at(r, i);
          ASSERT_EQ(out.at(r, n), static_cast<float>(sum));
        }
      }
    }
}

// Through an identity matrix: every E4M3 number, the middles between neighbours (ties to even), what lies next to them,
// and what is beyond the largest.
TEST(LinearQuantizedSm90, ActivationsAreRoundedAsDefined) {
  const int64_t k = 768;
  QuantizedMatrix identity;
  identity.format = e4m3_format(ScaleLayout::kTensor);
  identity.n = identity.k = k;
  identity.codes.assign(static_cast<size_t>(k * k), 0);
  for (int64_t i = 0; i < k; ++i) identity.codes[static_cast<size_t>(i * k + i)] = e4m3::from_float(1).bits;
  identity.scales = {1};
  std::vector<float> values;
  for (int code = 0; code < 127; ++code) {
    const float v = e4m3{static_cast<uint8_t>(code)}.to_float();
    const float next = code == 126 ? 480 : e4m3{static_cast<uint8_t>(code + 1)}.to_float();
    const float middle = (v + next) / 2;
    for (float around : {v, middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1000.0f)})
      values.push_back(code % 2 == 0 ? around : -around);
  }
  values.resize(static_cast<size_t>(k), 1e-9f);
  for (float scale : {1.0f, 0.37f})
    for (ActFormat act : {ActFormat::kE4m3Static, ActFormat::kE4m3PerToken, ActFormat::kI8PerGroup}) {
      identity.format.act = act;
      identity.act_scale = scale;
      PlacedWeight placed(identity);
      const DeviceWeight device(placed);
      TestTensor x(DType::kF32, 1, k), out(DType::kF32, 1, k);
      std::vector<float> expected;
      for (int64_t i = 0; i < k; ++i) {
        expected.push_back(std::min(values[static_cast<size_t>(i)], act == ActFormat::kE4m3Static ? 1000.0f : 448.0f) *
                           scale);
        x.set(0, i, expected.back());
      }
      float s = scale;
      if (act == ActFormat::kE4m3Static) {
        quantize_act_static(s, expected);
      } else {
        s = quantize_act(act, expected);
      }
      ASSERT_TRUE(run_gpu(device.weight, x, nullptr, out, 0, 1));
      for (int64_t i = 0; i < k; ++i)
        ASSERT_EQ(out.at(0, i), expected[static_cast<size_t>(i)] * s) << "x " << x.at(0, i) << " scale " << s;
    }
}

TEST(LinearQuantizedSm90, BadAndEmptyRowsStayAlone) {
  expect_bad_and_empty_rows_stay_alone({14, 40}, [](PlacedWeight& placed, TestTensor& x, TestTensor& out) {
    const DeviceWeight device(placed);
    return run_gpu(device.weight, x, nullptr, out, 0, x.rows());
  });
}

TEST(LinearQuantizedSm90, ResidualMayBeOut) {
  for (const WeightFormat& format : main_formats())
    for (int64_t m : {1, 30}) {
      Random random(77);
      PlacedWeight placed(random_matrix(format, 130, 65, false, random));
      const DeviceWeight device(placed);
      TestTensor x(DType::kBf16, m, 65), residual(DType::kBf16, m, 130), apart(DType::kBf16, m, 130);
      x.fill(random), residual.fill(random);
      TestTensor same = residual;
      ASSERT_TRUE(run_gpu(device.weight, x, &residual, apart, 0, m));
      ASSERT_TRUE(run_gpu(device.weight, x, &same, same, 0, m));
      EXPECT_TRUE(same.same_bits(apart));
    }
}

// More rows than are rounded at once.
TEST(LinearQuantizedSm90, ManyRowsGoInParts) {
  constexpr int64_t kRows = 9000;
  WeightFormat format = int4_format(WeightCode::kI4SignMagnitude, 32);
  format.act = ActFormat::kE4m3PerToken;
  Random random(88);
  PlacedWeight placed(random_matrix(format, 40, 64, false, random));
  const DeviceWeight device(placed);
  TestTensor x(DType::kF32, kRows, 64), out(DType::kF32, kRows, 40), part(DType::kF32, kRows, 40);
  x.fill(random);
  ASSERT_TRUE(run_gpu(device.weight, x, nullptr, out, 0, kRows));
  ASSERT_TRUE(run_gpu(device.weight, x, nullptr, part, 4000, 5000));
  for (int64_t r = 4000; r < kRows; ++r) ASSERT_TRUE(part.same_row_bits(r, out, r)) << "row " << r;
  EXPECT_EQ(linear_quantized_sm90_workspace_bytes(kRows, 40, 64, 1),
            linear_quantized_sm90_workspace_bytes(2 * kRows, 40, 64, 1));
}

TEST(LinearQuantizedSm90, SmallWorkspaceIsAnErrorThatNamesBothSizes) {
  Random random(1);
  PlacedWeight placed(random_matrix(int4_format(WeightCode::kC4, 16), 4, 32, false, random));
  TestTensor x(DType::kF32, 2, 32), out(DType::kF32, 2, 4);
  const int64_t wanted = linear_quantized_sm90_workspace_bytes(2, 4, 32, 1);
  std::vector<std::byte> scratch(static_cast<size_t>(wanted - 1));
  ExecContext exec{.workspace = scratch};
  const Status status = linear_quantized_sm90({.x = x.view(), .weight = &placed.weight, .out = out.view()}, exec);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().message,
            fmt::format("linear_quantized_sm90: workspace of {} bytes, wanted {}", wanted - 1, wanted));
}

}  // namespace
}  // namespace hearth
