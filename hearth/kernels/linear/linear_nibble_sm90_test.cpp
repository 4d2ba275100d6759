// SPDX-License-Identifier: Apache-2.0
// 4-bit weights on the GPU's tensor cores against the double reference: codes, zero points, types of scales, both
// activations, edges of n and m; a row's bits; rows that come rounded; several weights in one launch. Label gpu:
// without a device every test here fails.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <list>

#include "hearth/kernels/gpu_test.h"
#include "hearth/kernels/linear/device_weight_for_test.h"
#include "hearth/kernels/linear/gpu_linear_for_test.h"
#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/kernels/linear/linear_narrow_sm90.h"
#include "hearth/kernels/linear/quantized_for_test.h"
#include "hearth/kernels/rounded_test.h"

namespace hearth {
namespace {

using namespace testing;  // quantized_for_test.h

std::vector<WeightFormat> formats() {
  using enum WeightCode;
  std::vector<WeightFormat> all = {int4_format(kI4SignMagnitude, 128), int4_format(kC4, 128), int4_format(kU4, 128),
                                   int4_format(kU4, 128, true, DType::kBf16)};
  for (WeightFormat& format : all) format.act = ActFormat::kE4m3PerToken;
  all.push_back(int4_format(kU4, 128));
  all.push_back(int4_format(kU4, 128, true));
  all.push_back(int4_format(kU4, 256, true, DType::kF32));
  all.push_back(int4_format(kU4, 128, false, DType::kE4m3));
  all.push_back(int4_format(kI4SignMagnitude, 128, false, DType::kBf16));
  all.back().act = ActFormat::kE4m3Static;
  return all;
}

Status run_gpu(const LinearWeight& weight, TestTensor& x, TestTensor* residual, TestTensor& out, int64_t begin,
               int64_t rows) {
  return run_linear(linear_nibble_sm90, linear_nibble_sm90_workspace_bytes(rows, weight.n, weight.k, 1), weight, x,
                    residual, out, begin, rows);
}

// Sums in f32 lose 2^-24 of the largest part of a sum a step, and bf16 rounds the result.
void check(const LinearCase& c, uint64_t seed) {
  ASSERT_TRUE(supports_linear_nibble_sm90(c.format, DType::kBf16));
  check_linear(c, seed, c.out == DType::kF32 ? 1e-5 : 0x1p-8,
               [&](PlacedWeight& placed, TestTensor* bias, TestTensor& x, TestTensor* residual, TestTensor& out) {
                 const PackedWeight device(placed, bias);
                 return run_gpu(device.weight, x, residual, out, 0, c.m);
               });
}

TEST(LinearNibbleSm90, MatchesTheReferenceForEveryFormat) {
  uint64_t seed = 100;
  for (const WeightFormat& format : formats())
    for (int64_t m : {1, 2, 7, 8, 9, 16}) {
      check({format, m, 48, 1024}, ++seed);
      check({format, m, 33, 128}, ++seed);
      check({format, m, 17, 384, DType::kBf16, true}, ++seed);
      if (format.group_k == 128) check({format, m, 5, 3584}, ++seed);
    }
}

// More tiles than blocks, a K of many stages, and models' K.
TEST(LinearNibbleSm90, MatchesTheReferenceOnModelShapes) {
  uint64_t seed = 300;
  for (const WeightFormat& format : {formats()[0], formats()[1], formats()[3], formats()[5]})
    for (int64_t m : {1, 12}) {
      check({format, m, 4096 + 40, 256}, ++seed);
      check({format, m, 6000, 2688}, ++seed);               // three strips a block, a part of a segment
      if (m == 1) check({format, m, 4400, 14336}, ++seed);  // strips that are longer than the rings
      check({format, m, 100, 14336}, ++seed);
      check({format, m, 40, 18944, DType::kBf16, true}, ++seed);
    }
}

// Few rows: whatever m is and wherever the row stands. More go through another kernel.
TEST(LinearNibbleSm90, ARowIsItsOwn) {
  uint64_t seed = 400;
  for (const WeightFormat& format : formats()) {
    SCOPED_TRACE(fmt::format("seed {} {}", ++seed, to_string(format)));
    Random random(seed);
    // Two strips a block.
    constexpr int64_t kRows = 16, kCols = 2200, kK = 3072;
    PlacedWeight placed(random_matrix(format, kCols, kK, false, random));
    const PackedWeight device(placed);
    TestTensor x(DType::kBf16, kRows, kK), all(DType::kF32, kRows, kCols), some(DType::kF32, kRows, kCols);
    x.fill(random);
    ASSERT_TRUE(run_gpu(device.weight, x, nullptr, all, 0, kRows));
    ASSERT_TRUE(run_gpu(device.weight, x, nullptr, some, 3, 5));
    for (int64_t r = 3; r < 8; ++r) ASSERT_TRUE(some.same_row_bits(r, all, r)) << r;
  }
}

// NaN and infinities stay in their row, zeros give zeros.
TEST(LinearNibbleSm90, BadRowsStayAlone) {
  uint64_t seed = 500;
  for (const WeightFormat& format : formats()) {
    SCOPED_TRACE(fmt::format("seed {} {}", ++seed, to_string(format)));
    Random random(seed);
    PlacedWeight placed(random_matrix(format, 40, 256, false, random));
    const PackedWeight device(placed);
    TestTensor x(DType::kBf16, 4, 256), out(DType::kF32, 4, 40);
    x.fill(random);
    x.set(1, 200, std::numeric_limits<float>::quiet_NaN());
    x.set(2, 5, std::numeric_limits<float>::infinity());
    for (int64_t k = 0; k < 256; ++k) x.set(3, k, 0);
    ASSERT_TRUE(run_gpu(device.weight, x, nullptr, out, 0, 4));
    for (int64_t n = 0; n < 40; ++n) {
      EXPECT_TRUE(std::isfinite(out.at(0, n))) << n;
      EXPECT_TRUE(std::isnan(out.at(1, n))) << n;
      // A static scale makes the largest number of it.
      if (format.act != ActFormat::kE4m3Static) {
        EXPECT_FALSE(std::isfinite(out.at(2, n)) && placed.weight.zeros.data == nullptr) << n;
      }
      EXPECT_EQ(out.at(3, n), 0) << n;
    }
  }
}

// Rows that come rounded, few (units) and many (the wide kernel), and three weights in one launch.
TEST(LinearNibbleSm90, TakesRoundedRowsAndSeveralWeights) {
  constexpr uint64_t kSeed = 600;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  constexpr int64_t kCols[] = {100, 48, 17}, kAll = 165, kK = 384;
  for (const WeightFormat& format : {formats()[0], formats()[1], formats()[3]})
    for (const int64_t m : {1, 5, 16, 40}) {
      Random random(kSeed);
      TestTensor x(DType::kBf16, m, kK), apart(DType::kBf16, m, kAll, 5), plain = apart, together = apart;
      x.fill(random);
      RoundedForTest rounded(m, kK);
      for (int64_t r = 0; r < m; ++r) round_row(rounded.view(), r, [&](int64_t k) { return x.at(r, k); });
      GpuExec gpu({}, linear_nibble_sm90_workspace_bytes(m, kAll, kK, 1));
      OnDevice device_x(x), codes(rounded.codes), scales(rounded.scales), device_apart(apart), device_plain(plain),
          device_together(together);
      const RoundedRows input = rounded.view(codes.view().data, scales.view().data);
      std::list<PlacedWeight> placed;
      std::list<PackedWeight> weights;
      for (const int64_t n : kCols)
        weights.emplace_back(placed.emplace_back(random_matrix(format, n, kK, false, random)));
      const auto parts_into = [&](const TensorView& out) {
        std::vector<LinearArgs> parts;
        int64_t col = 0;
        for (const PackedWeight& one : weights) {
          EXPECT_TRUE(linear_nibble_sm90_takes_rounded(one.weight));
          parts.push_back({.x = input.codes,
                           .weight = &one.weight,
                           .out = out.slice_cols(col, one.weight.n),
                           .x_scale = input.scales});
          col += one.weight.n;
        }
        return parts;
      };
      for (LinearArgs& args : parts_into(device_plain.view())) {
        args.x = device_x.view(), args.x_scale = {};
        ASSERT_TRUE(linear_nibble_sm90(args, gpu.exec()));
        ASSERT_TRUE(gpu.synchronize());  // the scratch memory is used again
      }
      for (const LinearArgs& args : parts_into(device_apart.view())) {
        const Status status = linear_nibble_sm90(args, gpu.exec());
        ASSERT_TRUE(status) << status.error().message;
        ASSERT_TRUE(gpu.synchronize());
      }
      ASSERT_TRUE(linear_nibble_sm90_parts(parts_into(device_together.view()), gpu.exec()));
      ASSERT_TRUE(gpu.synchronize());
      device_apart.copy_back(), device_plain.copy_back(), device_together.copy_back();
      EXPECT_TRUE(apart.same_bits(plain)) << to_string(format) << " m " << m;
      EXPECT_TRUE(apart.same_bits(together)) << to_string(format) << " m " << m;
      EXPECT_TRUE(std::isfinite(together.at(m - 1, kAll - 1)));
    }
}

}  // namespace
}  // namespace hearth
