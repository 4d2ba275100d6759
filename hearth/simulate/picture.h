// SPDX-License-Identifier: Apache-2.0
// A simulation over time as an SVG: memory by model, requests that wait, attainment.
#pragma once

#include <string>

#include "hearth/simulate/simulator.h"

namespace hearth {

std::string simulation_svg(const Load& load, const SimulationOutcome& outcome, const std::string& title);

}  // namespace hearth
