// SPDX-License-Identifier: Apache-2.0
// Tests of the linear layer: linear_cpu against linear_ref at the edges of its tiles and blocks, with
// the error of a naive f32 loop as the measure; rows bit-equal for every batch, position, thread count
// and stride; guard zones and poison; errors.
#include "hearth/kernels/linear/linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/kernels/cpu/test_targets.h"
#include "hearth/kernels/linear/linear_cpu_plan.h"

namespace hearth {
namespace {

// A matrix whose rows lie `stride` apart between poisoned guard zones. Padding between rows counts as
// guard: it is NaN, so that a product that reads it shows, and check_guards() sees writes to it.
class GuardedMatrix {
 public:
  GuardedMatrix(DType dtype, int64_t rows, int64_t cols, int64_t extra_stride = 0)
      : dtype_(dtype),
        rows_(rows),
        cols_(cols),
        stride_(cols + extra_stride),
        bytes_(static_cast<size_t>(2 * kGuard + dtype_bytes(dtype, std::max<int64_t>(rows * stride_, 1)))) {
    poison();
  }

  // All ones is NaN in f32, f16 and bf16.
  void poison() { std::memset(bytes_.data(), 0xFF, bytes_.size()); }

  void fill(Random& random, float scale) {
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t c = 0; c < cols_; ++c) set(r, c, random.normal() * scale);
  }
  void set(int64_t row, int64_t col, float value) {
    const int64_t i = row * stride_ + col;
    if (dtype_ == DType::kF32) static_cast<float*>(data())[i] = value;
    if (dtype_ == DType::kBf16) static_cast<bf16*>(data())[i] = bf16::from_float(value);
    if (dtype_ == DType::kF16) static_cast<f16*>(data())[i] = f16::from_float(value);
  }
  float get(int64_t row, int64_t col) const {
    const int64_t i = row * stride_ + col;
    const void* from = bytes_.data() + kGuard;
    if (dtype_ == DType::kBf16) return static_cast<const bf16*>(from)[i].to_float();
    if (dtype_ == DType::kF16) return static_cast<const f16*>(from)[i].to_float();
    return static_cast<const float*>(from)[i];
  }
  // REQUIRES: the same number of columns.
  void copy_row(int64_t row, const GuardedMatrix& from, int64_t from_row) {
    for (int64_t c = 0; c < cols_; ++c) set(row, c, from.get(from_row, c));
  }

  TensorView view() { return {data(), dtype_, Shape{rows_, cols_}, stride_}; }
  TensorView vector() { return {data(), dtype_, Shape{cols_}}; }
  TensorView rows_view(int64_t begin, int64_t count) { return view().slice_rows(begin, count); }

  // True where nothing outside the rows was written.
  bool guards_intact() const {
    const int64_t row_bytes = dtype_bytes(dtype_, cols_), stride_bytes = dtype_bytes(dtype_, stride_);
    bool intact = is_poison(0, kGuard);
    for (int64_t row = 0; row < rows_; ++row)
      intact &= is_poison(kGuard + row * stride_bytes + row_bytes, kGuard + (row + 1) * stride_bytes);
    return intact && is_poison(kGuard + rows_ * stride_bytes, static_cast<int64_t>(bytes_.size()));
  }

 private:
  static constexpr int64_t kGuard = 256;
  void* data() { return bytes_.data() + kGuard; }
  bool is_poison(int64_t begin, int64_t end) const {
    return std::all_of(bytes_.begin() + begin, bytes_.begin() + end, [](std::byte b) { return b == std::byte{0xFF}; });
  }

