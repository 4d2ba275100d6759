// SPDX-License-Identifier: Apache-2.0
// rmsnorm_sm90 on a GPU. Label gpu: never part of `make test`; without a device every test here fails.
#include <gtest/gtest.h>

#include <optional>

#include "hearth/kernels/gpu_test.h"
#include "hearth/kernels/rmsnorm/rmsnorm_sm90.h"
#include "hearth/kernels/rmsnorm/rmsnorm_test_cases.h"
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

TEST(RmsNormSm90, ErrorsAreValues) {
  ASSERT_TRUE(cuda_device_count());
  const auto huge = DeviceBuffer::allocate(int64_t{1} << 50);
  ASSERT_FALSE(huge);
  EXPECT_EQ(huge.error().code, ErrorCode::kResourceExhausted) << huge.error().message;
  EXPECT_TRUE(DeviceBuffer::allocate(1024)) << "the process does not recover from a full device";
}

}  // namespace
}  // namespace hearth
