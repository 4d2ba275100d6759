// SPDX-License-Identifier: Apache-2.0
#include "hearth/kernels/linear/act_quantize.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace hearth {

float act_scale_of(float max_magnitude, float largest_code) {
  if (!(max_magnitude <= std::numeric_limits<float>::max())) return std::numeric_limits<float>::quiet_NaN();
  const float scale = max_magnitude / largest_code;
  return scale < std::numeric_limits<float>::min() ? 1.0f : scale;
}

float quantize_act(ActFormat act, std::span<float> x) {
  float largest = 0;
  for (const float v : x)
    if (!(std::abs(v) <= largest)) largest = std::isnan(largest) ? largest : std::abs(v);  // NaN stays
  const bool is_e4m3 = act == ActFormat::kE4m3PerToken;
  const float scale = act_scale_of(largest, is_e4m3 ? 448.0f : 127.0f);
  for (float& v : x) {
    if (std::isnan(scale)) {
      v = 0;
    } else if (is_e4m3) {
      v = e4m3::from_float(v / scale).to_float();
    } else {
      v = std::clamp(std::nearbyint(v / scale), -127.0f, 127.0f);
    }
  }
  return scale;
}

void round_row(const RoundedRows& to, int64_t row, FunctionRef<float(int64_t)> x) {
  float scale = 0;
  if (to.static_scale) {
    scale = *to.static_scale.row<float>(0);
  } else {
    float largest = 0;
    for (int64_t i = 0; i < to.codes.cols(); ++i)
      if (const float v = std::abs(x(i)); !(v <= largest)) largest = std::isnan(largest) ? largest : v;
    scale = act_scale_of(largest, 448.0f);
  }
  to.scales.row<float>(0)[row] = scale;
  for (int64_t i = 0; i < to.codes.cols(); ++i)
    to.codes.row<e4m3>(row)[i] = std::isnan(scale) ? e4m3() : e4m3::from_float(x(i) / scale);
}

void quantize_act_static(float scale, std::span<float> x) {
  for (float& v : x) v = e4m3::from_float(v / scale).to_float();
}

}  // namespace hearth
