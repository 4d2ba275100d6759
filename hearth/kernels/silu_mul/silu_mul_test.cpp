// SPDX-License-Identifier: Apache-2.0
#include "hearth/kernels/silu_mul/silu_mul.h"

#include <gtest/gtest.h>

#include "hearth/kernels/cpu/test_targets.h"
#include "hearth/kernels/op_test.h"
#include "hearth/kernels/rounded_test.h"
#include "hearth/kernels/silu_mul/silu_mul_sm90.h"

namespace hearth {
namespace {

Status run_cpu(const SiluMulArgs& args, ThreadPool* pool = nullptr) {
  ExecContext exec{.pool = pool};
  return silu_mul_cpu(args, exec);
}

void naive(const TestTensor& gate_up, TestTensor& out) {
  for (int64_t r = 0; r < out.rows(); ++r)
    for (int64_t i = 0; i < out.cols(); ++i) {
      const float g = gate_up.at(r, i);
      out.set(r, i, g / (1.0f + std::exp(-g)) * gate_up.at(r, out.cols() + i));
    }
}

TEST(SiluMulRef, AgreesWithMathematics) {
  // silu(0) = 0; silu(ln 3) = ln 3 * 3/4; silu(x) - silu(-x) = x.
  TestTensor gate_up(DType::kF32, 1, 8), out(DType::kF32, 1, 4);
  const float gates[] = {0, std::log(3.0f), 2.5f, -2.5f};
  for (int64_t i = 0; i < 4; ++i) gate_up.set(0, i, gates[i]), gate_up.set(0, 4 + i, 2);
  ExecContext exec;
  ASSERT_TRUE(silu_mul_ref({gate_up.view(), out.view()}, exec));
  EXPECT_EQ(out.at(0, 0), 0);
  EXPECT_FLOAT_EQ(out.at(0, 1), 1.5f * std::log(3.0f));
  EXPECT_FLOAT_EQ(out.at(0, 2) - out.at(0, 3), 5.0f);
}

TEST(SiluMulRef, RoundsItsOutput) {
  constexpr uint64_t kSeed = 20272;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  for (const DType dtype : {DType::kF32, DType::kBf16})
    for (const float static_scale : {0.0f, 0.02f}) {
      TestTensor gate_up(dtype, 3, 2 * 70), plain(dtype, 3, 70), both = plain, scale(DType::kF32, 1, 1);
      gate_up.fill(random, 4), scale.set(0, 0, static_scale);
      if (static_scale == 0) gate_up.set(1, 9, INFINITY);
      ExecContext exec;
      ASSERT_TRUE(silu_mul_ref({gate_up.view(), plain.view()}, exec));
      RoundedForTest rounded(3, 70, 2), alone(3, 70);
      const ConstTensorView of_all = static_scale > 0 ? ConstTensorView(scale.vector()) : ConstTensorView();
      ASSERT_TRUE(silu_mul_ref({gate_up.view(), both.view(), rounded.view(of_all)}, exec));
      ASSERT_TRUE(silu_mul_ref({.gate_up = gate_up.view(), .rounded = alone.view(of_all)}, exec));
      EXPECT_TRUE(both.same_bits(plain));
      rounded.expect_rounding_of(plain, static_scale);
      alone.expect_rounding_of(plain, static_scale);
    }
}

TEST(SiluMulSm90Select, SharesOutRows) {
  alignas(16) std::byte memory[16];
  const auto select = [&](int64_t rows, int64_t ffn, int64_t padding = 0, int64_t offset = 0) {
    return sm90::kSiluRoundConfigs[sm90::select_silu_round_config(
        {.gate_up = ConstTensorView(memory, DType::kBf16, Shape{rows, 2 * ffn}),
         .rounded = {.codes = TensorView(memory + offset, DType::kE4m3, Shape{rows, ffn}, ffn + padding)}},
        132)];
  };
  const sm90::SiluRoundConfig any = sm90::kSiluRoundConfigs[sm90::kSiluRoundConfigCount - 1];
  EXPECT_EQ(select(1, 14336), (sm90::SiluRoundConfig{8, 256, 1}));
  EXPECT_EQ(select(43, 16384), (sm90::SiluRoundConfig{8, 256, 1}));
  EXPECT_EQ(select(44, 16384), (sm90::SiluRoundConfig{1, 1024, 2}));
  EXPECT_EQ(select(132, 16384), (sm90::SiluRoundConfig{1, 1024, 2}));
  EXPECT_EQ(select(133, 16384), (sm90::SiluRoundConfig{1, 512, 4}));
  EXPECT_EQ(select(1, 28672), (sm90::SiluRoundConfig{8, 256, 2}));
  EXPECT_EQ(select(4096, 28672), (sm90::SiluRoundConfig{8, 256, 2}));
  EXPECT_EQ(select(2, 32776), any);
  EXPECT_EQ(select(2, 1021), any);
  EXPECT_EQ(select(2, 1024, 4), any) << "codes move in vectors of 8";
  EXPECT_EQ(select(2, 1024, 0, 4), any);
  EXPECT_EQ(select(2, 1024, 8, 8), (sm90::SiluRoundConfig{8, 256, 1}));
}

// What silu_mul_sm90.cu computes of a gate of bf16, with an exponential `exp_units` and a reciprocal `units` of the
// last place off the nearest: its bounds hold for all gates and all of what PTX allows the two.
float silu_of_sm90(float gate, int exp_units, int units) {
  const auto quick = [](double exact, int off) {
    float x = static_cast<float>(exact);
    for (int i = 0; i < std::abs(off); ++i) x = std::nextafter(x, off < 0 ? 0 : INFINITY);
    return x < 0x1p-126f ? 0 : x;
  };
  const float e = quick(std::exp2(double{std::fma(gate, -1.44269504f, -4.0f)}), exp_units);
  return gate * (quick(1 / double{e + 0x1p-4f}, units) * 0x1p-4f);
}

TEST(SiluMulSm90Formula, StaysWithinItsBounds) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float gate = bf16{static_cast<uint16_t>(bits)}.to_float();
    if (!std::isfinite(gate)) continue;
    const double wanted = gate / (1 + std::exp(-double{gate}));
    const double bound = (std::abs(gate) <= 8 ? 0x1p-20 : 0x1p-17) * std::abs(wanted) + 0x1p-123;
    for (const int exp_units : {-2, 0, 2})
      for (const int units : {-1, 1})
        ASSERT_NEAR(silu_of_sm90(gate, exp_units, units), wanted, bound) << gate << ", " << exp_units << ", " << units;
  }
}

