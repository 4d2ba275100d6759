// SPDX-License-Identifier: Apache-2.0
#include "hearth/quantize/transform_kv.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "hearth/quantize/block_for_test.h"

namespace hearth {
namespace {

using testing::normals;
using testing::random_layer;
using testing::run_attention;
using testing::run_block;

constexpr int64_t kTokens = 64;

struct Observed {
  AttentionStats stats;
  std::vector<float> qkv;
};

// The layer run on `x`, observed at kQkv as the pipeline does.
Observed observe(const ModelConfig& c, const LayerTensors& layer, const std::vector<float>& x) {
  Observed out{AttentionStats(HeadShape::of(c), layer, c.rms_norm_eps), {}};
  const int64_t tokens = static_cast<int64_t>(x.size()) / c.hidden_size;
  std::vector<int32_t> positions(static_cast<size_t>(tokens));
  for (size_t t = 0; t < positions.size(); ++t) positions[t] = static_cast<int32_t>(t);
  const std::vector<float> cos_sin = testing::rope_table(c, positions);
  const auto look = [&](BlockPoint point, ConstTensorView values) -> Status {
    if (point != BlockPoint::kQkv) return {};
    out.qkv.assign(values.row<float>(0), values.row<float>(0) + values.shape.count());
    return out.stats.observe(values, {cos_sin.data(), DType::kF32, Shape{tokens, c.head_dim}});
  };
  const BlockObserver observer(look);
  run_block(c, layer, x, KvFormatId::kF32, &observer);
  return out;
}

// Pairs of K far apart, and Q's the other way: what FireQ and SAW-INT4 find in large models.
void spread_pairs(LayerTensors& layer, const ModelConfig& c, Random& random) {
  std::vector<float> n(static_cast<size_t>(c.kv_heads * c.head_dim / 2));
  for (float& factor : n) factor = std::exp2(random.uniform(-3, 3));
  const Status status = scale_rope_pairs(layer, HeadShape::of(c), n);
  HEARTH_CHECK(status.has_value(), "{}", status.error().message);
}

// In the slower half of the pairs, which RoPE turns little within kTokens.
void give_keys_a_mean(LayerTensors& layer, const ModelConfig& c) {
  layer.k.bias.assign(static_cast<size_t>(layer.k.n), 0.0f);
  const int64_t pairs = c.head_dim / 2;
  for (int64_t i = 0; i < layer.k.n; ++i)
    if (i % pairs >= pairs / 2) layer.k.bias[static_cast<size_t>(i)] = i % 2 == 0 ? 4.0f : -3.0f;
}

double squared_distance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  return sum;
}

TEST(BalancingFactors, AreWhatTheirFormulaSays) {
  const std::vector<double> writer = {4, 1, 0, 16}, reader = {1, 4, 3, 1};
  EXPECT_THAT(balancing_factors(writer, reader, 0.5),
              ::testing::ElementsAre(0.5f, 2.0f, ::testing::FloatNear(0.6299605f, 1e-6f), 0.25f));
  EXPECT_THAT(balancing_factors(writer, reader, 0), ::testing::ElementsAre(0.25f, 1.0f, 0.25f, 0.0625f));
}

TEST(AttentionStats, TheSameBitsForAnyNumberOfThreads) {
  constexpr uint64_t kSeed = 20291;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  ModelConfig c = testing::small_config();
  c.qk_norm = true;
  const LayerTensors layer = testing::random_layer(c, random);
  const int64_t tokens = 600, columns = (c.heads + 2 * c.kv_heads) * c.head_dim;
  const std::vector<float> qkv = testing::normals(tokens * columns, 1, random);
  std::vector<int32_t> positions(tokens);
  std::iota(positions.begin(), positions.end(), 0);
  const std::vector<float> cos_sin = testing::rope_table(c, positions);
  AttentionStats one(HeadShape::of(c), layer, c.rms_norm_eps), three = one;
  ThreadPool pool(3);
  const ConstTensorView values(qkv.data(), DType::kF32, Shape{tokens, columns}),
      table(cos_sin.data(), DType::kF32, Shape{tokens, c.head_dim});
  ASSERT_TRUE(one.observe(values, table));
  ASSERT_TRUE(three.observe(values, table, &pool));
  EXPECT_EQ(three.key_rms(), one.key_rms());
  EXPECT_EQ(three.query_rms(), one.query_rms());
  EXPECT_EQ(three.value_rms(), one.value_rms());
  EXPECT_EQ(three.key_max(), one.key_max());
  EXPECT_EQ(three.key_pair_max(), one.key_pair_max());
  ASSERT_EQ(three.sampled(), AttentionStats::kSampledTokens);
  ASSERT_EQ(one.sampled(), AttentionStats::kSampledTokens);
  for (int64_t t : {0, 255, 256, 511})
    EXPECT_TRUE(std::ranges::equal(three.sampled_key(t, 1), one.sampled_key(t, 1))) << t;
}

TEST(AttentionStats, CountsWhatItSees) {
  ModelConfig c = testing::small_config();
  c.heads = 2;
  c.kv_heads = 1;
  c.head_dim = 4;
  const HeadShape shape = HeadShape::of(c);
  AttentionStats stats(shape, {}, 1e-6);
  // Q of two heads, K, V; the second token turned by a quarter: (a, b) becomes (-b, a).
  const std::vector<float> qkv = {1, 2, 3, 4, 1, 0, 0, 0, 3, 6, 4, 8, 5, 5, 1, 1,  //
                                  1, 1, 1, 1, 0, 0, 0, 2, 1, 0, 0, 2, 1, 3, 7, 1};
  const std::vector<float> cos_sin = {1, 1, 0, 0, 0, 0, 1, 1};
  ASSERT_TRUE(stats.observe({qkv.data(), DType::kF32, Shape{2, 16}}, {cos_sin.data(), DType::kF32, Shape{2, 4}}));
  EXPECT_EQ(stats.tokens(), 2);
  EXPECT_THAT(stats.key_pair_max(), ::testing::ElementsAre(5, 10));
  EXPECT_THAT(stats.key_max(), ::testing::ElementsAre(3, 6, 4, 8));
  // K is 3 6 4 8, then 0 -2 1 0.
  EXPECT_THAT(stats.key_rms(), ::testing::ElementsAre(std::sqrt(9 / 2.0), std::sqrt(40 / 2.0), std::sqrt(17 / 2.0),
                                                      std::sqrt(64 / 2.0)));
  // Q is 1 2 3 4 and 1 0 0 0, then -1 -1 1 1 and 0 -2 0 0.
  EXPECT_THAT(stats.query_rms(),
              ::testing::ElementsAre(std::sqrt(3 / 4.0), std::sqrt(9 / 4.0), std::sqrt(10 / 4.0), std::sqrt(17 / 4.0)));
  EXPECT_THAT(stats.value_rms()[2], 5);
  EXPECT_THAT(stats.key_mean(), ::testing::ElementsAre(1.5, 2, 2.5, 4));
  // Between tokens 10 and 500 the first pair turns by 490 radians, the second by 0.49.
  EXPECT_THAT(steady_key_means(stats, std::vector<float>{1, 0.001f}, 10, 500), ::testing::ElementsAre(0, 2, 0, 4));
  EXPECT_THAT(steady_key_means(stats, std::vector<float>{1, 0.001f}, 500, 500), ::testing::ElementsAre(1.5, 2, 2.5, 4));
  EXPECT_THAT(stats.sampled_key(1, 0), ::testing::ElementsAre(0, -2, 1, 0));
  EXPECT_THAT(stats.sampled_query(1, 1), ::testing::ElementsAre(0, -2, 0, 0));
  EXPECT_THAT(stats.sampled_value(0, 0), ::testing::ElementsAre(5, 5, 1, 1));
  EXPECT_THAT(fireq_channel_factors(stats, 1), ::testing::ElementsAre(1, 8 / 6.0f, 1, 1));

  std::vector<float> bad = qkv;
  bad[20] = NAN;
  const Status status =
      stats.observe({bad.data(), DType::kF32, Shape{2, 16}}, {cos_sin.data(), DType::kF32, Shape{2, 4}});
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message, ::testing::HasSubstr("qkv is nan at [1, 4]"));
  EXPECT_EQ(stats.tokens(), 2);
}

