// SPDX-License-Identifier: Apache-2.0
// Tests of the linear layer for quantized weights: the reference against dequantize_row and against integers, the CPU
// against the reference for every format, activation and edge, with the error of a naive f32 loop as the measure; rows
// bit-equal for every batch; rounding of activations; guard zones, NaN-poisoned outputs and workspaces; errors.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/kernels/cpu/test_targets.h"
#include "hearth/kernels/linear/act_quantize.h"
#include "hearth/kernels/linear/linear.h"
#include "hearth/kernels/linear/linear_quantized_plan.h"
#include "hearth/kernels/linear/quantized_for_test.h"
#include "hearth/kernels/op_test.h"
#include "hearth/kernels/rounded_test.h"
#include "hearth/tensor/quantized_weight.h"

namespace hearth {
namespace {

using namespace testing;  // quantized_for_test.h

// A workspace of exactly the promised size between poison.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : bytes_(bytes), memory_(static_cast<size_t>(ceil_div(bytes, 64) + 1)) {
    for (Line& line : memory_) std::fill(std::begin(line.bytes), std::end(line.bytes), std::byte{0xFF});
  }
  std::span<std::byte> span() { return {memory_[0].bytes, static_cast<size_t>(bytes_)}; }
  bool guard_intact() const {
    const std::byte* begin = memory_[0].bytes;
    return std::all_of(begin + bytes_, begin + memory_.size() * 64, [](std::byte b) { return b == std::byte{0xFF}; });
  }

 private:
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  int64_t bytes_;
  std::vector<Line> memory_;
};

Status run_cpu(const LinearArgs& args, ThreadPool& pool) {
  Workspace workspace(
      linear_quantized_cpu_workspace_bytes(args.x.shape[0], args.weight->n, args.weight->k, pool.size()));
  ExecContext exec{.pool = &pool, .workspace = workspace.span()};
  Status status = linear_quantized_cpu(args, exec);
  EXPECT_TRUE(workspace.guard_intact());
  return status;
}

Status run_ref(const LinearArgs& args) {
  Workspace workspace(linear_quantized_ref_workspace_bytes(args.x.shape[0], args.weight->n, args.weight->k, 1));
  ExecContext exec{.workspace = workspace.span()};
  Status status = linear_quantized_ref(args, exec);
  EXPECT_TRUE(workspace.guard_intact());
  return status;
}

void check(const Case& test, uint64_t seed, ThreadPool& pool) {
  SCOPED_TRACE(describe(test, seed));
  Random random(seed);
  const QuantizedMatrix matrix = random_matrix(test.format, test.n, test.k, test.has_k_order, random);
  ASSERT_TRUE(matrix.validate());
  PlacedWeight placed(matrix);
  TestTensor x(test.x, test.m, test.k, 3), residual(test.out, test.m, test.n, 1);
  TestTensor bias(test.bias == DType::kBool ? DType::kF32 : test.bias, 1, test.n);
  x.fill(random), residual.fill(random), bias.fill(random);
  TestTensor out(test.out, test.m, test.n, 2), exact(test.out, test.m, test.n), naive(test.out, test.m, test.n);
  TestTensor expected(test.out, test.m, test.n);
  const TestTensor *with_bias = nullptr, *with_residual = nullptr;
  LinearArgs args{.x = x.view(), .weight = &placed.weight, .out = exact.view()};
  if (test.bias != DType::kBool) placed.weight.bias = bias.vector(), with_bias = &bias;
  if (test.has_residual) args.residual = residual.view(), with_residual = &residual;

  ASSERT_TRUE(run_ref(args));
  plain_loop<double>(matrix, x, with_bias, with_residual, expected);
  plain_loop<float>(matrix, x, with_bias, with_residual, naive);
  // Both are sums in double: what differs is the rounding of scale * value to f32 in dequantize_row.
  const double allowed = allowed_error(matrix, naive, expected, random);
  EXPECT_LE(max_error(exact, expected), allowed);
  args.out = out.view();
  for_each_cpu_target([&] {
    for (int64_t r = 0; r < test.m; ++r)
      for (int64_t c = 0; c < test.n; ++c) out.set(r, c, std::numeric_limits<float>::quiet_NaN());
    const TestTensor before = x;
    ASSERT_TRUE(run_cpu(args, pool));
    EXPECT_LE(max_error(out, exact), allowed);
    EXPECT_TRUE(x.same_bits(before));
  });
}

