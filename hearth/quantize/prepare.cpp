// SPDX-License-Identifier: Apache-2.0
#include "hearth/quantize/prepare.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "hearth/model/rope_frequencies.h"
#include "hearth/quantize/site_loss.h"
#include "hearth/quantize/transform_kv.h"
#include "hearth/quantize/transform_scales.h"

namespace hearth {
namespace {

// E4M3 ends at 448. Half of it for what calibration saw: a float code loses nothing by room above.
constexpr double kFp8Largest = 224;

// Windows that tell whether a channel is an outlier: it is in every text.
constexpr int64_t kLookWindows = 4;

using Member = LayerLinear LayerTensors::*;

struct Site {
  ScaleSite site;
  BlockPoint input;
  std::vector<size_t> readers;  // of LayerTensors::linears()
};
// In the order in which outliers by powers of two cancel (transform_scales.h, I1).
const std::vector<Site>& sites() {
  static const std::vector<Site> kSites = {{ScaleSite::kOInput, BlockPoint::kOInput, {3}},
                                           {ScaleSite::kDownInput, BlockPoint::kDownInput, {6}},
                                           {ScaleSite::kQkvInput, BlockPoint::kQkvInput, {0, 1, 2}},
                                           {ScaleSite::kGateUpInput, BlockPoint::kGateUpInput, {4, 5}}};
  return kSites;
}

Member member(size_t linear) { return LayerTensors::linears()[linear].linear; }

bool is_four_bit(const ModuleRecipe& recipe) {
  return !recipe.plain() && recipe.encode.format.code != WeightCode::kE4m3;
}

// By how much row i of `after` differs from that of `before`, a multiple of it.
double row_factor(const LayerLinear& before, const LayerLinear& after, int64_t i) {
  const std::span<const float> old = before.row(i);
  const auto largest = std::ranges::max_element(old, {}, [](float w) { return std::fabs(w); });
  return *largest == 0 ? 1 : double{after.row(i)[static_cast<size_t>(largest - old.begin())]} / double{*largest};
}

// What the inputs of the site's readers were multiplied by between the two.
std::vector<float> input_factors(const LayerTensors& before, const LayerTensors& after, const HeadShape& shape,
                                 ScaleSite site) {
  std::vector<float> factors;
  const auto norm = [&](const std::vector<float>& old, const std::vector<float>& now) {
    for (size_t j = 0; j < old.size(); ++j) factors.push_back(old[j] == 0 ? 1.0f : now[j] / old[j]);
  };
  switch (site) {
    case ScaleSite::kQkvInput: norm(before.input_norm, after.input_norm); break;
    case ScaleSite::kGateUpInput: norm(before.post_attention_norm, after.post_attention_norm); break;
    case ScaleSite::kDownInput:
      for (int64_t i = 0; i < before.up.n; ++i)
        factors.push_back(static_cast<float>(row_factor(before.up, after.up, i)));
      break;
    case ScaleSite::kOInput:
      for (int64_t h = 0; h < shape.heads; ++h)
        for (int64_t i = 0; i < shape.head_dim; ++i)
          factors.push_back(static_cast<float>(row_factor(before.v, after.v, h / shape.group() * shape.head_dim + i)));
      break;
  }
  return factors;
}

std::vector<double> root_mean_squares(const SecondMoments& moments) {
  std::vector<double> rms(static_cast<size_t>(moments.k()));
  for (int64_t i = 0; i < moments.k(); ++i)
    rms[static_cast<size_t>(i)] = std::sqrt(moments.diagonal(i) / static_cast<double>(moments.tokens()));
  return rms;
}

bool is_coded(std::optional<KvFormatId> kv) {
  return kv == KvFormatId::kInt4 || kv == KvFormatId::kInt4Fireq || kv == KvFormatId::kInt4Saw;
}
// int4 is the plain format: what it stores is what the model has.
bool searches_kv(const QuantizeOptions& options) { return is_coded(options.kv) && options.kv != KvFormatId::kInt4; }

class Preparer {
 public:
  Preparer(LayerTensors& layer, const PrepareArgs& args)
      : layer_(layer), args_(args), options_(*args.options), shape_(HeadShape::of(*args.config)) {}

