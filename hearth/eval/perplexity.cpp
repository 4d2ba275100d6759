// SPDX-License-Identifier: Apache-2.0
#include "hearth/eval/perplexity.h"

#include <algorithm>
#include <cmath>

#include "hearth/eval/score.h"
#include "hearth/eval/tokens.h"

namespace hearth {
namespace {

// Memory for the logits of a step. Rows of a step share each read of the weights, and beyond a few hundred
// of them nothing is gained.
constexpr int64_t kLogitsBytes = int64_t{64} << 20;
constexpr int64_t kMinRows = 16;
// The same for a GPU: 2,048 rows.
constexpr int64_t kGpuWindows = 4;
constexpr int64_t kGpuLogitsBytes = int64_t{256} << 20;

}  // namespace

int64_t rows_per_step(const Model& model) {
  return std::clamp(kLogitsBytes / (model.config().vocab_size * int64_t{sizeof(float)}), kMinRows, kEvalStepTokens);
}

int64_t windows_per_step(const Model& model) {
  if (model.ops().memory().is_host()) return 1;
  const int64_t row_bytes = model.config().vocab_size * int64_t{sizeof(float)};
  return std::clamp(kGpuLogitsBytes / (rows_per_step(model) * row_bytes), int64_t{1}, kGpuWindows);
}

RunnerOptions eval_runner_options(const Model& model, int64_t ctx, KvFormatId kv_format, int64_t sequences) {
  const int64_t windows = std::min(sequences, windows_per_step(model));
  return {.max_sequences = sequences,
          .max_context = ctx,
          .chunk_tokens = windows * kEvalStepTokens,
          .max_logit_rows = windows * rows_per_step(model),
          .kv_format = kv_format};
}

Status check_ids(std::span<const int32_t> ids, int64_t vocab) {
  for (size_t i = 0; i < ids.size(); ++i)
    if (ids[i] < 0 || ids[i] >= vocab)
      return invalid_argument("token {} of the text is id {}; the model's vocabulary has {}", i, ids[i], vocab);
  return {};
}

Status check_windows(std::span<const int32_t> ids, int64_t ctx, std::span<const int64_t> windows, int64_t max_context) {
  if (ctx > max_context) return invalid_argument("window of {} tokens; the context holds {}", ctx, max_context);
  HEARTH_TRY_ASSIGN(const int64_t count, count_windows(std::ssize(ids), ctx));
  if (windows.empty()) return invalid_argument("no windows to score");
  for (const int64_t w : windows)
    if (w < 0 || w >= count) return invalid_argument("window {} is beyond the last window, {}", w, count - 1);
  return {};
}

Result<PerplexityResult> perplexity(Runner& runner, std::span<const int32_t> ids, int64_t ctx,
                                    std::span<const int64_t> windows, const EvalControl& control) {
  HEARTH_TRY(check_windows(ids, ctx, windows, runner.max_context()));
  HEARTH_TRY(check_ids(ids, runner.model().config().vocab_size));
  const int64_t chunk = rows_per_step(runner.model());
  std::vector<TokenScore> scores(static_cast<size_t>(chunk));
  double nll = 0;
  int64_t done = 0;
  control.report(0, std::ssize(windows));
  for (const int64_t w : windows) {
    runner.cut(0, 0);
    double window_nll = 0;
    for (int64_t begin = 0; begin < ctx; begin += chunk) {
      HEARTH_TRY(control.check(done, std::ssize(windows)));
      const auto first = static_cast<size_t>(w * ctx + begin),
                 count = static_cast<size_t>(std::min(chunk, ctx - begin));
      const SlotTokens feed = {.slot = 0, .tokens = ids.subspan(first, count), .all_logits = true};
      HEARTH_TRY_ASSIGN(const ConstTensorView logits, runner.step({&feed, 1}));
      const std::span<TokenScore> out(scores.data(), count);
      HEARTH_TRY(score_rows(logits, ids.subspan(first + 1, count), out, *runner.exec().pool));
      for (const TokenScore& score : out) window_nll -= score.logprob;
    }
    nll += window_nll;
    control.report(++done, std::ssize(windows));
  }
  const int64_t tokens = done * ctx;
  const double mean = nll / static_cast<double>(tokens);
  return PerplexityResult{.nll_per_token = mean, .ppl = std::exp(mean), .tokens = tokens, .windows = done};
}

}  // namespace hearth
