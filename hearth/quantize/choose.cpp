// SPDX-License-Identifier: Apache-2.0
#include "hearth/quantize/choose.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace hearth {
namespace {

// Squared distance of a block's outputs from reference ones, and the references' squared length.
struct Distance {
  double error = 0;
  double norm = 0;
};

class Measurer {
 public:
  explicit Measurer(const MeasureArgs& args) : args_(args), config_(*args.config), set_(*args.set) {
    if (set_.windows.size() > kMeasuredWindows) set_.windows.resize(kMeasuredWindows);
  }

  Result<std::vector<LinearCosts>> run() {
    HEARTH_TRY_ASSIGN(ActivationStream stream,
                      ActivationStream::create(*args_.checkpoint, config_, set_, *args_.pool, *args_.ops));
    stream_ = &stream;
    std::vector<LinearCosts> all;
    for (int64_t index = 0; index < config_.layers; ++index) {
      if (args_.next) HEARTH_TRY(args_.next(index));
      HEARTH_TRY_ASSIGN(LayerTensors layer, read_layer(*args_.checkpoint, config_, index));
      HEARTH_TRY(keep_reference(layer, index));
      for (const LayerTensors::Named& named : LayerTensors::linears()) {
        HEARTH_TRY_ASSIGN(LinearCosts costs, measure(layer, index, named));
        all.push_back(std::move(costs));
      }
      HEARTH_TRY(stream.run({.layer = &layer, .index = index}));
    }
    return all;
  }

 private:
  Status keep_reference(const LayerTensors& layer, int64_t index) {
    reference_.clear();
    const auto keep = [&](int64_t, ConstTensorView out) -> Status {
      const std::span<const float> values(static_cast<const float*>(out.data), static_cast<size_t>(out.shape.count()));
      reference_.emplace_back(values.begin(), values.end());
      return {};
    };
    const WindowObserver observer(keep);
    return stream_->run({.layer = &layer, .index = index, .output = &observer});
  }

  Result<LinearCosts> measure(LayerTensors& layer, int64_t index, const LayerTensors::Named& named) {
    LayerLinear& linear = layer.*named.linear;
    LinearCosts out{
        .module = fmt::format("model.layers.{}.{}", index, named.name), .weights = linear.n * linear.k, .costs = {}};
    const TensorEntry* entry = args_.checkpoint->find(out.module + ".weight");
    const DType source = entry != nullptr ? entry->dtype : DType::kBf16;
    const std::vector<float> plain = linear.w;
    for (const std::string& format : args_.options->candidates) {
      QuantizeOptions options = *args_.options;
      options.to = format;
      options.rules.clear();
      const ModuleRecipe recipe = recipe_for(options, out.module, linear.n, linear.k, source);
      if (recipe.plain()) {
        if (format == recipe.format) out.costs.push_back({format, dtype_bytes(source, out.weights), 0});
        continue;
      }
      EncodeOptions encoding = recipe.encode;
      encoding.method = EncodeMethod::kNearest;
      HEARTH_TRY_ASSIGN(const QuantizedMatrix matrix,
                        encode(plain, linear.n, linear.k, nullptr, encoding, *args_.compute).with_context(out.module));
      for (int64_t row = 0; row < linear.n; ++row) matrix.dequantize_row(row, linear.row(row));
      HEARTH_TRY_ASSIGN(const Distance distance, distance_of(layer, index));
      linear.w = plain;
      out.costs.push_back({format, matrix.format.stored_bytes(linear.n, linear.k),
                           distance.norm > 0 ? distance.error / distance.norm : 0});
    }
    return out;
  }

  Result<Distance> distance_of(const LayerTensors& layer, int64_t index) {
    Distance distance;
    const auto add = [&](int64_t window, ConstTensorView out) -> Status {
      const std::vector<float>& wanted = reference_[static_cast<size_t>(window)];
      const float* found = static_cast<const float*>(out.data);
      for (size_t i = 0; i < wanted.size(); ++i) {
        const double off = double{found[i]} - double{wanted[i]};
        distance.error += off * off;
        distance.norm += double{wanted[i]} * double{wanted[i]};
      }
      return {};
    };
    const WindowObserver observer(add);
    HEARTH_TRY(stream_->run({.layer = &layer, .index = index, .output = &observer}));
    return distance;
  }

  const MeasureArgs& args_;
  const ModelConfig& config_;
  CalibrationSet set_;
  ActivationStream* stream_ = nullptr;
  std::vector<std::vector<float>> reference_;  // by window, [length, hidden]
};

}  // namespace

Result<std::vector<FormatRule>> fit_formats(const std::vector<LinearCosts>& linears, double bits_per_weight) {
  std::vector<size_t> chosen(linears.size());
  double weights = 0, bytes = 0;
  for (size_t i = 0; i < linears.size(); ++i) {
    const std::vector<FormatCost>& costs = linears[i].costs;
    if (costs.empty()) return invalid_argument("{}: none of the formats to choose from suits it", linears[i].module);
    const auto least =
        std::ranges::min_element(costs, {}, [](const FormatCost& c) { return std::pair(c.bytes, c.error); });
    chosen[i] = static_cast<size_t>(least - costs.begin());
    weights += static_cast<double>(linears[i].weights);
    bytes += static_cast<double>(least->bytes);
  }
  const double budget = bits_per_weight * weights / 8;
  if (bytes > budget)
    return invalid_argument("--bits {}: the smallest of the formats take {:.4g} bits a weight", bits_per_weight,
                            8 * bytes / weights);
  while (true) {
    size_t linear = linears.size(), to = 0;
    double best = 0;
    for (size_t i = 0; i < linears.size(); ++i) {
      const FormatCost& now = linears[i].costs[chosen[i]];
      for (size_t c = 0; c < linears[i].costs.size(); ++c) {
        const FormatCost& other = linears[i].costs[c];
        const double more = static_cast<double>(other.bytes - now.bytes), gain = now.error - other.error;
        if (more <= 0 || bytes + more > budget || gain / more <= best) continue;
        best = gain / more;
        linear = i;
        to = c;
      }
    }
    if (linear == linears.size()) break;
    bytes += static_cast<double>(linears[linear].costs[to].bytes - linears[linear].costs[chosen[linear]].bytes);
    chosen[linear] = to;
  }
  std::vector<FormatRule> rules;
  for (size_t i = 0; i < linears.size(); ++i) rules.push_back({linears[i].module, linears[i].costs[chosen[i]].format});
  return rules;
}

Result<std::vector<FormatRule>> settled_formats(const nlohmann::ordered_json& settled, int64_t layers) {
  const std::vector<std::string> known = quantize_format_names();
  std::vector<FormatRule> rules;
  for (int64_t i = 0; i < layers; ++i) {
    for (const LayerTensors::Named& named : LayerTensors::linears()) {
      const std::string module = fmt::format("model.layers.{}.{}", i, named.name);
      const auto format = settled.is_object() ? settled.find(module) : settled.end();
      if (format == settled.end() || !format->is_string() ||
          std::ranges::find(known, format->get<std::string>()) == known.end())
        return corrupt("nothing that is a format was settled for {}; remove the folder to begin anew", module);
      rules.push_back({module, format->get<std::string>()});
    }
  }
  return rules;
}

Result<std::vector<LinearCosts>> measure_formats(const MeasureArgs& args) { return Measurer(args).run(); }

}  // namespace hearth
