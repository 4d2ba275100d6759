// SPDX-License-Identifier: Apache-2.0
// Whose turn it is on a device: which model gets the next step, in which order its sequences are served and how many
// tokens the step may have. What then fits into memory is choose_step()'s. docs/design/schedule.md has the policies in
// formulas.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/schedule/cost_model.h"
#include "hearth/schedule/slo.h"
#include "hearth/schedule/step_policy.h"

namespace hearth {

// A model at one moment.
struct LocalModel {
  std::span<const PolicySequence> sequences;  // by (priority, arrival)
  PolicyLimits limits;
  StepCost cost;          // of its steps, as far as known; all 0: not known
  Slo slo;                // the model's own, for weighing its decodes
  int64_t last_turn = 0;  // number of the step that it had last
  double service = 0;     // FairShare::service: time used / weight
  bool skip = false;      // has no possible step at this moment
};

struct Hopeless {
  int64_t model = 0, sequence = 0;
  bool operator==(const Hopeless&) const = default;
};

struct Turn {
  int64_t model = -1;              // -1: none has anything to do
  std::vector<int64_t> order;      // of the model's sequences, the first served first; who is not in it waits
  int64_t tokens = 0;              // of the step, at most
  std::vector<Hopeless> hopeless;  // waiting sequences, of any model, whose first token will be late; told again
};

//   S1. The order names each sequence at most once.
//   S2. A running sequence that is ready is in the order of its model's turn.
//   S3. If a sequence of a model not to be skipped is ready, some model gets the turn.
//   S5. Pure: no clock, no random numbers.
class LocalPolicy {
 public:
  virtual ~LocalPolicy() = default;
  virtual Turn next(std::span<const LocalModel> models, int64_t now_us) const = 0;
};

// "fcfs", "slo", "fineserve"; InvalidArgument for others.
Result<std::unique_ptr<LocalPolicy>> make_local_policy(std::string_view name);

// A whole step for the model, first come, first served; -1: for none.
Turn fcfs_turn(std::span<const LocalModel> models, int64_t model);

// ---- for policies
// Of ready sequences that are not skipped, the model that waited longest for a turn; -1: none.
int64_t longest_without_turn(std::span<const LocalModel> models);
// The one that has used least by weight; of equals the one that waited longest.
int64_t least_served(std::span<const LocalModel> models);
bool has_ready(const LocalModel& model);
// A step of all of the model's ready decodes.
StepLoad decode_load(const LocalModel& model);
inline bool decodes(const PolicySequence& s) { return s.running && s.pending == 1 && s.first_out; }

}  // namespace hearth