// Every format with every activation, at the edges of k: less than a group or a lane's columns, odd, whole units, a
// short last group, several blocks.
TEST(LinearQuantized, MatchesTheReferenceForEveryFormatAndActivation) {
  ThreadPool pool(3);
  uint64_t seed = 1;
  for (WeightFormat format : weight_formats())
    for (ActFormat act : kActs) {
      format.act = act;
      for (int64_t k : {1, 7, 33, 128, 200, 515}) check({format, 2, 5, k, k % 2 == 1}, ++seed, pool);
      check({format, 14, 6, 130}, ++seed, pool);
      check({format, 1, 3, 1300}, ++seed, pool);
    }
}

// Groups of sizes that no vector divides.
TEST(LinearQuantized, MatchesTheReferenceForUnusualGroups) {
  ThreadPool pool(2);
  uint64_t seed = 500;
  for (int64_t group : {1, 3, 12, 100})
    for (int64_t k : {5, 130})
      for (int64_t m : {1, 14}) {
        check({int4_format(WeightCode::kU4, group, true), m, 5, k}, ++seed, pool);
        check({line_format(4, group, true), m, 5, k}, ++seed, pool);
        check({e4m3_format(ScaleLayout::kBlock, group, 2), m, 5, k}, ++seed, pool);
      }
}

TEST(LinearQuantized, MatchesTheReferenceForEveryNumberOfTokensAndRows) {
  ThreadPool pool(3);
  uint64_t seed = 1000;
  for (const WeightFormat& format : main_formats()) {
    for (int64_t m : {1, 2, 3, 4, 5, 6, 7, 12, 13, 17, 64, 65}) check({format, m, 7, 136}, ++seed, pool);
    for (int64_t n : {1, 4, 61, 127, 241, 251}) {
      check({format, 1, n, 72}, ++seed, pool);
      check({format, 13, n, 72}, ++seed, pool);
    }
    check({format, 530, 9, 40}, ++seed, pool);
    check({format, 3, 12, 4096}, ++seed, pool);
    check({format, 20, 12, 4096}, ++seed, pool);
  }
}

TEST(LinearQuantized, MatchesTheReferenceWithBiasResidualAndBf16) {
  ThreadPool pool(2);
  uint64_t seed = 2000;
  for (const WeightFormat& format : main_formats())
    for (DType x : {DType::kF32, DType::kBf16})
      for (DType out : {DType::kF32, x})
        for (DType bias : {DType::kBool, DType::kF32, DType::kBf16, DType::kF16})
          for (int64_t m : {1, 15}) check({format, m, 21, 80, false, x, out, bias, bias != DType::kF32}, ++seed, pool);
}

