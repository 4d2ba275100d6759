// SPDX-License-Identifier: Apache-2.0
#include "hearth/base/random.h"

#include <cmath>
#include <numbers>

namespace hearth {
namespace {

// Uniform in (0, 1]: its logarithm is finite.
double open_uniform(Random& random) { return (static_cast<double>(random.next_u64() >> 11) + 1) * 0x1p-53; }

double standard_normal(Random& random) {
  const double radius = std::sqrt(-2 * std::log(open_uniform(random)));
  return radius * std::cos(2 * M_PI * open_uniform(random));
}

}  // namespace

float Random::normal() {
  const float radius = std::sqrt(-2.0f * std::log(1.0f - uniform()));
  return radius * std::cos(2.0f * std::numbers::pi_v<float> * uniform());
}

// Shapes below 1 by their relation to shape + 1.
double gamma(double shape, Random& random) {
  if (shape == 1) return -std::log(open_uniform(random));
  if (shape < 1) {
    const double larger = gamma(shape + 1, random);
    return larger * std::pow(open_uniform(random), 1 / shape);
  }
  const double d = shape - 1.0 / 3, c = 1 / std::sqrt(9 * d);
  for (;;) {
    const double x = standard_normal(random);
    const double root = 1 + c * x;
    if (root <= 0) continue;
    const double v = root * root * root;
    if (std::log(open_uniform(random)) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v;
  }
}

}  // namespace hearth
