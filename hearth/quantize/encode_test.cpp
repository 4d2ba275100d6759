// SPDX-License-Identifier: Apache-2.0
// encode against naive loops in double, and the order of the methods on seeded correlated inputs.
#include "hearth/quantize/encode.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "hearth/base/random.h"

namespace hearth {
namespace {

WeightFormat int4(int64_t group, DType scale = DType::kBf16) {
  return {.code = WeightCode::kU4, .scale_layout = ScaleLayout::kGroup, .scale_dtype = scale, .group_k = group};
}
WeightFormat with(WeightFormat format, WeightCode code) {
  format.code = code;
  return format;
}

std::vector<float> normal(size_t count, uint64_t seed, float sigma = 1) {
  Random random(seed);
  std::vector<float> values(count);
  for (float& value : values) value = sigma * random.normal();
  return values;
}

// Tokens whose channels are correlated (a random walk with decay over a random mix) and of different sizes.
std::vector<float> correlated_inputs(int64_t tokens, int64_t k, uint64_t seed) {
  Random random(seed);
  std::vector<float> gains(static_cast<size_t>(k)), mix(static_cast<size_t>(8 * k));
  for (float& gain : gains) gain = std::exp(0.5f * random.normal());
  for (float& value : mix) value = random.normal();
  std::vector<float> x(static_cast<size_t>(tokens * k));
  for (int64_t t = 0; t < tokens; ++t) {
    float factors[8];
    for (float& factor : factors) factor = random.normal();
    float walk = 0;
    for (int64_t j = 0; j < k; ++j) {
      walk = 0.9f * walk + 0.45f * random.normal();
      float value = walk;
      for (int64_t f = 0; f < 8; ++f) value += 0.3f * factors[f] * mix[static_cast<size_t>(f * k + j)];
      x[static_cast<size_t>(t * k + j)] = value * gains[static_cast<size_t>(j)];
    }
  }
  return x;
}

struct Machine {
  explicit Machine(int threads = 2) : pool(threads), compute(make_cpu_compute(pool)) {}
  ThreadPool pool;
  std::unique_ptr<Compute> compute;
};

SecondMoments moments_of(const std::vector<float>& x, int64_t k, Compute& compute) {
  SecondMoments moments(k);
  const auto half = x.size() / 2 / static_cast<size_t>(k) * static_cast<size_t>(k);
  EXPECT_TRUE(moments.add(std::span(x).first(half), compute));
  EXPECT_TRUE(moments.add(std::span(x).subspan(half), compute));
  return moments;
}

struct Encoded {
  QuantizedMatrix matrix;
  EncodeReport report;
};

Encoded run(const std::vector<float>& w, int64_t n, int64_t k, const SecondMoments* moments,
            const EncodeOptions& options, Compute& compute) {
  Encoded encoded;
  Result<QuantizedMatrix> matrix = encode(w, n, k, moments, options, compute, &encoded.report);
  EXPECT_TRUE(matrix) << matrix.error().message;
  if (matrix) encoded.matrix = std::move(*matrix);
  EXPECT_TRUE(encoded.matrix.validate());
  return encoded;
}

TEST(SecondMoments, AreTheSumsInDouble) {
  Machine machine;
  const int64_t tokens = 700, k = 150;
  const std::vector<float> x = correlated_inputs(tokens, k, 1);
  const SecondMoments moments = moments_of(x, k, *machine.compute);
  EXPECT_EQ(moments.tokens(), tokens);
  for (int64_t i = 0; i < k; i += 7) {
    double sum_abs = 0, largest = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      const double value = std::abs(x[static_cast<size_t>(t * k + i)]);
      sum_abs += value;
      largest = std::max(largest, value);
    }
    EXPECT_NEAR(moments.mean_abs(i), sum_abs / tokens, 1e-9 * sum_abs);
    EXPECT_EQ(moments.max_abs(i), static_cast<float>(largest));
    for (int64_t j = i; j < k; ++j) {
      double sum = 0, magnitude = 0;
      for (int64_t t = 0; t < tokens; ++t) {
        const double product =
            static_cast<double>(x[static_cast<size_t>(t * k + i)]) * x[static_cast<size_t>(t * k + j)];
        sum += product;
        magnitude += std::abs(product);
      }
      // Blocks of 256 products in f32: 256 roundings of 2^-24 at most.
      EXPECT_NEAR(moments.sums()[static_cast<size_t>(i * k + j)], sum, magnitude * 256 * 0x1p-24) << i << ", " << j;
    }
  }
}

TEST(SecondMoments, RefusesWhatIsNotFinite) {
  Machine machine;
  SecondMoments moments(4);
  const std::vector<float> x = {1, 2, 3, 4, 5, 6, std::numeric_limits<float>::quiet_NaN(), 8};
  const Status status = moments.add(x, *machine.compute);
  ASSERT_FALSE(status);
  EXPECT_NE(status.error().message.find("token 1, channel 2"), std::string::npos) << status.error().message;
  EXPECT_EQ(moments.tokens(), 0);
}

TEST(Compute, FactorOfTheInverse) {
  Machine machine(3);
  for (const int64_t k : {1, 5, 64, 65, 200}) {
    const std::vector<float> x = correlated_inputs(4 * k, k, 2);
    std::vector<double> h(static_cast<size_t>(k * k));
    for (int64_t t = 0; t < 4 * k; ++t)
      for (int64_t i = 0; i < k; ++i)
        for (int64_t j = 0; j < k; ++j)
          h[static_cast<size_t>(i * k + j)] +=
              static_cast<double>(x[static_cast<size_t>(t * k + i)]) * x[static_cast<size_t>(t * k + j)];
    std::vector<double> u = h;
    ASSERT_TRUE(machine.compute->inverse_factor(k, u.data()));
    // U H U^T = I.
    for (int64_t i = 0; i < k; i += 3) {
      std::vector<double> row(static_cast<size_t>(k));
      for (int64_t j = 0; j < k; ++j)
        for (int64_t t = 0; t < k; ++t)
          row[static_cast<size_t>(j)] += u[static_cast<size_t>(i * k + t)] * h[static_cast<size_t>(t * k + j)];
      for (int64_t j = 0; j < k; ++j) {
        double sum = 0;
        for (int64_t t = 0; t < k; ++t) sum += row[static_cast<size_t>(t)] * u[static_cast<size_t>(j * k + t)];
        EXPECT_NEAR(sum, i == j ? 1.0 : 0.0, 1e-8) << k << ": " << i << ", " << j;
      }
    }
  }
  std::vector<double> indefinite = {1, 2, 2, 1};
  EXPECT_FALSE(machine.compute->inverse_factor(2, indefinite.data()));
}

// The baseline of the reports: absmax / 7.5, codes -8..7, no clipping.
TEST(Encode, NearestIsExact) {
  Machine machine;
  const int64_t n = 19, k = 300, group = 128;
  const std::vector<float> w = normal(static_cast<size_t>(n * k), 3, 0.05f);
  for (const WeightCode code : {WeightCode::kU4, WeightCode::kI4SignMagnitude}) {
    const EncodeOptions options{.format = with(int4(group, DType::kF32), code), .method = EncodeMethod::kNearest};
    const QuantizedMatrix matrix = run(w, n, k, nullptr, options, *machine.compute).matrix;
    const float top = code == WeightCode::kU4 ? 7.5f : 7.0f, low = code == WeightCode::kU4 ? -8.0f : -7.0f;
    for (int64_t row = 0; row < n; ++row) {
      std::vector<float> found(static_cast<size_t>(k));
      matrix.dequantize_row(row, found);
      for (int64_t g = 0; g * group < k; ++g) {
        const int64_t end = std::min(k, (g + 1) * group);
        float widest = 0;
        for (int64_t j = g * group; j < end; ++j)
          widest = std::max(widest, std::abs(w[static_cast<size_t>(row * k + j)]));
        const float scale = widest / top;
        ASSERT_EQ(matrix.scales[static_cast<size_t>(row * 3 + g)], scale);
        for (int64_t j = g * group; j < end; ++j) {
          const float level = std::clamp(std::nearbyint(w[static_cast<size_t>(row * k + j)] / scale), low, 7.0f);
          ASSERT_EQ(found[static_cast<size_t>(j)], level * scale) << row << ", " << j;
        }
      }
    }
  }
}

TEST(Encode, ZeroPointsByRange) {
  Machine machine;
  const int64_t n = 5, k = 64;
  std::vector<float> w = normal(static_cast<size_t>(n * k), 4);
  for (float& value : w) value += 0.7f;
  WeightFormat format = int4(32, DType::kF16);
  format.has_zero_point = true;
  const QuantizedMatrix matrix =
      run(w, n, k, nullptr, {.format = format, .method = EncodeMethod::kNearest}, *machine.compute).matrix;
  for (int64_t row = 0; row < n; ++row) {
    std::vector<float> found(static_cast<size_t>(k));
    matrix.dequantize_row(row, found);
    for (int64_t g = 0; g < 2; ++g) {
      float low = 0, high = 0;
      for (int64_t j = 0; j < 32; ++j) {
        low = std::min(low, w[static_cast<size_t>(row * k + g * 32 + j)]);
        high = std::max(high, w[static_cast<size_t>(row * k + g * 32 + j)]);
      }
      const float scale = f16::from_float((high - low) / 15).to_float();
      const float zero = std::nearbyint(-low / scale);
      ASSERT_EQ(matrix.scales[static_cast<size_t>(row * 2 + g)], scale);
      ASSERT_EQ(matrix.zeros[static_cast<size_t>(row * 2 + g)], zero);
      for (int64_t j = g * 32; j < (g + 1) * 32; ++j)
        ASSERT_NEAR(found[static_cast<size_t>(j)], w[static_cast<size_t>(row * k + j)],
                    0.5001f * scale + 0.01f * scale);
    }
  }
}

// Each code's search is at least as good as a dense scan in double.
TEST(Encode, ClipSearchIsNearTheBestScale) {
  Machine machine;
  const int64_t n = 32, k = 128;
  const std::vector<float> w = normal(static_cast<size_t>(n * k), 5);
  EncodeOptions options{.format = int4(128, DType::kF32), .method = EncodeMethod::kClip, .signed_scales = false};
  const QuantizedMatrix matrix = run(w, n, k, nullptr, options, *machine.compute).matrix;
  for (int64_t row = 0; row < n; ++row) {
    const float* of_row = w.data() + row * k;
    const auto error_at = [&](double scale) {
      double error = 0;
      for (int64_t j = 0; j < k; ++j) {
        const double level = std::clamp(std::nearbyint(of_row[j] / scale), -8.0, 7.0);
        error += std::pow(of_row[j] - level * scale, 2);
      }
      return error;
    };
    double widest = 0, best = HUGE_VAL;
    for (int64_t j = 0; j < k; ++j) widest = std::max(widest, std::abs(static_cast<double>(of_row[j])));
    for (int i = 0; i <= 2000; ++i) best = std::min(best, error_at(widest / 7.5 * (0.45 + 0.6 * i / 2000)));
    EXPECT_LE(error_at(matrix.scales[static_cast<size_t>(row)]), best * 1.04) << row;
  }
}

// GPTQ with fixed scales against the textbook: explicit inverse, eliminated column by column, in double.
TEST(Encode, FeedbackIsGptq) {
  Machine machine;
  const int64_t n = 16, k = 192, group = 64;
  const std::vector<float> x = correlated_inputs(600, k, 6);
  const SecondMoments moments = moments_of(x, k, *machine.compute);
  const std::vector<float> w = normal(static_cast<size_t>(n * k), 7);
  const EncodeOptions options{
      .format = int4(group, DType::kF32), .method = EncodeMethod::kGptq, .order = ColumnOrder::kStored, .sweeps = 0};
  const QuantizedMatrix matrix = run(w, n, k, &moments, options, *machine.compute).matrix;

  const auto at = [&](int64_t i, int64_t j) { return static_cast<size_t>(i * k + j); };
  std::vector<double> a(static_cast<size_t>(k * k)), inverse(a.size());
  double mean = 0;
  for (int64_t i = 0; i < k; ++i) mean += moments.diagonal(i) / 600 / static_cast<double>(k);
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < k; ++j) a[at(i, j)] = moments.sums()[at(std::min(i, j), std::max(i, j))] / 600;
    a[at(i, i)] += 0.01 * mean;
    inverse[at(i, i)] = 1;
  }
  for (int64_t i = 0; i < k; ++i) {  // Gauss-Jordan
    const double pivot = a[at(i, i)];
    for (int64_t j = 0; j < k; ++j) a[at(i, j)] /= pivot, inverse[at(i, j)] /= pivot;
    for (int64_t r = 0; r < k; ++r) {
      const double factor = a[at(r, i)];
      if (r == i || factor == 0) continue;
      for (int64_t j = 0; j < k; ++j)
        a[at(r, j)] -= factor * a[at(i, j)], inverse[at(r, j)] -= factor * inverse[at(i, j)];
    }
  }
  std::vector<double> updated(w.begin(), w.end());
  int64_t different = 0;
  std::vector<std::vector<float>> found(static_cast<size_t>(n), std::vector<float>(static_cast<size_t>(k)));
  for (int64_t row = 0; row < n; ++row) matrix.dequantize_row(row, found[static_cast<size_t>(row)]);
  for (int64_t c = 0; c < k; ++c) {
    const double pivot = inverse[at(c, c)];
    for (int64_t row = 0; row < n; ++row) {
      const double scale = matrix.scales[static_cast<size_t>(row * 3 + c / group)];
      const double value = updated[at(row, c)];
      const double level = std::clamp(std::nearbyint(value / scale), -8.0, 7.0);
      const double stored = found[static_cast<size_t>(row)][static_cast<size_t>(c)];
      // Near a border between two codes f32 may fall on the other side; the feedback follows what was stored.
      if (stored != static_cast<float>(level * scale)) {
        ++different;
        EXPECT_NEAR(std::abs(value / scale - (level * scale + stored) / (2 * scale)), 0, 1e-3) << row << ", " << c;
      }
      const double error = (value - stored) / pivot;
      for (int64_t j = c + 1; j < k; ++j) updated[at(row, j)] -= error * inverse[at(c, j)];
    }
    for (int64_t i = c + 1; i < k; ++i)  // eliminate column c from the inverse
      for (int64_t j = c + 1; j < k; ++j) inverse[at(i, j)] -= inverse[at(i, c)] * inverse[at(c, j)] / pivot;
  }
  EXPECT_LE(different, 3);
}