  Result<PreparedLayer> run() {
    HEARTH_TRY_ASSIGN(const std::vector<Site> searched, searched_sites());
    std::set<BlockPoint> points = args_.moments;
    for (const Site& site : searched) points.insert(site.input);
    if (!searches_kv(options_) && options_.rotate_v.value_or(false)) HEARTH_TRY(rotate_v(layer_, shape_));
    const bool evens_pairs = !searched.empty() && !is_coded(options_.kv);
    // The KV search changes V, and so what reaches O.
    const bool apart = searches_kv(options_) && points.contains(BlockPoint::kOInput);
    if (searches_kv(options_) || evens_pairs) stats_.emplace(shape_, layer_, args_.config->rms_norm_eps);
    HEARTH_TRY(gather(apart ? std::set<BlockPoint>() : points, stats_ ? &*stats_ : nullptr));
    if (searches_kv(options_)) HEARTH_TRY(prepare_kv());
    if (apart) HEARTH_TRY(gather(points, nullptr));
    // Rows of K and Q count in the columns of their inputs, whose scales are searched next.
    if (evens_pairs) HEARTH_TRY(scale_rope_pairs(layer_, shape_, even_pair_factors(*stats_, layer_)));
    for (const Site& site : searched) HEARTH_TRY(scale_site(site));
    PreparedLayer prepared;
    prepared.moments = std::move(moments_);
    if (options_.kv == KvFormatId::kFp8 && args_.stream != nullptr) {
      HEARTH_TRY_ASSIGN(prepared.kv, fp8_scales());
    }
    return prepared;
  }

 private:
  // Moments of the inputs at `points`, and what `stats` wants, in one pass.
  Status gather(const std::set<BlockPoint>& points, AttentionStats* stats) {
    if (points.empty() && stats == nullptr) return {};
    InputMoments moments;
    for (const BlockPoint point : points) moments[point] = SecondMoments();
    const auto look = [&](int64_t, ConstTensorView qkv) {
      return stats->observe(qkv, args_.stream->cos_sin(), &args_.compute->pool());
    };
    const WindowObserver observer(look);
    HEARTH_TRY(args_.stream->run(
        {.layer = &layer_,
         .index = args_.index,
         .moments = &moments,
         .qkv = stats != nullptr ? &observer : nullptr,
         .until = points.empty()
                      ? BlockPoint::kQkv
                      : std::max(*points.rbegin(), stats != nullptr ? BlockPoint::kQkv : BlockPoint::kQkvInput)}));
    moments_.merge(moments);
    return {};
  }

  Status prepare_kv() {
    HEARTH_CHECK(args_.stream != nullptr, "a search without activations");
    const AttentionStats& stats = *stats_;
    const std::vector<double> means = steady_key_means(stats, rope_inv_freq(*args_.config),
                                                       args_.stream->cos_sin().rows(), args_.config->max_positions);
    HEARTH_TRY_ASSIGN(const KeyScales keys, search_key_scales(stats, layer_, *options_.kv, means));
    HEARTH_TRY_ASSIGN(const ValueScales values, search_value_scales(stats, layer_, *options_.kv));
    if (!keys.pairs.empty()) HEARTH_TRY(scale_rope_pairs(layer_, shape_, keys.pairs));
    if (!keys.offsets.empty()) shift_k_channels(layer_, shape_, keys.offsets);
    if (!keys.channels.empty()) scale_k_channels(layer_, shape_, keys.channels);
    if (!values.factors.empty()) scale_v_o(layer_, shape_, values.factors);
    return options_.rotate_v.value_or(values.rotate) ? rotate_v(layer_, shape_) : Status();
  }

  // Sites that a search may help. Unless the user wants all, a few windows tell which have outliers.
  Result<std::vector<Site>> searched_sites() const {
    std::vector<Site> found;
    if (args_.stream == nullptr || !scales_inputs(options_)) return found;
    std::ranges::copy_if(sites(), std::back_inserter(found), [&](const Site& site) { return can_scale(site); });
    if (options_.awq.has_value() || found.empty()) return found;
    InputMoments moments;
    for (const Site& site : found) moments[site.input] = SecondMoments();
    const BlockPoint last = moments.rbegin()->first;
    HEARTH_TRY(args_.stream->run(
        {.layer = &layer_, .index = args_.index, .moments = &moments, .until = last, .windows = kLookWindows}));
    std::erase_if(found, [&](const Site& site) { return !has_outliers(root_mean_squares(moments.at(site.input))); });
    return found;
  }

