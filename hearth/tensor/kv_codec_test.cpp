// SPDX-License-Identifier: Apache-2.0
// The KV codec against the formats' formulas, written down here a second time in double, and hadamard.h against the
// matrix itself.
#include "hearth/tensor/kv_codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/tensor/hadamard.h"

namespace hearth {
namespace {

constexpr KvFormatId kInt4Formats[] = {KvFormatId::kInt4, KvFormatId::kInt4Fireq, KvFormatId::kInt4Saw};

struct Stored {
  std::vector<std::byte> codes, steps;
  std::vector<float> numbers;
};

Stored stored(KvFormatId format, const std::vector<float>& x, float scale = 1) {
  const KvLayout layout = *KvLayout::make(format, 1, 1, static_cast<int64_t>(x.size()), 1);
  Stored s{std::vector<std::byte>(layout.token_stride_bytes), std::vector<std::byte>(layout.scale_bytes),
           std::vector<float>(x.size())};
  store_kv_head(format, x, scale, s.codes.data(), s.steps.data());
  load_kv_head(format, s.codes.data(), s.steps.data(), scale, s.numbers);
  return s;
}

double squared_error(const std::vector<float>& x, const std::vector<double>& y) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += (x[i] - y[i]) * (x[i] - y[i]);
  return sum;
}

float step_at(const Stored& s, size_t index) {
  uint16_t bits = 0;
  std::memcpy(&bits, s.steps.data() + 2 * index, 2);
  // IEEE binary16 by its definition.
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  if (exponent == 31) return mantissa ? NAN : INFINITY;
  const double magnitude =
      exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(static_cast<double>(mantissa), -24);
  return static_cast<float>(bits & 0x8000 ? -magnitude : magnitude);
}

int code_at(const Stored& s, size_t i) { return static_cast<int>(s.codes[i / 2]) >> (i % 2 ? 4 : 0) & 15; }

// Heads as caches see them: normal, with outliers in few channels, one-sided, tiny, large.
std::vector<float> random_head(Random& random, size_t size, int kind) {
  std::vector<float> x(size);
  for (size_t i = 0; i < size; ++i) {
    x[i] = random.normal();
    if (kind == 1 && i % 37 == 5) x[i] *= 12;
    if (kind == 2) x[i] = std::abs(x[i]) + 3;
    if (kind == 3) x[i] *= 1e-3f;
    if (kind == 4) x[i] *= 3e3f;
  }
  return x;
}
constexpr int kKinds = 5;

TEST(KvCodec, Int4IsAbsmaxOverSeven) {
  constexpr uint64_t kSeed = 40100;
  Random random(kSeed);
  for (size_t size : {2, 64, 80, 128})
    for (int kind = 0; kind < kKinds; ++kind)
      for (int repeat = 0; repeat < 20; ++repeat) {
        SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", size " << size << ", kind " << kind);
        const std::vector<float> x = random_head(random, size, kind);
        const Stored s = stored(KvFormatId::kInt4, x);
        double largest = 0;
        for (float v : x) largest = std::max(largest, std::abs(double{v}));
        const double step = step_at(s, 0);
        EXPECT_LE(std::abs(step - largest / 7), std::max(largest / 7 * 0x1p-11 * 1.0001, 0x1p-25))
            << "not rounded to f16";
        for (size_t i = 0; i < size; ++i) {
          const double q = std::clamp(std::nearbyint(x[i] / step), -7.0, 7.0);
          // The codec divides in f32: a quotient within 2^-22 of a tie may fall to the other side.
          if (std::abs(std::abs(x[i] / step - std::trunc(x[i] / step)) - 0.5) < 1e-6) continue;
          EXPECT_EQ(code_at(s, i), static_cast<int>(q) + 8) << i;
          EXPECT_EQ(s.numbers[i], static_cast<float>(q * step)) << i;
        }
      }
}

// Each code is the level nearest to its number, whatever the search chose, and the search is no worse than the formula
// that it starts from, clearly better on the average.
TEST(KvCodec, SearchedStepsBeatTheFormulas) {
  constexpr uint64_t kSeed = 40101;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  for (KvFormatId format : {KvFormatId::kInt4Fireq, KvFormatId::kInt4Saw}) {
    const bool affine = format == KvFormatId::kInt4Saw;
    for (size_t size : {64, 80, 128}) {
      if (affine && size == 80) continue;  // no power of two
      double sum = 0, formula_sum = 0;
      for (int kind = 0; kind < kKinds; ++kind)
        for (int repeat = 0; repeat < 50; ++repeat) {
          const std::vector<float> x = random_head(random, size, kind);
          const Stored s = stored(format, x);
          const double step = step_at(s, 0), base = affine ? step_at(s, 1) : -8 * step;
          for (size_t i = 0; i < size; ++i) {
            const double q = std::clamp((x[i] - base) / step, 0.0, 15.0);
            EXPECT_LE(std::abs(q - code_at(s, i)), 0.5001) << i;
            EXPECT_NEAR(s.numbers[i], step * code_at(s, i) + base, std::abs(step) * 1e-5);
          }
          // absmax / 7 and (max - min) / 15, with exact steps.
          const auto [low, high] = std::minmax_element(x.begin(), x.end());
          const double wide = affine ? (double{*high} - *low) / 15 : std::max(std::abs(*low), std::abs(*high)) / 7;
          const double shift = affine ? *low : 0, most = affine ? 15 : 7;
          std::vector<double> formula(size), found(s.numbers.begin(), s.numbers.end());
          for (size_t i = 0; i < size; ++i)
            formula[i] = std::clamp(std::nearbyint((x[i] - shift) / wide), affine ? 0.0 : -7.0, most) * wide + shift;
          const double scale = 1 / (wide * wide);
          sum += squared_error(x, found) * scale;
          formula_sum += squared_error(x, formula) * scale;
          // Steps rounded to f16 move levels by up to 15 * 2^-11 steps.
          EXPECT_LE(squared_error(x, found), 1.1 * squared_error(x, formula) + 1e-3 * wide * wide);
        }
      EXPECT_LT(sum, 0.93 * formula_sum) << kv_format_name(format) << " of " << size;
    }
  }
}

