// SPDX-License-Identifier: Apache-2.0
// The plan of a load of several models: the very requests that hearth simulate plays (draw_requests()), as bodies for a
// server. Prompts are token ids drawn from the load's seed, so that each has its length to the token. Pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "hearth/client/load_plan.h"
#include "hearth/simulate/load.h"

namespace hearth {

// What is known of a model of the load at the server.
struct MixedModel {
  int64_t max_context = 0;         // tokens; 0: not known
  std::vector<int32_t> token_ids;  // that its prompts are drawn from. REQUIRES: not empty
};

struct MixedPlanSettings {
  std::vector<MixedModel> models;  // REQUIRES: one for each of the load's
  bool ignore_eos = true;
  bool send_targets = true;  // the load's SLOs go with the requests
  std::optional<double> temperature;
  std::string extra_body;  // as LoadPlanSettings::extra_body
};

// Its requests' models are the load's. InvalidArgument: two models of one name, no request at all, or some that are longer than their model's
// context.
Result<LoadPlan> make_mixed_plan(const Load& load, MixedPlanSettings settings);

}  // namespace hearth
