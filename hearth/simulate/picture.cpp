// SPDX-License-Identifier: Apache-2.0
// Three panels above each other, all over seconds.
#include "hearth/simulate/picture.h"

#include <algorithm>
#include <functional>
#include <numeric>

namespace hearth {
namespace {

constexpr double kWidth = 900, kLeft = 70, kRight = 180, kTop = 40, kPanel = 150, kGap = 45;
constexpr const char* kColors[] = {"#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb"};

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '&' ? "&amp;" : std::string(1, c);
  return out;
}

class Panel {
 public:
  Panel(std::string& svg, int row, double seconds, double most, const std::string& title)
      : svg_(svg), top_(kTop + row * (kPanel + kGap)), seconds_(seconds), most_(most) {
    svg_ += fmt::format("<text x='{}' y='{:.0f}'>{}</text>\n", kLeft, top_ - 8, escaped(title));
    for (int i = 0; i <= 4; ++i) {
      const double value = most * i / 4;
      svg_ += fmt::format(
          "<line x1='{0}' x2='{1}' y1='{2:.1f}' y2='{2:.1f}' stroke='#ddd'/>"
          "<text x='{3}' y='{4:.1f}' text-anchor='end'>{5:.4g}</text>\n",
          kLeft, kWidth - kRight, y(value), kLeft - 6, y(value) + 4, value);
    }
  }
  double x(double at_s) const { return kLeft + at_s / seconds_ * (kWidth - kLeft - kRight); }
  double y(double value) const { return top_ + kPanel * (1 - std::min(value / most_, 1.0)); }

  // Between two lines over the samples.
  void area(std::span<const double> at_s, std::span<const double> low, std::span<const double> high,
            const char* color) {
    svg_ += fmt::format("<path fill='{}' stroke='none' d='M", color);
    for (size_t i = 0; i < at_s.size(); ++i) svg_ += fmt::format("{:.1f},{:.1f} ", x(at_s[i]), y(high[i]));
    for (size_t i = at_s.size(); i-- > 0;) svg_ += fmt::format("{:.1f},{:.1f} ", x(at_s[i]), y(low[i]));
    svg_ += "Z'/>\n";
  }
  void line(std::span<const double> at_s, std::span<const double> values, const char* color) {
    svg_ += fmt::format("<path fill='none' stroke='{}' stroke-width='1.5' d='M", color);
    for (size_t i = 0; i < at_s.size(); ++i) svg_ += fmt::format("{:.1f},{:.1f} ", x(at_s[i]), y(values[i]));
    svg_ += "'/>\n";
  }
  void seconds() {
    for (int i = 0; i <= 6; ++i)
      svg_ += fmt::format("<text x='{:.1f}' y='{:.1f}' text-anchor='middle'>{:.4g}{}</text>\n", x(seconds_ * i / 6),
                          top_ + kPanel + 18, seconds_ * i / 6, i == 6 ? " s" : "");
  }

 private:
  std::string& svg_;
  double top_, seconds_, most_;
};

}  // namespace

std::string simulation_svg(const Load& load, const SimulationOutcome& outcome, const std::string& title) {
  const double height = kTop + 3 * (kPanel + kGap);
  std::string svg = fmt::format(
      "<svg xmlns='http://www.w3.org/2000/svg' width='{0}' height='{1}' viewBox='0 0 {0} {1}' "
      "font-family='sans-serif' font-size='12'>\n<rect width='100%' height='100%' fill='white'/>\n"
      "<text x='{2}' y='16' font-size='14'>{3}</text>\n",
      kWidth, height, kLeft, escaped(title));
  // At most 600 points: more than that a screen does not show.
  const auto& samples = outcome.samples;
  const size_t stride = std::max<size_t>(1, samples.size() / 600);
  std::vector<double> at_s, low, high, waiting, attained;
  for (size_t i = 0; i < samples.size(); i += stride) at_s.push_back(samples[i].at_s);
  low.assign(at_s.size(), 0);
  Panel memory(svg, 0, load.seconds, 1, "written KV, part of the pool");
  for (size_t m = 0; m < load.models.size(); ++m) {
    const char* const color = kColors[m % std::size(kColors)];
    high = low;
    for (size_t i = 0; i < at_s.size(); ++i)
      high[i] += samples[i * stride].written_bytes[m] / static_cast<double>(load.pool_bytes);
    memory.area(at_s, low, high, color);
    low = high;
    const double y = kTop + 16 * static_cast<double>(m) + 8;
    svg += fmt::format("<rect x='{}' y='{}' width='10' height='10' fill='{}'/><text x='{}' y='{}'>{}</text>\n",
                       kWidth - kRight + 12, y - 9, color, kWidth - kRight + 28, y, escaped(load.models[m].name));
  }
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
  const double most = waiting.empty() ? 1 : std::max(4.0, std::ranges::max(waiting));
  Panel(svg, 1, load.seconds, most, "requests that wait").line(at_s, waiting, "#333");
  Panel bottom(svg, 2, load.seconds, 1, "attained, of the requests that ended");
  bottom.line(at_s, attained, "#333");
  bottom.seconds();
  return svg + "</svg>\n";
}

}  // namespace hearth
