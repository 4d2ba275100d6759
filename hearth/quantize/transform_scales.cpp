// SPDX-License-Identifier: Apache-2.0
#include "hearth/quantize/transform_scales.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "hearth/base/check.h"

namespace hearth {
namespace {

std::vector<const LayerLinear*> readers(const LayerTensors& layer, ScaleSite site) {
  switch (site) {
    case ScaleSite::kQkvInput: return {&layer.q, &layer.k, &layer.v};
    case ScaleSite::kGateUpInput: return {&layer.gate, &layer.up};
    case ScaleSite::kDownInput: return {&layer.down};
    case ScaleSite::kOInput: return {&layer.o};
  }
  return {};
}

// Inputs of O to channels of V: `add` is called for each input with its channel.
template <class Add>
void for_each_input(const HeadShape& shape, ScaleSite site, int64_t inputs, const Add& add) {
  for (int64_t i = 0; i < inputs; ++i) {
    const int64_t head = i / shape.head_dim;
    add(i, site == ScaleSite::kOInput ? head / shape.group() * shape.head_dim + i % shape.head_dim : i);
  }
}

int64_t channels_of(const HeadShape& shape, ScaleSite site, int64_t inputs) {
  return site == ScaleSite::kOInput ? inputs / shape.group() : inputs;
}

}  // namespace

std::vector<float> balancing_factors(std::span<const double> writer, std::span<const double> reader, double exponent) {
  HEARTH_CHECK(writer.size() == reader.size(), "{} and {} channels", writer.size(), reader.size());
  std::vector<double> factors(writer.size(), 0);
  double logs = 0;
  int64_t used = 0;
  for (size_t i = 0; i < factors.size(); ++i) {
    // The product first: it is the same, in every bit, when a power of two moves from one side to the other.
    const double product = writer[i] * reader[i];
    if (!(product > 0)) continue;
    factors[i] = std::clamp(std::pow(product, exponent) / writer[i], kMinFactor, kMaxFactor);
    logs += std::log(factors[i]);
    ++used;
  }
  const double mean = used ? std::exp(logs / static_cast<double>(used)) : 1;
  std::vector<float> out(factors.size());
  for (size_t i = 0; i < factors.size(); ++i) out[i] = static_cast<float>(factors[i] > 0 ? factors[i] : mean);
  return out;
}

std::span<const ScaleRule> scale_rules() {
  using enum ColumnStatistic;
  static constexpr ScaleRule kRules[] = {{kRms, 0},      {kRms, 0.1},     {kRms, 0.2},    {kRms, 0.35},
                                         {kRms, 0.5},    {kRms, 0.7},     {kMaxAbs, 0},   {kMaxAbs, 0.1},
                                         {kMaxAbs, 0.2}, {kMaxAbs, 0.35}, {kMaxAbs, 0.5}, {kMaxAbs, 0.7}};
  return kRules;
}

std::vector<double> column_statistic(const LayerTensors& layer, const HeadShape& shape, ScaleSite site,
                                     ColumnStatistic statistic) {
  const std::vector<const LayerLinear*> linears = readers(layer, site);
  const int64_t inputs = linears.front()->k, channels = channels_of(shape, site, inputs);
  std::vector<double> sums(static_cast<size_t>(inputs), 0);
  int64_t rows = 0;
  for (const LayerLinear* linear : linears) {
    HEARTH_CHECK(linear->k == inputs, "{} and {} columns read the same channels", linear->k, inputs);
    rows += linear->n;
    for (int64_t i = 0; i < linear->n; ++i) {
      const std::span<const float> row = linear->row(i);
      for (size_t j = 0; j < row.size(); ++j) {
        const double w = std::abs(double{row[j]});
        sums[j] = statistic == ColumnStatistic::kMaxAbs ? std::max(sums[j], w) : sums[j] + w * w;
      }
    }
  }
  std::vector<double> out(static_cast<size_t>(channels), 0);
  for_each_input(shape, site, inputs, [&](int64_t input, int64_t channel) {
    double& to = out[static_cast<size_t>(channel)];
    const double from = sums[static_cast<size_t>(input)];
    to = statistic == ColumnStatistic::kMaxAbs ? std::max(to, from) : to + from;
  });
  if (statistic == ColumnStatistic::kMaxAbs) return out;
  for (double& x : out) x = std::sqrt(x / static_cast<double>(rows * (inputs / channels)));
  return out;
}

std::vector<float> site_scales(const LayerTensors& layer, const HeadShape& shape, ScaleSite site,
                               std::span<const double> input_rms, std::span<const double> columns, double exponent) {
  const int64_t inputs = readers(layer, site).front()->k;
  HEARTH_CHECK(static_cast<int64_t>(input_rms.size()) == inputs, "{} root mean squares for {} inputs", input_rms.size(),
               inputs);
  std::vector<double> values(columns.size(), 0);
  for_each_input(shape, site, inputs, [&](int64_t input, int64_t channel) {
    const double x = input_rms[static_cast<size_t>(input)];
    values[static_cast<size_t>(channel)] += x * x;
  });
  for (double& x : values) x = std::sqrt(x / static_cast<double>(inputs / static_cast<int64_t>(columns.size())));
  std::vector<float> scales = balancing_factors(columns, values, exponent);

  // The inputs become x / s, which is the same wherever a power of two was.
  double logs = 0;
  int64_t used = 0;
  for (size_t i = 0; i < scales.size(); ++i) {
    if (!(values[i] > 0 && columns[i] > 0)) continue;
    logs += std::log2(values[i] / double{scales[i]});
    ++used;
  }
  const int constant = used ? static_cast<int>(std::lround(logs / static_cast<double>(used))) : 0;
  for (float& s : scales) s = std::ldexp(s, constant);
  return scales;
}

bool has_outliers(std::span<const double> input_rms) {
  std::vector<double> rms(input_rms.begin(), input_rms.end());
  const auto median = rms.begin() + static_cast<std::ptrdiff_t>(rms.size() / 2);
  std::ranges::nth_element(rms, median);
  return *std::ranges::max_element(rms) >= kOutlierRatio * *median;
}

void apply_scales(LayerTensors& layer, const HeadShape& shape, ScaleSite site, std::span<const float> s, DType stored) {
  switch (site) {
    case ScaleSite::kQkvInput: return scale_qkv_inputs(layer, s, stored);
    case ScaleSite::kGateUpInput: return scale_gate_up_inputs(layer, s, stored);
    case ScaleSite::kDownInput: return scale_up_down(layer, s);
    case ScaleSite::kOInput: return scale_v_o(layer, shape, s);
  }
}

Result<ScaleChoice> search_scales(LayerTensors& layer, const ScaleSearch& search, const LayerLoss& loss) {
  const auto judge = [&](const LayerTensors& tensors) -> Result<double> {
    HEARTH_TRY_ASSIGN(const double value, loss(tensors));
    if (std::isnan(value)) return internal_error("scale search: the loss is not a number");
    return value;
  };
  ScaleChoice best;
  HEARTH_TRY_ASSIGN(best.loss, judge(layer));
  best.plain_loss = best.loss;
  LayerTensors winner;
  std::map<ColumnStatistic, std::vector<double>> statistics;
  const std::span<const ScaleRule> rules = scale_rules();
  for (size_t i = 0; i < rules.size(); ++i) {
    const ScaleRule& rule = rules[i];
    std::vector<double>& columns = statistics[rule.statistic];
    if (columns.empty()) columns = column_statistic(layer, search.shape, search.site, rule.statistic);
    std::vector<float> scale = site_scales(layer, search.shape, search.site, search.input_rms, columns, rule.exponent);
    LayerTensors scaled = layer;
    apply_scales(scaled, search.shape, search.site, scale, search.stored);
    HEARTH_TRY_ASSIGN(const double value, judge(scaled));
    if (!(value < best.loss)) continue;
    best.rule = static_cast<int>(i);
    best.scale = std::move(scale);
    best.loss = value;
    winner = std::move(scaled);
  }
  if (best.rule >= 0) layer = std::move(winner);
  return best;
}

}  // namespace hearth