  DType dtype_;
  int64_t rows_, cols_, stride_;
  std::vector<std::byte> bytes_;
};

// True where two rows agree bit for bit.
bool same_row(const GuardedMatrix& a, int64_t row_a, const GuardedMatrix& b, int64_t row_b, int64_t cols) {
  for (int64_t c = 0; c < cols; ++c)
    if (std::bit_cast<uint32_t>(a.get(row_a, c)) != std::bit_cast<uint32_t>(b.get(row_b, c))) return false;
  return true;
}

// A workspace of exactly the promised size, 64-byte aligned, poisoned, with a guard zone behind it.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : bytes_(bytes), memory_(static_cast<size_t>(bytes + 192), std::byte{0xFF}) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    offset_ = static_cast<int64_t>((64 - address % 64) % 64);
  }
  std::span<std::byte> span() { return {memory_.data() + offset_, static_cast<size_t>(bytes_)}; }
  bool guard_intact() const {
    return std::all_of(memory_.begin() + offset_ + bytes_, memory_.end(),
                       [](std::byte b) { return b == std::byte{0xFF}; });
  }

 private:
  int64_t bytes_, offset_ = 0;
  std::vector<std::byte> memory_;
};

LinearWeight weight_of(GuardedMatrix& codes, int64_t n, int64_t k, DType dtype, GuardedMatrix* bias = nullptr) {
  LinearWeight weight;
  weight.format = WeightFormat::plain(dtype);
  weight.n = n, weight.k = k;
  weight.codes = codes.view();
  if (bias != nullptr) weight.bias = bias->vector();
  return weight;
}

Status run_cpu(const LinearArgs& args, ThreadPool& pool) {
  Workspace workspace(linear_cpu_workspace_bytes(args.x.shape[0], args.weight->n, args.weight->k, pool.size()));
  ExecContext exec{.pool = &pool, .workspace = workspace.span()};
  Status status = linear_cpu(args, exec);
  EXPECT_TRUE(workspace.guard_intact());
  return status;
}

Status run_ref(const LinearArgs& args) {
  ExecContext exec;
  return linear_ref(args, exec);
}

// max |value - exact| of a matrix against the double reference in f32.
double max_error(const GuardedMatrix& value, const GuardedMatrix& exact, int64_t m, int64_t n) {
  double error = 0;
  for (int64_t r = 0; r < m; ++r)
    for (int64_t c = 0; c < n; ++c) {
      const double difference = std::abs(static_cast<double>(value.get(r, c)) - exact.get(r, c));
      error = difference <= error ? error : difference;  // NaN wins
    }
  return error;
}

// The obvious loop in f32: multiply, round, add, round; out rounded to its type.
void naive_f32(const GuardedMatrix& x, const GuardedMatrix& w, const GuardedMatrix* bias, const GuardedMatrix* residual,
               GuardedMatrix& out, int64_t m, int64_t n, int64_t k) {
  for (int64_t r = 0; r < m; ++r)
    for (int64_t c = 0; c < n; ++c) {
      float sum = 0;
      for (int64_t i = 0; i < k; ++i) sum += x.get(r, i) * w.get(c, i);
      if (bias != nullptr) sum += bias->get(0, c);
      if (residual != nullptr) sum += residual->get(r, c);
      out.set(r, c, sum);
    }
}

struct Case {
  int64_t m, n, k;
  DType x, w, out, bias, residual;  // kBool: none
};

