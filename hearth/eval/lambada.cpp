// SPDX-License-Identifier: Apache-2.0
// Two steps for a group of items: all contexts, then what follows the continuations' first tokens.
#include "hearth/eval/lambada.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "hearth/checkpoint/json.h"
#include "hearth/eval/perplexity.h"
#include "hearth/eval/score.h"

namespace hearth {
namespace {

Result<LambadaItem> parse_item(std::string_view line, const Tokenizer& tokenizer) {
  HEARTH_TRY_ASSIGN(const nlohmann::json item, parse_json(line));
  for (const char* field : {"context", "continuation"}) {
    if (!item.is_object() || !item.contains(field) || !item[field].is_string())
      return corrupt("no string '{}'; wanted an object with the strings 'context' and 'continuation'", field);
  }
  const std::string& context = item["context"].get_ref<const std::string&>();
  const std::string continuation = " " + item["continuation"].get_ref<const std::string&>();
  LambadaItem result;
  HEARTH_TRY_ASSIGN(result.context, tokenizer.encode(context));
  HEARTH_TRY_ASSIGN(result.continuation, tokenizer.encode(continuation, {.add_special_tokens = false}));
  if (result.context.empty()) return corrupt("'context' has no tokens");
  if (result.continuation.empty()) return corrupt("'continuation' has no tokens");
  return result;
}

// Items that are scored together.
struct Group {
  std::span<const LambadaItem> items;
  std::span<LambadaScore> scores;

  void take(std::span<const TokenScore> tokens, std::span<const int32_t> targets, std::span<const int64_t> item_of) {
    for (size_t r = 0; r < tokens.size(); ++r) {
      LambadaScore& score = scores[static_cast<size_t>(item_of[r])];
      score.logprob += tokens[r].logprob;
      score.hit = score.hit && tokens[r].top == targets[r];
    }
  }
};

Status score_step(Runner& runner, std::span<const SlotTokens> feeds, std::span<const int32_t> targets,
                  std::span<const int64_t> item_of, Group& group) {
  HEARTH_TRY_ASSIGN(const ConstTensorView logits, runner.step(feeds));
  std::vector<TokenScore> scores(targets.size());
  HEARTH_TRY(score_rows(logits, targets, scores, *runner.exec().pool));
  group.take(scores, targets, item_of);
  return {};
}

// All items of the group in one step each; they fit.
Status score_group(Runner& runner, Group& group) {
  std::vector<SlotTokens> feeds;
  std::vector<int32_t> targets;
  std::vector<int64_t> item_of;
  for (int64_t i = 0; i < std::ssize(group.items); ++i) {
    const LambadaItem& item = group.items[static_cast<size_t>(i)];
    runner.cut(i, 0);
    std::span<const int32_t> context = item.context;
    // A context beyond one step: all but its last part goes first. Such an item is alone in its group.
    if (const int64_t step = runner.options().chunk_tokens; std::ssize(context) > step) {
      const size_t before = context.size() - static_cast<size_t>(step);
      HEARTH_TRY(runner.feed(i, context.first(before)));
      context = context.subspan(before);
    }
    feeds.push_back({.slot = i, .tokens = context, .all_logits = false});
    targets.push_back(item.continuation.front());
    item_of.push_back(i);
  }
  HEARTH_TRY(score_step(runner, feeds, targets, item_of, group));
  feeds.clear(), targets.clear(), item_of.clear();
  for (int64_t i = 0; i < std::ssize(group.items); ++i) {
    const std::span<const int32_t> word = group.items[static_cast<size_t>(i)].continuation;
    if (word.size() == 1) continue;
    feeds.push_back({.slot = i, .tokens = word.first(word.size() - 1), .all_logits = true});
    for (const int32_t target : word.subspan(1)) {
      targets.push_back(target);
      item_of.push_back(i);
    }
  }
  if (feeds.empty()) return {};
  return score_step(runner, feeds, targets, item_of, group);
}

}  // namespace

Result<std::vector<LambadaItem>> parse_lambada(std::string_view jsonl, const Tokenizer& tokenizer, int64_t limit) {
  std::vector<LambadaItem> items;
  int64_t line_number = 0;
  while (!jsonl.empty() && (limit == 0 || std::ssize(items) < limit)) {
    const size_t end = std::min(jsonl.find('\n'), jsonl.size());
    const std::string_view line = jsonl.substr(0, end);
    jsonl.remove_prefix(std::min(end + 1, jsonl.size()));
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    auto item = parse_item(line, tokenizer);
    if (!item) return std::move(item).error().with_context(fmt::format("line {}", line_number));
    items.push_back(std::move(item).value());
  }
  return items;
}

int64_t longest_item(std::span<const LambadaItem> items) {
  int64_t longest = 0;
  for (const LambadaItem& item : items)
    longest = std::max(longest, std::ssize(item.context) + std::ssize(item.continuation));
  return longest;
}

Result<LambadaResult> lambada(Runner& runner, std::span<const LambadaItem> items, int64_t slots,
                              const EvalControl& control) {
  if (items.empty()) return invalid_argument("no items to score");
  const int64_t longest = longest_item(items);
  // The last token is only scored, never fed.
  if (longest - 1 > runner.max_context())
    return invalid_argument("the longest item has {} tokens; the context holds {}", longest, runner.max_context());
  for (const LambadaItem& item : items) {
    HEARTH_TRY(check_ids(item.context, runner.model().config().vocab_size));
    HEARTH_TRY(check_ids(item.continuation, runner.model().config().vocab_size));
  }
  const int64_t max_tokens = runner.options().chunk_tokens, max_rows = runner.options().max_logit_rows;
  LambadaResult result;
  double nll = 0;
  control.report(0, std::ssize(items));
  for (size_t begin = 0; begin < items.size();) {
    HEARTH_TRY(control.check(result.n, std::ssize(items)));
    size_t end = begin;
    int64_t tokens = 0, rows = 0;
    do {
      tokens += std::ssize(items[end].context);
      rows += std::ssize(items[end].continuation);
      ++end;
    } while (end < items.size() && static_cast<int64_t>(end - begin) < slots &&
             tokens + std::ssize(items[end].context) <= max_tokens &&
             rows + std::ssize(items[end].continuation) <= max_rows);
    result.scores.resize(end, {.hit = true, .logprob = 0});
    Group group{.items = items.subspan(begin, end - begin), .scores = std::span(result.scores).subspan(begin)};
    HEARTH_TRY(score_group(runner, group));
    for (const LambadaScore& score : group.scores) {
      nll -= score.logprob;
      result.correct += score.hit ? 1 : 0;
    }
    result.n += std::ssize(group.items);
    begin = end;
    control.report(result.n, std::ssize(items));
  }
  result.acc = static_cast<double>(result.correct) / static_cast<double>(result.n);
  result.nll_per_word = nll / static_cast<double>(result.n);
  return result;
}

}  // namespace hearth
