// SPDX-License-Identifier: Apache-2.0
// Steps that a server ran, as `hearth serve --step-log` writes them.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/schedule/fit_cost.h"

namespace hearth {

struct ModelSteps {
  std::string model;
  std::vector<StepObservation> steps;
};

// By model, in the order in which they first appear. NotFound: no such file; Corrupt, with the line: no object of JSON,
// or a field that is missing or no number; InvalidArgument: no step.
Result<std::vector<ModelSteps>> read_steps(const std::filesystem::path& path);

}  // namespace hearth