struct Losses {
  double nearest, clip, gptq, refined;
};

Losses losses_of(WeightFormat format, Compute& compute) {
  const int64_t n = 64, k = 512;
  const std::vector<float> x = correlated_inputs(2048, k, 8);
  const SecondMoments moments = moments_of(x, k, compute);
  const std::vector<float> w = normal(static_cast<size_t>(n * k), 9);
  const auto loss = [&](EncodeMethod method, int sweeps) {
    const EncodeOptions options{.format = format, .method = method, .sweeps = sweeps};
    return run(w, n, k, &moments, options, compute).report.proxy_loss;
  };
  return {loss(EncodeMethod::kNearest, 0), loss(EncodeMethod::kClip, 0), loss(EncodeMethod::kGptq, 0),
          loss(EncodeMethod::kGptq, 4)};
}

// The research has 0.312 of nearest for GPTQ on data of this kind, both asymmetric; a scale search under feedback and the
// order of columns bring 0.076 here.
TEST(Encode, EachMethodIsBetter) {
  Machine machine;
  WeightFormat asymmetric = int4(128);
  asymmetric.has_zero_point = true;
  const Losses asym = losses_of(asymmetric, *machine.compute);
  EXPECT_LT(asym.gptq, 0.1 * asym.nearest);
  for (const WeightFormat& format : {int4(128), asymmetric, with(int4(128, DType::kF16), WeightCode::kI4SignMagnitude),
                                     with(int4(128, DType::kF16), WeightCode::kC4), int4(32), int4(512)}) {
    const Losses losses = losses_of(format, *machine.compute);
    SCOPED_TRACE(to_string(format));
    EXPECT_LT(losses.clip, losses.nearest);
    EXPECT_LT(losses.gptq, 0.6 * losses.clip);
    EXPECT_LT(losses.refined, losses.gptq);
  }
}