void check_against_ref(const Case& test, uint64_t seed, ThreadPool& pool) {
  SCOPED_TRACE(fmt::format("seed {} m {} n {} k {} x {} w {} out {} bias {} residual {} threads {}", seed, test.m,
                           test.n, test.k, dtype_name(test.x), dtype_name(test.w), dtype_name(test.out),
                           dtype_name(test.bias), dtype_name(test.residual), pool.size()));
  Random random(seed);
  GuardedMatrix x(test.x, test.m, test.k, 3), w(test.w, test.n, test.k, random.below(2) * 5);
  x.fill(random, 1.0f);
  w.fill(random, 0.05f);
  const bool has_bias = test.bias != DType::kBool, has_residual = test.residual != DType::kBool;
  GuardedMatrix bias(has_bias ? test.bias : DType::kF32, 1, test.n), residual(test.out, test.m, test.n, 1);
  bias.fill(random, 1.0f);
  residual.fill(random, 1.0f);
  const LinearWeight weight = weight_of(w, test.n, test.k, test.w, has_bias ? &bias : nullptr);

  GuardedMatrix out(test.out, test.m, test.n, 2), exact(DType::kF32, test.m, test.n), naive(test.out, test.m, test.n);
  GuardedMatrix exact_residual(DType::kF32, test.m, test.n);
  for (int64_t r = 0; r < test.m; ++r) exact_residual.copy_row(r, residual, r);
  LinearArgs args{.x = x.view(), .weight = &weight, .out = out.view()};
  LinearArgs exact_args{.x = x.view(), .weight = &weight, .out = exact.view()};
  if (has_residual) args.residual = residual.view(), exact_args.residual = exact_residual.view();

  ASSERT_TRUE(run_ref(exact_args));
  naive_f32(x, w, has_bias ? &bias : nullptr, has_residual ? &residual : nullptr, naive, test.m, test.n, test.k);
  // The largest error of a few outputs can be luck: at least the rounding of one f32 sum is allowed.
  const double floor = 4 * std::numeric_limits<float>::epsilon();
  const double allowed = 2 * std::max(max_error(naive, exact, test.m, test.n), floor);
  for_each_cpu_target([&] {
    out.poison();
    ASSERT_TRUE(run_cpu(args, pool));
    EXPECT_TRUE(out.guards_intact() && x.guards_intact() && w.guards_intact());
    EXPECT_LE(max_error(out, exact, test.m, test.n), allowed);
  });
}

constexpr DType kWeightTypes[] = {DType::kF32, DType::kBf16, DType::kF16};

// One row of tests covers the edges of k with few outputs, another those of n and m with short rows.
TEST(LinearCpu, MatchesTheReferenceAtEdges) {
  ThreadPool pool(3);
  uint64_t seed = 1;
  for (DType w : kWeightTypes)
    for (DType x : {DType::kF32, DType::kBf16}) {
      for (int64_t k : {1, 7, 15, 16, 17, 31, 32, 33, 97, 1023, 1024, 1025, 2100})
        for (int64_t m : {1, 3, 26}) check_against_ref({m, 6, k, x, w, x, DType::kBool, DType::kBool}, ++seed, pool);
      for (int64_t n : {1, 3, 4, 5, 63, 64, 65, 241, 500})
        for (int64_t m : {1, 2, 5, 6, 7, 24, 25})
          check_against_ref({m, n, 33, x, w, x, DType::kBool, DType::kBool}, ++seed, pool);
    }
}

TEST(LinearCpu, MatchesTheReferenceWithBiasResidualAndF32Out) {
  ThreadPool pool(2);
  uint64_t seed = 1000;
  for (DType w : kWeightTypes)
    for (DType x : {DType::kF32, DType::kBf16})
      for (DType out : {DType::kF32, x})
        for (DType bias : {DType::kBool, DType::kF32, DType::kBf16, DType::kF16})
          for (DType residual : {DType::kBool, out})
            for (int64_t m : {1, 5, 29}) check_against_ref({m, 70, 40, x, w, out, bias, residual}, ++seed, pool);
}

TEST(LinearCpu, MatchesTheReferenceOnLargerShapes) {
  ThreadPool pool(4);
  const auto check = [&](int64_t m, int64_t n, int64_t k, DType x, DType w, uint64_t seed) {
    check_against_ref({m, n, k, x, w, DType::kF32, DType::kBool, DType::kBool}, seed, pool);
  };
  check(530, 37, 70, DType::kF32, DType::kBf16, 2000);
  check(1, 1030, 768, DType::kBf16, DType::kBf16, 2001);
  check(27, 9, 28672, DType::kF32, DType::kF32, 2002);
  check(2, 33, 5000, DType::kF32, DType::kF16, 2003);
}

