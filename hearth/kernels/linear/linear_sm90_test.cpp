// SPDX-License-Identifier: Apache-2.0
// The GPU's linear ops for plain weights. Label gpu: without a device every test here fails.
#include <gtest/gtest.h>

#include "hearth/kernels/gpu_test.h"
#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/kernels/linear/linear_sm90_plan.h"

namespace hearth {
namespace {

struct LinearCase {
  DType x, weight, out;
  int64_t m, n, k;
  bool bias = false, residual = false;
};

std::string describe(const LinearCase& c) {
  return fmt::format("x {} weight {} out {} [{}, {}] x [{}]{}{}", dtype_name(c.x), dtype_name(c.weight),
                     dtype_name(c.out), c.m, c.k, c.n, c.bias ? " bias" : "", c.residual ? " residual" : "");
}

struct LinearRun {
  LinearCase c;
  TestTensor x, codes, bias, residual;
  LinearWeight weight;

  LinearRun(const LinearCase& linear_case, uint64_t seed)
      : c(linear_case),
        x(c.x, c.m, c.k, 8),
        codes(c.weight, c.n, c.k),
        bias(DType::kF32, 1, c.n),
        residual(c.out, c.m, c.n, 8) {
    Random random(seed);
    x.fill(random), codes.fill(random, 0.05f), residual.fill(random);
    for (int64_t i = 0; i < c.n; ++i) bias.set(0, i, bf16::from_float(random.normal()).to_float());
    weight.format = WeightFormat::plain(c.weight);
    weight.n = c.n, weight.k = c.k;
  }
  TestTensor empty_out() const { return TestTensor(c.out, c.m, c.n, 8); }

  TestTensor reference() {
    TestTensor out = empty_out();
    weight.codes = codes.view();
    weight.bias = c.bias ? bias.vector() : TensorView();
    ExecContext host;
    const Status status = linear_ref(
        {.x = x.view(), .weight = &weight, .residual = c.residual ? residual.view() : TensorView(), .out = out.view()},
        host);
    EXPECT_TRUE(status) << status.error().message;
    return out;
  }
  // The loop of the definition with f32 variables; a bf16 result is rounded where there is a bias, as
  // linear_cublaslt.cu says.
  TestTensor naive() const {
    TestTensor out = empty_out();
    for (int64_t r = 0; r < c.m; ++r)
      for (int64_t n = 0; n < c.n; ++n) {
        float sum = 0, added = 0;
        for (int64_t k = 0; k < c.k; ++k) sum += x.at(r, k) * codes.at(n, k);
        if (c.bias) added += bias.at(0, n);
        if (c.residual) added += residual.at(r, n);
        if (c.bias && c.out == DType::kBf16) added = bf16::from_float(added).to_float();
        out.set(r, n, sum + added);
      }
    return out;
  }

  // Rows [begin, begin + rows) on the device; `in_place`: the residual's memory is out.
  Status run(const LinearOp& op, TestTensor& out, int64_t begin, int64_t rows, bool in_place = false) {
    GpuExec gpu({}, op.workspace_bytes(c.m, c.n, c.k, 1));
    if (in_place) std::ranges::copy(residual.all_bytes(), out.all_bytes().begin());
    OnDevice device_x(x), device_codes(codes), device_bias(bias), device_residual(residual), device_out(out);
    LinearWeight moved = weight;
    moved.codes = device_codes.view();
    moved.bias = c.bias ? device_bias.vector() : TensorView();
    const TensorView added = (in_place ? device_out : device_residual).view().slice_rows(begin, rows);
    HEARTH_TRY(op.run({.x = device_x.view().slice_rows(begin, rows),
                       .weight = &moved,
                       .residual = c.residual ? added : TensorView(),
                       .out = device_out.view().slice_rows(begin, rows)},
                      gpu.exec()));
    HEARTH_TRY(gpu.synchronize());
    device_out.copy_back();
    return {};
  }
};

constexpr LinearOp kSm90{"linear_sm90", linear_sm90_workspace_bytes, linear_sm90};
constexpr LinearOp kCublasLt{"linear_cublaslt", linear_cublaslt_workspace_bytes, linear_cublaslt};
constexpr LinearOp kBf16{"linear_bf16_sm90", linear_cublaslt_workspace_bytes, linear_bf16_sm90};

// Tensor cores add 16 products at once after aligning them to the largest, and cut off what falls below: a unit of the
// largest sum is lost each time at most. A bf16 result whose sum was near the middle of two may be the other one.
double tensor_core_error(const LinearCase& c, const TestTensor& reference) {
  double largest = 0;
  for (int64_t r = 0; r < c.m; ++r)
    for (int64_t n = 0; n < c.n; ++n) largest = std::max(largest, std::abs(double{reference.at(r, n)}));
  const double cut = largest * 0x1p-23 * static_cast<double>((c.k + 15) / 16);
  return c.out == DType::kBf16 ? cut + largest * 0x1p-7 : cut;
}

void expect_matches_reference(const LinearCase& c, const LinearOp& op) {
  constexpr uint64_t kSeed = 20320;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", " << op.name << " " << describe(c));
  LinearRun run(c, kSeed);
  const TestTensor wanted = run.reference(), naive = run.naive();
  TestTensor out = run.empty_out(), again = run.empty_out();
  const Status status = run.run(op, out, 0, c.m);
  ASSERT_TRUE(status) << status.error().message;
  if (op.run == linear_cublaslt || op.run == linear_bf16_sm90) {
    EXPECT_LE(max_error(out, wanted), std::max(2 * max_error(naive, wanted), tensor_core_error(c, wanted)));
  } else {
    expect_as_exact_as(naive, out, wanted);
  }
  ASSERT_TRUE(run.run(op, again, 0, c.m));
  EXPECT_TRUE(out.same_bits(again)) << "the same run twice";
}

TEST(LinearSm90, MatchesTheReferenceAtEdges) {
  for (DType x : {DType::kF32, DType::kBf16})
    for (DType weight : {DType::kF32, DType::kF16, DType::kBf16})
      for (DType out : {DType::kF32, x})
        for (int64_t m : {1, 5, 63, 64, 65})
          for (bool extras : {false, true}) {
            expect_matches_reference({x, weight, out, m, 64, 16, extras, extras}, kSm90);
            expect_matches_reference({x, weight, out, m, 129, 37, extras, extras}, kSm90);
            expect_matches_reference({x, weight, out, m, 1, 384, extras, extras}, kSm90);
          }
}

// The tile that wants 200 blocks of 128 x 128 (linear_sm90_plan.h), with edges.
TEST(LinearSm90, LargeTilesMatchTheReference) {
  ASSERT_EQ(choose_tile(1700, 1900, multiprocessors()), TileSize::kLarge);
  for (DType x : {DType::kF32, DType::kBf16}) expect_matches_reference({x, DType::kBf16, x, 1700, 1900, 24}, kSm90);
}

// What models have: fable, Qwen2.5-7B's 3584 and 18944, Llama-3-8B, and a vocabulary that fills no tile.
TEST(LinearTensorCores, MatchTheReferenceOnModelShapes) {
  constexpr DType kB = DType::kBf16;
  for (int64_t m : {1, 9, 16, 61})
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{384, 384},
                               {1152, 384},
                               {384, 1024},
                               {3584, 128},
                               {128, 3584},
                               {64, 18944},
                               {4096, 256},
                               {1024, 4096},
                               {50, 32},
                               {4097, 64},
                               {33, 1056}})
      for (bool extras : {false, true}) {
        if (m * n * k > 40'000'000) continue;  // the reference takes its time
        for (const LinearOp& op : {kCublasLt, kBf16}) {
          expect_matches_reference({kB, kB, kB, m, n, k, false, extras}, op);
          expect_matches_reference({kB, kB, kB, m, n, k, true, extras}, op);
          expect_matches_reference({kB, kB, DType::kF32, m, n, k, extras, false}, op);
        }
      }
}