// Normalisation before RoPE as the block does it: keys in the sample are those that attention sees.
TEST(AttentionStats, AppliesTheNormsOfHeads) {
  Random random(5);
  ModelConfig c = testing::small_config();
  c.qk_norm = true;
  const LayerTensors layer = random_layer(c, random);
  const Observed seen = observe(c, layer, normals(kTokens * c.hidden_size, 1, random));
  double squares = 0;
  for (int64_t i = 0; i < c.head_dim; ++i) {
    const size_t at = static_cast<size_t>((3 * (c.heads + 2 * c.kv_heads) + c.heads) * c.head_dim + i);
    squares += double{seen.qkv[at]} * seen.qkv[at];
  }
  const auto normed = [&](int64_t i) {
    const size_t at = static_cast<size_t>((3 * (c.heads + 2 * c.kv_heads) + c.heads) * c.head_dim + i);
    return seen.qkv[at] / std::sqrt(squares / c.head_dim + c.rms_norm_eps) * layer.k_norm[static_cast<size_t>(i)];
  };
  const auto key = seen.stats.sampled_key(3, 0);
  for (size_t f = 0; f < 8; ++f)  // RoPE keeps a pair's norm
    EXPECT_NEAR(std::hypot(key[f], key[f + 8]),
                std::hypot(normed(static_cast<int64_t>(f)), normed(static_cast<int64_t>(f) + 8)), 1e-5);
}

