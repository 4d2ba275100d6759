// SPDX-License-Identifier: Apache-2.0
// The GPU's E4M3 linear on tensor cores against the double reference. Label gpu: without a device every test here
// fails.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <list>

#include "hearth/kernels/gpu_test.h"
#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/kernels/linear/linear_stream_sm90.h"
#include "hearth/kernels/linear/quantized_for_test.h"
#include "hearth/kernels/rounded_test.h"
#include "hearth/kernels/some_cases_for_test.h"

namespace hearth {
namespace {

using testing::PlacedWeight;

struct Fp8Case {
  int64_t m, n, k;
  ScaleLayout layout = ScaleLayout::kRow;
  DType scale_dtype = DType::kF32;
  ActFormat act = ActFormat::kE4m3PerToken;
  DType out = DType::kBf16;
  bool bias = false, residual = false, has_k_order = false;
};

std::string describe(const Fp8Case& c) {
  return fmt::format("m {} n {} k {} layout {} scales {} act {} out {}{}{}{}", c.m, c.n, c.k,
                     static_cast<int>(c.layout), dtype_name(c.scale_dtype), static_cast<int>(c.act), dtype_name(c.out),
                     c.bias ? " bias" : "", c.residual ? " residual" : "", c.has_k_order ? " k_order" : "");
}

class Fp8Run {
 public:
  Fp8Run(const Fp8Case& one, uint64_t seed) : c(one), random_(seed), matrix_(make()), placed_(matrix_) {
    x.fill(random_), residual.fill(random_), bias.fill(random_);
  }

  LinearWeight weight() const { return placed_.weight; }
  TestTensor empty_out() const { return TestTensor(c.out, c.m, c.n, 8); }

  TestTensor reference() {
    TestTensor out = empty_out();
    LinearWeight weight = placed_.weight;
    if (c.bias) weight.bias = bias.vector();
    std::vector<std::byte> scratch(static_cast<size_t>(linear_quantized_ref_workspace_bytes(c.m, c.n, c.k, 1)));
    ExecContext exec{.workspace = scratch};
    EXPECT_TRUE(linear_quantized_ref(
        {.x = x.view(), .weight = &weight, .residual = c.residual ? residual.view() : TensorView(), .out = out.view()},
        exec));
    return out;
  }

  // `rounded`: with an x that was rounded before.
  Status run(TestTensor& out, int64_t begin, int64_t rows, bool rounded = false) {
    GpuExec gpu({}, linear_fp8_sm90_workspace_bytes(rows, c.n, c.k, 1));
    OnDevice device_x(x), device_out(out), device_bias(bias), device_residual(residual);
    DeviceCopy memory(placed_.bytes());
    LinearWeight weight = placed_.weight;
    for (ConstTensorView* view : {&weight.codes, &weight.scales, &weight.k_order, &weight.act_scale})
      if (*view) view->data = memory.data() + (static_cast<const std::byte*>(view->data) - placed_.bytes().data());
    if (c.bias) weight.bias = device_bias.vector();
    LinearArgs args{.x = device_x.view().slice_rows(begin, rows),
                    .weight = &weight,
                    .residual = c.residual ? device_residual.view().slice_rows(begin, rows) : TensorView(),
                    .out = device_out.view().slice_rows(begin, rows)};
    RoundedForTest before(c.m, c.k, 16);
    for (int64_t r = 0; r < c.m; ++r)
      round_row(before.view(placed_.weight.act_scale), r, [&](int64_t k) { return x.at(r, k); });
    OnDevice codes(before.codes), scales(before.scales);
    if (rounded) {
      EXPECT_TRUE(linear_fp8_sm90_takes_rounded(weight));
      const RoundedRows all = before.view(codes.view().data, scales.view().data);
      args.x = all.codes.slice_rows(begin, rows);
      args.x_scale = ConstTensorView(static_cast<const float*>(all.scales.data) + begin, DType::kF32, Shape{rows});
    }
    HEARTH_TRY(linear_fp8_sm90(args, gpu.exec()));
    HEARTH_TRY(gpu.synchronize());
    device_out.copy_back();
    return {};
  }