// Invariant I1 of linear_quantized_cpu.cpp: a row of out is a function of its row of x, for every batch, both paths and
// every number of threads.
TEST(LinearQuantized, RowsAreBitEqualForEveryBatchAndThreadCount) {
  constexpr int64_t kRows = 65;
  uint64_t seed = 3000;
  std::vector<WeightFormat> formats = main_formats();
  formats.push_back(int4_format(WeightCode::kU4, 24, true));
  formats.push_back(line_format(6, 128, true));
  for (size_t i = 0, count = formats.size(); i < count; ++i) {
    formats.push_back(formats[i]);
    formats.back().act = formats[i].act == ActFormat::kI8PerGroup ? ActFormat::kNative : ActFormat::kI8PerGroup;
  }
  for (const WeightFormat& format : formats)
    for (int64_t k : {97, 1200}) {
      const int64_t n = k == 97 ? 133 : 13;
      SCOPED_TRACE(fmt::format("seed {} {} k {}", ++seed, to_string(format), k));
      Random random(seed);
      const PlacedWeight placed(random_matrix(format, n, k, false, random));
      TestTensor x(DType::kF32, kRows, k);
      x.fill(random);
      for_each_cpu_target([&] {
        TestTensor alone(DType::kF32, kRows, n);
        ThreadPool one(1);
        for (int64_t r = 0; r < kRows; ++r)
          ASSERT_TRUE(run_cpu(
              {.x = x.view().slice_rows(r, 1), .weight = &placed.weight, .out = alone.view().slice_rows(r, 1)}, one));
        for (int threads : {1, 3, 4}) {
          ThreadPool pool(threads);
          for (int64_t m : {2, 3, 5, 6, 7, 12, 13, 24, 64, 65}) {
            if (threads != 3 && m != 7 && m != 64) continue;
            const int64_t first = random.below(kRows - m + 1);
            TestTensor out(DType::kF32, m, n, 7);
            ASSERT_TRUE(
                run_cpu({.x = x.view().slice_rows(first, m), .weight = &placed.weight, .out = out.view()}, pool));
            for (int64_t r = 0; r < m; ++r)
              ASSERT_TRUE(out.same_row_bits(r, alone, first + r)) << "row " << r << " of " << m;
          }
        }
      });
    }
}

// Golden: with integer lines and INT8 activations one group's sum is an integer, exactly, times two scales.
TEST(LinearQuantized, IntegerLinesGiveExactIntegers) {
  ThreadPool pool(2);
  for (int64_t m : {1, 20})
    for (int64_t k : {128, 77}) {
      Random random(static_cast<uint64_t>(m + k));
      QuantizedMatrix matrix = random_matrix(line_format(4, 128, true), 9, k, false, random);
      matrix.format.act = ActFormat::kI8PerGroup;
      std::fill(matrix.line_scales.begin(), matrix.line_scales.end(), 0.25f);
      const PlacedWeight placed(matrix);
      TestTensor x(DType::kF32, m, k);
      for (int64_t r = 0; r < m; ++r)
        for (int64_t i = 0; i < k; ++i) x.set(r, i, static_cast<float>(i == r ? 127 : random.below(255) - 127));
      for_each_cpu_target([&] {
        TestTensor out(DType::kF32, m, 9);
        ASSERT_TRUE(run_cpu({.x = x.view(), .weight = &placed.weight, .out = out.view()}, pool));
        for (int64_t n = 0; n < 9; ++n) {
          const float* line = matrix.lines.data() + matrix.line_index[static_cast<size_t>(n)] * 4;
          for (int64_t r = 0; r < m; ++r) {
            int64_t sum = 0;
            for (int64_t i = 0; i < k; ++i) {
              const uint8_t code =
                  nibble_at({matrix.codes.data() + n * matrix.row_bytes(), static_cast<size_t>(matrix.row_bytes())}, i);
              for (int s = 0; s < 4; ++s)
                if (code >> (3 - s) & 1) sum += static_cast<int64_t>(line[s]) * static_cast<int64_t>(x.at(r, i));
            }
            ASSERT_EQ(out.at(r, n), static_cast<float>(sum) * 0.25f);
          }
        }
      });
    }
}

