// SPDX-License-Identifier: Apache-2.0
// SBVR's encoder: its lines keep their invariants, its errors are those of the research, its choice is the best line.
#include <gtest/gtest.h>

#include <cmath>

#include "hearth/base/random.h"
#include "hearth/quantize/encode.h"
#include "hearth/quantize/sbvr_authors.h"
#include "hearth/quantize/sbvr_lines.h"

namespace hearth {
namespace {

WeightFormat sbvr(int bitvectors, int64_t lines) {
  return {.code = WeightCode::kBitvectors,
          .group_k = 128,
          .bitvectors = bitvectors,
          .lines = lines,
          .integer_lines = true,
          .act = ActFormat::kI8PerGroup};
}

std::vector<float> normal(int64_t count, uint64_t seed, float sigma) {
  Random random(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = sigma * random.normal();
  return values;
}

struct Machine {
  explicit Machine(int threads = 2) : pool(threads), compute(make_cpu_compute(pool)) {}
  ThreadPool pool;
  std::unique_ptr<Compute> compute;
};

struct Encoded {
  QuantizedMatrix matrix;
  double error;  // normalised
};

Encoded run(const std::vector<float>& w, int64_t n, int64_t k, const EncodeOptions& options, Compute& compute) {
  EncodeReport report;
  Result<QuantizedMatrix> matrix = encode(w, n, k, nullptr, options, compute, &report);
  EXPECT_TRUE(matrix) << matrix.error().message;
  EXPECT_TRUE(matrix->validate());
  return {std::move(*matrix), report.squared_error / report.squared_norm};
}

TEST(Sbvr, LinesThatF16CannotHoldAreAnError) {
  Machine machine;
  const auto matrix = encode(normal(64 * 128, 1, 1e37f), 64, 128, nullptr, {.format = sbvr(4, 16)}, *machine.compute);
  ASSERT_FALSE(matrix);
  EXPECT_EQ(matrix.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(matrix.error().message.find("does not fit f16"), std::string::npos) << matrix.error().message;
}

// The normalised errors of 16 and 256 lines of the research are 8.84e-3 and 8.24e-3, the authors' encoder with up to
// 65,536 lines has 7.91e-3.
TEST(Sbvr, ErrorOnGaussianWeights) {
  Machine machine;
  const int64_t n = 256, k = 1024;
  for (const float sigma : {0.02f, 2.04f}) {
    const std::vector<float> w = normal(n * k, 1, sigma);
    const Encoded few = run(w, n, k, {.format = sbvr(4, 16)}, *machine.compute);
    const Encoded many = run(w, n, k, {.format = sbvr(4, 256)}, *machine.compute);
    EXPECT_LT(few.error, 8.84e-3) << sigma;
    EXPECT_LT(many.error, 7.9e-3) << sigma;
  }
}

TEST(Sbvr, FewerBitvectors) {
  Machine machine;
  const int64_t n = 128, k = 1024;
  const std::vector<float> w = normal(n * k, 2, 0.05f);
  // Lloyd-Max quantizers of a normal distribution with 8 and 4 levels: 0.0345 and 0.1175. That 0 must be one of a
  // line's values costs little with 8 of them, and up to 5% with 4.
  EXPECT_LT(run(w, n, k, {.format = sbvr(3, 128)}, *machine.compute).error, 0.0345);
  EXPECT_LT(run(w, n, k, {.format = sbvr(2, 128)}, *machine.compute).error, 1.05 * 0.1175);
}

// Codebook's I1.
TEST(Sbvr, LinesAreIntegers) {
  Machine machine;
  const int64_t n = 96, k = 320;
  std::vector<float> w = normal(n * k, 3, 1.0f);
  for (size_t i = 0; i < w.size(); ++i) w[i] *= std::exp(0.02f * static_cast<float>(i / 320));  // rows of many scales
  std::fill_n(w.begin(), 320, 0.0f);
  for (const int bitvectors : {2, 3, 4}) {
    const QuantizedMatrix matrix = run(w, n, k, {.format = sbvr(bitvectors, 40)}, *machine.compute).matrix;
    for (int64_t line = 0; line < 40; ++line) {
      float positive = 0, negative = 0;
      for (int s = 0; s < bitvectors; ++s) {
        const float c = matrix.lines[static_cast<size_t>(line * bitvectors + s)];
        EXPECT_EQ(c, std::nearbyint(c));
        (c > 0 ? positive : negative) += std::abs(c);
      }
      EXPECT_LE(std::max(positive, negative), 127) << line;
      const float scale = matrix.line_scales[static_cast<size_t>(line)];
      EXPECT_EQ(f16::from_float(scale).to_float(), scale);
      EXPECT_GT(scale, 0);
    }
    std::vector<float> row(static_cast<size_t>(k));
    matrix.dequantize_row(0, row);
    for (const float value : row) EXPECT_EQ(value, 0.0f);
  }
}

// Every group has nearly the best of all lines, found by trying each in double.
TEST(Sbvr, AssignmentIsNearTheBest) {
  Machine machine;
  const int64_t n = 64, k = 256;
  std::vector<float> w = normal(n * k, 4, 0.3f);
  for (size_t i = 0; i < w.size(); i += 331) w[i] *= 4;
  const QuantizedMatrix matrix = run(w, n, k, {.format = sbvr(4, 96)}, *machine.compute).matrix;
  double found_sum = 0, best_sum = 0;
  for (int64_t row = 0; row < n; ++row) {
    std::vector<float> values(static_cast<size_t>(k));
    matrix.dequantize_row(row, values);
    for (int64_t g = 0; g < 2; ++g) {
      double found = 0, best = HUGE_VAL;
      for (int64_t j = g * 128; j < (g + 1) * 128; ++j)
        found += std::pow(static_cast<double>(w[static_cast<size_t>(row * k + j)] - values[static_cast<size_t>(j)]), 2);
      for (size_t line = 0; line < 96; ++line) {
        std::array<float, 16> sums{};
        subset_sums(std::span(matrix.lines).subspan(line * 4, 4), sums);
        double error = 0;
        for (int64_t j = g * 128; j < (g + 1) * 128; ++j) {
          double least = HUGE_VAL;
          for (const float sum : sums)
            least = std::min(least, std::abs(static_cast<double>(w[static_cast<size_t>(row * k + j)] -
                                                                 sum * matrix.line_scales[line])));
          error += least * least;
        }
        best = std::min(best, error);
      }
      EXPECT_LE(found, 1.05 * best) << row << ", " << g;
      found_sum += found;
      best_sum += best;
    }
  }
  EXPECT_LE(found_sum, 1.001 * best_sum);
}

// Error feedback under lines: the research has 0.266 for it and 0.814 without, of nearest int4's loss.
TEST(Sbvr, FeedbackAndBudget) {
  Machine machine, other(3);
  const int64_t n = 64, k = 512, tokens = 2048;
  Random random(5);
  std::vector<float> x(static_cast<size_t>(tokens * k));
  for (int64_t t = 0; t < tokens; ++t) {
    float walk = 0;
    for (int64_t j = 0; j < k; ++j) {
      walk = 0.8f * walk + 0.6f * random.normal();
      x[static_cast<size_t>(t * k + j)] = walk;
    }
  }
  SecondMoments moments(k);
  ASSERT_TRUE(moments.add(x, *machine.compute));
  const std::vector<float> w = normal(n * k, 6, 0.02f);
  const auto loss = [&](WeightFormat format, EncodeMethod method, int sweeps) {
    EncodeReport report;
    const Result<QuantizedMatrix> matrix =
        encode(w, n, k, &moments, {.format = format, .method = method, .max_bits = 4.3, .sweeps = sweeps},
               *machine.compute, &report);
    EXPECT_TRUE(matrix);
    EXPECT_LE(matrix->format.bits_per_weight(n, k), 4.3);
    return report.proxy_loss;
  };
  const WeightFormat int4{
      .code = WeightCode::kU4, .scale_layout = ScaleLayout::kGroup, .scale_dtype = DType::kBf16, .group_k = 128};
  const double nearest = loss(int4, EncodeMethod::kNearest, 0), plain = loss(sbvr(4, 0), EncodeMethod::kNearest, 0);
  const double gptq = loss(sbvr(4, 0), EncodeMethod::kGptq, 0), refined = loss(sbvr(4, 0), EncodeMethod::kGptq, 3);
  EXPECT_LT(plain, 0.814 * nearest);
  EXPECT_LT(gptq, 0.35 * nearest);
  EXPECT_LT(refined, gptq);

  const EncodeOptions options{.format = sbvr(4, 20), .method = EncodeMethod::kGptq};
  const Result<QuantizedMatrix> a = encode(w, n, k, &moments, options, *machine.compute);
  const Result<QuantizedMatrix> b = encode(w, n, k, &moments, options, *other.compute);
  ASSERT_TRUE(a && b);
  EXPECT_EQ(a->codes, b->codes);
  EXPECT_EQ(a->lines, b->lines);
  EXPECT_EQ(a->line_index, b->line_index);
}

// The research: 7.55e-3 to 7.71e-3 for groups that are searched in full, 7.91e-3 to 7.99e-3 with reuse; few groups, so
// a wider range. Ours has as small an error with as many lines.
TEST(SbvrAuthors, ErrorOnGaussianWeights) {
  Machine machine;
  const int64_t n = 5, k = 512;
  const std::vector<float> w = normal(n * k, 7, 0.02f);
  AuthorsReport searched;
  const Result<QuantizedMatrix> matrix = encode_sbvr_authors(w, n, k, machine.pool, &searched);
  ASSERT_TRUE(matrix) << matrix.error().message;
  ASSERT_TRUE(matrix->validate());
  const Result<EncodeReport> report = measure(w, *matrix, nullptr, *machine.compute);
  ASSERT_TRUE(report);
  const double error = report->squared_error / report->squared_norm;
  EXPECT_GT(error, 7.2e-3);
  EXPECT_LT(error, 8.4e-3);
  EXPECT_GE(searched.searched, 10);
  EXPECT_LT(searched.searched, 20);
  EXPECT_LE(run(w, n, k, {.format = sbvr(4, matrix->format.lines)}, *machine.compute).error, 1.02 * error);
}

}  // namespace
}  // namespace hearth
