// SPDX-License-Identifier: Apache-2.0
#include "hearth/quantize/transform.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "hearth/quantize/block_for_test.h"

namespace hearth {
namespace {

using testing::normals;
using testing::random_layer;
using testing::run_attention;
using testing::run_block;

constexpr int64_t kTokens = 11;

std::vector<float> factors(int64_t count, bool powers_of_two, Random& random) {
  std::vector<float> out(static_cast<size_t>(count));
  for (float& s : out) s = powers_of_two ? std::exp2(std::floor(random.uniform(-6, 7))) : random.uniform(0.2f, 5.0f);
  return out;
}

double rms(const std::vector<float>& x) {
  double sum = 0;
  for (float v : x) sum += double{v} * v;
  return std::sqrt(sum / static_cast<double>(x.size()));
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  std::vector<float> difference(a.size());
  for (size_t i = 0; i < a.size(); ++i) difference[i] = a[i] - b[i];
  return rms(difference);
}

// What a block adds to the residual stream moves by no more than f32's rounding of its weights does: 2^-24 each, in
// sums of many of them, through two linears after each other and a softmax. 2^-19 of the size leaves room for the
// softmax's steepness; a factor that is missing anywhere is off by its own size.
constexpr double kRounding = 0x1p-19;

struct Variant {
  const char* name;
  bool bias, qk_norm;
};
const Variant kVariants[] = {{"plain", false, false}, {"bias", true, false}, {"qk_norm", false, true}};

ModelConfig config_of(const Variant& variant) {
  ModelConfig c = testing::small_config();
  c.qkv_bias = c.o_bias = c.mlp_bias = variant.bias;
  c.qk_norm = variant.qk_norm;
  return c;
}

using Step = std::function<void(LayerTensors& layer, const ModelConfig& c, bool powers_of_two, Random& random)>;

// The block's output before and after `step`, and that the step did something.
void expect_preserving(const Step& step, bool exact_with_powers_of_two = true) {
  for (const Variant& variant : kVariants) {
    for (const bool powers_of_two : {false, true}) {
      SCOPED_TRACE(fmt::format("{}, {}", variant.name, powers_of_two ? "powers of two" : "any factors"));
      Random random(20261122);
      const ModelConfig c = config_of(variant);
      LayerTensors layer = random_layer(c, random);
      const std::vector<float> x = normals(kTokens * c.hidden_size, 1, random);
      const auto before = run_block(c, layer, x).hidden;
      step(layer, c, powers_of_two, random);
      const auto after = run_block(c, layer, x).hidden;
      if (powers_of_two && exact_with_powers_of_two) {
        EXPECT_EQ(before, after);
      } else {
        EXPECT_LT(distance(before, after), kRounding * distance(before, x));
        EXPECT_NE(before, after);
      }
    }
  }
}

TEST(Transform, ScalesInputsOfQkv) {
  expect_preserving([](LayerTensors& layer, const ModelConfig& c, bool exact, Random& random) {
    scale_qkv_inputs(layer, factors(c.hidden_size, exact, random));
  });
}

TEST(Transform, ScalesInputsOfGateAndUp) {
  expect_preserving([](LayerTensors& layer, const ModelConfig& c, bool exact, Random& random) {
    scale_gate_up_inputs(layer, factors(c.hidden_size, exact, random));
  });
}

// A norm that is stored as bf16 holds bf16 numbers afterwards, and the columns took up what it was rounded by: without
// that the block would move by 2^-9.
TEST(Transform, ScalesInputsBehindANormOfBf16) {
  expect_preserving(
      [](LayerTensors& layer, const ModelConfig& c, bool exact, Random& random) {
        scale_qkv_inputs(layer, factors(c.hidden_size, exact, random), DType::kBf16);
        for (const float w : layer.input_norm) EXPECT_EQ(bf16::from_float(w).to_float(), w);
      },
      /*exact_with_powers_of_two=*/false);
}

TEST(Transform, LeavesChannelsThatTheNormCannotHold) {
  std::vector<float> norm = {0, 1e-30f, 1};
  LayerLinear reader{.n = 1, .k = 3, .w = {5, 6, 7}, .bias = {}};
  LayerLinear* const readers[] = {&reader};
  scale_inputs(norm, readers, std::vector<float>{2, 1e20f, 4});
  EXPECT_THAT(norm, ::testing::ElementsAre(0, 1e-30f, 0.25f));
  EXPECT_THAT(reader.w, ::testing::ElementsAre(10, 6, 28));
}

TEST(Transform, ScalesUpAndDown) {
  expect_preserving([](LayerTensors& layer, const ModelConfig& c, bool exact, Random& random) {
    scale_up_down(layer, factors(c.intermediate_size, exact, random));
  });
}

TEST(Transform, ScalesVAndO) {
  expect_preserving([](LayerTensors& layer, const ModelConfig& c, bool exact, Random& random) {
    scale_v_o(layer, HeadShape::of(c), factors(c.kv_heads * c.head_dim, exact, random));
  });
}

TEST(Transform, ScalesRopePairs) {
  expect_preserving([](LayerTensors& layer, const ModelConfig& c, bool exact, Random& random) {
    std::vector<float> n = factors(c.kv_heads * c.head_dim / 2, exact, random);
    if (c.qk_norm)  // one set of factors for all heads
      std::copy_n(n.begin(), c.head_dim / 2, n.begin() + c.head_dim / 2);
    const Status status = scale_rope_pairs(layer, HeadShape::of(c), n);
    EXPECT_TRUE(status) << status.error().message;
  });
}

TEST(Transform, RefusesRopePairsThatASharedNormCannotHold) {
  Random random(3);
  const ModelConfig c = config_of({"qk_norm", false, true});
  LayerTensors layer = random_layer(c, random);
  const LayerTensors before = layer;
  std::vector<float> n(static_cast<size_t>(c.kv_heads * c.head_dim / 2), 2.0f);
  n.back() = 3;
  const Status status = scale_rope_pairs(layer, HeadShape::of(c), n);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(status.error().message, ::testing::HasSubstr("RoPE pair 7 has factor 3 in kv head 1 and 2 in head 0"));
  EXPECT_EQ(layer.k_norm, before.k_norm);
  EXPECT_EQ(layer.k.w, before.k.w);
}

TEST(Transform, RotatesV) {
  expect_preserving(
      [](LayerTensors& layer, const ModelConfig& c, bool, Random&) {
        const std::vector<float> v = layer.v.w;
        const Status status = rotate_v(layer, HeadShape::of(c));
        EXPECT_TRUE(status) << status.error().message;
        // Row 0 of a head is the sum of its rows over sqrt(16).
        double sum = 0;
        for (int64_t i = 0; i < c.head_dim; ++i) sum += v[static_cast<size_t>((c.head_dim + i) * c.hidden_size + 5)];
        EXPECT_NEAR(layer.v.row(c.head_dim)[5], sum / 4, 1e-6);
      },
      /*exact_with_powers_of_two=*/false);
  Random random(1);
  ModelConfig c = testing::small_config();
  c.head_dim = 12;
  LayerTensors layer = random_layer(c, random);
  EXPECT_EQ(rotate_v(layer, HeadShape::of(c)).error().code, ErrorCode::kUnsupported);
}

// Upper triangular matrices, whose inverses are easy to write down.
TEST(Transform, MixesV) {
  expect_preserving(
      [](LayerTensors& layer, const ModelConfig& c, bool, Random& random) {
        const int64_t dim = c.head_dim;
        std::vector<double> a(static_cast<size_t>(c.kv_heads * dim * dim)), inverse(a.size());
        for (int64_t h = 0; h < c.kv_heads; ++h) {
          for (int64_t i = 0; i < dim; ++i) a[static_cast<size_t>((h * dim + i) * dim + i)] = random.uniform(0.5f, 2);
          const int64_t row = random.below(dim - 1), column = dim - 1;
          const auto at = [&](int64_t i, int64_t j) { return static_cast<size_t>((h * dim + i) * dim + j); };
          a[at(row, column)] = 0.75;
          for (int64_t i = 0; i < dim; ++i) inverse[at(i, i)] = 1 / a[at(i, i)];
          inverse[at(row, column)] = -0.75 * inverse[at(row, row)] * inverse[at(column, column)];
        }
        mix_v(layer, HeadShape::of(c), a, inverse);
      },
      /*exact_with_powers_of_two=*/false);
}

// K is multiplied and Q divided. One power of two per head is invisible through int4-fireq's f16 steps: equal bits.
TEST(Transform, ScalesChannelsOfK) {
  Random random(7);
  const ModelConfig c = testing::small_config();
  const HeadShape shape = HeadShape::of(c);
  LayerTensors layer = random_layer(c, random);
  std::vector<float> qkv = normals(kTokens * (c.heads + 2 * c.kv_heads) * c.head_dim, 1, random);
  std::vector<float> s(static_cast<size_t>(c.kv_heads * c.head_dim), 4.0f);
  std::fill(s.begin() + c.head_dim, s.end(), 0.125f);
  scale_k_channels(layer, shape, s);
  EXPECT_EQ(run_attention(c, qkv, KvFormatId::kInt4Fireq, layer.k_channel_scale),
            run_attention(c, qkv, KvFormatId::kInt4Fireq));
  scale_k_channels(layer, shape, s);
  EXPECT_EQ(layer.k_channel_scale.front(), 16.0f);
  EXPECT_EQ(layer.k_channel_scale.back(), 0.015625f);

  // A pair of K that is far larger than the others takes all levels; scaled down it leaves them some.
  const int64_t columns = (c.heads + 2 * c.kv_heads) * c.head_dim;
  for (int64_t t = 0; t < kTokens; ++t)
    for (int64_t h = 0; h < c.heads + c.kv_heads; ++h)
      for (const int64_t channel : {int64_t{3}, 3 + shape.pairs()})
        qkv[static_cast<size_t>(t * columns + h * c.head_dim + channel)] *= h < c.heads ? 1.0f / 64 : 64.0f;
  const auto exact = run_attention(c, qkv, KvFormatId::kF32);
  std::vector<float> down(s.size(), 1.0f);
  for (int64_t h = 0; h < c.kv_heads; ++h)
    for (const int64_t channel : {int64_t{3}, 3 + shape.pairs()})
      down[static_cast<size_t>(h * c.head_dim + channel)] = 1.0f / 64;
  layer.k_channel_scale.clear();
  scale_k_channels(layer, shape, down);
  EXPECT_LT(distance(run_attention(c, qkv, KvFormatId::kInt4Fireq, layer.k_channel_scale), exact),
            distance(run_attention(c, qkv, KvFormatId::kInt4Fireq), exact) / 2);
}

// What all keys share, RoPE hardly turning it, takes the cache's levels and no part in the scores: without it attention
// comes closer to what it is without a cache of four bits, and were it missed, nothing would be left of that.
TEST(Transform, ShiftsChannelsOfK) {
  Random random(8);
  const ModelConfig c = testing::small_config();
  const HeadShape shape = HeadShape::of(c);
  LayerTensors layer = random_layer(c, random);
  std::vector<float> qkv = normals(kTokens * (c.heads + 2 * c.kv_heads) * c.head_dim, 1, random);
  const int64_t columns = (c.heads + 2 * c.kv_heads) * c.head_dim, slowest = shape.pairs() - 1;
  std::vector<float> shared(static_cast<size_t>(c.kv_heads * c.head_dim), 0.0f);
  for (int64_t h = 0; h < c.kv_heads; ++h) {
    shared[static_cast<size_t>(h * c.head_dim + slowest)] = 12;
    for (int64_t t = 0; t < kTokens; ++t)
      qkv[static_cast<size_t>(t * columns + (c.heads + h) * c.head_dim + slowest)] += 12;
  }
  const auto exact = run_attention(c, qkv, KvFormatId::kF32);
  shift_k_channels(layer, shape, shared);
  EXPECT_EQ(layer.k_channel_offset, shared);
  EXPECT_LT(distance(run_attention(c, qkv, KvFormatId::kInt4Fireq, {}, shared), exact),
            distance(run_attention(c, qkv, KvFormatId::kInt4Fireq), exact) / 2);
  // Other formats do not look at it.
  EXPECT_EQ(run_attention(c, qkv, KvFormatId::kF32, {}, shared), exact);

  // It follows the keys' own factors, and adds up.
  std::vector<float> n(static_cast<size_t>(c.kv_heads * shape.pairs()), 0.5f);
  ASSERT_TRUE(scale_rope_pairs(layer, shape, n));
  EXPECT_EQ(layer.k_channel_offset[static_cast<size_t>(slowest)], 6);
  shift_k_channels(layer, shape, shared);
  EXPECT_EQ(layer.k_channel_offset[static_cast<size_t>(slowest)], 18);
}

}  // namespace
}  // namespace hearth
