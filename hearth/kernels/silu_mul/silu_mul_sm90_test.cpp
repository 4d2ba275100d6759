// SPDX-License-Identifier: Apache-2.0
// silu_mul_sm90 on a GPU. Label gpu: without a device every test here fails.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "hearth/kernels/gpu_test.h"
#include "hearth/kernels/rounded_test.h"
#include "hearth/kernels/silu_mul/silu_mul.h"

namespace hearth {
namespace {

Status run_sm90(TestTensor& gate_up, TestTensor& out) {
  GpuExec gpu;
  OnDevice device_in(gate_up), device_out(out);
  HEARTH_TRY(silu_mul_sm90({device_in.view(), device_out.view()}, gpu.exec()));
  HEARTH_TRY(gpu.synchronize());
  device_out.copy_back();
  return {};
}

TEST(SiluMulSm90, AsExactAsANaiveLoop) {
  constexpr uint64_t kSeed = 20271;
  Random random(kSeed);
  for (int64_t ffn : {1, 3, 64, 255, 256, 257, 1021, 5000, 14336})
    for (int64_t rows : {1, 7})
      for (DType dtype : {DType::kF32, DType::kBf16}) {
        SCOPED_TRACE(::testing::Message()
                     << "seed " << kSeed << ", [" << rows << ", " << ffn << "] " << dtype_name(dtype));
        TestTensor gate_up(dtype, rows, 2 * ffn, 5), out(dtype, rows, ffn, 3), wanted = out, naive = out;
        gate_up.fill(random, 4);
        ExecContext host;
        ASSERT_TRUE(silu_mul_ref({gate_up.view(), wanted.view()}, host));
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t i = 0; i < ffn; ++i) {
            const float g = gate_up.at(r, i);
            naive.set(r, i, g / (1.0f + std::exp(-g)) * gate_up.at(r, ffn + i));
          }
        const Status status = run_sm90(gate_up, out);
        ASSERT_TRUE(status) << status.error().message;
        expect_as_exact_as(naive, out, wanted);
        EXPECT_TRUE(std::isnan(out.at(0, ffn))) << "padding was written";
      }
}

// All gates of bf16 by 40 numbers, in every kernel: half a unit of bf16 off the right result and what the fast
// arithmetic's bound adds (silu_mul_sm90.cu), and the same bits in all.
TEST(SiluMulSm90, EveryGate) {
  constexpr int64_t kSlices = 4, kFfn = 65536 / kSlices, kUps = 40, kRows = kSlices * kUps;
  TestTensor gate_up(DType::kBf16, kRows, 2 * kFfn), out(DType::kBf16, kRows, kFfn), both = out;
  const auto up_of = [](int64_t row) { return 1 + static_cast<float>(row / kSlices * 3) / 128; };
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t i = 0; i < kFfn; ++i) {
      const auto bits = static_cast<uint16_t>(r % kSlices * kFfn + i);
      std::memcpy(gate_up.data() + 2 * (r * 2 * kFfn + i), &bits, 2);
      gate_up.set(r, kFfn + i, up_of(r));
    }
  ASSERT_TRUE(run_sm90(gate_up, out));
  int64_t finite = 0, other_bits = 0;
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t i = 0; i < kFfn; ++i) {
      const double g = gate_up.at(r, i), wanted = g / (1 + std::exp(-g)) * up_of(r), found = out.at(r, i);
      const float nearest = bf16::from_float(static_cast<float>(wanted)).to_float();
      if (!std::isfinite(nearest)) {  // NaN for -infinity, as the definition has it
        ASSERT_TRUE(found == nearest || (std::isnan(found) && std::isnan(nearest))) << g << ": " << found;
        continue;
      }
      const double half_unit = wanted == 0 ? 0 : std::ldexp(1, std::ilogb(wanted) - 8);
      const double bound = half_unit + (std::abs(g) <= 8 ? 0x1p-20 : 0x1p-17) * std::abs(wanted) + 0x1p-122;
      ASSERT_LE(std::abs(found - wanted), bound) << "gate " << g << ", up " << up_of(r);
      if (std::abs(wanted) < 0x1p-120) continue;
      ++finite, other_bits += found != nearest;
    }
  fmt::print("{} of {} results are not the nearest\n", other_bits, finite);
  EXPECT_LT(other_bits, finite / 1000);

  for (const int64_t rows : {kRows, 25 * kSlices, 2 * kSlices}) {  // rows in small blocks, large ones, clusters
    RoundedForTest rounded(rows, kFfn);
    GpuExec gpu;
    OnDevice device_in(gate_up), device_both(both), codes(rounded.codes), scales(rounded.scales);
    const Status status = silu_mul_sm90({.gate_up = device_in.view().slice_rows(0, rows),
                                         .out = device_both.view().slice_rows(0, rows),
                                         .rounded = rounded.view(codes.view().data, scales.view().data)},
                                        gpu.exec());
    ASSERT_TRUE(status) << status.error().message;
    ASSERT_TRUE(gpu.synchronize());
    device_both.copy_back();
    for (int64_t r = 0; r < rows; ++r) ASSERT_TRUE(both.same_row_bits(r, out, r)) << "row " << r << " of " << rows;
  }
  TestTensor padded(DType::kBf16, kSlices, 2 * kFfn, 5), channels(DType::kBf16, kSlices, kFfn);
  for (int64_t r = 0; r < kSlices; ++r)
    for (int64_t i = 0; i < 2 * kFfn; ++i) padded.set(r, i, gate_up.at(r, i));
  ASSERT_TRUE(run_sm90(padded, channels));
  for (int64_t r = 0; r < kSlices; ++r) EXPECT_TRUE(channels.same_row_bits(r, out, r)) << "channel by channel, " << r;
}