  // In cuBLASLt sums of E4M3 stay on the tensor cores, 32 products at a time, and keep 13 bits: up to 2^-13 of the sum
  // is cut off each time. Few rows add up in f32 after 128 columns. A bf16 result is rounded, where a bias was there
  // before it twice.
  double tolerance(const TestTensor& wanted) const {
    double largest = 0;
    for (int64_t r = 0; r < c.m; ++r)
      for (int64_t n = 0; n < c.n; ++n) largest = std::max(largest, std::abs(double{wanted.at(r, n)}));
    const double steps = c.m > sm90::kStreamMostTokens ? static_cast<double>(c.k) / 32 : 4;
    return largest * (steps * 0x1p-13 + (c.out == DType::kBf16 ? 0x1p-7 : 0));
  }

  const Fp8Case c;

 private:
  QuantizedMatrix make() {
    WeightFormat format{
        .code = WeightCode::kE4m3, .scale_layout = c.layout, .scale_dtype = c.scale_dtype, .act = c.act};
    return testing::random_matrix(format, c.n, c.k, c.has_k_order, random_);
  }
  Random random_;
  QuantizedMatrix matrix_;
  PlacedWeight placed_;

 public:
  TestTensor x{DType::kBf16, c.m, c.k, 8}, residual{c.out, c.m, c.n, 8}, bias{DType::kF32, 1, c.n};
};

void expect_matches_reference(const Fp8Case& c) {
  if (leave_out_case()) return;
  constexpr uint64_t kSeed = 20340;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", " << describe(c));
  Fp8Run run(c, kSeed);
  const TestTensor wanted = run.reference();
  TestTensor out = run.empty_out(), again = run.empty_out();
  const Status status = run.run(out, 0, c.m);
  ASSERT_TRUE(status) << status.error().message;
  EXPECT_LE(max_error(out, wanted), run.tolerance(wanted));
  ASSERT_TRUE(run.run(again, 0, c.m));
  EXPECT_TRUE(out.same_bits(again)) << "the same run twice";
}

TEST(LinearFp8Sm90, MatchesTheReference) {
  for (const int64_t m : {1, 2, 7, 8, 9, 16, 17, 32, 33, 130})
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{384, 384}, {1000, 1024}, {17, 4096}, {256, 18944}})
      expect_matches_reference({.m = m, .n = n, .k = k});
  for (const int64_t m : {5, 40})
    for (const ScaleLayout layout : {ScaleLayout::kRow, ScaleLayout::kTensor})
      for (const DType scales : {DType::kF32, DType::kBf16})
        for (const ActFormat act : {ActFormat::kE4m3PerToken, ActFormat::kE4m3Static})
          for (const bool added : {false, true})
            expect_matches_reference({.m = m,
                                      .n = 256,
                                      .k = 768,
                                      .layout = layout,
                                      .scale_dtype = scales,
                                      .act = act,
                                      .out = added ? DType::kBf16 : DType::kF32,
                                      .bias = added,
                                      .residual = added});
}

// What lies as no tensor-core path takes it still comes out right.
TEST(LinearFp8Sm90, OtherShapesAndOrders) {
  for (const int64_t m : {3, 50}) {
    expect_matches_reference({.m = m, .n = 33, .k = 100});
    expect_matches_reference({.m = m, .n = 33, .k = 128, .residual = true});
    expect_matches_reference({.m = m, .n = 64, .k = 48});
    expect_matches_reference({.m = m, .n = 128, .k = 256, .has_k_order = true});
  }
}