TEST(SiluMulCpu, AsExactAsANaiveLoop) {
  constexpr uint64_t kSeed = 20270;
  Random random(kSeed);
  ThreadPool pool(3);
  for_each_cpu_target([&] {
    for (int64_t ffn : {1, 3, 15, 16, 17, 64, 1021, 2047, 2048, 2049, 5000})
      for (int64_t rows : {1, 7})
        for (DType dtype : {DType::kF32, DType::kBf16}) {
          SCOPED_TRACE(::testing::Message()
                       << "seed " << kSeed << ", [" << rows << ", " << ffn << "] " << dtype_name(dtype));
          TestTensor gate_up(dtype, rows, 2 * ffn, 5), out(dtype, rows, ffn), wanted = out, expected = out;
          gate_up.fill(random, 4);
          ExecContext exec;
          ASSERT_TRUE(silu_mul_ref({gate_up.view(), wanted.view()}, exec));
          naive(gate_up, expected);
          ASSERT_TRUE(run_cpu({gate_up.view(), out.view()}, &pool));
          expect_as_exact_as(expected, out, wanted);
          TestTensor alone(dtype, 1, ffn);
          ASSERT_TRUE(run_cpu({gate_up.view().slice_rows(rows - 1, 1), alone.view()}));
          EXPECT_TRUE(out.same_row_bits(rows - 1, alone, 0));
        }
  });
}

// Every gate in the whole range of f32, one at a time: relative error, no overflow on either side.
TEST(SiluMulCpu, RelativeErrorIsSmallForEveryGate) {
  for_each_cpu_target([] {
    for (float g = -87.0f; g < 100.0f; g += 0.0371f) {
      TestTensor gate_up(DType::kF32, 1, 32), out(DType::kF32, 1, 16);
      for (int64_t i = 0; i < 16; ++i) gate_up.set(0, i, g), gate_up.set(0, 16 + i, 1);
      ASSERT_TRUE(run_cpu({gate_up.view(), out.view()}));
      const double wanted = g / (1 + std::exp(-double{g}));
      ASSERT_NEAR(out.at(0, 5), wanted, 4 * 0x1p-24 * std::abs(wanted)) << g;
    }
  });
}

TEST(SiluMulCpu, ExtremeGates) {
  const float inputs[] = {-3e38f, -1000, -88, 88, 1000, 3e38f, INFINITY, NAN};
  for_each_cpu_target([&] {
    TestTensor gate_up(DType::kF32, 1, 16), out(DType::kF32, 1, 8);
    for (int64_t i = 0; i < 8; ++i) gate_up.set(0, i, inputs[i]), gate_up.set(0, 8 + i, 1);
    ASSERT_TRUE(run_cpu({gate_up.view(), out.view()}));
    for (int64_t i = 0; i < 3; ++i) EXPECT_NEAR(out.at(0, i), 0, 1e-36) << inputs[i];
    for (int64_t i = 3; i < 7; ++i) EXPECT_EQ(out.at(0, i), inputs[i]);
    EXPECT_TRUE(std::isnan(out.at(0, 7)));
  });
}

TEST(SiluMul, NamesWhatIsWrong) {
  TestTensor gate_up(DType::kF32, 2, 100), out(DType::kF32, 2, 51), brain(DType::kBf16, 2, 50);
  EXPECT_EQ(run_cpu({gate_up.view(), out.view()}).error().message, "silu_mul: gate_up is [2, 100], wanted [2, 102]");
  EXPECT_EQ(run_cpu({gate_up.view(), brain.view()}).error().message, "silu_mul: out is bf16, wanted f32 as gate_up");
  RoundedForTest rounded(2, 50), wide(2, 51);
  EXPECT_EQ(run_cpu({.gate_up = gate_up.view(), .rounded = wide.view()}).error().message,
            "silu_mul: gate_up is [2, 100], wanted [2, 102]");
  EXPECT_EQ(run_cpu({.gate_up = gate_up.view(), .rounded = rounded.view()}).error().code, ErrorCode::kUnsupported);
}

}  // namespace
}  // namespace hearth