// The rounding of activations shows through an identity matrix: every E4M3 number, the middles between neighbours (ties
// to even), and what lies next to them.
TEST(LinearQuantized, ActivationsAreRoundedAsDefined) {
  const int64_t k = 768;
  QuantizedMatrix identity;
  identity.format = e4m3_format(ScaleLayout::kTensor);
  identity.n = identity.k = k;
  identity.codes.assign(static_cast<size_t>(k * k), 0);
  for (int64_t i = 0; i < k; ++i) identity.codes[static_cast<size_t>(i * k + i)] = e4m3::from_float(1).bits;
  identity.scales = {1};
  std::vector<float> values;
  for (int code = 0; code < 127; ++code) {
    const float v = e4m3{static_cast<uint8_t>(code)}.to_float();
    const float next = code == 126 ? 480 : e4m3{static_cast<uint8_t>(code + 1)}.to_float();
    const float middle = (v + next) / 2;
    for (float around : {v, middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1000.0f)})
      values.push_back(code % 2 == 0 ? around : -around);
  }
  values.resize(static_cast<size_t>(k), 1e-9f);
  ThreadPool pool(2);
  for (float scale : {1.0f, 0.37f})
    for (ActFormat act : {ActFormat::kE4m3Static, ActFormat::kE4m3PerToken, ActFormat::kI8PerGroup}) {
      identity.format.act = act;
      identity.act_scale = scale;
      const PlacedWeight placed(identity);
      TestTensor x(DType::kF32, 1, k);
      std::vector<float> expected;
      for (int64_t i = 0; i < k; ++i) {
        expected.push_back(std::min(values[static_cast<size_t>(i)], act == ActFormat::kE4m3Static ? 1000.0f : 448.0f) *
                           scale);
        x.set(0, i, expected.back());
      }
      float s = scale;
      if (act == ActFormat::kE4m3Static) {
        quantize_act_static(s, expected);
      } else {
        s = quantize_act(act, expected);
      }
      for_each_cpu_target([&] {
        TestTensor out(DType::kF32, 1, k);
        ASSERT_TRUE(run_cpu({.x = x.view(), .weight = &placed.weight, .out = out.view()}, pool));
        for (int64_t i = 0; i < k; ++i)
          ASSERT_EQ(out.at(0, i), expected[static_cast<size_t>(i)] * s) << "x " << x.at(0, i) << " scale " << s;
      });
    }
}

TEST(ActQuantize, FollowsTheDefinition) {
  std::vector<float> x = {-448, 224, 0.25f, 17, 19, 0};  // 17 and 19 lie in the middle of two neighbours
  EXPECT_EQ(quantize_act(ActFormat::kE4m3PerToken, x), 1);
  EXPECT_EQ(x, (std::vector<float>{-448, 224, 0.25f, 16, 20, 0}));
  x = {254, -1, 3, 5, -254};
  EXPECT_EQ(quantize_act(ActFormat::kI8PerGroup, x), 2);
  EXPECT_EQ(x, (std::vector<float>{127, 0, 2, 2, -127}));
  x = {0, 0};
  EXPECT_EQ(quantize_act(ActFormat::kE4m3PerToken, x), 1);
  EXPECT_EQ(x, (std::vector<float>{0, 0}));
  x = {1e-44f, 0};
  EXPECT_EQ(quantize_act(ActFormat::kI8PerGroup, x), 1);
  x = {1, INFINITY};
  EXPECT_TRUE(std::isnan(quantize_act(ActFormat::kI8PerGroup, x)));
  EXPECT_EQ(x, (std::vector<float>{0, 0}));
  x = {NAN, 2};
  EXPECT_TRUE(std::isnan(quantize_act(ActFormat::kE4m3PerToken, x)));
  x = {1000, -1000, NAN, 0.5f};
  quantize_act_static(2, x);
  EXPECT_EQ(x[0], 448);
  EXPECT_EQ(x[1], -448);
  EXPECT_TRUE(std::isnan(x[2]));
}

