// SPDX-License-Identifier: Apache-2.0
// LAMBADA: does the model guess the last word of a passage? An item counts where every token of
// " " + continuation is the most likely one after BOS + context and the tokens before it.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/eval/control.h"
#include "hearth/model/runner.h"
#include "hearth/text/tokenizer.h"

namespace hearth {

struct LambadaItem {
  std::vector<TokenId> context;       // special tokens as the tokenizer adds them, then the context
  std::vector<TokenId> continuation;  // the last word with the space before it; never empty
};

// Items of a jsonl file whose lines have the strings `context` and `continuation`; the first `limit` of
// them, 0 for all. A context and its continuation are encoded each by itself. Corrupt with the line that
// has another form.
Result<std::vector<LambadaItem>> parse_lambada(std::string_view jsonl, const Tokenizer& tokenizer, int64_t limit = 0);

// Longest item in tokens.
int64_t longest_item(std::span<const LambadaItem> items);

struct LambadaScore {
  bool hit = false;
  double logprob = 0;  // of the whole continuation, in nats
};

struct LambadaResult {
  double acc = 0;
  double nll_per_word = 0;  // mean over items of -log p of the whole continuation, in nats
  int64_t correct = 0;
  int64_t n = 0;
  std::vector<LambadaScore> scores;  // of each item, in their order
};

// Several items share a step where the runner has slots; the result does not depend on how many.
// `runner` is made by eval_runner_options. InvalidArgument for no items or one that the context does not
// hold. Cancelled by control.stop.
Result<LambadaResult> lambada(Runner& runner, std::span<const LambadaItem> items, int64_t slots,
                              const EvalControl& control = {});

}  // namespace hearth
