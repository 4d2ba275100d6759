// SPDX-License-Identifier: Apache-2.0
#include "hearth/base/random.h"

#include <cmath>
#include <numbers>

namespace hearth {

float Random::normal() {
  const float radius = std::sqrt(-2.0f * std::log(1.0f - uniform()));
  return radius * std::cos(2.0f * std::numbers::pi_v<float> * uniform());
}

}  // namespace hearth