// The reference with an x that was rounded before has the bits of rounding it itself; an op that takes none says so.
TEST(LinearQuantized, RoundedRowsAreTheSameToTheReference) {
  constexpr uint64_t kSeed = 20337;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  ThreadPool pool(1);
  for (const ActFormat act : {ActFormat::kE4m3PerToken, ActFormat::kE4m3Static})
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      const int64_t m = 4, n = 9, k = 70;
      const QuantizedMatrix matrix = random_matrix(
          {.code = WeightCode::kE4m3, .scale_layout = ScaleLayout::kRow, .scale_dtype = DType::kF32, .act = act}, n, k,
          false, random);
      const PlacedWeight placed(matrix);
      TestTensor x(dtype, m, k), plain(DType::kF32, m, n), rounded(DType::kF32, m, n);
      x.fill(random);
      for (int64_t i = 0; i < k; ++i) x.set(1, i, 0);
      if (act == ActFormat::kE4m3PerToken) x.set(2, 3, NAN);
      RoundedForTest codes(m, k, 5);
      const RoundedRows rows = codes.view(placed.weight.act_scale);
      for (int64_t r = 0; r < m; ++r) round_row(rows, r, [&](int64_t i) { return x.at(r, i); });
      codes.expect_rounding_of(x, act == ActFormat::kE4m3Static ? 0.013f : 0);
      LinearArgs args{.x = x.view(), .weight = &placed.weight, .out = plain.view()};
      ASSERT_TRUE(run_ref(args));
      args.x = rows.codes, args.x_scale = rows.scales, args.out = rounded.view();
      const Status status = run_ref(args);
      ASSERT_TRUE(status) << status.error().message;
      EXPECT_TRUE(rounded.same_bits(plain));
      EXPECT_EQ(run_cpu(args, pool).error().code, ErrorCode::kUnsupported);
      args.x_scale = {};
      EXPECT_EQ(run_ref(args).error().message, "linear: x is e4m3 without x_scale, wanted one with e4m3 alone");
    }
  const QuantizedMatrix native = random_matrix(
      {.code = WeightCode::kE4m3, .scale_layout = ScaleLayout::kRow, .scale_dtype = DType::kF32}, 8, 64, false, random);
  const PlacedWeight placed(native);
  EXPECT_FALSE(linear_quantized_ref_takes_rounded(placed.weight));
  RoundedForTest codes(1, 64);
  TestTensor out(DType::kF32, 1, 8);
  EXPECT_EQ(
      run_ref({.x = codes.view().codes, .weight = &placed.weight, .out = out.view(), .x_scale = codes.view().scales})
          .error()
          .code,
      ErrorCode::kUnsupported);
}

TEST(LinearQuantized, BadAndEmptyRowsStayAlone) {
  ThreadPool pool(2);
  for_each_cpu_target([&] {
    expect_bad_and_empty_rows_stay_alone({14}, [&](const PlacedWeight& placed, TestTensor& x, TestTensor& out) {
      return run_cpu({.x = x.view(), .weight = &placed.weight, .out = out.view()}, pool);
    });
  });
}

TEST(LinearQuantized, ResidualMayBeOut) {
  ThreadPool pool(3);
  for (const WeightFormat& format : main_formats())
    for (int64_t m : {1, 30}) {
      Random random(77);
      const PlacedWeight placed(random_matrix(format, 130, 65, false, random));
      TestTensor x(DType::kBf16, m, 65), residual(DType::kBf16, m, 130), apart(DType::kBf16, m, 130);
      x.fill(random), residual.fill(random);
      TestTensor same = residual;
      ASSERT_TRUE(
          run_cpu({.x = x.view(), .weight = &placed.weight, .residual = residual.view(), .out = apart.view()}, pool));
      ASSERT_TRUE(
          run_cpu({.x = x.view(), .weight = &placed.weight, .residual = same.view(), .out = same.view()}, pool));
      EXPECT_TRUE(same.same_bits(apart));
    }
}