// Invariant I1: a row of out is a function of its row of x. Every batch, both sides of what the direct path
// and a block of tokens hold, at a random place, with other strides and another team.
void check_rows_are_bit_equal(DType w_type, DType type, int64_t n, int64_t k, uint64_t seed) {
  constexpr int64_t kRows = 523;
  SCOPED_TRACE(fmt::format("seed {} w {} x {} n {} k {}", seed, dtype_name(w_type), dtype_name(type), n, k));
  Random random(seed);
  GuardedMatrix x(type, kRows, k), w(w_type, n, k), alone(type, kRows, n), bias(DType::kF32, 1, n);
  x.fill(random, 1.0f), w.fill(random, 0.1f), bias.fill(random, 1.0f);
  const LinearWeight weight = weight_of(w, n, k, w_type, &bias);
  for_each_cpu_target([&] {
    ThreadPool one(1);
    for (int64_t r = 0; r < kRows; ++r)
      ASSERT_TRUE(run_cpu({.x = x.rows_view(r, 1), .weight = &weight, .out = alone.rows_view(r, 1)}, one));
    for (int threads : {1, 2, 3, 4, 5}) {
      ThreadPool pool(threads);
      for (int64_t m : {1, 2, 3, 5, 6, 7, 12, 24, 25, 64, 129, 520}) {
        if (m > 100 && threads != 3) continue;
        const int64_t first = random.below(kRows - m);
        GuardedMatrix strided_x(type, m, k, 11), out(type, m, n, 7);
        for (int64_t r = 0; r < m; ++r) strided_x.copy_row(r, x, first + r);
        ASSERT_TRUE(run_cpu({.x = strided_x.view(), .weight = &weight, .out = out.view()}, pool));
        for (int64_t r = 0; r < m; ++r)
          ASSERT_TRUE(same_row(out, r, alone, first + r, n))
              << "row " << r << " of " << m << ", " << threads << " threads";
        EXPECT_TRUE(out.guards_intact());
      }
    }
  });
}

TEST(LinearCpu, RowsAreBitEqualForEveryBatchPositionAndThreadCount) {
  uint64_t seed = 3000;
  for (DType w : kWeightTypes) {
    check_rows_are_bit_equal(w, DType::kF32, 133, 97, ++seed);    // two panels
    check_rows_are_bit_equal(w, DType::kBf16, 13, 1100, ++seed);  // two blocks of k
  }
}

TEST(LinearCpu, OtherRowsMayBeNaN) {
  for_each_cpu_target([] {
    ThreadPool pool(2);
    Random random(5);
    const int64_t m = 9, n = 21, k = 50;
    GuardedMatrix x(DType::kF32, m, k), w(DType::kBf16, n, k), out(DType::kF32, m, n), alone(DType::kF32, 1, n);
    x.fill(random, 1.0f), w.fill(random, 1.0f);
    for (int64_t c = 0; c < k; ++c) x.set(4, c, std::numeric_limits<float>::quiet_NaN());
    const LinearWeight weight = weight_of(w, n, k, DType::kBf16);
    ASSERT_TRUE(run_cpu({.x = x.view(), .weight = &weight, .out = out.view()}, pool));
    for (int64_t r : {0, 3, 5, 8}) {
      ASSERT_TRUE(run_cpu({.x = x.rows_view(r, 1), .weight = &weight, .out = alone.view()}, pool));
      EXPECT_TRUE(same_row(out, r, alone, 0, n));
    }
    for (int64_t c = 0; c < n; ++c) EXPECT_TRUE(std::isnan(out.get(4, c)));
  });
}

TEST(LinearCpu, ResidualMayBeOut) {
  for_each_cpu_target([] {
    ThreadPool pool(3);
    for (DType type : {DType::kF32, DType::kBf16})
      for (int64_t m : {1, 6, 40}) {
        Random random(77);
        const int64_t n = 130, k = 65;
        GuardedMatrix x(type, m, k), w(DType::kBf16, n, k), residual(type, m, n, 3), apart(type, m, n),
            same(type, m, n, 3);
        x.fill(random, 1.0f), w.fill(random, 0.1f), residual.fill(random, 1.0f);
        for (int64_t r = 0; r < m; ++r) same.copy_row(r, residual, r);
        const LinearWeight weight = weight_of(w, n, k, DType::kBf16);
        ASSERT_TRUE(
            run_cpu({.x = x.view(), .weight = &weight, .residual = residual.view(), .out = apart.view()}, pool));
        ASSERT_TRUE(run_cpu({.x = x.view(), .weight = &weight, .residual = same.view(), .out = same.view()}, pool));
        for (int64_t r = 0; r < m; ++r) EXPECT_TRUE(same_row(apart, r, same, r, n));
      }
  });
}

