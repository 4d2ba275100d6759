// SPDX-License-Identifier: Apache-2.0
// The cases that every backend of rmsnorm is tested with, and the naive loop that sets the tolerance.
// Tests only; one thread.
#pragma once

#include <cmath>

#include "hearth/base/function_ref.h"
#include "hearth/kernels/op_test.h"
#include "hearth/kernels/rmsnorm/rmsnorm.h"

namespace hearth {

// The textbook loop with f32 variables.
template <class T>
void rmsnorm_naive(const TestTensor& x, TestTensor* residual, const TestTensor& weight, float eps, TestTensor& out) {
  for (int64_t r = 0; r < x.rows(); ++r) {
    float squares = 0;
    std::vector<float> sum(x.cols());
    for (int64_t i = 0; i < x.cols(); ++i) {
      sum[i] = residual ? to_float(from_float<T>(x.at(r, i) + residual->at(r, i))) : x.at(r, i);
      squares += sum[i] * sum[i];
      if (residual) residual->set(r, i, sum[i]);
    }
    const float scale = 1 / std::sqrt(squares / static_cast<float>(x.cols()) + eps);
    for (int64_t i = 0; i < x.cols(); ++i) out.set(r, i, sum[i] * scale * weight.at(0, i));
  }
}

struct RmsNormCase {
  TestTensor x, residual, weight;
  bool has_residual;
  float eps;

  // Runs the op and compares out and residual with the reference. The op gets the two tensors that it
  // writes beside their views, for a backend that must move them.
  void expect_matches_reference(
      FunctionRef<Status(const RmsNormArgs&, TestTensor& residual, TestTensor& out)> op) const {
    TestTensor out(x.dtype(), x.rows(), x.cols()), wanted = out, naive = out;
    TestTensor sum = residual, wanted_sum = residual, naive_sum = residual;
    const auto args = [&](TestTensor& s, TestTensor& o) {
      return RmsNormArgs{.x = x.view(),
                         .residual = has_residual ? s.view() : TensorView(),
                         .weight = weight.vector(),
                         .out = o.view(),
                         .eps = eps};
    };
    ExecContext exec;
    const Status reference = rmsnorm_ref(args(wanted_sum, wanted), exec);
    ASSERT_TRUE(reference) << reference.error().message;
    TestTensor* naive_residual = has_residual ? &naive_sum : nullptr;
    x.dtype() == DType::kF32 ? rmsnorm_naive<float>(x, naive_residual, weight, eps, naive)
                             : rmsnorm_naive<bf16>(x, naive_residual, weight, eps, naive);
    const Status status = op(args(sum, out), sum, out);
    ASSERT_TRUE(status) << status.error().message;
    EXPECT_TRUE(sum.same_bits(wanted_sum)) << "residual";
    expect_as_exact_as(naive, out, wanted);
  }
};

// Sizes around the vector lengths, primes, and widths of real models; both types of x and of weight; with
// and without residual; contents from normal to tiny, where eps decides.
inline void for_each_rmsnorm_case(FunctionRef<void(RmsNormCase&)> test) {
  constexpr uint64_t kSeed = 20260;
  Random random(kSeed);
  for (int64_t hidden : {1, 2, 3, 4, 7, 15, 16, 17, 63, 64, 65, 127, 128, 384, 389, 1000, 1024, 4096, 4099, 16384})
    for (int64_t rows : {int64_t{1}, int64_t{hidden > 4096 ? 2 : 5}})
      for (DType dtype : {DType::kF32, DType::kBf16})
        for (DType weight_dtype : {DType::kF32, DType::kBf16})
          for (bool has_residual : {false, true}) {
            const float scale = random.below(4) == 0 ? 1e-4f : 3.0f;
            SCOPED_TRACE(::testing::Message()
                         << "seed " << kSeed << ", [" << rows << ", " << hidden << "] " << dtype_name(dtype)
                         << ", weight " << dtype_name(weight_dtype) << ", residual " << has_residual);
            RmsNormCase c{TestTensor(dtype, rows, hidden), TestTensor(dtype, rows, hidden),
                          TestTensor(weight_dtype, 1, hidden), has_residual, 1e-5f};
            c.x.fill(random, scale), c.residual.fill(random, scale), c.weight.fill(random);
            test(c);
          }
}

}  // namespace hearth