// The bits that the definition makes of the plain output, in every way to share out a row.
TEST(SiluMulSm90, RoundsItsOutput) {
  constexpr uint64_t kSeed = 20273;
  Random random(kSeed);
  struct Case {
    int64_t rows, ffn, gate_padding, codes_padding;
  };
  for (const Case& c :
       {Case{1, 8, 0, 0}, Case{1, 64, 0, 0}, Case{5, 2048, 8, 8}, Case{1, 2056, 0, 0}, Case{7, 14336, 0, 0},
        Case{1, 16384, 0, 0}, Case{3, 16392, 0, 0}, Case{2, 28672, 16, 0}, Case{1, 32768, 0, 0}, Case{2, 32776, 0, 0},
        Case{3, 1021, 5, 3}, Case{4, 1024, 5, 0}, Case{4, 1024, 0, 4}, Case{50, 14336, 0, 8}, Case{132, 2000, 0, 0},
        Case{700, 1536, 0, 0}, Case{300, 14336, 0, 0}, Case{300, 2000, 8, 24}})
    for (const bool is_static : {false, true}) {
      SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", [" << c.rows << ", " << c.ffn << "], paddings "
                                        << c.gate_padding << ", " << c.codes_padding << ", static " << is_static);
      TestTensor gate_up(DType::kBf16, c.rows, 2 * c.ffn, c.gate_padding), plain(DType::kBf16, c.rows, c.ffn),
          both = plain, scale(DType::kF32, 1, 1);
      gate_up.fill(random, 4), scale.set(0, 0, 0.031f);
      if (!is_static && c.rows > 2) {
        gate_up.set(0, c.ffn - 1, INFINITY);
        gate_up.set(1, c.ffn + c.ffn / 2, NAN);
        for (int64_t i = 0; i < c.ffn; ++i) gate_up.set(2, i, 0);
      }
      // Far over what has a code, and infinite.
      if (is_static && c.rows > 2) {
        gate_up.set(2, 1, 3e4f), gate_up.set(2, c.ffn + 1, -3e4f);
        gate_up.set(2, 2, INFINITY), gate_up.set(2, c.ffn + 2, 1);
      }
      // The largest magnitude in each block of a cluster in turn.
      if (c.rows > 4) gate_up.set(4, c.ffn * (random.below(8)) / 8, 500), gate_up.set(3, 0, 500);
      ASSERT_TRUE(run_sm90(gate_up, plain));
      for (const bool with_out : {true, false}) {
        RoundedForTest rounded(c.rows, c.ffn, c.codes_padding);
        GpuExec gpu;
        OnDevice device_in(gate_up), device_both(both), codes(rounded.codes), scales(rounded.scales),
            device_scale(scale);
        const Status status = silu_mul_sm90(
            {.gate_up = device_in.view(),
             .out = with_out ? device_both.view() : TensorView(),
             .rounded = rounded.view(codes.view().data, scales.view().data,
                                     is_static ? ConstTensorView(device_scale.vector()) : ConstTensorView())},
            gpu.exec());
        ASSERT_TRUE(status) << status.error().message;
        ASSERT_TRUE(gpu.synchronize());
        codes.copy_back(), scales.copy_back(), device_both.copy_back();
        ASSERT_NO_FATAL_FAILURE(rounded.expect_rounding_of(plain, is_static ? 0.031f : 0));
        EXPECT_TRUE(!with_out || both.same_bits(plain));
      }
    }
}

// Clusters in a captured graph, each reading what the one before wrote.
TEST(SiluMulSm90, RoundsInAGraph) {
  constexpr uint64_t kSeed = 20274;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  constexpr int64_t kFfn = 14336;
  TestTensor gate_up(DType::kBf16, 1, 2 * kFfn), plain(DType::kBf16, 1, kFfn);
  gate_up.fill(random, 4);
  ASSERT_TRUE(run_sm90(gate_up, plain));
  RoundedForTest first(1, kFfn), second(1, kFfn);
  const Stream stream = *Stream::create();
  ExecContext exec{.stream = stream.handle()};
  OnDevice device_in(gate_up), codes(first.codes), scales(first.scales), more_codes(second.codes),
      more_scales(second.scales);
  const auto graph = Graph::capture(stream, [&]() -> Status {
    HEARTH_TRY(silu_mul_sm90(
        {.gate_up = device_in.view(), .rounded = first.view(codes.view().data, scales.view().data)}, exec));
    return silu_mul_sm90(
        {.gate_up = device_in.view(), .rounded = second.view(more_codes.view().data, more_scales.view().data)}, exec);
  });
  ASSERT_TRUE(graph) << graph.error().message;
  for (int run = 0; run < 3; ++run) ASSERT_TRUE(graph->launch(stream));
  ASSERT_TRUE(stream.synchronize());
  codes.copy_back(), scales.copy_back(), more_codes.copy_back(), more_scales.copy_back();
  first.expect_rounding_of(plain);
  second.expect_rounding_of(plain);
}

TEST(SiluMulSm90, ExtremeGatesAndMoreRowsThanAGridHolds) {
  TestTensor gate_up(DType::kF32, 70000, 2), out(DType::kF32, 70000, 1);
  for (int64_t r = 0; r < 70000; ++r) gate_up.set(r, 0, static_cast<float>(r % 3 - 1) * 1e30f), gate_up.set(r, 1, 2);
  ASSERT_TRUE(run_sm90(gate_up, out));
  for (int64_t r = 0; r < 70000; ++r) ASSERT_EQ(out.at(r, 0), r % 3 == 2 ? 2e30f : 0) << r;
}

}  // namespace
}  // namespace hearth