TEST(KvCodec, Fp8IsTheNearestOfAllE4m3Numbers) {
  constexpr uint64_t kSeed = 40102;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  // All finite values by the definition of OCP E4M3.
  std::vector<double> values;
  for (int bits = 0; bits < 127; ++bits) {
    const int exponent = bits >> 3, mantissa = bits & 7;
    values.push_back(exponent ? std::ldexp(8 + mantissa, exponent - 10) : std::ldexp(mantissa, -9));
  }
  for (int kind = 0; kind < kKinds; ++kind)
    for (float scale : {1.0f, 0.37f, 25.0f}) {
      const std::vector<float> x = random_head(random, 128, kind);
      const Stored s = stored(KvFormatId::kFp8, x, scale);
      for (size_t i = 0; i < x.size(); ++i) {
        const double wanted = std::min(std::abs(double{x[i]} / scale), 448.0);
        double nearest = INFINITY;
        for (double v : values) nearest = std::min(nearest, std::abs(v - wanted));
        const double got = values.at(static_cast<size_t>(s.codes[i] & std::byte{0x7F}));
        EXPECT_LE(std::abs(got - wanted), nearest + wanted * 1e-6);
        EXPECT_EQ(s.numbers[i], static_cast<float>(got) * (std::signbit(x[i]) ? -scale : scale));
      }
    }
}

TEST(KvCodec, KeepsZerosAndConstants) {
  for (KvFormatId format : kInt4Formats) {
    SCOPED_TRACE(kv_format_name(format));
    for (float v : stored(format, std::vector<float>(64, 0.0f)).numbers) EXPECT_EQ(v, 0);
    // Powers of two: steps that f16 holds.
    for (float constant : {7.0f, -7.0f, 1.75f})
      for (float v : stored(format, std::vector<float>(64, constant)).numbers) EXPECT_EQ(v, constant);
    // What lies below the steps of f16 becomes 0 or the smallest step at most, what lies above them the largest number.
    for (float v : stored(format, std::vector<float>(64, 1e-12f)).numbers) EXPECT_LE(std::abs(v), 0x1p-24f);
    const Stored huge = stored(format, {1e30f, -1e30f});
    EXPECT_GT(huge.numbers[0], 4e5f);
    EXPECT_TRUE(std::isfinite(huge.numbers[0]) && std::isfinite(huge.numbers[1]));
  }
}

TEST(KvCodec, NumbersThatAreNoneStayVisible) {
  for (float bad : {static_cast<float>(NAN), static_cast<float>(INFINITY), static_cast<float>(-INFINITY)}) {
    for (KvFormatId format : kInt4Formats) {
      std::vector<float> x(64, 1.0f);
      x[63] = bad;
      for (float v : stored(format, x).numbers) EXPECT_TRUE(std::isnan(v)) << kv_format_name(format);
    }
  }
  const Stored fp8 = stored(KvFormatId::kFp8, {1.0f, NAN});
  EXPECT_EQ(fp8.numbers[0], 1.0f);
  EXPECT_TRUE(std::isnan(fp8.numbers[1]));
}

TEST(Hadamard, IsSylvestersMatrix) {
  constexpr uint64_t kSeed = 40103;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  for (size_t n : {1, 2, 4, 64, 128, 256}) {
    std::vector<float> x(n);
    for (float& v : x) v = random.normal();
    std::vector<float> y = x;
    hadamard_rotate(std::span(y));
    for (size_t j = 0; j < n; ++j) {
      double sum = 0;  // H[i, j] = (-1)^popcount(i & j) / sqrt(n)
      for (size_t i = 0; i < n; ++i) sum += std::popcount(i & j) % 2 ? -double{x[i]} : double{x[i]};
      EXPECT_NEAR(y[j], sum / std::sqrt(static_cast<double>(n)), 2e-6 * std::sqrt(static_cast<double>(n)));
    }
    hadamard_rotate(std::span(y));
    for (size_t i = 0; i < n; ++i) EXPECT_NEAR(y[i], x[i], 1e-5);
  }
}

}  // namespace
}  // namespace hearth
