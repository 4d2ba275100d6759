// SPDX-License-Identifier: Apache-2.0
// Which factors the function-preserving steps get: families of scales as pure functions of statistics, and a search
// among them by what the caller calls a loss.
//   I1. Scales do not change what comes out of the transformation when powers of two had moved between a channel's two
//       sides before (a norm's weight up, the columns that read it down): equal bits. Such outliers cost nothing. As
//       the rows of Q, K, V and up count in the columns of their inputs, this holds for a layer's sites in the order of
//       ScaleSite, after the RoPE pairs (transform_kv.h: even_pair_factors or search_key_scales).
// Any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/quantize/layer.h"
#include "hearth/quantize/transform.h"

namespace hearth {

// No factor leaves these, however far apart the channels are.
inline constexpr double kMinFactor = 0x1p-40, kMaxFactor = 0x1p40;

// s = (reader * writer)^exponent / writer: the balance between what a channel holds and what it is read with. Exponent
// 0 makes all channels equally large, 1/2 is the optimum where the error of a channel follows the root mean square of
// all. A channel that is 0 on either side takes the geometric mean of the others' factors.
//   writer, reader [n], not negative; returns [n], positive
std::vector<float> balancing_factors(std::span<const double> writer, std::span<const double> reader, double exponent);

// A place where a channel of a layer's values can be scaled.
enum class ScaleSite : uint8_t {
  kOInput,       // [kv_heads, head_dim] scale_v_o
  kDownInput,    // [ffn] scale_up_down
  kQkvInput,     // [hidden] scale_qkv_inputs
  kGateUpInput,  // [hidden] scale_gate_up_inputs
};

// What of a column of weights counts.
enum class ColumnStatistic : uint8_t { kRms, kMaxAbs };

// Balancing factors with the columns' statistic as writer and the input's root mean square as reader. Exponent 0 with
// kMaxAbs is FireQ's channel-wise scaling (section 3.1), lambda = c / max |W|. Exponents between are AWQ's
// x^a / w^(1 - a), without its normalisation of w by groups, which would break I1.
struct ScaleRule {
  ColumnStatistic statistic = ColumnStatistic::kRms;
  double exponent = 0;
};
// What is searched: both statistics with exponents 0 to 0.7. With error feedback the best exponents are small; large
// models have inputs that want more.
std::span<const ScaleRule> scale_rules();

// The statistic of each column over all weights that read the site's channels. [channels of the site]
std::vector<double> column_statistic(const LayerTensors& layer, const HeadShape& shape, ScaleSite site,
                                     ColumnStatistic statistic);

// The factors of a rule. Their constant (FireQ's c) is the power of two that brings the inputs' mean log2 next to 0.
//   input_rms: root mean square of each input of the linears, [hidden], [ffn] or, for kOInput, [heads head_dim]
//   columns:   column_statistic() of the rule's statistic
std::vector<float> site_scales(const LayerTensors& layer, const HeadShape& shape, ScaleSite site,
                               std::span<const double> input_rms, std::span<const double> columns, double exponent);

// `stored`: the type that the norm will be stored in (transform.h).
void apply_scales(LayerTensors& layer, const HeadShape& shape, ScaleSite site, std::span<const float> s,
                  DType stored = DType::kF32);

// Whether the largest of a site's inputs is kOutlierRatio times as large as the median one, or the half of them is 0.
// Where none is, GPTQ's feedback leaves scales little to win: on fable-13m and fable-82m, whose largest ratio is 14.9,
// at most 6% of the site's loss in all but the first layer and nothing of the model's. What hearth_inject_outliers
// makes has ratios from 64 up.
//   input_rms: root mean squares, as for site_scales()
inline constexpr double kOutlierRatio = 16;
bool has_outliers(std::span<const double> input_rms);

using LayerLoss = std::function<Result<double>(const LayerTensors& layer)>;

struct ScaleChoice {
  int rule = -1;             // of scale_rules(); -1: no scaling was better than any
  std::vector<float> scale;  // what was applied; empty for none
  double loss = 0;
  double plain_loss = 0;
};

// Applies to `layer` the rule of least loss, or nothing; the first among equals. The loss sees the whole layer, scaled.
// Errors are those of `loss`, and Internal where it is NaN; the layer is then as it was.
struct ScaleSearch {
  HeadShape shape;
  ScaleSite site = ScaleSite::kQkvInput;
  std::span<const double> input_rms;
  DType stored = DType::kF32;
};
Result<ScaleChoice> search_scales(LayerTensors& layer, const ScaleSearch& search, const LayerLoss& loss);

}  // namespace hearth
