// SPDX-License-Identifier: Apache-2.0
// The passes of a report: windows of a text through the reference and several models at once, so that the
// reference's logits are computed once, and items of LAMBADA through one model. What the state already has is not
// computed again. One owning thread; sums do not depend on threads, on what was skipped or on the models beside.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "hearth/base/clock.h"
#include "hearth/base/result.h"
#include "hearth/eval/control.h"
#include "hearth/eval/lambada.h"
#include "hearth/eval/report_state.h"
#include "hearth/model/runner.h"

namespace hearth {

// Raised when kernels, or the sums of score.h, give other numbers than before: old sums are then not mixed with new.
inline constexpr int64_t kEvalNumerics = 1;

// Everything that decides a model's logits: weights' fingerprint, activation type, KV format, op table, instruction
// set and kEvalNumerics. Equal keys, equal logits.
std::string logits_key(std::string_view weights_fingerprint, const Model& model, KvFormatId kv_format);

struct ReportModel {
  std::string name;    // for the state's notes and errors
  std::string logits;  // logits_key
  Runner* runner = nullptr;
};

// Where the sums of windows lie in the state. `ids` is ids_fingerprint of the whole text.
std::string window_key(const ReportModel& model, const ReportModel& reference, std::string_view ids, int64_t ctx);
// ... and the scores of items, whose ids are part of the key.
std::string item_key(const ReportModel& model, std::span<const LambadaItem> items);

// Scores every window that a model lacks. `models` may hold the reference itself as an entry with the same runner:
// its KL is exactly 0. Runners by eval_runner_options. Cancelled by control.stop: what was done is kept.
// InvalidArgument as perplexity() and kl_divergence().
Status score_windows(const ReportModel& reference, std::span<const ReportModel> models, std::span<const int32_t> ids,
                     int64_t ctx, std::span<const int64_t> windows, ReportState& state,
                     const EvalControl& control = {});

// Scores every item of `chosen` that the model lacks, by lambada().
Status score_items(const ReportModel& model, std::span<const LambadaItem> items, std::span<const int64_t> chosen,
                   int64_t slots, ReportState& state, const EvalControl& control = {});

// What measure_speed runs: a prompt fed at once, and single tokens one after the other behind it.
struct SpeedTask {
  int64_t prompt_tokens = 512;
  int64_t decode_tokens = 32;
};
struct SpeedSample {
  double prefill_s = 0;  // for prompt_tokens
  double decode_s = 0;   // for decode_tokens
};
// One repetition in slot 0. The tokens fed do not depend on the model. InvalidArgument where the context is too small.
Result<SpeedSample> measure_speed(Runner& runner, const SpeedTask& task, const Clock& clock);

}  // namespace hearth
