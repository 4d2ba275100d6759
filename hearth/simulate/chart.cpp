// SPDX-License-Identifier: Apache-2.0
#include "hearth/simulate/chart.h"

#include <algorithm>
#include <cmath>

#include "hearth/base/check.h"

namespace hearth {
namespace {

constexpr double kWidth = 900, kLeft = 70, kRight = 180, kTop = 40, kPanel = 150, kGap = 45;
constexpr const char* kColors[] = {"#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb"};

double top_of(int panel) { return kTop + panel * (kPanel + kGap); }

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '&' ? "&amp;" : std::string(1, c);
  return out;
}

// Of an axis that ends at `most`: 1, 2 or 5 times a power of ten, so that there are at most `marks` of them.
double step_between_marks(double most, int marks) {
  const double least = most / marks, power = std::pow(10, std::floor(std::log10(least)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (factor * power >= least) return factor * power;
  return 10 * power;
}

}  // namespace

const char* chart_color(size_t series) { return kColors[series % std::size(kColors)]; }

Chart::Chart(int panels, double seconds, const std::string& title) : panels_(panels), seconds_(seconds) {
  HEARTH_CHECK(panels >= 1 && seconds > 0, "a chart of {} panels over {} s", panels, seconds);
  svg_ = fmt::format(
      "<svg xmlns='http://www.w3.org/2000/svg' width='{0}' height='{1}' viewBox='0 0 {0} {1}' "
      "font-family='sans-serif' font-size='12'>\n<rect width='100%' height='100%' fill='white'/>\n"
      "<text x='{2}' y='16' font-size='14'>{3}</text>\n",
      kWidth, top_of(panels), kLeft, escaped(title));
}

double Chart::x(double at_s) const { return kLeft + at_s / seconds_ * (kWidth - kLeft - kRight); }
double Chart::y(double value) const { return top_of(panel_) + kPanel * (1 - std::min(value / most_, 1.0)); }

void Chart::panel(double most, const std::string& title) {
  HEARTH_CHECK(most > 0, "an axis from 0 to {}", most);
  ++panel_;
  most_ = most;
  svg_ += fmt::format("<text x='{}' y='{:.0f}'>{}</text>\n", kLeft, top_of(panel_) - 8, escaped(title));
  const double step = step_between_marks(most, 5);
  for (int i = 0; i * step <= most * (1 + 1e-9); ++i) {
    const double value = i * step;
    svg_ += fmt::format(
        "<line x1='{0}' x2='{1}' y1='{2:.1f}' y2='{2:.1f}' stroke='#ddd'/>"
        "<text x='{3}' y='{4:.1f}' text-anchor='end'>{5:.4g}</text>\n",
        kLeft, kWidth - kRight, y(value), kLeft - 6, y(value) + 4, value);
  }
}

void Chart::area(std::span<const double> at_s, std::span<const double> low, std::span<const double> high,
                 const char* color) {
  svg_ += fmt::format("<path fill='{}' stroke='none' d='M", color);
  for (size_t i = 0; i < at_s.size(); ++i) svg_ += fmt::format("{:.1f},{:.1f} ", x(at_s[i]), y(high[i]));
  for (size_t i = at_s.size(); i-- > 0;) svg_ += fmt::format("{:.1f},{:.1f} ", x(at_s[i]), y(low[i]));
  svg_ += "Z'/>\n";
}

void Chart::line(std::span<const double> at_s, std::span<const double> values, const char* color) {
  svg_ += fmt::format("<path fill='none' stroke='{}' stroke-width='1.5' d='M", color);
  for (size_t i = 0; i < at_s.size(); ++i) svg_ += fmt::format("{:.1f},{:.1f} ", x(at_s[i]), y(values[i]));
  svg_ += "'/>\n";
}

void Chart::legend(std::span<const std::string> names) {
  for (size_t i = 0; i < names.size(); ++i) {
    const double at = kTop + 16 * static_cast<double>(i) + 8;
    svg_ += fmt::format("<rect x='{}' y='{}' width='10' height='10' fill='{}'/><text x='{}' y='{}'>{}</text>\n",
                        kWidth - kRight + 12, at - 9, chart_color(i), kWidth - kRight + 28, at, escaped(names[i]));
  }
}

std::string Chart::svg() const {
  HEARTH_CHECK(panel_ + 1 == panels_, "{} panels of {}", panel_ + 1, panels_);
  std::string out = svg_;
  const double step = step_between_marks(seconds_, 8);
  for (int i = 0; i * step <= seconds_ * (1 + 1e-9); ++i)
    out += fmt::format("<text x='{:.1f}' y='{:.1f}' text-anchor='middle'>{:.4g} s</text>\n", x(i * step),
                       top_of(panel_) + kPanel + 18, i * step);
  return out + "</svg>\n";
}

}  // namespace hearth