TEST(AttentionStats, SamplesTheBeginningsOfTheFirstSequences) {
  const HeadShape shape{.heads = 1, .kv_heads = 1, .head_dim = 2};
  AttentionStats stats(shape, {}, 1e-6);
  for (int sequence = 0; sequence < 4; ++sequence) {
    const int64_t tokens = sequence == 0 ? 5 : 600;
    std::vector<float> qkv, cos_sin;
    for (int64_t t = 0; t < tokens; ++t) {
      qkv.insert(qkv.end(), {static_cast<float>(1000 * sequence + t), 0, 1, 1, 1, 1});
      cos_sin.insert(cos_sin.end(), {1, 0});
    }
    ASSERT_TRUE(
        stats.observe({qkv.data(), DType::kF32, Shape{tokens, 6}}, {cos_sin.data(), DType::kF32, Shape{tokens, 2}}));
  }
  EXPECT_EQ(stats.tokens(), 1805);
  EXPECT_THAT(stats.sequence_starts(), ::testing::ElementsAre(0, 5, 517));
  EXPECT_EQ(stats.sampled(), 517);
  EXPECT_EQ(stats.sampled_query(4, 0)[0], 4);
  EXPECT_EQ(stats.sampled_query(5, 0)[0], 1000);
  EXPECT_EQ(stats.sampled_query(516, 0)[0], 1511);
}

// Theorem 3.1 of FireQ: after pre-RoPE normalisation no pair of a key that calibration saw is longer than alpha.
TEST(KeyScales, FireqBoundsPairs) {
  Random random(11);
  const ModelConfig c = testing::small_config();
  LayerTensors layer = random_layer(c, random);
  spread_pairs(layer, c, random);
  const std::vector<float> x = normals(kTokens * c.hidden_size, 1, random);
  ASSERT_TRUE(scale_rope_pairs(layer, HeadShape::of(c), fireq_pair_factors(observe(c, layer, x).stats, 8)));
  const Observed after = observe(c, layer, x);
  for (const double largest : after.stats.key_pair_max()) EXPECT_NEAR(largest, 8, 1e-4);
}

class KeyScalesOf : public ::testing::TestWithParam<KvFormatId> {};