TEST(Encode, Fp8) {
  Machine machine;
  const int64_t n = 33, k = 257;
  const std::vector<float> w = normal(static_cast<size_t>(n * k), 10, 0.02f);
  WeightFormat format{.code = WeightCode::kE4m3, .scale_layout = ScaleLayout::kRow, .scale_dtype = DType::kF32};
  const Encoded nearest = run(w, n, k, nullptr, {.format = format, .method = EncodeMethod::kNearest}, *machine.compute);
  for (int64_t row = 0; row < n; ++row) {
    float widest = 0;
    for (int64_t j = 0; j < k; ++j) widest = std::max(widest, std::abs(w[static_cast<size_t>(row * k + j)]));
    const float scale = widest / 448;
    ASSERT_EQ(nearest.matrix.scales[static_cast<size_t>(row)], scale);
    int64_t different = 0;
    for (int64_t j = 0; j < k; ++j)
      different += nearest.matrix.codes[static_cast<size_t>(row * k + j)] !=
                   e4m3::from_float(w[static_cast<size_t>(row * k + j)] / scale).bits;
    EXPECT_LE(different, 1) << row;  // a tie that the scale's inverse moves
  }
  const Encoded clip = run(w, n, k, nullptr, {.format = format, .method = EncodeMethod::kClip}, *machine.compute);
  EXPECT_LT(clip.report.squared_error, nearest.report.squared_error);
  const SecondMoments moments = moments_of(correlated_inputs(1024, k, 11), k, *machine.compute);
  const Encoded plain = run(w, n, k, &moments, {.format = format, .method = EncodeMethod::kNearest}, *machine.compute);
  const Encoded gptq = run(w, n, k, &moments, {.format = format, .method = EncodeMethod::kGptq}, *machine.compute);
  EXPECT_LT(gptq.report.proxy_loss, 0.6 * plain.report.proxy_loss);
}

