// SPDX-License-Identifier: Apache-2.0
// A load played through the real engine on a VirtualDevice: what comes of it is told as the simulator tells it, so that
// the two can be compared number by number. Equal inputs give equal outcomes.
#pragma once

#include <span>

#include "hearth/engine/engine.h"
#include "hearth/simulate/simulator.h"

namespace hearth::virtual_time {

struct PlayOptions {
  std::string schedule = "slo";  // the engine's
  bool static_parts = false;     // each model its own part of the pool
  bool reject_hopeless = false;
  double drain_seconds = 120;  // what has not ended so long after the last arrival is lost
  // Prompts are random, so that nothing is found in the prefix cache but by who was preempted.
  bool prefix_cache = true;
};

// One answer, times in ns since the beginning; -1: it did not come to it.
struct PlayedAnswer {
  int64_t first_ns = -1, last_ns = -1, tokens = 0;
  bool rejected = false;  // larger than the memory, or hopeless

  bool operator==(const PlayedAnswer&) const = default;
};

struct PlayedStep {
  int64_t model = 0, end_ns = 0;
  StepFeatures features;
};

struct PlayOutcome {
  SimulationOutcome told;             // without what is about memory over time
  std::vector<PlayedAnswer> answers;  // by request
  std::vector<PlayedStep> steps;
  std::vector<SloCounts> counted;  // by model: what the engine has counted itself
};

// `requests` by arrival. Errors of the engine.
Result<PlayOutcome> play(const Load& load, std::span<const LoadRequest> requests, const PlayOptions& options);

}  // namespace hearth::virtual_time
