// SPDX-License-Identifier: Apache-2.0
#include "hearth/model/rope_frequencies.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace hearth {
namespace {

// Low frequencies are divided by the factor, high ones kept, those between blended by wavelength.
float scale_llama3(float inv_freq, const RopeScaling& s) {
  const float original = static_cast<float>(s.original_max_position_embeddings);
  const float low = static_cast<float>(s.low_freq_factor), high = static_cast<float>(s.high_freq_factor);
  const float factor = static_cast<float>(s.factor);
  const float wavelength = 2.0f * std::numbers::pi_v<float> / inv_freq;
  if (wavelength > original / low) return inv_freq / factor;
  if (wavelength < original / high) return inv_freq;
  const float blend = (original / wavelength - low) / (high - low);
  return (1.0f - blend) * inv_freq / factor + blend * inv_freq;
}

// The channel whose wavelength makes `rotations` turns within the original context.
double yarn_channel(double rotations, const ModelConfig& config) {
  const double original = static_cast<double>(config.rope_scaling.original_max_position_embeddings);
  return static_cast<double>(config.head_dim) * std::log(original / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(config.rope_theta));
}

void scale_yarn(std::vector<float>& inv_freq, const ModelConfig& config) {
  const RopeScaling& s = config.rope_scaling;
  double low = yarn_channel(s.beta_fast, config), high = yarn_channel(s.beta_slow, config);
  if (s.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(config.head_dim - 1));
  if (low == high) high += 0.001;
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    const float ramp = static_cast<float>(std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0));
    inv_freq[i] = inv_freq[i] / static_cast<float>(s.factor) * ramp + inv_freq[i] * (1.0f - ramp);
  }
}

}  // namespace

std::vector<float> rope_inv_freq(const ModelConfig& config) {
  std::vector<float> inv_freq(static_cast<size_t>(config.head_dim / 2));
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(config.head_dim);
    inv_freq[i] = 1.0f / static_cast<float>(std::pow(config.rope_theta, static_cast<double>(exponent)));
  }
  const RopeScaling& s = config.rope_scaling;
  switch (s.type) {
    case RopeScaling::Type::kNone: break;
    case RopeScaling::Type::kLinear:
      for (float& f : inv_freq) f /= static_cast<float>(s.factor);
      break;
    case RopeScaling::Type::kLlama3:
      for (float& f : inv_freq) f = scale_llama3(f, s);
      break;
    case RopeScaling::Type::kYarn: scale_yarn(inv_freq, config); break;
  }
  return inv_freq;
}

}  // namespace hearth
