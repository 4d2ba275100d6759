// SPDX-License-Identifier: Apache-2.0
#include "hearth/simulate/picture.h"

#include <algorithm>
#include <numeric>

#include "hearth/simulate/chart.h"

namespace hearth {

std::string simulation_svg(const Load& load, const SimulationOutcome& outcome, const std::string& title) {
  Chart chart(3, load.seconds, title);
  const auto& samples = outcome.samples;
  const size_t stride = std::max<size_t>(1, samples.size() / kChartPoints);
  std::vector<double> at_s, low, high, waiting, attained;
  for (size_t i = 0; i < samples.size(); i += stride) at_s.push_back(samples[i].at_s);
  low.assign(at_s.size(), 0);
  chart.panel(1, "written KV, part of the pool");
  std::vector<std::string> names;
  for (size_t m = 0; m < load.models.size(); ++m) {
    high = low;
    for (size_t i = 0; i < at_s.size(); ++i)
      high[i] += samples[i * stride].written_bytes[m] / static_cast<double>(load.pool_bytes);
    chart.area(at_s, low, high, chart_color(m));
    low = high;
    names.push_back(load.models[m].name);
  }
  chart.legend(names);
  for (size_t i = 0; i < at_s.size(); ++i) {
    const Sample& first = samples[i * stride];
    waiting.push_back(static_cast<double>(std::accumulate(first.waiting.begin(), first.waiting.end(), int64_t{0})));
    int64_t kept = 0, ended = 0;
    for (size_t k = i * stride; k < std::min((i + 1) * stride, samples.size()); ++k) {
      kept += samples[k].attained;
      ended += samples[k].ended;
    }
    const double last = attained.empty() ? 1 : attained.back();
    attained.push_back(ended == 0 ? last : static_cast<double>(kept) / static_cast<double>(ended));
  }
  chart.panel(waiting.empty() ? 1 : std::max(4.0, std::ranges::max(waiting)), "requests that wait");
  chart.line(at_s, waiting, kChartInk);
  chart.panel(1, "attained, of the requests that ended");
  chart.line(at_s, attained, kChartInk);
  return chart.svg();
}

}  // namespace hearth