// Up to kNarrowMostRows, and above that up to kStreamMostTokens, whatever beside them is. N has more tiles than
// blocks, so that these share some.
TEST(LinearFp8Sm90, AFewRowsAreEachTheirOwn) {
  constexpr uint64_t kSeed = 20341;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  for (const auto& [least, most] :
       {std::pair<int64_t, int64_t>{1, sm90::kNarrowMostRows}, {sm90::kNarrowMostRows + 1, sm90::kStreamMostTokens}}) {
    Fp8Run run({.m = most, .n = 17900, .k = 384, .residual = true}, kSeed);
    ASSERT_TRUE(linear_fp8_sm90_takes_rounded(run.weight())) << "else this is not the kernel for few rows";
    TestTensor all = run.empty_out(), parts = run.empty_out();
    ASSERT_TRUE(run.run(all, 0, most));
    for (int64_t begin = 0, rows = least; begin < most;) {
      ASSERT_TRUE(run.run(parts, begin, rows));
      begin += rows;
      rows = most - begin < 2 * rows + 3 ? most - begin : rows + 3;
    }
    EXPECT_TRUE(all.same_bits(parts)) << least << " to " << most;
  }
}

// Tiles of 128 rows that several blocks share, whole ones, and both.
TEST(LinearFp8Sm90, BlocksShareTiles) {
  for (const int64_t m : {9, 17, 64})
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{128, 18944}, {4096, 14336}, {1152, 4096}, {17000, 512}})
      expect_matches_reference({.m = m, .n = n, .k = k, .bias = true, .residual = true});
}

// The same bits, whether the op rounds x or someone did before.
TEST(LinearFp8Sm90, TakesRoundedRows) {
  constexpr uint64_t kSeed = 20343;
  for (const int64_t m : {1, 3, 17, 33, 200})
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{384, 384}, {1000, 1024}, {17, 4096}})
      for (const ActFormat act : {ActFormat::kE4m3PerToken, ActFormat::kE4m3Static})
        for (const bool added : {false, true}) {
          const Fp8Case c{.m = m,
                          .n = n,
                          .k = k,
                          .act = act,
                          .out = added ? DType::kBf16 : DType::kF32,
                          .bias = added,
                          .residual = added};
          if (leave_out_case()) continue;
          SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", " << describe(c));
          Fp8Run run(c, kSeed);
          TestTensor plain = run.empty_out(), rounded = run.empty_out();
          ASSERT_TRUE(run.run(plain, 0, m));
          const Status status = run.run(rounded, 0, m, true);
          ASSERT_TRUE(status) << status.error().message;
          EXPECT_TRUE(plain.same_bits(rounded));
        }
}

