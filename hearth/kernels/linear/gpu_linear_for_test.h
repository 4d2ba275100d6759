// SPDX-License-Identifier: Apache-2.0
// Test support: a linear op of the GPU over test tensors, and its result beside the double reference's. One thread.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <optional>

#include "hearth/kernels/gpu_test.h"
#include "hearth/kernels/linear/linear.h"
#include "hearth/kernels/linear/quantized_for_test.h"
#include "hearth/kernels/some_cases_for_test.h"

namespace hearth::testing {

using LinearFunction = std::function<Status(const LinearArgs&, ExecContext&)>;

// Rows [begin, begin + rows) of x and out. The residual may be out itself.
inline Status run_linear(const LinearFunction& linear, int64_t workspace_bytes, const LinearWeight& weight,
                         TestTensor& x, TestTensor* residual, TestTensor& out, int64_t begin, int64_t rows) {
  GpuExec gpu({}, workspace_bytes);
  OnDevice device_x(x), device_out(out);
  std::optional<OnDevice> device_residual;
  LinearArgs args{.x = device_x.view().slice_rows(begin, rows),
                  .weight = &weight,
                  .out = device_out.view().slice_rows(begin, rows)};
  if (residual == &out) {
    args.residual = args.out;
  } else if (residual != nullptr) {
    args.residual = device_residual.emplace(*residual).view().slice_rows(begin, rows);
  }
  HEARTH_TRY(linear(args, gpu.exec()));
  HEARTH_TRY(gpu.synchronize());
  device_out.copy_back();
  return {};
}

struct LinearCase {
  WeightFormat format;
  int64_t m, n, k;
  DType out = DType::kF32;
  bool extras = false;  // bias and residual
};

// `run(placed, bias, x, residual, out)` with random operands, bf16 x among them; bias and residual are null without
// extras. The Frobenius norm of the error is at most `tolerance` times that of what linear_quantized_ref() makes in
// double.
template <class Run>
void check_linear(const LinearCase& c, uint64_t seed, double tolerance, Run run) {
  if (leave_out_case()) return;
  SCOPED_TRACE(fmt::format("seed {} {} m {} n {} k {} out {} extras {}", seed, to_string(c.format), c.m, c.n, c.k,
                           dtype_name(c.out), c.extras));
  Random random(seed);
  const QuantizedMatrix matrix = random_matrix(c.format, c.n, c.k, false, random);
  ASSERT_TRUE(matrix.validate());
  PlacedWeight placed(matrix);
  TestTensor x(DType::kBf16, c.m, c.k, 8), residual(c.out, c.m, c.n, 1), bias(DType::kBf16, 1, c.n);
  x.fill(random), residual.fill(random), bias.fill(random);
  TestTensor out(c.out, c.m, c.n, 3), exact(DType::kF32, c.m, c.n), wide_residual(DType::kF32, c.m, c.n);
  LinearWeight host = placed.weight;
  if (c.extras) host.bias = bias.vector();
  for (int64_t r = 0; r < c.m; ++r)
    for (int64_t n = 0; n < c.n; ++n) wide_residual.set(r, n, residual.at(r, n));
  std::vector<std::byte> scratch(static_cast<size_t>(linear_quantized_ref_workspace_bytes(c.m, c.n, c.k, 1)));
  ExecContext exec{.workspace = scratch};
  ASSERT_TRUE(linear_quantized_ref(
      {.x = x.view(), .weight = &host, .residual = c.extras ? wide_residual.view() : TensorView(), .out = exact.view()},
      exec));
  const Status status = run(placed, c.extras ? &bias : nullptr, x, c.extras ? &residual : nullptr, out);
  ASSERT_TRUE(status) << status.error().message;
  double error = 0, norm = 0, worst = -1;
  int64_t worst_row = 0, worst_col = 0;
  for (int64_t r = 0; r < c.m; ++r)
    for (int64_t n = 0; n < c.n; ++n) {
      const double wanted = exact.at(r, n), off = out.at(r, n) - wanted;
      error += off * off, norm += wanted * wanted;
      if (!(std::abs(off) <= worst)) worst = std::abs(off), worst_row = r, worst_col = n;
    }
  EXPECT_LE(std::sqrt(error), std::sqrt(norm) * tolerance)
      << "relative " << std::sqrt(error / norm) << ", worst at row " << worst_row << " column " << worst_col << ": "
      << out.at(worst_row, worst_col) << ", wanted " << exact.at(worst_row, worst_col);
}

}  // namespace hearth::testing
