// SPDX-License-Identifier: Apache-2.0
// A device under a virtual clock: the pools of hearth/kv, a local policy and choose_step() over requests that come when
// they come, on a machine whose steps take what the load says. No thread, no wall clock: equal inputs, equal outputs.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "hearth/simulate/load.h"

namespace hearth {

struct SimulatorOptions {
  std::string policy = "slo";   // make_local_policy()'s names
  std::string memory = "slab";  // SimulatedMemory's
  bool clairvoyant = false;     // the policy knows true costs and every answer's length
  bool reject_hopeless = false;
  double drain_seconds = 120;  // what has not ended so long after the last arrival is lost
  double sample_seconds = 1;   // between samples
};

struct ModelOutcome {
  int64_t requests = 0;  // that count: those that came after the warm-up
  int64_t attained = 0, first_on_time = 0, pace_kept = 0;
  int64_t rejected = 0;  // refused as hopeless, or larger than the memory
  int64_t unfinished = 0;
  int64_t recomputed = 0, swapped = 0;  // preemptions: what was computed was computed again, or copied out and back
  int64_t generated_tokens = 0, prompt_tokens = 0;  // within the time of arrivals
  double ttft_p50_s = 0, ttft_p99_s = 0;
};

struct Sample {
  double at_s = 0;
  std::vector<double> written_bytes;  // by model
  std::vector<int64_t> running, waiting;
  int64_t attained = 0, ended = 0;  // since the last sample
};

struct SimulationOutcome {
  std::vector<ModelOutcome> models;
  std::vector<Sample> samples;
  int64_t requests = 0;  // all that came
  int64_t steps = 0;
  double busy = 0;  // part of the time of arrivals that the device computed
  // Bytes of written tokens of admitted sequences over the pool's, over all steps between warm-up and last arrival.
  double memory_mean = 0, memory_worst = 1;
  double prediction_error = 0;  // mean |predicted - true| / true
  double moved_bytes_per_step = 0;

  double attainment() const;
  double tokens_per_second(const Load& load) const;  // generated
};

// InvalidArgument for names and sizes that make no sense; ResourceExhausted for pools.
Result<SimulationOutcome> simulate(const Load& load, std::span<const LoadRequest> requests,
                                   const SimulatorOptions& options);

}  // namespace hearth