// encode's I1.
TEST(Encode, SameBytesForAnyNumberOfThreads) {
  Machine one(1), three(3);
  const int64_t n = 50, k = 320;
  const std::vector<float> x = correlated_inputs(500, k, 12);
  const std::vector<float> w = normal(static_cast<size_t>(n * k), 13);
  const SecondMoments first = moments_of(x, k, *one.compute), second = moments_of(x, k, *three.compute);
  EXPECT_TRUE(std::ranges::equal(first.sums(), second.sums()));
  for (const WeightCode code : {WeightCode::kU4, WeightCode::kC4}) {
    const EncodeOptions options{.format = with(int4(128), code), .method = EncodeMethod::kGptq};
    const QuantizedMatrix a = run(w, n, k, &first, options, *one.compute).matrix;
    const QuantizedMatrix b = run(w, n, k, &second, options, *three.compute).matrix;
    EXPECT_EQ(a.codes, b.codes);
    EXPECT_EQ(a.scales, b.scales);
  }
}

TEST(Encode, BadInput) {
  Machine machine;
  std::vector<float> w = normal(256, 14);
  const auto message = [&](const SecondMoments* moments, const EncodeOptions& options, int64_t n = 2, int64_t k = 128) {
    const Result<QuantizedMatrix> result = encode(w, n, k, moments, options, *machine.compute);
    return result ? std::string() : result.error().message;
  };
  EXPECT_NE(message(nullptr, {.format = int4(128), .method = EncodeMethod::kGptq}).find("second moments"),
            std::string::npos);
  EXPECT_NE(message(nullptr, {.format = int4(128)}, 2, 100), "");
  EXPECT_NE(message(nullptr, {.format = WeightFormat::plain(DType::kF32)}), "");
  const SecondMoments other(64);
  EXPECT_NE(message(&other, {.format = int4(128)}).find("64 channels"), std::string::npos);
  w[130] = std::numeric_limits<float>::infinity();
  EXPECT_NE(message(nullptr, {.format = int4(128)}).find("row 1, column 2"), std::string::npos);
  w[130] = 1e7f;
  EXPECT_NE(message(nullptr, {.format = int4(128, DType::kF16)}).find("row 1, group 0"), std::string::npos);
}