// Q, K and V in one launch, or one after the other: a few rows have the same bits.
TEST(LinearFp8Sm90, SeveralWeightsTogether) {
  constexpr uint64_t kSeed = 20344;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  constexpr int64_t kCols[] = {100, 48, 17}, kAll = 165, kK = 1152;
  for (const int64_t m : {1, 5, 12, 32, 40}) {
    Random random(kSeed);
    TestTensor x(DType::kBf16, m, kK), residual(DType::kBf16, m, kAll, 3), apart(DType::kBf16, m, kAll, 5),
        together = apart;
    x.fill(random), residual.fill(random);
    RoundedForTest rounded(m, kK);
    for (int64_t r = 0; r < m; ++r) round_row(rounded.view(), r, [&](int64_t k) { return x.at(r, k); });
    GpuExec gpu({}, linear_fp8_sm90_workspace_bytes(m, kAll, kK, 1));
    OnDevice codes(rounded.codes), scales(rounded.scales), device_residual(residual), device_apart(apart),
        device_together(together);
    const RoundedRows input = rounded.view(codes.view().data, scales.view().data);
    std::list<PlacedWeight> placed;
    std::list<DeviceCopy> memory;
    std::vector<LinearWeight> weights;
    for (const int64_t n : kCols) {
      PlacedWeight& one = placed.emplace_back(testing::random_matrix({.code = WeightCode::kE4m3,
                                                                      .scale_layout = ScaleLayout::kRow,
                                                                      .scale_dtype = DType::kF32,
                                                                      .act = ActFormat::kE4m3PerToken},
                                                                     n, kK, false, random));
      const DeviceCopy& copy = memory.emplace_back(one.bytes());
      LinearWeight weight = one.weight;
      for (ConstTensorView* view : {&weight.codes, &weight.scales})
        view->data = copy.data() + (static_cast<const std::byte*>(view->data) - one.bytes().data());
      weights.push_back(weight);
    }
    const auto parts_into = [&](const TensorView& out) {
      std::vector<LinearArgs> parts;
      int64_t col = 0;
      for (const LinearWeight& weight : weights) {
        parts.push_back({.x = input.codes,
                         .weight = &weight,
                         .residual = device_residual.view().slice_cols(col, weight.n),
                         .out = out.slice_cols(col, weight.n),
                         .x_scale = input.scales});
        col += weight.n;
      }
      return parts;
    };
    for (const LinearArgs& args : parts_into(device_apart.view())) ASSERT_TRUE(linear_fp8_sm90(args, gpu.exec()));
    const Status status = linear_fp8_sm90_parts(parts_into(device_together.view()), gpu.exec());
    ASSERT_TRUE(status) << status.error().message;
    ASSERT_TRUE(gpu.synchronize());
    device_apart.copy_back(), device_together.copy_back();
    double largest = 0;
    for (int64_t r = 0; r < m; ++r)
      for (int64_t n = 0; n < kAll; ++n) largest = std::max(largest, std::abs(double{apart.at(r, n)}));
    if (m <= sm90::kNarrowMostRows) {
      EXPECT_TRUE(apart.same_bits(together)) << "m " << m;
    } else {
      EXPECT_LE(max_error(apart, together), 0x1p-6 * largest) << "m " << m << ": a last bit of bf16";
    }
    EXPECT_TRUE(std::isfinite(together.at(m - 1, kAll - 1)));
  }
}

TEST(LinearFp8Sm90, SaysWhichWeightsTakeRoundedRows) {
  for (const bool has_k_order : {false, true})
    for (const int64_t k : {48, 64, 100, 128}) {
      Random random(1);
      const QuantizedMatrix matrix = testing::random_matrix({.code = WeightCode::kE4m3,
                                                             .scale_layout = ScaleLayout::kRow,
                                                             .scale_dtype = DType::kF32,
                                                             .act = ActFormat::kE4m3PerToken},
                                                            64, k, has_k_order, random);
      const PlacedWeight placed(matrix);
      EXPECT_EQ(linear_fp8_sm90_takes_rounded(placed.weight), k == 128 && !has_k_order) << k << has_k_order;
    }
  // Where it does not, an x of e4m3 is an error and never read as something else.
  Fp8Run run({.m = 2, .n = 64, .k = 48}, 1);
  TestTensor out = run.empty_out();
  RoundedForTest rounded(2, 48);
  LinearWeight weight = run.weight();
  ExecContext exec;
  const Status status = linear_fp8_sm90(
      {.x = rounded.view().codes, .weight = &weight, .out = out.view(), .x_scale = rounded.view().scales}, exec);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kUnsupported) << status.error().message;
}

TEST(LinearFp8Sm90, NaNAndInfinityStayInTheirRow) {
  for (const int64_t m : {4, 40}) {
    Fp8Run run({.m = m, .n = 128, .k = 256}, 20342);
    run.x.set(1, 5, std::numeric_limits<float>::quiet_NaN());
    run.x.set(2, 200, std::numeric_limits<float>::infinity());
    TestTensor out = run.empty_out();
    ASSERT_TRUE(run.run(out, 0, m));
    for (int64_t n = 0; n < 128; ++n) {
      EXPECT_TRUE(std::isfinite(out.at(0, n)));
      EXPECT_TRUE(std::isnan(out.at(1, n)));
      EXPECT_TRUE(std::isnan(out.at(2, n)));
      EXPECT_TRUE(std::isfinite(out.at(3, n)));
    }
  }
}

}  // namespace
}  // namespace hearth