// As every layer calls it. cuBLASLt's bits need not be those of a residual elsewhere, but are the same in every run.
TEST(LinearCublasLt, ResidualMayBeOut) {
  for (const LinearOp& op : {kCublasLt, kSm90, kBf16})
    for (bool bias : {false, true}) {
      const int64_t m = op.run == kBf16.run ? 13 : 37;
      SCOPED_TRACE(::testing::Message() << op.name << " bias " << bias);
      LinearRun run({DType::kBf16, DType::kBf16, DType::kBf16, m, 384, 1024, bias, true}, 20321);
      const TestTensor wanted = run.reference(), naive = run.naive();
      TestTensor apart = run.empty_out(), in_place = run.empty_out(), again = run.empty_out();
      ASSERT_TRUE(run.run(op, apart, 0, m));
      ASSERT_TRUE(run.run(op, in_place, 0, m, true));
      ASSERT_TRUE(run.run(op, again, 0, m, true));
      for (int64_t r = 0; r < m; ++r) EXPECT_TRUE(in_place.same_row_bits(r, again, r)) << "row " << r;
      for (const TestTensor* out : {&apart, &in_place})
        EXPECT_LE(max_error(*out, wanted), std::max(2 * max_error(naive, wanted), tensor_core_error(run.c, wanted)));
    }
}

TEST(LinearSm90, ARowIsItsOwn) {
  for (DType dtype : {DType::kF32, DType::kBf16}) {
    LinearRun run({dtype, DType::kBf16, dtype, 67, 130, 384, true, true}, 20322);
    TestTensor all = run.empty_out();
    ASSERT_TRUE(run.run(kSm90, all, 0, 67));
    for (int64_t r : {0, 1, 63, 64, 66}) {
      TestTensor one = run.empty_out();
      ASSERT_TRUE(run.run(kSm90, one, r, 1));
      EXPECT_TRUE(all.same_row_bits(r, one, r)) << "row " << r;
    }
  }
}

TEST(LinearNarrowSm90, ARowIsItsOwn) {
  LinearRun run({DType::kBf16, DType::kBf16, DType::kBf16, 16, 130, 1536, true, true}, 20323);
  TestTensor all = run.empty_out(), parts = run.empty_out();
  ASSERT_TRUE(run.run(kBf16, all, 0, 16));
  for (int64_t begin = 0, rows = 1; begin < 16; begin += rows, rows = std::min<int64_t>(rows + 2, 16 - begin))
    ASSERT_TRUE(run.run(kBf16, parts, begin, rows));
  EXPECT_TRUE(all.same_bits(parts));
}

TEST(LinearCublasLt, WrongTypesAreErrors) {
  LinearRun run({DType::kF32, DType::kBf16, DType::kF32, 1, 8, 8}, 1);
  run.weight.codes = run.codes.view();
  TestTensor out = run.empty_out();
  ExecContext exec;
  const Status status = linear_cublaslt({.x = run.x.view(), .weight = &run.weight, .out = out.view()}, exec);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().message, "linear: x is f32 and the weight bf16, this op has bf16 for both");
}

}  // namespace
}  // namespace hearth