// Channels that no token uses, and rows of zeros.
TEST(Encode, DeadChannels) {
  Machine machine;
  const int64_t n = 20, k = 160;
  std::vector<float> x = correlated_inputs(300, k, 15);
  for (size_t t = 0; t < 300; ++t)
    for (size_t j = 100; j < 140; ++j) x[t * static_cast<size_t>(k) + j] = 0;
  std::vector<float> w = normal(static_cast<size_t>(n * k), 16);
  std::fill_n(w.begin() + 3 * k, k, 0.0f);
  const SecondMoments moments = moments_of(x, k, *machine.compute);
  const Encoded gptq = run(w, n, k, &moments, {.format = int4(128), .method = EncodeMethod::kGptq}, *machine.compute);
  const Encoded nearest =
      run(w, n, k, &moments, {.format = int4(128), .method = EncodeMethod::kNearest}, *machine.compute);
  EXPECT_LT(gptq.report.proxy_loss, 0.5 * nearest.report.proxy_loss);
  std::vector<float> row(static_cast<size_t>(k));
  gptq.matrix.dequantize_row(3, row);
  EXPECT_EQ(row, std::vector<float>(static_cast<size_t>(k)));
  // All channels dead: as without moments.
  const std::vector<float> zeros(static_cast<size_t>(10 * k));
  const SecondMoments none = moments_of(zeros, k, *machine.compute);
  const Encoded blind = run(w, n, k, &none, {.format = int4(128), .method = EncodeMethod::kGptq}, *machine.compute);
  const Encoded clip = run(w, n, k, nullptr, {.format = int4(128), .method = EncodeMethod::kClip}, *machine.compute);
  EXPECT_EQ(blind.matrix.codes, clip.matrix.codes);
}

}  // namespace
}  // namespace hearth
