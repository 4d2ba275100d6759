// SPDX-License-Identifier: Apache-2.0
// What the engine tells of itself, for metrics, traces and the cost model.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "hearth/engine/request.h"

namespace hearth {

// What decides how long a step takes.
struct StepFeatures {
  int64_t tokens = 0;          // fed
  int64_t prefill_tokens = 0;  // of those, of prompts
  int64_t sequences = 0;
  int64_t context_tokens = 0;  // sum over sequences of what each has in the KV cache after the step
  int64_t prefill_pairs = 0;   // sum over prefill_tokens of the context that each attends to
  int64_t logit_rows = 0;
};

struct StepRecord {
  std::string_view model;
  int64_t step = 0;  // counts all steps of the engine
  StepFeatures features;
  int64_t predicted_us = 0;  // by the cost model, from the steps before; 0: none yet
  int64_t measured_us = 0;
  int64_t generated_tokens = 0;          // of the step that count
  int64_t preemptions = 0;               // since the last record
  std::span<const float> ttft_s;         // of the choices whose first token this step brought
  std::span<const float> inter_token_s;  // of the others: since the token before
};

// One finished choice.
struct ChoiceRecord {
  std::string_view model;
  std::string_view request;
  FinishReason reason = FinishReason::kStop;
  int64_t prompt_tokens = 0;
  int64_t shared_prompt_tokens = 0;
  int64_t generated_tokens = 0;
  int64_t max_tokens = 0;
  int32_t n = 1;
  // Seconds since the submission; negative where it did not come to it.
  double admitted_s = -1;
  double first_token_s = -1;
  double finished_s = 0;
};

// Called by one engine thread at a time; must be quick and must not throw.
class EngineObserver {
 public:
  virtual ~EngineObserver() = default;
  virtual void on_step(const StepRecord& record) = 0;
  virtual void on_choice(const ChoiceRecord& record) = 0;
};

}  // namespace hearth