TEST(LinearQuantized, WorkspaceServesEverySmallerBatch) {
  for (int64_t k : {1, 768, 28672})
    for (int threads : {1, 4}) {
      int64_t before = 0;
      for (int64_t m = 0; m < 1200; ++m) {
        const int64_t bytes = linear_quantized_cpu_workspace_bytes(m, 4096, k, threads);
        ASSERT_GE(bytes, before) << "m " << m;
        ASSERT_EQ(quantized_plan::direct_bytes(m, k) % 64, 0);
        ASSERT_EQ(quantized_plan::panel_bytes(m, k) % 64, 0);
        before = bytes;
      }
    }
}

TEST(LinearQuantized, BadArgumentsAreErrors) {
  Random random(1);
  WeightFormat format = int4_format(WeightCode::kU4, 16, true);
  PlacedWeight placed(random_matrix(format, 4, 32, true, random));
  const LinearWeight good = placed.weight;
  TestTensor x(DType::kF32, 2, 32), out(DType::kF32, 2, 4);
  const auto message = [&](const LinearWeight& weight) {
    const Status status = validate({.x = x.view(), .weight = &weight, .out = out.view()});
    if (status) return std::string("no error");
    EXPECT_EQ(status.error().code, ErrorCode::kInvalidArgument);
    return status.error().message;
  };
  EXPECT_EQ(message(good), "no error");
  LinearWeight bad = good;
  bad.scales = {};
  EXPECT_EQ(message(bad), "linear: the weight has no scales");
  bad = good, bad.scales.dtype = DType::kF32;
  EXPECT_EQ(message(bad), "linear: scales is f32, wanted f16");
  bad = good, bad.zeros.shape = Shape{4, 3};
  EXPECT_EQ(message(bad), "linear: zeros has shape [4, 3], wanted [4, 2]");
  bad = good, bad.codes.dtype = DType::kU8;
  EXPECT_EQ(message(bad), "linear: weight of format u4 group-scale f16 g16 zero-point stored as u8, wanted u4");
  bad = good, bad.codes.row_stride = 33;
  EXPECT_EQ(message(bad),
            "linear: weight of format u4 group-scale f16 g16 zero-point has row stride 33, wanted whole bytes");
  bad = good, bad.k_order.shape = Shape{31};
  EXPECT_EQ(message(bad), "linear: k_order has shape [31], wanted [32]");
  bad = good, bad.format.act = ActFormat::kE4m3Static;
  EXPECT_EQ(message(bad), "linear: the weight has no act_scale");
  const float negative = -1;
  bad.act_scale = ConstTensorView(&negative, DType::kF32, Shape{1});
  EXPECT_EQ(message(bad), "linear: act_scale is -1, wanted a positive number");
  bad = good, bad.format.group_k = 0;
  EXPECT_EQ(message(bad), "weight format u4: group of 0, wanted at least 1");
  // Groups of 12 and INT8 activations: no op computes that.
  format.group_k = 12, format.act = ActFormat::kI8PerGroup;
  EXPECT_FALSE(supports_linear_quantized(format));
  EXPECT_TRUE(supports_linear_quantized(good.format));
  EXPECT_FALSE(supports_linear_quantized(WeightFormat::plain(DType::kBf16)));
}

TEST(LinearQuantized, SmallWorkspaceIsAnErrorThatNamesBothSizes) {
  Random random(1);
  const PlacedWeight placed(random_matrix(int4_format(WeightCode::kC4, 16), 4, 32, false, random));
  TestTensor x(DType::kF32, 2, 32), out(DType::kF32, 2, 4);
  ThreadPool pool(2);
  const int64_t wanted = linear_quantized_cpu_workspace_bytes(2, 4, 32, 2);
  Workspace workspace(wanted - 1);
  ExecContext exec{.pool = &pool, .workspace = workspace.span()};
  const Status status = linear_quantized_cpu({.x = x.view(), .weight = &placed.weight, .out = out.view()}, exec);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().message,
            fmt::format("linear_quantized_cpu: workspace of {} bytes, wanted {}", wanted - 1, wanted));
}

}  // namespace
}  // namespace hearth
