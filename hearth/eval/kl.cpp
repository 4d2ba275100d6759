// SPDX-License-Identifier: Apache-2.0
#include "hearth/eval/kl.h"

#include <algorithm>
#include <cmath>

#include "hearth/eval/perplexity.h"
#include "hearth/eval/score.h"

namespace hearth {

Result<KlResult> kl_divergence(Runner& model, Runner& reference, std::span<const int32_t> ids, int64_t ctx,
                               std::span<const int64_t> windows, const EvalControl& control) {
  const int64_t vocab = model.model().config().vocab_size, other = reference.model().config().vocab_size;
  if (vocab != other)
    return invalid_argument("vocabulary of {} tokens against one of {}: the models cannot be compared", vocab, other);
  HEARTH_TRY(check_windows(ids, ctx, windows, std::min(model.max_context(), reference.max_context())));
  HEARTH_TRY(check_ids(ids, vocab));
  const int64_t chunk = std::min(rows_per_step(model.model()), rows_per_step(reference.model()));
  std::vector<RowDivergence> rows(static_cast<size_t>(chunk));
  std::vector<TokenScore> scores(static_cast<size_t>(chunk));
  KlResult result;
  double sum = 0, squares = 0, nll = 0, nll_reference = 0;
  int64_t same = 0;
  control.report(0, std::ssize(windows));
  for (const int64_t w : windows) {
    model.cut(0, 0);
    reference.cut(0, 0);
    for (int64_t begin = 0; begin < ctx; begin += chunk) {
      HEARTH_TRY(control.check(result.windows, std::ssize(windows)));
      const auto first = static_cast<size_t>(w * ctx + begin),
                 count = static_cast<size_t>(std::min(chunk, ctx - begin));
      const SlotTokens feed = {.slot = 0, .tokens = ids.subspan(first, count), .all_logits = true};
      HEARTH_TRY_ASSIGN(const ConstTensorView p, reference.step({&feed, 1}));
      HEARTH_TRY_ASSIGN(const ConstTensorView q, model.step({&feed, 1}));
      const std::span<RowDivergence> out(rows.data(), count);
      const std::span<TokenScore> score(scores.data(), count);
      ThreadPool& pool = *model.exec().pool;
      HEARTH_TRY(divergence_rows(p, q, out, pool));
      for (const RowDivergence& row : out) {
        sum += row.kl;
        squares += row.kl * row.kl;
        result.kl_max = std::max(result.kl_max, row.kl);
        same += row.same_top;
      }
      HEARTH_TRY(score_rows(q, ids.subspan(first + 1, count), score, pool));
      for (const TokenScore& s : score) nll -= s.logprob;
      HEARTH_TRY(score_rows(p, ids.subspan(first + 1, count), score, pool));
      for (const TokenScore& s : score) nll_reference -= s.logprob;
    }
    control.report(++result.windows, std::ssize(windows));
  }
  result.tokens = result.windows * ctx;
  const auto n = static_cast<double>(result.tokens);
  result.kl = sum / n;
  result.kl_standard_error = n > 1 ? std::sqrt(std::max(0.0, squares / n - result.kl * result.kl) / (n - 1)) : 0;
  result.same_top = static_cast<double>(same) / n;
  result.nll_per_token = nll / n;
  result.nll_per_token_reference = nll_reference / n;
  return result;
}

}  // namespace hearth
