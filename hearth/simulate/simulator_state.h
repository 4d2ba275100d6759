// SPDX-License-Identifier: Apache-2.0
// What the simulator holds: its sequences, models, and steps under way.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "hearth/schedule/cost_model.h"
#include "hearth/schedule/fair_share.h"
#include "hearth/schedule/step_policy.h"
#include "hearth/simulate/load.h"
#include "hearth/simulate/memory.h"
#include "hearth/simulate/simulator.h"

namespace hearth::simulated {

struct Sequence {
  LoadRequest request;
  int64_t fed = 0;               // tokens, those of steps under way included
  int64_t planned = 0, out = 0;  // outputs: those of steps under way included, and those that have come
  int64_t in_flight = 0;         // steps
  bool running = false, late = false;
  bool gives_way = false;  // to another model, as soon as it is in no step
  int64_t first_us = -1, last_us = -1;
  std::optional<int64_t> swapped_at;  // of a waiting one: its KV of `fed` tokens lies there
  std::vector<KvBlock> blocks;

  int64_t known() const { return request.input_tokens + planned; }
  int64_t pending() const { return planned < request.output_tokens ? known() - fed : 0; }
};
using Owned = std::unique_ptr<Sequence>;

// A step that was launched.
struct Flight {
  struct Fed {
    Sequence* sequence = nullptr;
    int64_t tokens = 0;
    bool brings_output = false;
  };
  int64_t model = 0;
  int64_t begin_us = 0, end_us = 0;
  double predicted_us = 0, true_us = 0, copies_us = 0;
  StepLoad work;
  std::vector<Fed> feeds;
};

struct Model {
  SimulatedMemory::Place kv;
  std::vector<Owned> running;       // by arrival
  std::deque<Owned> waiting, late;  // by arrival; late: hopeless
  StepCostModel cost;
  int64_t last_turn = 0, written_tokens = 0;
  FairShare share;
  bool skip = false;
  std::vector<double> ttft_s;
  std::vector<PolicySequence> views;
  std::vector<Sequence*> seen;  // by view

  int64_t queued() const { return std::ssize(waiting) + std::ssize(late); }
};

// Who has not ended, and times to first tokens; those that came before the warm-up's end do not count as lost.
void tell_rest(Model& model, int64_t warm_us, ModelOutcome& outcome);

}  // namespace hearth::simulated
