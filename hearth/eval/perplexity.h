// SPDX-License-Identifier: Apache-2.0
// Perplexity of a model on known ids, window by window (tokens.h has the rules).
#pragma once

#include <cstdint>
#include <span>

#include "hearth/base/result.h"
#include "hearth/eval/control.h"
#include "hearth/model/runner.h"

namespace hearth {

// Tokens of a step.
inline constexpr int64_t kEvalStepTokens = 512;

// A runner for evaluations over contexts of `ctx` tokens, one slot per sequence. Steps hold the logits of
// rows_per_step() tokens, or of windows_per_step() times as many where there are that many sequences.
RunnerOptions eval_runner_options(const Model& model, int64_t ctx, KvFormatId kv_format, int64_t sequences = 1);

struct PerplexityResult {
  double nll_per_token = 0;  // mean of -log p in nats
  double ppl = 0;            // exp of it
  int64_t tokens = 0;        // that were scored
  int64_t windows = 0;
};

// Scores windows [ctx * w, ctx * (w + 1)] of `ids` for every w of `windows`, in slot 0 of `runner`, made
// by eval_runner_options. Sums in f64, per window first. InvalidArgument for an id that the model does not have, a
// window beyond the ids, none at all, or a context that the runner lacks. Cancelled by control.stop.
Result<PerplexityResult> perplexity(Runner& runner, std::span<const int32_t> ids, int64_t ctx,
                                    std::span<const int64_t> windows, const EvalControl& control = {});

// Common to the evaluations: InvalidArgument unless every id is in [0, vocab).
Status check_ids(std::span<const int32_t> ids, int64_t vocab);
// InvalidArgument unless the windows lie in the ids and a context of `max_context`.
Status check_windows(std::span<const int32_t> ids, int64_t ctx, std::span<const int64_t> windows, int64_t max_context);
// Tokens of a step that wants the logits of each: at most kEvalStepTokens, fewer for a large vocabulary.
int64_t rows_per_step(const Model& model);
// Windows that a step takes parts of rows_per_step() tokens of: 1 on a CPU, which a few hundred rows keep busy, more on
// a GPU.
int64_t windows_per_step(const Model& model);

}  // namespace hearth