// Keys whose pairs are far apart lose much in four bits; the factors give most of that back, measured in what attention
// computes through the cache's own op.
TEST_P(KeyScalesOf, GiveBackWhatUnevenPairsLose) {
  Random random(12);
  const ModelConfig c = testing::small_config();
  const HeadShape shape = HeadShape::of(c);
  LayerTensors layer = random_layer(c, random);
  spread_pairs(layer, c, random);
  const std::vector<float> x = normals(kTokens * c.hidden_size, 1, random);
  const Observed before = observe(c, layer, x);
  const auto exact = run_attention(c, before.qkv, KvFormatId::kF32);
  const double plain = squared_distance(run_attention(c, before.qkv, GetParam()), exact);

  const auto found = search_key_scales(before.stats, layer, GetParam());
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_LT(found->loss, 0.5 * found->plain_loss);
  ASSERT_TRUE(scale_rope_pairs(layer, shape, found->pairs));
  EXPECT_EQ(found->channels.empty(), GetParam() != KvFormatId::kInt4Fireq);
  if (!found->channels.empty()) scale_k_channels(layer, shape, found->channels);
  const Observed after = observe(c, layer, x);
  const double scaled = squared_distance(run_attention(c, after.qkv, GetParam(), layer.k_channel_scale), exact);
  EXPECT_LT(scaled, 0.6 * plain);
}
INSTANTIATE_TEST_SUITE_P(Formats, KeyScalesOf,
                         ::testing::Values(KvFormatId::kInt4, KvFormatId::kInt4Fireq, KvFormatId::kInt4Saw));

// Powers of two moved from Q's rows to K's: the layer that comes out has the same bits.
TEST(KeyScales, UndoOutliersExactly) {
  Random random(13);
  const ModelConfig c = testing::small_config();
  const HeadShape shape = HeadShape::of(c);
  LayerTensors plain = random_layer(c, random);
  give_keys_a_mean(plain, c);
  const std::vector<float> x = normals(kTokens * c.hidden_size, 1, random);
  LayerTensors results[2];
  for (const bool outliers : {false, true}) {
    LayerTensors& layer = results[outliers] = plain;
    if (outliers) {
      std::vector<float> n(static_cast<size_t>(c.kv_heads * c.head_dim / 2), 1.0f);
      n[2] = 32;
      n[5] = 64;
      n[11] = 64;
      ASSERT_TRUE(scale_rope_pairs(layer, shape, n));
      ASSERT_NE(layer.k.w, plain.k.w);
    }
    const AttentionStats stats = observe(c, layer, x).stats;
    const auto found = search_key_scales(stats, layer, KvFormatId::kInt4Fireq, stats.key_mean());
    ASSERT_TRUE(found) << found.error().message;
    ASSERT_GE(found->exponent, 0);
    ASSERT_FALSE(found->offsets.empty());
    ASSERT_TRUE(scale_rope_pairs(layer, shape, found->pairs));
    shift_k_channels(layer, shape, found->offsets);
    scale_k_channels(layer, shape, found->channels);
  }
  EXPECT_EQ(results[0].k.w, results[1].k.w);
  EXPECT_EQ(results[0].q.w, results[1].q.w);
  EXPECT_EQ(results[0].k_channel_scale, results[1].k_channel_scale);
  EXPECT_EQ(results[0].k_channel_offset, results[1].k_channel_offset);
}

