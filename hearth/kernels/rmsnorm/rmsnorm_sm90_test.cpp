// SPDX-License-Identifier: Apache-2.0
// rmsnorm_sm90 on a GPU. Label gpu: never part of `make test`; without a device every test here fails.
#include <gtest/gtest.h>

#include <optional>

#include "hearth/kernels/gpu_test.h"
#include "hearth/kernels/rmsnorm/rmsnorm_sm90.h"
#include "hearth/kernels/rmsnorm/rmsnorm_test_cases.h"
#include "hearth/kernels/rounded_test.h"
#include "hearth/memory/cuda/device.h"

namespace hearth {
namespace {

// Runs rmsnorm_sm90 over device copies of `args`, whose tensors are the four given, and copies back.
Status run_sm90(const RmsNormArgs& args, TestTensor& x, TestTensor* residual, TestTensor& weight, TestTensor& out) {
  HEARTH_TRY_ASSIGN(const Stream stream, Stream::create());
  OnDevice device_x(x), device_weight(weight), device_out(out);
  RmsNormArgs moved = args;
  moved.x = device_x.view(), moved.weight = device_weight.vector(), moved.out = device_out.view();
  std::optional<OnDevice> device_residual;
  if (residual != nullptr) moved.residual = device_residual.emplace(*residual).view();
  ExecContext exec{.stream = stream.handle()};
  HEARTH_TRY(rmsnorm_sm90(moved, exec));
  HEARTH_TRY(stream.synchronize());
  device_out.copy_back();
  if (residual != nullptr) device_residual->copy_back();
  return {};
}

TEST(RmsNormSm90, ThereIsAGpu) {
  const auto count = cuda_device_count();
  ASSERT_TRUE(count) << count.error().message;
  const auto info = cuda_device_info(0);
  ASSERT_TRUE(info) << info.error().message;
  EXPECT_EQ(info->compute_capability, 90) << info->name;
}

TEST(RmsNormSm90, AsExactAsANaiveLoop) {
  ASSERT_TRUE(cuda_device_count());
  for_each_rmsnorm_case([](RmsNormCase& c) {
    TestTensor x = c.x, weight = c.weight;
    c.expect_matches_reference([&](const RmsNormArgs& args, TestTensor& residual, TestTensor& out) {
      return run_sm90(args, x, args.residual ? &residual : nullptr, weight, out);
    });
  });
}

// Odd row strides and odd starts take the loop; the same numbers within the same tolerance.
TEST(RmsNormSm90, PaddedAndUnalignedRows) {
  ASSERT_TRUE(cuda_device_count());
  constexpr uint64_t kSeed = 20310;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  for (int64_t padding : {3, 8})
    for (DType dtype : {DType::kF32, DType::kBf16}) {
      TestTensor x(dtype, 9, 1024, padding), weight(dtype, 1, 1024), out(dtype, 9, 1024, 2 * padding), wanted = out,
                                                                                                       naive = out;
      x.fill(random), weight.fill(random);
      RmsNormArgs args{.x = x.view(), .weight = weight.vector(), .out = wanted.view()};
      ExecContext exec;
      ASSERT_TRUE(rmsnorm_ref(args, exec));
      dtype == DType::kF32 ? rmsnorm_naive<float>(x, nullptr, weight, args.eps, naive)
                           : rmsnorm_naive<bf16>(x, nullptr, weight, args.eps, naive);
      args.out = out.view();
      const Status status = run_sm90(args, x, nullptr, weight, out);
      ASSERT_TRUE(status) << status.error().message;
      expect_as_exact_as(naive, out, wanted);
      EXPECT_TRUE(std::isnan(out.at(0, 1024))) << "padding was written";
    }
}

// I1 of rmsnorm_sm90.h.
TEST(RmsNormSm90, ARowIsItsOwn) {
  ASSERT_TRUE(cuda_device_count());
  constexpr uint64_t kSeed = 20311;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  for (int64_t hidden : {128, 389, 1024, 4096, 16384})
    for (DType dtype : {DType::kF32, DType::kBf16}) {
      TestTensor x(dtype, 301, hidden), weight(dtype, 1, hidden), all(dtype, 301, hidden);
      x.fill(random), weight.fill(random);
      ASSERT_TRUE(run_sm90({.x = x.view(), .weight = weight.vector(), .out = all.view()}, x, nullptr, weight, all));
      for (int64_t r : {0, 3, 150, 300}) {
        TestTensor row(dtype, 1, hidden), one(dtype, 1, hidden);
        for (int64_t i = 0; i < hidden; ++i) row.set(0, i, x.at(r, i));
        ASSERT_TRUE(
            run_sm90({.x = row.view(), .weight = weight.vector(), .out = one.view()}, row, nullptr, weight, one));
        EXPECT_TRUE(all.same_row_bits(r, one, 0)) << "row " << r << " of " << hidden;
      }
    }
}

// In place, and two launches in a captured graph: the second reads what the first wrote.
TEST(RmsNormSm90, RunsInPlaceInAGraph) {
  ASSERT_TRUE(cuda_device_count());
  constexpr uint64_t kSeed = 20312;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  TestTensor x(DType::kF32, 700, 4096), weight(DType::kF32, 1, 4096), wanted = x;
  x.fill(random), weight.fill(random);
  ExecContext exec;
  ASSERT_TRUE(rmsnorm_ref({.x = x.view(), .weight = weight.vector(), .out = wanted.view()}, exec));
  ASSERT_TRUE(rmsnorm_ref({.x = wanted.view(), .weight = weight.vector(), .out = wanted.view()}, exec));
  const Stream stream = *Stream::create();
  exec.stream = stream.handle();
  OnDevice device_x(x), device_weight(weight);
  const RmsNormArgs args{.x = device_x.view(), .weight = device_weight.vector(), .out = device_x.view()};
  const auto graph = Graph::capture(stream, [&]() -> Status {
    HEARTH_TRY(rmsnorm_sm90(args, exec));
    return rmsnorm_sm90(args, exec);
  });
  ASSERT_TRUE(graph) << graph.error().message;
  ASSERT_TRUE(graph->launch(stream));
  ASSERT_TRUE(stream.synchronize());
  device_x.copy_back();
  EXPECT_LE(max_error(x, wanted), 1e-5 * 30);
}

// What a row holds that decides about its scale.
void fill_special_rows(TestTensor& x) {
  for (int64_t i = 0; i < x.cols(); ++i) {
    if (x.rows() > 1) x.set(1, i, 0);
    if (x.rows() > 2) x.set(2, i, x.at(2, i) * 1e-38f);
  }
  if (x.rows() > 3) x.set(3, x.cols() - 1, INFINITY);
  if (x.rows() > 4) x.set(4, x.cols() / 2, NAN);
}

// The bits that the definition makes of the plain output, whether that is written too or not.
TEST(RmsNormSm90, RoundsItsOutput) {
  ASSERT_TRUE(cuda_device_count());
  constexpr uint64_t kSeed = 20313;
  Random random(kSeed);
  for (const int64_t hidden : {8, 64, 384, 389, 1000, 1024, 2048, 4096, 5120, 8192, 16384, 16392})
    for (const int64_t rows : {1, 6})
      for (const DType weight_type : {DType::kF32, DType::kBf16})
        for (const bool has_residual : {false, true})
          for (const bool is_static : {false, true}) {
            const int64_t padding = random.below(3) * 8 + (random.below(4) == 0 ? 3 : 0);
            SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", [" << rows << ", " << hidden << "], padding "
                                              << padding << ", weight " << dtype_name(weight_type) << ", residual "
                                              << has_residual << ", static " << is_static);
            TestTensor x(DType::kBf16, rows, hidden), residual(DType::kBf16, rows, hidden),
                weight(weight_type, 1, hidden), static_scale(DType::kF32, 1, 1), plain(DType::kBf16, rows, hidden),
                both = plain;
            x.fill(random, 3), residual.fill(random, 3), weight.fill(random), static_scale.set(0, 0, 0.0137f);
            if (!is_static) fill_special_rows(x);
            RmsNormArgs args{.x = x.view(), .weight = weight.vector(), .out = plain.view()};
            TestTensor sum = residual;
            ASSERT_TRUE(run_sm90(args, x, has_residual ? &sum : nullptr, weight, plain));

            for (const bool with_out : {true, false}) {
              RoundedForTest rounded(rows, hidden, padding);
              const Stream stream = *Stream::create();
              ExecContext exec{.stream = stream.handle()};
              OnDevice device_x(x), device_weight(weight), device_both(both), device_scale(static_scale),
                  codes(rounded.codes), scales(rounded.scales);
              TestTensor again = residual;
              OnDevice device_residual(again);
              args.x = device_x.view(), args.weight = device_weight.vector();
              args.residual = has_residual ? device_residual.view() : TensorView();
              args.out = with_out ? device_both.view() : TensorView();
              args.rounded = rounded.view(codes.view().data, scales.view().data,
                                          is_static ? ConstTensorView(device_scale.vector()) : ConstTensorView());
              const Status status = rmsnorm_sm90(args, exec);
              ASSERT_TRUE(status) << status.error().message;
              ASSERT_TRUE(stream.synchronize());
              codes.copy_back(), scales.copy_back(), device_both.copy_back(), device_residual.copy_back();
              ASSERT_NO_FATAL_FAILURE(rounded.expect_rounding_of(plain, is_static ? 0.0137f : 0));
              EXPECT_TRUE(!with_out || both.same_bits(plain));
              EXPECT_TRUE(!has_residual || again.same_bits(sum));
            }
          }
}

TEST(RmsNormSm90, RefusesToRoundF32) {
  TestTensor x(DType::kF32, 1, 64), weight(DType::kF32, 1, 64);
  RoundedForTest rounded(1, 64);
  ExecContext exec;
  const Status status = rmsnorm_sm90({.x = x.view(), .weight = weight.vector(), .rounded = rounded.view()}, exec);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kUnsupported) << status.error().message;
}

TEST(RmsNormSm90, ErrorsAreValues) {
  ASSERT_TRUE(cuda_device_count());
  const auto huge = DeviceBuffer::allocate(int64_t{1} << 50);
  ASSERT_FALSE(huge);
  EXPECT_EQ(huge.error().code, ErrorCode::kResourceExhausted) << huge.error().message;
  EXPECT_TRUE(DeviceBuffer::allocate(1024)) << "the process does not recover from a full device";
}

}  // namespace
}  // namespace hearth
