// SPDX-License-Identifier: Apache-2.0
// 4-bit weights by many tokens against the double reference: codes, zero points, types of scales, both activations,
// edges of m, n and K; a row's bits; the order of x; rows that come rounded; bad rows. Label gpu: without a device
// every test but that of the order fails.
#include "hearth/kernels/linear/linear_nibble_wide_sm90.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "hearth/kernels/gpu_test.h"
#include "hearth/kernels/linear/device_weight_for_test.h"
#include "hearth/kernels/linear/gpu_linear_for_test.h"
#include "hearth/kernels/linear/quantized_for_test.h"
#include "hearth/kernels/rounded_test.h"

namespace hearth {
namespace {

using namespace testing;  // quantized_for_test.h

WeightFormat with_act(WeightFormat format, ActFormat act) {
  format.act = act;
  return format;
}

// One for each kernel.
std::vector<WeightFormat> kernels() {
  using enum WeightCode;
  const ActFormat e4m3 = ActFormat::kE4m3PerToken;
  return {with_act(int4_format(kI4SignMagnitude, 128), e4m3), with_act(int4_format(kC4, 128), e4m3),
          with_act(int4_format(kU4, 128, true, DType::kBf16), e4m3), int4_format(kU4, 128, true)};
}

std::vector<WeightFormat> formats() {
  using enum WeightCode;
  std::vector<WeightFormat> all = kernels();
  all.push_back(with_act(int4_format(kI4SignMagnitude, 128, false, DType::kF32), ActFormat::kE4m3Static));
  all.push_back(with_act(int4_format(kC4, 256, false, DType::kBf16), ActFormat::kE4m3PerToken));
  all.push_back(with_act(int4_format(kU4, 128), ActFormat::kE4m3PerToken));
  all.push_back(int4_format(kU4, 128));
  all.push_back(int4_format(kU4, 256, true, DType::kF32));
  return all;
}

bool is_bf16(const WeightFormat& format) { return format.act == ActFormat::kNative; }

Status run_gpu(const LinearWeight& weight, TestTensor& x, TestTensor* residual, TestTensor& out, int64_t begin,
               int64_t rows, bool counters = true, sm90::WideTile tile = sm90::WideTile::kChosen) {
  const auto twice = [&](const LinearArgs& args, ExecContext& exec) -> Status {
    if (!counters) exec.staged.counters = nullptr;
    if (!sm90::fits_nibble_wide(args)) return unsupported("does not fit");
    // What the first launch leaves in the counters, the second one finds.
    for (int i = 0; i < 2; ++i) HEARTH_TRY(sm90::linear_nibble_wide_sm90(args, exec, tile));
    return {};
  };
  return run_linear(twice, sm90::nibble_wide_workspace_bytes(rows, weight.n, weight.k), weight, x, residual, out, begin,
                    rows);
}

// Frobenius norm of the error by that of the result. Products are exact. Of E4M3's sums Hopper's tensor cores keep
// about 14 bits, of bf16's as many as f32 has; results in bf16 are rounded once.
double tolerance(const WeightFormat& format, DType out) {
  if (out == DType::kBf16) return 0x1p-8;
  return is_bf16(format) ? 1e-5 : 3e-4;
}

void check(const LinearCase& c, uint64_t seed, sm90::WideTile tile = sm90::WideTile::kChosen) {
  SCOPED_TRACE(fmt::format("tile {}", static_cast<int>(tile)));
  check_linear(c, seed, tolerance(c.format, c.out),
               [&](PlacedWeight& placed, TestTensor* bias, TestTensor& x, TestTensor* residual, TestTensor& out) {
                 const PackedWeight device(placed, bias);
                 return run_gpu(device.weight, x, residual, out, 0, c.m, seed % 2 == 0, tile);
               });
}

// One weight is 1 and every x a small integer of its own: says which column went where when something is amiss.
TEST(LinearNibbleWideSm90, FindsEveryColumn) {
  for (const WeightFormat& format : kernels()) {
    SCOPED_TRACE(to_string(format));
    constexpr int64_t kRows = 20, kCols = 256, kK = 256;
    Random random(1);
    QuantizedMatrix matrix = random_matrix(format, kCols, kK, false, random);
    const bool offset = format.code == WeightCode::kU4, levels = format.code == WeightCode::kC4;
    std::fill(matrix.scales.begin(), matrix.scales.end(), 1.0f);
    std::fill(matrix.zeros.begin(), matrix.zeros.end(), uint8_t{3});
    for (int64_t n = 0; n < kCols; ++n) {
      const std::span<uint8_t> bytes(matrix.codes.data() + n * matrix.row_bytes(),
                                     static_cast<size_t>(matrix.row_bytes()));
      std::fill(bytes.begin(), bytes.end(), uint8_t{0});
      // Row n has 1 in column n; kC4 has no zero: 3 there, -9/64 and 9/64 in turns elsewhere.
      for (int64_t k = 0; k < kK; ++k) {
        if (levels) {
          put_nibble(bytes, k, static_cast<uint8_t>(k == n ? 7 : k % 2 * 8));
        } else {
          put_nibble(bytes, k, static_cast<uint8_t>((k == n ? 1 : 0) + (offset ? 3 : 0)));
        }
      }
    }
    PlacedWeight placed(matrix);
    const PackedWeight device(placed);
    TestTensor x(DType::kBf16, kRows, kK), out(DType::kF32, kRows, kCols);
    // The column's number, a digit of base 15 a row: the largest, 14, makes the scale 2^-5. Other rows are 0.
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t k = 0; k < kK; ++k) x.set(r, k, static_cast<float>(r == 0 ? k % 15 : r == 1 ? k / 15 % 15 : 0));
    ASSERT_TRUE(run_gpu(device.weight, x, nullptr, out, 0, kRows));
    int wrong = 0;
    const auto wanted = [&](int64_t r, int64_t n) {
      if (!levels) return double{x.at(r, n)};
      double sum = 0;
      for (int64_t k = 0; k < kK; ++k) sum += x.at(r, k) * (k == n ? 3.0 : k % 2 == 0 ? 9.0 / 64 : -9.0 / 64);
      return sum;
    };
    for (int64_t r = 0; r < 2; ++r)
      for (int64_t n = 0; n < kCols; ++n) {
        // All is exact, but kC4's sums of many parts in E4M3 products.
        const double want = wanted(r, n), bound = levels ? 0.05 : 0;
        if (std::abs(out.at(r, n) - want) <= bound) continue;
        if (++wrong <= 6)
          ADD_FAILURE() << "row " << r << " column " << n << ": " << out.at(r, n) << ", wanted " << want;
      }
    EXPECT_EQ(wrong, 0);
  }
}

TEST(LinearNibbleWideSm90, MatchesTheReferenceForEveryFormat) {
  uint64_t seed = 100;
  for (const WeightFormat& format : formats())
    for (int64_t m : {17, 33, 64, 65, 200}) {
      check({format, m, 100, 384}, ++seed);
      check({format, m, 8, 128, DType::kBf16, true}, ++seed);
      check({format, m, 384, 256, DType::kBf16}, ++seed);
    }
}

TEST(LinearNibbleWideSm90, MatchesTheReferenceAtEdges) {
  uint64_t seed = 300;
  for (const WeightFormat& format : kernels()) {
    for (int64_t m : {1, 31, 32, 63, 127, 128, 129}) check({format, m, 129, 640}, ++seed);
    for (int64_t m : {17, 40, 100}) check({format, m, 100, 4096}, ++seed);
    check({format, 17, 1, 4096}, ++seed);
    check({format, 1000, 100, 384, DType::kF32, true}, ++seed);
    check({format, 300, 384, 4096}, ++seed);
  }
}

// Tiles of more and of fewer tokens than there are, and blocks that share tiles of all of them.
TEST(LinearNibbleWideSm90, EveryTileMatchesTheReference) {
  using enum sm90::WideTile;
  uint64_t seed = 400;
  for (const WeightFormat& format : kernels())
    for (const sm90::WideTile tile : {k128x32, k128x64, k64x64, k128x128, k192x128})
      for (const int64_t m : {40, 140}) {
        check({format, m, 300, 1664, DType::kF32, true}, ++seed, tile);
        check({format, m, 20, 6144, DType::kF32, false}, ++seed, tile);
      }
}

// Tiles in waves behind those that are shared; none but whole ones, as many for each of 132 multiprocessors, for fewer of
// them, and one less for some.
TEST(LinearNibbleWideSm90, WavesMatchTheReference) {
  uint64_t seed = 450;
  for (const WeightFormat& format : kernels()) {
    check({format, 129, 54 * 128 + 1, 384, DType::kF32, false}, ++seed, sm90::WideTile::k128x32);
    check({format, 97, 33 * 128, 384, DType::kF32, true}, ++seed, sm90::WideTile::k128x32);
    check({format, 97, 31 * 128, 384, DType::kBf16, true}, ++seed, sm90::WideTile::k128x32);
    check({format, 65, 87 * 128, 256, DType::kF32, false}, ++seed, sm90::WideTile::k128x32);
  }
}

// More tiles than blocks; more rows than are taken at once.
TEST(LinearNibbleWideSm90, MatchesTheReferenceOnModelShapes) {
  uint64_t seed = 500;
  for (const WeightFormat& format : kernels()) {
    check({format, 20, 128 * 140 + 40, 256}, ++seed);
    check({format, 70, 40, 14336}, ++seed);
    check({format, 4096 + 33, 136, 128, DType::kBf16, true}, ++seed);
  }
}

// Scales of x and of W that are very small and very large, a row of zeros among others: every row by itself.
TEST(LinearNibbleWideSm90, TakesExtremeScales) {
  uint64_t seed = 600;
  for (const WeightFormat& kernel : kernels())
    for (const float weight_scale : {1e-18f, 1e12f}) {
      WeightFormat format = kernel;
      format.scale_dtype = DType::kF32;
      SCOPED_TRACE(fmt::format("seed {} {} scale {}", ++seed, to_string(format), weight_scale));
      constexpr int64_t kRows = 24, kCols = 160, kK = 512;
      Random random(seed);
      QuantizedMatrix matrix = random_matrix(format, kCols, kK, false, random);
      for (float& scale : matrix.scales) scale *= weight_scale;
      PlacedWeight placed(matrix);
      const PackedWeight device(placed);
      TestTensor x(DType::kBf16, kRows, kK), out(DType::kF32, kRows, kCols), exact(DType::kF32, kRows, kCols);
      for (int64_t r = 0; r < kRows; ++r)
        for (int64_t k = 0; k < kK; ++k)
          x.set(r, k, r % 4 == 0 ? 0 : random.normal() * (r % 4 == 1 ? 1e-12f : r % 4 == 2 ? 1 : 1e14f));
      std::vector<std::byte> scratch(static_cast<size_t>(linear_quantized_ref_workspace_bytes(kRows, kCols, kK, 1)));
      ExecContext exec{.workspace = scratch};
      ASSERT_TRUE(linear_quantized_ref({.x = x.view(), .weight = &placed.weight, .out = exact.view()}, exec));
      ASSERT_TRUE(run_gpu(device.weight, x, nullptr, out, 0, kRows));
      for (int64_t r = 0; r < kRows; ++r) {
        double error = 0, norm = 0;
        for (int64_t n = 0; n < kCols; ++n) {
          const double wanted = exact.at(r, n), off = out.at(r, n) - wanted;
          error += off * off, norm += wanted * wanted;
        }
        EXPECT_LE(std::sqrt(error), std::sqrt(norm) * tolerance(format, DType::kF32)) << "row " << r;
      }
    }
}

// I1: as long as one tile holds the rows, whatever m is and wherever the row stands.
TEST(LinearNibbleWideSm90, ARowIsItsOwn) {
  uint64_t seed = 700;
  for (const WeightFormat& format : formats()) {
    SCOPED_TRACE(fmt::format("seed {} {}", ++seed, to_string(format)));
    Random random(seed);
    constexpr int64_t kRows = 128, kCols = 200, kK = 1152;
    PlacedWeight placed(random_matrix(format, kCols, kK, false, random));
    const PackedWeight device(placed);
    TestTensor x(DType::kBf16, kRows, kK), all(DType::kF32, kRows, kCols), some(DType::kF32, kRows, kCols);
    x.fill(random);
    ASSERT_TRUE(run_gpu(device.weight, x, nullptr, all, 0, kRows, true, sm90::WideTile::k128x128));
    for (const int64_t m : {5, 20, 50, 64, 100}) {
      const int64_t begin = m == 5 ? 60 : 120 - m;
      const sm90::WideTile tile = m <= 64 ? sm90::WideTile::kChosen : sm90::WideTile::k128x128;
      ASSERT_TRUE(run_gpu(device.weight, x, nullptr, some, begin, m, true, tile));
      for (int64_t r = begin; r < begin + m; ++r)
        ASSERT_TRUE(some.same_row_bits(r, all, r)) << "m " << m << " row " << r;
    }
  }
}

// NaN and infinities stay in their row, zeros give zeros.
TEST(LinearNibbleWideSm90, BadRowsStayAlone) {
  uint64_t seed = 800;
  for (const WeightFormat& format : formats()) {
    SCOPED_TRACE(fmt::format("seed {} {}", ++seed, to_string(format)));
    Random random(seed);
    constexpr int64_t kRows = 40, kCols = 70;
    PlacedWeight placed(random_matrix(format, kCols, 256, false, random));
    const PackedWeight device(placed);
    TestTensor x(DType::kBf16, kRows, 256), out(DType::kF32, kRows, kCols);
    x.fill(random);
    x.set(1, 200, std::numeric_limits<float>::quiet_NaN());
    x.set(2, 5, std::numeric_limits<float>::infinity());
    for (int64_t k = 0; k < 256; ++k) x.set(3, k, 0);
    ASSERT_TRUE(run_gpu(device.weight, x, nullptr, out, 0, kRows));
    for (int64_t n = 0; n < kCols; ++n) {
      for (int64_t r = 0; r < kRows; ++r) EXPECT_TRUE(r == 1 || r == 2 || std::isfinite(out.at(r, n))) << r << " " << n;
      EXPECT_TRUE(std::isnan(out.at(1, n))) << n;
      // A static scale makes the largest number of an infinity; a weight may be zero.
      EXPECT_TRUE(format.act != ActFormat::kE4m3PerToken || std::isnan(out.at(2, n))) << n;
      EXPECT_EQ(out.at(3, n), 0) << n;
    }
  }
}

// Rows that come rounded give what they give when the op rounds them.
TEST(LinearNibbleWideSm90, TakesRoundedRows) {
  constexpr uint64_t kSeed = 900;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  constexpr int64_t kCols = 300, kK = 384;
  for (const WeightFormat& format : kernels())
    for (const int64_t m : {17, 200}) {
      if (is_bf16(format)) continue;
      Random random(kSeed);
      TestTensor x(DType::kBf16, m, kK), plain(DType::kBf16, m, kCols, 4), taken = plain;
      x.fill(random);
      RoundedForTest rounded(m, kK, 16);
      for (int64_t r = 0; r < m; ++r) round_row(rounded.view(), r, [&](int64_t k) { return x.at(r, k); });
      PlacedWeight placed(random_matrix(format, kCols, kK, false, random));
      const PackedWeight device(placed);
      ASSERT_TRUE(run_gpu(device.weight, x, nullptr, plain, 0, m));
      GpuExec gpu({}, sm90::nibble_wide_workspace_bytes(m, kCols, kK));
      OnDevice codes(rounded.codes), scales(rounded.scales), device_taken(taken);
      const RoundedRows input = rounded.view(codes.view().data, scales.view().data);
      const LinearArgs args{
          .x = input.codes, .weight = &device.weight, .out = device_taken.view(), .x_scale = input.scales};
      ASSERT_TRUE(sm90::fits_nibble_wide(args));
      const Status status = sm90::linear_nibble_wide_sm90(args, gpu.exec());
      ASSERT_TRUE(status) << status.error().message;
      ASSERT_TRUE(gpu.synchronize());
      device_taken.copy_back();
      EXPECT_TRUE(taken.same_bits(plain)) << to_string(format) << " m " << m;
    }
}

// What is not packed, and rows that are not whole vectors.
TEST(LinearNibbleWideSm90, RefusesWhatItDoesNotTake) {
  TestTensor x(DType::kBf16, 20, 256), ragged(DType::kBf16, 20, 256, 4), out(DType::kF32, 20, 8);
  Random random(1);
  PlacedWeight placed(random_matrix(kernels()[0], 8, 256, false, random));
  const PackedWeight packed(placed);
  EXPECT_FALSE(sm90::fits_nibble_wide({.x = x.view(), .weight = &placed.weight, .out = out.view()}));
  EXPECT_FALSE(sm90::fits_nibble_wide({.x = ragged.view(), .weight = &packed.weight, .out = out.view()}));
  const LinearArgs args{.x = x.view(), .weight = &packed.weight, .out = out.view()};
  EXPECT_TRUE(sm90::fits_nibble_wide(args));
  ExecContext exec;
  const Status status = sm90::linear_nibble_wide_sm90(args, exec);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kResourceExhausted);
}

}  // namespace
}  // namespace hearth
