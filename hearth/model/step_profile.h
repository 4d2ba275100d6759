// SPDX-License-Identifier: Apache-2.0
// Where the time of a step goes: its parts, each by itself, and the whole. For benchmarks; one thread, the owner of the
// step's buffers.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "hearth/base/clock.h"
#include "hearth/base/result.h"
#include "hearth/model/model.h"

namespace hearth {

// The kinds of calls that a step is made of, in its order.
enum class StepPart : uint8_t {
  kEmbedding,  // the tokens' rows, and the gathering of those whose logits are wanted
  kRopeTable,
  kNorm,
  kQkv,
  kRopeKvWrite,
  kAttention,
  kO,
  kGateUp,
  kSiluMul,
  kDown,
  kLmHead,
};
inline constexpr int kStepParts = 11;
std::string_view step_part_name(StepPart part);

struct StepPartTime {
  StepPart part = StepPart::kEmbedding;
  int64_t calls = 0;       // of the op, in a step
  std::vector<double> us;  // of all of them, one a round
};

struct StepProfile {
  std::vector<StepPartTime> parts;  // those that the step has calls of, in its order
  std::vector<double> step_us;      // all ops together
  std::vector<double> sample_us;    // the sampling of its rows; empty without rows
  bool recorded = false;            // the device replayed recordings and took the times
  bool samples_on_device = false;
};

struct ProfileArgs {
  const StepBatch* batch = nullptr;
  const KvView* kv = nullptr;
  std::span<const SampleRow> rows;  // of its logits, or none
  int64_t rounds = 20;
  const Clock* clock = nullptr;  // where the memory's queue has none of its own
};

// Runs the step, then all of its layers' calls of one kind alone, in the step's order and on its memory, with the
// model's own weights, and so on for each kind; a decode step padded as it is recorded. Repeats them, so that the
// buffers' values and the tokens' keys mean nothing afterwards. The kinds' times less the step's are what their
// overlapping gains, or what the gaps between them cost.
// Errors: those of forward_and_sample().
Result<StepProfile> profile_step(const Model& model, Comm& comm, ForwardBuffers& buffers, const ProfileArgs& args);

}  // namespace hearth
