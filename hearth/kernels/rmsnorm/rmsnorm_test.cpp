// SPDX-License-Identifier: Apache-2.0
#include "hearth/kernels/rmsnorm/rmsnorm.h"

#include <gtest/gtest.h>

#include "hearth/kernels/cpu/test_targets.h"
#include "hearth/kernels/op_test.h"
#include "hearth/kernels/rmsnorm/rmsnorm_sm90.h"
#include "hearth/kernels/rmsnorm/rmsnorm_test_cases.h"
#include "hearth/kernels/rounded_test.h"

namespace hearth {
namespace {

Status run_cpu(const RmsNormArgs& args, ThreadPool* pool = nullptr) {
  ExecContext exec{.pool = pool};
  return rmsnorm_cpu(args, exec);
}

TEST(RmsNormRef, AgreesWithMathematics) {
  // The mean of the squares of 3 and 4 is 12.5; with eps = 12.5 the scale is 1 / 5.
  TestTensor x(DType::kF32, 1, 2), weight(DType::kF32, 1, 2), out(DType::kF32, 1, 2);
  x.set(0, 0, 3), x.set(0, 1, -4);
  weight.set(0, 0, 1), weight.set(0, 1, 10);
  ExecContext exec;
  ASSERT_TRUE(rmsnorm_ref({.x = x.view(), .weight = weight.vector(), .out = out.view(), .eps = 12.5f}, exec));
  EXPECT_FLOAT_EQ(out.at(0, 0), 0.6f);
  EXPECT_FLOAT_EQ(out.at(0, 1), -8.0f);
}

TEST(RmsNormRef, AddsAndKeepsTheResidual) {
  TestTensor x(DType::kBf16, 1, 1), residual(DType::kBf16, 1, 1), weight(DType::kF32, 1, 1), out(DType::kBf16, 1, 1);
  x.set(0, 0, 0.25f), residual.set(0, 0, 256);  // 256.25 is not a bf16: 256 is the nearest
  weight.set(0, 0, 1);
  ExecContext exec;
  ASSERT_TRUE(
      rmsnorm_ref({.x = x.view(), .residual = residual.view(), .weight = weight.vector(), .out = out.view()}, exec));
  EXPECT_EQ(residual.at(0, 0), 256);
  EXPECT_EQ(out.at(0, 0), 1);
}

TEST(RmsNormRef, RoundsItsOutput) {
  constexpr uint64_t kSeed = 20262;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  for (const DType dtype : {DType::kF32, DType::kBf16})
    for (const float static_scale : {0.0f, 0.02f}) {
      TestTensor x(dtype, 4, 130), weight(DType::kF32, 1, 130), plain(dtype, 4, 130), both = plain,
                                                                                      scale(DType::kF32, 1, 1);
      x.fill(random), weight.fill(random), scale.set(0, 0, static_scale);
      for (int64_t i = 0; i < 130; ++i) x.set(1, i, 0);
      if (static_scale == 0) x.set(2, 7, NAN);
      ExecContext exec;
      RmsNormArgs args{.x = x.view(), .weight = weight.vector(), .out = plain.view()};
      ASSERT_TRUE(rmsnorm_ref(args, exec));
      RoundedForTest rounded(4, 130, 3);
      args.rounded = rounded.view(static_scale > 0 ? ConstTensorView(scale.vector()) : ConstTensorView());
      args.out = both.view();
      ASSERT_TRUE(rmsnorm_ref(args, exec));
      EXPECT_TRUE(both.same_bits(plain));
      rounded.expect_rounding_of(plain, static_scale);
      RoundedForTest alone(4, 130);
      args.rounded = alone.view(args.rounded.static_scale), args.out = {};
      ASSERT_TRUE(rmsnorm_ref(args, exec));
      alone.expect_rounding_of(plain, static_scale);
    }
}

TEST(RmsNorm, NamesWhatIsWrongWithRoundedRows) {
  TestTensor x(DType::kF32, 2, 64), weight(DType::kF32, 1, 64);
  RoundedForTest rounded(2, 64), narrow(2, 63);
  RmsNormArgs args{.x = x.view(), .weight = weight.vector(), .rounded = narrow.view()};
  EXPECT_EQ(run_cpu(args).error().message, "rmsnorm: codes is [2, 63], wanted [2, 64]");
  args.rounded = rounded.view();
  EXPECT_EQ(run_cpu(args).error().code, ErrorCode::kUnsupported);
  args.rounded.codes.dtype = DType::kU8;
  EXPECT_EQ(run_cpu(args).error().message, "rmsnorm: codes is u8, wanted e4m3");
}

TEST(RmsNormCpu, AsExactAsANaiveLoop) {
  ThreadPool pool(3);
  for_each_cpu_target([&] {
    for_each_rmsnorm_case([&](RmsNormCase& c) {
      c.expect_matches_reference(
          [&](const RmsNormArgs& args, TestTensor&, TestTensor&) { return run_cpu(args, &pool); });
    });
  });
}

TEST(RmsNormCpu, ARowIsItsOwn) {
  constexpr uint64_t kSeed = 20261;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  ThreadPool pool(4);
  for_each_cpu_target([&] {
    for (DType dtype : {DType::kF32, DType::kBf16}) {
      const int64_t rows = 67, hidden = 389;
      TestTensor x(dtype, rows, hidden), weight(dtype, 1, hidden), all(dtype, rows, hidden);
      x.fill(random), weight.fill(random);
      ASSERT_TRUE(run_cpu({.x = x.view(), .weight = weight.vector(), .out = all.view()}, &pool));
      for (int64_t r = 0; r < rows; ++r) {
        TestTensor one(dtype, 1, hidden);
        ASSERT_TRUE(run_cpu({.x = x.view().slice_rows(r, 1), .weight = weight.vector(), .out = one.view()}));
        EXPECT_TRUE(all.same_row_bits(r, one, 0)) << "row " << r;
      }
    }
  });
}

TEST(RmsNormCpu, WorksInPlaceAndOnSlicesOfColumns) {
  constexpr uint64_t kSeed = 20262;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  for_each_cpu_target([&] {
    TestTensor x(DType::kF32, 5, 77, 13), weight(DType::kF32, 1, 77), out(DType::kF32, 5, 77, 3);
    x.fill(random), weight.fill(random);
    ASSERT_TRUE(run_cpu({.x = x.view(), .weight = weight.vector(), .out = out.view()}));
    ASSERT_TRUE(run_cpu({.x = x.view(), .weight = weight.vector(), .out = x.view()}));
    for (int64_t r = 0; r < 5; ++r) EXPECT_TRUE(x.same_row_bits(r, out, r));
    EXPECT_TRUE(std::isnan(out.at(0, 77))) << "padding was written";
  });
}

TEST(RmsNorm, NamesWhatIsWrong) {
  TestTensor x(DType::kF32, 2, 100), weight(DType::kF32, 1, 384), w100(DType::kF32, 1, 100), out(DType::kF32, 2, 100);
  TestTensor half(DType::kF16, 2, 100), brain(DType::kBf16, 2, 100), three(DType::kF32, 3, 100);
  const auto message = [](const RmsNormArgs& args) {
    const Status status = run_cpu(args);
    return status ? std::string() : status.error().message;
  };
  const auto ok = w100.vector();
  EXPECT_EQ(message({.x = x.view(), .weight = weight.vector(), .out = out.view()}),
            "rmsnorm: x has 100 columns, weight 384");
  EXPECT_EQ(message({.x = half.view(), .weight = ok, .out = half.view()}), "rmsnorm: x is f16, wanted f32 or bf16");
  EXPECT_EQ(message({.x = x.view(), .weight = ok, .out = brain.view()}), "rmsnorm: out is bf16, wanted f32 as x");
  EXPECT_EQ(message({.x = x.view(), .residual = three.view(), .weight = ok, .out = out.view()}),
            "rmsnorm: residual is [3, 100], wanted [2, 100]");
  EXPECT_EQ(message({.x = x.view(), .weight = ok, .out = out.view(), .eps = -1}),
            "rmsnorm: eps is -1, wanted at least 0");
  EXPECT_EQ(message({.x = x.vector(), .weight = ok, .out = out.view()}), "rmsnorm: x is [100], wanted [rows, hidden]");
  EXPECT_EQ(message({.x = x.view(), .weight = ok, .out = out.view()}), "");
}

// The selector of the Hopper kernel is host code.
TEST(RmsNormSm90Select, TheNarrowestConfigThatHoldsTheRow) {
  std::vector<float> memory(64);
  std::byte* aligned =
      reinterpret_cast<std::byte*>(memory.data()) + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64);
  const auto select = [&](DType dtype, int64_t rows, int64_t hidden, int64_t padding = 0, int64_t offset = 0) {
    const TensorView x(aligned + offset, dtype, Shape{rows, hidden}, hidden + padding);
    return sm90::kRmsNormConfigs[sm90::select_rmsnorm_config(
        {.x = x, .weight = ConstTensorView(aligned, DType::kF32, Shape{hidden}), .out = x})];
  };
  const sm90::RmsNormConfig any = sm90::kRmsNormConfigs[sm90::kRmsNormConfigCount - 1];
  for (int64_t rows : {1, 2, 100000}) {  // I1: never by the number of rows
    EXPECT_EQ(select(DType::kBf16, rows, 4096), (sm90::RmsNormConfig{256, 2, 1}));
    EXPECT_EQ(select(DType::kF32, rows, 4096), (sm90::RmsNormConfig{512, 2, 1}));
    EXPECT_EQ(select(DType::kF32, rows, 4100), (sm90::RmsNormConfig{1024, 2, 1}));
  }
  EXPECT_EQ(select(DType::kBf16, 5, 16384), (sm90::RmsNormConfig{1024, 2, 1}));
  EXPECT_EQ(select(DType::kF32, 5, 16384), (sm90::RmsNormConfig{1024, 4, 1, true}));
  EXPECT_EQ(select(DType::kBf16, 5, 16392), any) << "an f32 config for bf16";
  EXPECT_EQ(select(DType::kF32, 5, 16388), any);
  EXPECT_EQ(select(DType::kBf16, 5, 4097), any) << "rows that do not fill vectors";
  EXPECT_EQ(select(DType::kBf16, 5, 4096, 4), any) << "an unaligned row stride";
  EXPECT_EQ(select(DType::kBf16, 5, 4096, 8), (sm90::RmsNormConfig{256, 2, 1}));
  EXPECT_EQ(select(DType::kBf16, 5, 4096, 0, 8), any) << "an unaligned start";
  alignas(16) std::byte codes[16];
  const auto select_rounded = [&](int64_t offset, int64_t stride) {
    TensorView x(codes, DType::kBf16, Shape{2, 4096});
    return sm90::kRmsNormConfigs[sm90::select_rmsnorm_config(
        {.x = x,
         .weight = ConstTensorView(codes, DType::kF32, Shape{4096}),
         .rounded = {.codes = TensorView(codes + offset, DType::kE4m3, Shape{2, 4096}, stride)}})];
  };
  EXPECT_EQ(select_rounded(0, 4096), (sm90::RmsNormConfig{256, 2, 1}));
  EXPECT_EQ(select_rounded(8, 4104), (sm90::RmsNormConfig{256, 2, 1}));
  EXPECT_EQ(select_rounded(4, 4096), any) << "codes move in vectors of 8";
  EXPECT_EQ(select_rounded(0, 4100), any);
}

}  // namespace
}  // namespace hearth
