// SPDX-License-Identifier: Apache-2.0
// Panels above each other, all over the same seconds, as an SVG: what pictures of simulations and of real runs are
// drawn with.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace hearth {

// At most so many points a line: more than that a screen does not show.
inline constexpr int64_t kChartPoints = 600;

const char* chart_color(size_t series);
inline constexpr const char* kChartInk = "#333";  // of what is no series

class Chart {
 public:
  // REQUIRES: panels >= 1, seconds > 0.
  Chart(int panels, double seconds, const std::string& title);

  // The next panel below, with values from 0 to `most` > 0. What follows is drawn into it.
  void panel(double most, const std::string& title);
  // Between two lines over the same times.
  void area(std::span<const double> at_s, std::span<const double> low, std::span<const double> high, const char* color);
  void line(std::span<const double> at_s, std::span<const double> values, const char* color);

  // The names of the series, beside the first panel.
  void legend(std::span<const std::string> names);

  // The whole picture. REQUIRES: as many panels as announced.
  std::string svg() const;

 private:
  double x(double at_s) const;
  double y(double value) const;

  std::string svg_;
  const int panels_;
  const double seconds_;
  int panel_ = -1;
  double most_ = 1;
};

}  // namespace hearth
