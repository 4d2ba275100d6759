// SPDX-License-Identifier: Apache-2.0
// The plan of a load test out of its settings: every request's time, lengths and body, fixed before it starts. Bodies
// are written when they are sent, from the seed, so that a long plan takes little memory. Pure functions.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/client/workload.h"

namespace hearth {

enum class Dataset { kRandom, kTrace, kPrompts };

struct LoadPlanSettings {
  Dataset dataset = Dataset::kRandom;
  std::string file_text;  // of the trace or the prompts
  std::optional<int64_t> num_prompts;
  double request_rate = std::numeric_limits<double>::infinity();  // a second; not used where a trace has times
  double burstiness = 1;
  uint64_t seed = 0;
  int64_t input_len = 1024, output_len = 128;  // of random requests; output_len also of prompts that say none
  double range_ratio = 0;
  double trace_scale = 1;                         // times of a trace are multiplied by it
  int64_t max_input_len = 0, max_output_len = 0;  // caps; 0: none
  int64_t max_context = 0;                        // of the model; 0: not known
  std::vector<int32_t> token_ids;                 // that prompts of /v1/completions are drawn from
  bool chat = false;                              // messages instead of ids
  std::string model;
  bool ignore_eos = true;
  std::optional<double> temperature;
  std::string extra_body;  // a JSON object whose fields every request gets; empty: none
};

struct LoadPlan {
  std::vector<PlannedRequest> requests;
  bool recorded_times = false;                         // those of a trace, not drawn
  std::function<std::string(size_t index)> make_body;  // any number of times, the same each time
};

inline constexpr int64_t kDefaultNumPrompts = 1000;

// Errors name the setting, or the line of the file.
Result<LoadPlan> make_load_plan(LoadPlanSettings settings);

}  // namespace hearth
