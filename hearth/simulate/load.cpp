// SPDX-License-Identifier: Apache-2.0
#include "hearth/simulate/load.h"

#include <algorithm>
#include <cmath>

#include "hearth/base/random.h"

namespace hearth {
namespace {

enum Stream : uint64_t { kRates = 1, kModels = 16 };

double draw(Random& random) { return static_cast<double>(random.next_u64() >> 11) * 0x1p-53; }

int64_t draw_length(const LengthTable& table, const std::vector<double>& values, Random& random) {
  return std::max<int64_t>(1, std::llround(LengthTable::at(table.probability, values, draw(random))));
}

}  // namespace

double LengthTable::at(const std::vector<double>& probability, const std::vector<double>& value, double p) {
  const auto above = std::ranges::upper_bound(probability, p);
  const auto i = std::clamp<int64_t>(above - probability.begin(), 1, std::ssize(probability) - 1);
  const auto k = static_cast<size_t>(i);
  const double part = (p - probability[k - 1]) / (probability[k] - probability[k - 1]);
  return value[k - 1] + part * (value[k] - value[k - 1]);
}

std::vector<std::vector<double>> draw_rates(const Load& load) {
  std::vector<size_t> drawn;
  for (size_t i = 0; i < load.models.size(); ++i)
    if (load.models[i].trace.empty()) drawn.push_back(i);
  const size_t count = drawn.size();
  std::vector<double> parts(load.models.size(), 0);
  double sum = 0;
  for (size_t i = 0; i < count; ++i) {
    const double given = load.models[drawn[i]].popularity;
    sum += parts[drawn[i]] = given > 0 ? given : std::pow(static_cast<double>(i + 1), -load.alpha);
  }
  Random random(load.seed, kRates);
  const double period = load.shift_seconds > 0 ? load.shift_seconds : load.seconds;
  std::vector<std::vector<double>> rates;
  for (double begin = 0; begin < load.seconds; begin += period) {
    auto& now = rates.emplace_back(parts);
    for (const size_t m : drawn) now[m] *= load.rate * load.rate_scale / sum;
    if (begin == 0) continue;
    for (size_t i = count; i > 1; --i)
      std::swap(now[drawn[i - 1]], now[drawn[static_cast<size_t>(random.below(static_cast<int64_t>(i)))]]);
  }
  return rates;
}

std::vector<LoadRequest> draw_requests(const Load& load) {
  const std::vector<std::vector<double>> rates = draw_rates(load);
  const double period = load.shift_seconds > 0 ? load.shift_seconds : load.seconds;
  std::vector<LoadRequest> requests;
  for (size_t m = 0; m < load.models.size(); ++m) {
    const LoadModel& model = load.models[m];
    for (const TraceRequest& r : model.trace) {
      const double at_us = static_cast<double>(r.arrival_us) / load.rate_scale;
      if (at_us >= load.seconds * 1e6) break;
      requests.push_back({.arrival_us = std::llround(at_us),
                          .model = static_cast<int64_t>(m),
                          .input_tokens = r.input_tokens,
                          .output_tokens = r.output_tokens});
    }
    if (!model.trace.empty()) continue;
    Random random(load.seed, kModels + m);
    const double shape = 1 / (model.cv * model.cv);
    double now = 0;
    size_t k = 0;
    while (true) {
      // The gap is used up at the rate of each period that it reaches into.
      double gap = gamma(shape, random) / shape;
      while (k < rates.size()) {
        const double end = static_cast<double>(k + 1) * period;
        const double whole = (end - now) * rates[k][m];
        if (gap < whole) break;
        gap -= whole;
        now = end;
        ++k;
      }
      if (k >= rates.size()) break;
      now += gap / rates[k][m];
      if (now >= load.seconds) break;
      const int64_t input = draw_length(model.lengths, model.lengths.input_tokens, random);
      const int64_t output = draw_length(model.lengths, model.lengths.output_tokens, random);
      requests.push_back({.arrival_us = std::llround(now * 1e6),
                          .model = static_cast<int64_t>(m),
                          .input_tokens = input,
                          .output_tokens = output});
    }
  }
  for (LoadRequest& r : requests) {
    const LoadModel& model = load.models[static_cast<size_t>(r.model)];
    if (model.max_input_tokens > 0) r.input_tokens = std::min(r.input_tokens, model.max_input_tokens);
    if (model.max_output_tokens > 0) r.output_tokens = std::min(r.output_tokens, model.max_output_tokens);
  }
  std::ranges::stable_sort(requests, {}, &LoadRequest::arrival_us);
  return requests;
}

std::string trace_csv(const Load& load, std::span<const LoadRequest> requests) {
  std::string csv = "arrival_s,model,input_tokens,output_tokens\n";
  for (const LoadRequest& r : requests)
    csv += fmt::format("{:.6f},{},{},{}\n", static_cast<double>(r.arrival_us) * 1e-6,
                       load.models[static_cast<size_t>(r.model)].name, r.input_tokens, r.output_tokens);
  return csv;
}

}  // namespace hearth