TEST(LinearCpu, EmptySizes) {
  for_each_cpu_target([] {
    ThreadPool pool(2);
    Random random(9);
    for (int64_t m : {0, 1, 8})
      for (int64_t n : {0, 5})
        for (int64_t k : {0, 40}) {
          GuardedMatrix x(DType::kF32, m, k), w(DType::kF32, n, k), bias(DType::kF32, 1, n), out(DType::kF32, m, n);
          x.fill(random, 1.0f), w.fill(random, 1.0f), bias.fill(random, 1.0f);
          const LinearWeight weight = weight_of(w, n, k, DType::kF32, &bias);
          ASSERT_TRUE(run_cpu({.x = x.view(), .weight = &weight, .out = out.view()}, pool));
          EXPECT_TRUE(out.guards_intact());
          for (int64_t r = 0; k == 0 && r < m; ++r) EXPECT_TRUE(same_row(out, r, bias, 0, n));
        }
  });
}

// Golden: integers are exact in every type and order.
TEST(LinearCpu, SmallIntegersAreExact) {
  for_each_cpu_target([] {
    ThreadPool pool(2);
    for (DType w_type : kWeightTypes)
      for (int64_t m : {1, 10}) {
        const int64_t n = 9, k = 75;
        GuardedMatrix x(DType::kBf16, m, k), w(w_type, n, k), out(DType::kF32, m, n);
        for (int64_t r = 0; r < m; ++r)
          for (int64_t i = 0; i < k; ++i) x.set(r, i, static_cast<float>((i + r) % 5 - 2));
        for (int64_t c = 0; c < n; ++c)
          for (int64_t i = 0; i < k; ++i) w.set(c, i, static_cast<float>((3 * i + c) % 7 - 3));
        const LinearWeight weight = weight_of(w, n, k, w_type);
        ASSERT_TRUE(run_cpu({.x = x.view(), .weight = &weight, .out = out.view()}, pool));
        for (int64_t r = 0; r < m; ++r)
          for (int64_t c = 0; c < n; ++c) {
            int64_t sum = 0;
            for (int64_t i = 0; i < k; ++i) sum += ((i + r) % 5 - 2) * ((3 * i + c) % 7 - 3);
            ASSERT_EQ(out.get(r, c), static_cast<float>(sum));
          }
      }
  });
}

TEST(LinearCpu, SmallWorkspaceIsAnErrorThatNamesBothSizes) {
  ThreadPool pool(2);
  GuardedMatrix x(DType::kF32, 8, 64), w(DType::kF32, 16, 64), out(DType::kF32, 8, 16);
  const LinearWeight weight = weight_of(w, 16, 64, DType::kF32);
  const int64_t wanted = linear_cpu_workspace_bytes(8, 16, 64, 2);
  Workspace workspace(wanted - 1);
  ExecContext exec{.pool = &pool, .workspace = workspace.span()};
  const Status status = linear_cpu({.x = x.view(), .weight = &weight, .out = out.view()}, exec);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(status.error().message, fmt::format("linear_cpu: workspace of {} bytes, wanted {}", wanted - 1, wanted));
}

TEST(LinearCpu, WorkspaceServesEverySmallerBatch) {
  for (int64_t k : {1, 768, 28672})
    for (int threads : {1, 4}) {
      int64_t before = 0;
      for (int64_t m = 0; m < 1200; ++m) {
        const int64_t bytes = linear_cpu_workspace_bytes(m, 4096, k, threads);
        ASSERT_GE(bytes, before) << "m " << m;
        before = bytes;
      }
    }
}

