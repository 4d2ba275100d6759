// SPDX-License-Identifier: Apache-2.0
#include "hearth/client/run_picture.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "hearth/client/judge.h"
#include "hearth/simulate/chart.h"

namespace hearth {
namespace {

constexpr double kLeastBinS = 1;
constexpr int64_t kRateBins = 150, kJudgedBins = 60;  // tokens come by hundreds a second, ended answers do not

// The time of a run in equal parts, each with one value.
struct Bins {
  double width_s;
  size_t count;

  static Bins of(double seconds, int64_t most) {
    const int64_t count = std::clamp(static_cast<int64_t>(seconds / kLeastBinS), int64_t{1}, most);
    return {seconds / static_cast<double>(count), static_cast<size_t>(count)};
  }
  size_t at(double at_s) const { return std::min(count - 1, static_cast<size_t>(std::max(0.0, at_s) / width_s)); }

  // As steps: two points for each bin, its begin and its end.
  std::vector<double> step_times() const {
    std::vector<double> at_s;
    for (size_t i = 0; i < count; ++i) {
      at_s.push_back(static_cast<double>(i) * width_s);
      at_s.push_back(static_cast<double>(i + 1) * width_s);
    }
    return at_s;
  }
  static std::vector<double> step_values(const std::vector<double>& values) {
    std::vector<double> steps;
    for (const double value : values) steps.insert(steps.end(), 2, value);
    return steps;
  }
};

// One above the other, by model.
void draw_stack(Chart& chart, const std::vector<double>& at_s, const std::vector<std::vector<double>>& values,
                const std::string& title) {
  std::vector<std::vector<double>> tops = {std::vector<double>(at_s.size(), 0)};
  double most = 4;
  for (const std::vector<double>& layer : values) {
    std::vector<double> top = tops.back();
    for (size_t i = 0; i < top.size(); ++i) most = std::max(most, top[i] += layer[i]);
    tops.push_back(std::move(top));
  }
  chart.panel(most, title);
  for (size_t m = 0; m < values.size(); ++m) chart.area(at_s, tops[m], tops[m + 1], chart_color(m));
}

// How many requests of each model are under way at each of the times, and behind the last.
std::vector<std::vector<double>> in_flight(const LoadResult& result, size_t models, const std::vector<double>& at_s) {
  std::vector<std::vector<double>> counts(models, std::vector<double>(at_s.size() + 1, 0));
  for (const RequestRecord& r : result.records) {
    if (r.outcome == RequestRecord::Outcome::kNotSent) continue;
    std::vector<double>& changes = counts[static_cast<size_t>(r.model)];
    changes[static_cast<size_t>(std::ranges::lower_bound(at_s, r.sent_s) - at_s.begin())] += 1;
    changes[static_cast<size_t>(std::ranges::lower_bound(at_s, r.end_s) - at_s.begin())] -= 1;
  }
  for (std::vector<double>& changes : counts)
    for (size_t i = 1; i < changes.size(); ++i) changes[i] += changes[i - 1];
  return counts;
}

std::vector<std::vector<double>> token_rates(const LoadResult& result, size_t models, const Bins& bins) {
  std::vector<std::vector<double>> rates(models, std::vector<double>(bins.count, 0));
  for (const RequestRecord& r : result.records) {
    std::vector<double>& rate = rates[static_cast<size_t>(r.model)];
    for_each_event(r, [&](double at_s, double tokens) { rate[bins.at(at_s)] += tokens / bins.width_s; });
  }
  for (std::vector<double>& rate : rates) rate = Bins::step_values(rate);
  return rates;
}

struct Judged {
  std::vector<double> kept, all;  // by bin
  explicit Judged(size_t bins) : kept(bins, 0), all(bins, 0) {}
  void add(size_t bin, const SloCounts& counts) {
    kept[bin] += static_cast<double>(counts.attained);
    all[bin] += static_cast<double>(counts.answers);
  }
  // Where nothing ended, what was seen last.
  std::vector<double> parts() const {
    std::vector<double> parts;
    for (size_t i = 0; i < all.size(); ++i)
      parts.push_back(all[i] > 0 ? kept[i] / all[i] : parts.empty() ? 1 : parts.back());
    return Bins::step_values(parts);
  }
};

void draw_attainment(Chart& chart, const LoadResult& result, std::span<const Slo> slos, double seconds) {
  const Bins bins = Bins::of(seconds, kJudgedBins);
  std::vector<Judged> by_model(slos.size(), Judged(bins.count));
  Judged all(bins.count);
  for (const RequestRecord& r : result.records) {
    const auto m = static_cast<size_t>(r.model);
    const SloCounts counts = judge(r, slos[m]);
    by_model[m].add(bins.at(r.end_s), counts);
    all.add(bins.at(r.end_s), counts);
  }
  const std::vector<double> at_s = bins.step_times();
  chart.panel(1, "attained, of the requests that ended; black: all models");
  for (size_t m = 0; m < slos.size(); ++m) chart.line(at_s, by_model[m].parts(), chart_color(m));
  chart.line(at_s, all.parts(), kChartInk);
}

}  // namespace

std::string run_svg(const LoadResult& result, std::span<const std::string> names, std::span<const Slo> slos,
                    const std::string& title) {
  const double seconds = std::max(1.0, result.seconds);
  const bool judged = std::ranges::any_of(slos, [](const Slo& s) { return s.ttft_us > 0 || s.tpot_us > 0; });
  Chart chart(judged ? 3 : 2, seconds, title);
  std::vector<double> at_s;
  for (int64_t i = 1; i <= kChartPoints; ++i)
    at_s.push_back(seconds * static_cast<double>(i) / static_cast<double>(kChartPoints));
  auto flying = in_flight(result, names.size(), at_s);
  for (std::vector<double>& counts : flying) counts.pop_back();  // what comes after the last point
  draw_stack(chart, at_s, flying, "requests in flight");
  chart.legend(names);
  const Bins bins = Bins::of(seconds, kRateBins);
  draw_stack(chart, bins.step_times(), token_rates(result, names.size(), bins), "output tokens per second");
  if (judged) draw_attainment(chart, result, slos, seconds);
  return chart.svg();
}

}  // namespace hearth