// Keys with a mean: taken from them where the format can, and attention's own ops lose less for it.
TEST(KeyScales, TakeTheMeanFromKeys) {
  Random random(17);
  const ModelConfig c = testing::small_config();
  const HeadShape shape = HeadShape::of(c);
  LayerTensors layer = random_layer(c, random);
  give_keys_a_mean(layer, c);
  const std::vector<float> x = normals(kTokens * c.hidden_size, 1, random);
  const Observed before = observe(c, layer, x);
  const auto exact = run_attention(c, before.qkv, KvFormatId::kF32);
  const std::vector<double> mean = before.stats.key_mean();
  const auto without = search_key_scales(before.stats, layer, KvFormatId::kInt4Fireq);
  const auto with = search_key_scales(before.stats, layer, KvFormatId::kInt4Fireq, mean);
  ASSERT_TRUE(without && with);
  EXPECT_TRUE(without->offsets.empty());
  ASSERT_FALSE(with->offsets.empty());
  EXPECT_EQ(with->plain_loss, without->plain_loss);
  EXPECT_LT(with->loss, 0.7 * without->loss);
  const auto lost = [&](const KeyScales& scales) {
    LayerTensors scaled = layer;
    HEARTH_CHECK(scale_rope_pairs(scaled, shape, scales.pairs).has_value(), "no norms here");
    if (!scales.offsets.empty()) shift_k_channels(scaled, shape, scales.offsets);
    scale_k_channels(scaled, shape, scales.channels);
    return squared_distance(run_attention(c, observe(c, scaled, x).qkv, KvFormatId::kInt4Fireq, scaled.k_channel_scale,
                                          scaled.k_channel_offset),
                            exact);
  };
  EXPECT_LT(lost(*with), 0.8 * lost(*without));

  // A mean that is not there loses: it is not taken.
  std::vector<double> wrong = mean;
  for (double& m : wrong) m = -4 * m;
  const auto refused = search_key_scales(before.stats, layer, KvFormatId::kInt4Fireq, wrong);
  ASSERT_TRUE(refused) << refused.error().message;
  EXPECT_TRUE(refused->offsets.empty());
  EXPECT_EQ(refused->loss, without->loss);
  for (const KvFormatId format : {KvFormatId::kInt4, KvFormatId::kInt4Saw}) {
    const auto other = search_key_scales(before.stats, layer, format, mean);
    ASSERT_TRUE(other) << other.error().message;
    EXPECT_TRUE(other->offsets.empty());
  }
}

TEST(KeyScales, SharesPairsWhereHeadsShareANorm) {
  Random random(14);
  ModelConfig c = testing::small_config();
  c.qk_norm = true;
  LayerTensors layer = random_layer(c, random);
  const auto found = search_key_scales(observe(c, layer, normals(kTokens * c.hidden_size, 1, random)).stats, layer,
                                       KvFormatId::kInt4Fireq);
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_TRUE(scale_rope_pairs(layer, HeadShape::of(c), found->pairs));
}

TEST(KeyScales, NeedsTokensAndAFormatOfFourBits) {
  const ModelConfig c = testing::small_config();
  Random random(15);
  const LayerTensors layer = random_layer(c, random);
  const AttentionStats empty(HeadShape::of(c), layer, c.rms_norm_eps);
  EXPECT_THAT(search_key_scales(empty, layer, KvFormatId::kInt4).error().message,
              ::testing::HasSubstr("there were no tokens"));
  EXPECT_THAT(search_key_scales(empty, layer, KvFormatId::kFp8).error().message,
              ::testing::HasSubstr("fp8 takes no factors"));
}

TEST(ValueScales, GiveBackWhatUnevenValuesLose) {
  Random random(16);
  const ModelConfig c = testing::small_config();
  const HeadShape shape = HeadShape::of(c);
  LayerTensors layer = random_layer(c, random);
  std::vector<float> uneven(static_cast<size_t>(c.kv_heads * c.head_dim));
  for (float& s : uneven) s = std::exp2(random.uniform(-3, 3));
  scale_v_o(layer, shape, uneven);
  const std::vector<float> x = normals(kTokens * c.hidden_size, 1, random);
  const auto exact = run_block(c, layer, x).hidden;
  const auto found = search_value_scales(observe(c, layer, x).stats, layer, KvFormatId::kInt4Saw);
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_LT(found->loss, 0.5 * found->plain_loss);
  const double predicted = found->loss / found->plain_loss;
  // V alone through the cache: the loss is its squared error at O's output.
  const auto value_error = [&](const LayerTensors& tensors) {
    const Observed seen = observe(c, tensors, x);
    const auto again = search_value_scales(seen.stats, tensors, KvFormatId::kInt4Saw);
    HEARTH_CHECK(again.has_value(), "{}", again.error().message);
    return again->plain_loss;
  };
  const double before = value_error(layer);
  scale_v_o(layer, shape, found->factors);
  if (found->rotate) {
    ASSERT_TRUE(rotate_v(layer, shape));
  }
  EXPECT_NEAR(value_error(layer) / before, predicted, 0.02 * predicted);
  EXPECT_LT(squared_distance(run_block(c, layer, x).hidden, exact), 1e-8 * squared_distance(exact, x));
}

}  // namespace
}  // namespace hearth