TEST(Linear, BadArgumentsAreErrors) {
  GuardedMatrix x(DType::kF32, 2, 8), w(DType::kBf16, 4, 8), out(DType::kF32, 2, 4), half(DType::kF16, 2, 8);
  GuardedMatrix small(DType::kF32, 2, 3), bias(DType::kF32, 1, 3), half_out(DType::kBf16, 2, 4);
  const LinearWeight weight = weight_of(w, 4, 8, DType::kBf16);
  const LinearArgs good{.x = x.view(), .weight = &weight, .out = out.view()};
  ASSERT_TRUE(validate(good));
  const auto message = [](const LinearArgs& args) {
    const Status status = validate(args);
    if (status) return std::string("no error");
    EXPECT_EQ(status.error().code, ErrorCode::kInvalidArgument);
    return status.error().message;
  };
  LinearArgs bad = good;
  bad.weight = nullptr;
  EXPECT_EQ(message(bad), "linear: no weight");
  bad = good, bad.x = small.view();
  EXPECT_EQ(message(bad), "linear: x has shape [2, 3], wanted [2, 8]");
  bad = good, bad.x = half.view();
  EXPECT_EQ(message(bad), "linear: x is f16, wanted f32 or bf16");
  bad = good, bad.out = small.view();
  EXPECT_EQ(message(bad), "linear: out has shape [2, 3], wanted [2, 4]");
  bad = good, bad.out = half_out.view();
  EXPECT_EQ(message(bad), "linear: out is bf16 and x is f32, wanted the same or f32");
  bad = good, bad.residual = half_out.view();
  EXPECT_EQ(message(bad), "linear: residual is bf16 and out is f32, wanted the same");
  bad = good, bad.x.row_stride = 7;
  EXPECT_EQ(message(bad), "linear: x has row stride 7, wanted at least 8");
  bad = good, bad.x.data = nullptr;
  EXPECT_EQ(message(bad), "linear: x has no data");

  LinearWeight other = weight;
  other.bias = bias.vector();
  bad = good, bad.weight = &other;
  EXPECT_EQ(message(bad), "linear: bias has shape [3], wanted [4]");
  other = weight, other.codes = x.view(), other.n = 2;
  EXPECT_EQ(message(bad), "linear: weight of format bf16 stored as f32, wanted plain f32, f16 or bf16");
}

TEST(LinearPlan, BlocksCoverKOnce) {
  for (int64_t k = 0; k < 40000; k += k < 3000 ? 1 : 37) {
    const linear_plan::KBlocks blocks(k);
    ASSERT_LE(blocks.size, linear_plan::kBlockK);
    ASSERT_EQ(blocks.size % linear_plan::kPadK, 0);
    ASSERT_GE(blocks.count * blocks.size, k);
    ASSERT_LE((blocks.count - 1) * blocks.size, std::max<int64_t>(k - 1, 0));
  }
}

TEST(LinearPlan, TokenBlocksFitThePackedXAndCoverM) {
  for (int64_t m = 1; m < 3000; ++m) {
    const int64_t block = linear_plan::token_block(m);
    ASSERT_LE(block, linear_plan::kBlockTokens);
    ASSERT_EQ(block % linear_plan::kTokenUnit, 0);
    ASSERT_EQ(linear_plan::divide_up(m, block), linear_plan::divide_up(m, linear_plan::kBlockTokens)) << m;
  }
}

TEST(LinearPlan, SplitCoversAllTilesAndIsEven) {
  for (int64_t m : {1, 7, 64, 384})
    for (int64_t n : {1, 5, 768, 4096, 152064})
      for (int64_t threads : {1, 2, 3, 4, 7, 64}) {
        const linear_plan::Grid grid = linear_plan::split(m, n, threads);
        ASSERT_LE(grid.rows * grid.tokens, threads);
        int64_t covered = 0;
        for (int64_t i = 0; i < grid.rows; ++i) {
          const linear_plan::Range range = linear_plan::part(n, linear_plan::kTileRows, grid.rows, i);
          ASSERT_EQ(range.begin, covered);
          covered = range.end;
        }
        ASSERT_EQ(covered, n);
      }
  // Enough rows for every thread: the tokens stay whole.
  EXPECT_EQ(linear_plan::split(384, 4096, 4).rows, 4);
  // Too few rows: tokens are cut.
  EXPECT_EQ(linear_plan::split(384, 4, 4).tokens, 4);
}

}  // namespace
}  // namespace hearth
