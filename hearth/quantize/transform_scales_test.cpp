// SPDX-License-Identifier: Apache-2.0
#include "hearth/quantize/transform_scales.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "hearth/quantize/block_for_test.h"
#include "hearth/quantize/transform_kv.h"

namespace hearth {
namespace {

using testing::normals;
using testing::random_layer;
using testing::run_block;

constexpr int64_t kTokens = 40, kGroup = 16;
constexpr ScaleSite kSites[] = {ScaleSite::kOInput, ScaleSite::kDownInput, ScaleSite::kQkvInput,
                                ScaleSite::kGateUpInput};

// Root mean squares of a point's columns when the layer runs on x.
std::vector<double> input_rms(const ModelConfig& c, const LayerTensors& layer, const std::vector<float>& x,
                              ScaleSite site) {
  constexpr BlockPoint kPoints[] = {BlockPoint::kOInput, BlockPoint::kDownInput, BlockPoint::kQkvInput,
                                    BlockPoint::kGateUpInput};
  std::vector<double> rms;
  const auto look = [&](BlockPoint point, ConstTensorView values) -> Status {
    if (point != kPoints[static_cast<int>(site)]) return {};
    rms.assign(static_cast<size_t>(values.cols()), 0);
    for (int64_t t = 0; t < values.rows(); ++t)
      for (size_t i = 0; i < rms.size(); ++i) rms[i] += double{values.row<float>(t)[i]} * values.row<float>(t)[i];
    for (double& value : rms) value = std::sqrt(value / static_cast<double>(values.rows()));
    return {};
  };
  const BlockObserver observer(look);
  run_block(c, layer, x, KvFormatId::kF32, &observer);
  return rms;
}

// Round to nearest, symmetric, absmax / 7.5 per group of a row: the baseline that outliers ruin.
void round_to_nearest(LayerLinear& linear) {
  for (int64_t i = 0; i < linear.n; ++i)
    for (int64_t begin = 0; begin < linear.k; begin += kGroup) {
      const std::span<float> group = linear.row(i).subspan(static_cast<size_t>(begin), static_cast<size_t>(kGroup));
      float largest = 0;
      for (const float w : group) largest = std::max(largest, std::abs(w));
      const float step = largest / 7.5f;
      if (step == 0) continue;
      for (float& w : group) w = std::clamp(std::nearbyint(w / step), -8.0f, 7.0f) * step;
    }
}

LayerTensors rounded(const LayerTensors& layer) {
  LayerTensors out = layer;
  for (const LayerTensors::Named& named : LayerTensors::linears()) round_to_nearest(out.*named.linear);
  return out;
}

double squared_distance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  return sum;
}

// Several channels of one group of 16 and one of another, 32x and 64x: norm weights up, columns down, and the same
// between up and down, between V and O, and in RoPE pairs between K and Q. Powers of two only, so that the block's bits
// stay.
LayerTensors with_outliers(const LayerTensors& plain, const ModelConfig& c) {
  LayerTensors layer = plain;
  const auto outliers = [](int64_t channels) {
    std::vector<float> s(static_cast<size_t>(channels), 1.0f);
    s[1] = s[5] = 1.0f / 32;
    s[6] = s[20] = 1.0f / 64;
    return s;
  };
  scale_qkv_inputs(layer, outliers(c.hidden_size));
  scale_gate_up_inputs(layer, outliers(c.hidden_size));
  scale_up_down(layer, outliers(c.intermediate_size));
  scale_v_o(layer, HeadShape::of(c), outliers(c.kv_heads * c.head_dim));
  std::vector<float> pairs(static_cast<size_t>(c.kv_heads * c.head_dim / 2), 1.0f);
  pairs[3] = 32;
  pairs[9] = 64;
  const Status status = scale_rope_pairs(layer, HeadShape::of(c), pairs);
  HEARTH_CHECK(status.has_value(), "{}", status.error().message);
  return layer;
}

AttentionStats attention_stats(const ModelConfig& c, const LayerTensors& layer, const std::vector<float>& x) {
  AttentionStats stats(HeadShape::of(c), layer, c.rms_norm_eps);
  std::vector<int32_t> positions(static_cast<size_t>(kTokens));
  for (size_t t = 0; t < positions.size(); ++t) positions[t] = static_cast<int32_t>(t);
  const std::vector<float> cos_sin = testing::rope_table(c, positions);
  const auto look = [&](BlockPoint point, ConstTensorView values) -> Status {
    return point == BlockPoint::kQkv ? stats.observe(values, {cos_sin.data(), DType::kF32, Shape{kTokens, c.head_dim}})
                                     : Status();
  };
  const BlockObserver observer(look);
  run_block(c, layer, x, KvFormatId::kF32, &observer);
  return stats;
}

struct Fixture {
  ModelConfig c = testing::small_config();
  HeadShape shape = HeadShape::of(c);
  Random random{31};
  LayerTensors plain = random_layer(c, random);
  std::vector<float> x = normals(kTokens * c.hidden_size, 1, random);
};

std::vector<float> scales_of(const LayerTensors& layer, const HeadShape& shape, ScaleSite site,
                             std::span<const double> rms, const ScaleRule& rule) {
  return site_scales(layer, shape, site, rms, column_statistic(layer, shape, site, rule.statistic), rule.exponent);
}

TEST(ScaleRules, FireqMakesColumnsEquallyLarge) {
  Fixture f;
  for (const ScaleSite site : kSites)
    for (const ColumnStatistic statistic : {ColumnStatistic::kMaxAbs, ColumnStatistic::kRms}) {
      LayerTensors layer = f.plain;
      apply_scales(layer, f.shape, site,
                   scales_of(layer, f.shape, site, input_rms(f.c, layer, f.x, site), {statistic, 0}));
      const std::vector<double> columns = column_statistic(layer, f.shape, site, statistic);
      const auto [low, high] = std::minmax_element(columns.begin(), columns.end());
      EXPECT_NEAR(*high / *low, 1, 1e-5);
    }
}

TEST(ScaleRules, ReadsColumnsOfEveryReader) {
  Fixture f;
  f.plain.up.row(7)[3] = -100;
  EXPECT_EQ(column_statistic(f.plain, f.shape, ScaleSite::kGateUpInput, ColumnStatistic::kMaxAbs)[3], 100);
  f.plain.o.row(2)[static_cast<size_t>(4 * f.c.head_dim + 9)] = 50;  // query head 4 reads kv head 1
  EXPECT_EQ(column_statistic(f.plain, f.shape, ScaleSite::kOInput,
                             ColumnStatistic::kMaxAbs)[static_cast<size_t>(f.c.head_dim + 9)],
            50);
}

// The injected outliers leave the block alone, ruin round to nearest, and are gone after any rule: equal bits, so equal
// bits of whatever is quantized then.
TEST(ScaleRules, UndoOutliersExactly) {
  Fixture f;
  const LayerTensors outliers = with_outliers(f.plain, f.c);
  const auto exact = run_block(f.c, f.plain, f.x).hidden;
  ASSERT_EQ(run_block(f.c, outliers, f.x).hidden, exact);
  const double plain_loss = squared_distance(run_block(f.c, rounded(f.plain), f.x).hidden, exact);
  EXPECT_GT(squared_distance(run_block(f.c, rounded(outliers), f.x).hidden, exact), 2 * plain_loss);

  for (const ScaleRule& rule : scale_rules()) {
    SCOPED_TRACE(fmt::format("statistic {}, exponent {}", static_cast<int>(rule.statistic), rule.exponent));
    LayerTensors a = f.plain, b = outliers;
    for (LayerTensors* layer : {&a, &b}) {
      ASSERT_TRUE(scale_rope_pairs(*layer, f.shape, even_pair_factors(attention_stats(f.c, *layer, f.x), *layer)));
      for (const ScaleSite site : kSites)
        apply_scales(*layer, f.shape, site, scales_of(*layer, f.shape, site, input_rms(f.c, *layer, f.x, site), rule));
    }
    for (const LayerTensors::Named& named : LayerTensors::linears())
      EXPECT_EQ((a.*named.linear).w, (b.*named.linear).w) << named.name;
    EXPECT_EQ(a.input_norm, b.input_norm);
    EXPECT_EQ(a.post_attention_norm, b.post_attention_norm);
  }
}

// Sites as hearth_inject_outliers makes them are told from plain ones, whatever the channel was before.
TEST(ScaleRules, TellOutliers) {
  Fixture f;
  const LayerTensors outliers = with_outliers(f.plain, f.c);
  for (const ScaleSite site : kSites) {
    EXPECT_FALSE(has_outliers(input_rms(f.c, f.plain, f.x, site))) << static_cast<int>(site);
    EXPECT_TRUE(has_outliers(input_rms(f.c, outliers, f.x, site))) << static_cast<int>(site);
  }
  std::vector<double> rms(101, 1.0);
  rms[7] = kOutlierRatio;
  EXPECT_TRUE(has_outliers(rms));
  rms[7] = 0.99 * kOutlierRatio;
  EXPECT_FALSE(has_outliers(rms));
  std::ranges::fill(rms, 0.0);
  EXPECT_TRUE(has_outliers(rms));
}

TEST(SearchScales, TakesTheRuleOfLeastLoss) {
  Fixture f;
  LayerTensors layer = with_outliers(f.plain, f.c);
  const auto exact = run_block(f.c, layer, f.x).hidden;
  const LayerLoss loss = [&](const LayerTensors& tensors) -> Result<double> {
    return squared_distance(run_block(f.c, rounded(tensors), f.x).hidden, exact);
  };
  for (const ScaleSite site : kSites) {
    const std::vector<double> rms = input_rms(f.c, layer, f.x, site);
    const LayerTensors before = layer;
    const auto found = search_scales(layer, {.shape = f.shape, .site = site, .input_rms = rms}, loss);
    ASSERT_TRUE(found) << found.error().message;
    EXPECT_LE(found->loss, found->plain_loss);
    EXPECT_EQ(found->loss, *loss(layer));
    if (found->rule < 0) continue;
    LayerTensors again = before;
    apply_scales(again, f.shape, site,
                 scales_of(before, f.shape, site, rms, scale_rules()[static_cast<size_t>(found->rule)]));
    EXPECT_EQ(*loss(again), found->loss);
  }
  // What outliers cost is gone: no worse than the plain layer without any scaling.
  EXPECT_LE(*loss(layer), *loss(f.plain));
}

TEST(SearchScales, LeavesALayerThatNothingHelpsAndPassesErrorsOn) {
  Fixture f;
  LayerTensors layer = f.plain;
  const std::vector<double> rms = input_rms(f.c, layer, f.x, ScaleSite::kQkvInput);
  const ScaleSearch search{.shape = f.shape, .input_rms = rms};
  const auto found = search_scales(layer, search, [](const LayerTensors&) -> Result<double> { return 1.0; });
  ASSERT_TRUE(found);
  EXPECT_EQ(found->rule, -1);
  EXPECT_EQ(layer.q.w, f.plain.q.w);
  int calls = 0;
  const auto failed = search_scales(layer, search, [&](const LayerTensors&) -> Result<double> {
    if (++calls == 3) return cancelled("stop");
    return 1.0 / calls;
  });
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, ErrorCode::kCancelled);
  EXPECT_EQ(layer.q.w, f.plain.q.w);
  EXPECT_EQ(search_scales(layer, search, [](const LayerTensors&) -> Result<double> { return NAN; }).error().code,
            ErrorCode::kInternal);
}

}  // namespace
}  // namespace hearth
