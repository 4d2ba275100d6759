// SPDX-License-Identifier: Apache-2.0
// A real run over time as an SVG, in the form of a simulation's: requests in flight, tokens per second, attainment, by
// model, as clients see them. Pure functions.
#pragma once

#include <span>
#include <string>

#include "hearth/client/load.h"
#include "hearth/schedule/slo.h"

namespace hearth {

// `names` and `slos` by model; without targets the last panel stays away.
std::string run_svg(const LoadResult& result, std::span<const std::string> names, std::span<const Slo> slos,
                    const std::string& title);

}  // namespace hearth