  bool can_scale(const Site& site) const {
    // A coded cache wants V as it is now.
    if (site.site == ScaleSite::kOInput && is_coded(options_.kv)) return false;
    return std::ranges::any_of(site.readers, [&](size_t m) { return is_four_bit((*args_.recipes)[m]); });
  }

  Status scale_site(const Site& site) {
    SecondMoments& moments = moments_.at(site.input);
    const std::vector<double> rms = root_mean_squares(moments);
    const LayerTensors before = layer_;
    SiteLoss judge(moments, *args_.compute);
    const auto loss = [&](const LayerTensors& scaled) -> Result<double> {
      const std::vector<float> factors = input_factors(before, scaled, shape_, site.site);
      double sum = 0;
      for (const size_t reader : site.readers) {
        if (!is_four_bit((*args_.recipes)[reader])) continue;
        HEARTH_TRY_ASSIGN(const double part, judge(scaled.*member(reader), factors, (*args_.recipes)[reader].encode));
        sum += part;
      }
      return sum;
    };
    const ScaleSearch search{.shape = shape_, .site = site.site, .input_rms = rms, .stored = args_.stored};
    const auto choice = search_scales(layer_, search, loss);
    if (!choice)
      return Error(choice.error())
          .with_context(fmt::format("layer {}: scales for the {}", args_.index, block_point_name(site.input)));
    if (!args_.moments.contains(site.input)) {
      moments_.erase(site.input);
    } else if (choice->rule >= 0) {
      moments.scale(input_factors(before, layer_, shape_, site.site));
    }
    return {};
  }

  Result<Fp8KvScales> fp8_scales() {
    AttentionStats stats(shape_, layer_, args_.config->rms_norm_eps);
    std::vector<double> value_max(static_cast<size_t>(shape_.kv_heads * shape_.head_dim));
    const auto look = [&](int64_t, ConstTensorView values) -> Status {
      const auto columns = static_cast<int64_t>(value_max.size());
      const ConstTensorView v = values.slice_cols(values.cols() - columns, columns);
      for (int64_t t = 0; t < values.rows(); ++t)
        for (int64_t c = 0; c < columns; ++c) {
          double& most = value_max[static_cast<size_t>(c)];
          most = std::max(most, std::fabs(double{v.row<float>(t)[c]}));
        }
      return stats.observe(values, args_.stream->cos_sin(), &args_.compute->pool());
    };
    const WindowObserver observer(look);
    HEARTH_TRY(
        args_.stream->run({.layer = &layer_, .index = args_.index, .qkv = &observer, .until = BlockPoint::kQkv}));
    // Of every head, or of all of them.
    const auto scales = [&](const std::vector<double>& channel_max) {
      std::vector<float> result;
      const size_t width = options_.kv_scale_per_head ? static_cast<size_t>(shape_.head_dim) : channel_max.size();
      for (size_t at = 0; at < channel_max.size(); at += width) {
        const double largest = std::ranges::max(std::span(channel_max).subspan(at, width));
        result.push_back(static_cast<float>(largest > 0 ? largest / kFp8Largest : 1));
      }
      return result;
    };
    return Fp8KvScales{scales(stats.key_max()), scales(value_max)};
  }

  LayerTensors& layer_;
  const PrepareArgs& args_;
  const QuantizeOptions& options_;
  const HeadShape shape_;
  InputMoments moments_;
  std::optional<AttentionStats> stats_;
};

}  // namespace

bool scales_inputs(const QuantizeOptions& options) {
  if (options.awq) return *options.awq;
  return options.to != "fp8" && (options.method == "auto" || options.method == "gptq");
}

bool prepare_needs_calibration(const QuantizeOptions& options) {
  return searches_kv(options) || options.kv == KvFormatId::kFp8 || options.awq.value_or(false);
}

Result<PreparedLayer> prepare_layer(LayerTensors& layer, const PrepareArgs& args) {
  return Preparer(layer, args).run();
}

}  // namespace hearth
