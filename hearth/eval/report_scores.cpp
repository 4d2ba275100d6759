// SPDX-License-Identifier: Apache-2.0
#include "hearth/eval/report_scores.h"

#include <hwy/targets.h>

#include <algorithm>

#include "hearth/checkpoint/fingerprint.h"
#include "hearth/eval/perplexity.h"
#include "hearth/eval/score.h"
#include "hearth/eval/tokens.h"

namespace hearth {
namespace {

// Items that are kept in one line of the state.
constexpr size_t kItemsPerLine = 64;

// A model that lacks at least one of the windows at hand, with sums for each of them.
struct Pending {
  const ReportModel* model = nullptr;
  std::string key;
  std::vector<WindowSums> sums;
};

// Some windows side by side through the reference and through every pending model, a step of each in turn. A window's
// sums do not depend on the windows beside it.
class WindowPass {
 public:
  WindowPass(const ReportModel& reference, std::span<const ReportModel> models, std::span<const int32_t> ids,
             int64_t ctx)
      : reference_(reference),
        ids_(ids),
        ctx_(ctx),
        chunk_(rows_per_step(reference.runner->model())),
        most_(windows_of(*reference.runner)) {
    for (const ReportModel& model : models) most_ = std::min(most_, windows_of(*model.runner));
    rows_.resize(static_cast<size_t>(most_ * chunk_));
    scores_.resize(rows_.size());
  }

  // Windows that run() takes at once.
  int64_t most() const { return most_; }

  // REQUIRES: at most most() windows; sums of each in every Pending.
  Status run(std::span<const int64_t> windows, std::span<Pending> pending, const std::atomic<bool>* stop) {
    for (int64_t slot = 0; slot < std::ssize(windows); ++slot) {
      reference_.runner->cut(slot, 0);
      for (const Pending& p : pending) p.model->runner->cut(slot, 0);
    }
    for (int64_t begin = 0; begin < ctx_; begin += chunk_) {
      if (stop != nullptr && stop->load(std::memory_order_relaxed))
        return cancelled("stopped in window {}", windows.front());
      std::vector<SlotTokens> feeds;
      targets_.clear();
      for (int64_t slot = 0; slot < std::ssize(windows); ++slot) {
        const auto first = static_cast<size_t>(windows[static_cast<size_t>(slot)] * ctx_ + begin);
        const auto count = static_cast<size_t>(std::min(chunk_, ctx_ - begin));
        feeds.push_back({.slot = slot, .tokens = ids_.subspan(first, count), .all_logits = true});
        const auto targets = ids_.subspan(first + 1, count);
        targets_.insert(targets_.end(), targets.begin(), targets.end());
      }
      HEARTH_TRY(step(feeds, pending));
    }
    return {};
  }

 private:
  int64_t windows_of(const Runner& runner) const {
    const RunnerOptions& options = runner.options();
    return std::min(options.max_sequences, std::min(options.chunk_tokens, options.max_logit_rows) / chunk_);
  }

  // Fills scores_.
  Status score(ConstTensorView logits) {
    return score_rows(logits, targets_, std::span(scores_).first(targets_.size()), *reference_.runner->exec().pool);
  }

  // The sum over a window's rows of a step, so that a model that is the reference has the reference's bits.
  double nll_of(size_t window, size_t rows) const {
    double nll = 0;
    for (size_t r = window * rows; r < (window + 1) * rows; ++r) nll -= scores_[r].logprob;
    return nll;
  }

  Status step(std::span<const SlotTokens> feeds, std::span<Pending> pending) {
    HEARTH_TRY_ASSIGN(const ConstTensorView p, reference_.runner->step(feeds).with_context(reference_.name));
    HEARTH_TRY(score(p).with_context(reference_.name));
    const size_t rows = feeds.front().tokens.size();
    for (Pending& one : pending)
      for (size_t w = 0; w < feeds.size(); ++w) one.sums[w].nll_reference += nll_of(w, rows);
    for (Pending& one : pending) {
      const bool itself = one.model->runner == reference_.runner;
      auto logits = itself ? Result<ConstTensorView>(p) : one.model->runner->step(feeds);
      HEARTH_TRY(compare(p, std::move(logits), rows, one.sums).with_context(one.model->name));
    }
    return {};
  }

  Status compare(ConstTensorView p, Result<ConstTensorView> logits, size_t rows_of_window, std::span<WindowSums> sums) {
    HEARTH_TRY_ASSIGN(const ConstTensorView q, std::move(logits));
    HEARTH_TRY(score(q));
    const std::span<RowDivergence> rows(rows_.data(), targets_.size());
    HEARTH_TRY(divergence_rows(p, q, rows, *reference_.runner->exec().pool));
    for (size_t w = 0; w * rows_of_window < rows.size(); ++w) {
      sums[w].nll += nll_of(w, rows_of_window);
      for (const RowDivergence& row : rows.subspan(w * rows_of_window, rows_of_window)) {
        sums[w].kl += row.kl;
        sums[w].kl_max = std::max(sums[w].kl_max, row.kl);
        sums[w].same_top += row.same_top ? 1 : 0;
      }
    }
    return {};
  }

  const ReportModel& reference_;
  const std::span<const int32_t> ids_;
  const int64_t ctx_;
  const int64_t chunk_;
  int64_t most_;
  std::vector<int32_t> targets_;  // of the step
  std::vector<RowDivergence> rows_;
  std::vector<TokenScore> scores_;
};

}  // namespace

std::string logits_key(std::string_view weights_fingerprint, const Model& model, KvFormatId kv_format) {
  Fingerprint print;
  print.add(kEvalNumerics);
  print.add(weights_fingerprint);
  print.add(dtype_name(model.activation()));
  print.add(kv_format_name(kv_format));
  print.add(model.ops().backend);
  // The best instruction set of this machine; Highway numbers better ones lower.
  print.add(hwy::SupportedTargets());
  return print.text();
}

std::string window_key(const ReportModel& model, const ReportModel& reference, std::string_view ids, int64_t ctx) {
  return fmt::format("window {} against {} of {} by {}", model.logits, reference.logits, ids, ctx);
}

std::string item_key(const ReportModel& model, std::span<const LambadaItem> items) {
  Fingerprint print;
  for (const LambadaItem& item : items) {
    print.add(std::as_bytes(std::span(item.context)));
    print.add(std::as_bytes(std::span(item.continuation)));
  }
  return fmt::format("item {} of {}", model.logits, print.text());
}

Status score_windows(const ReportModel& reference, std::span<const ReportModel> models, std::span<const int32_t> ids,
                     int64_t ctx, std::span<const int64_t> windows, ReportState& state, const EvalControl& control) {
  const int64_t vocab = reference.runner->model().config().vocab_size;
  int64_t context = reference.runner->max_context();
  for (const ReportModel& model : models) {
    if (const int64_t other = model.runner->model().config().vocab_size; other != vocab)
      return invalid_argument("{} has a vocabulary of {} tokens, {} one of {}; the same one is needed", model.name,
                              other, reference.name, vocab);
    context = std::min(context, model.runner->max_context());
  }
  HEARTH_TRY(check_windows(ids, ctx, windows, context));
  HEARTH_TRY(check_ids(ids, vocab));
  const std::string text = ids_fingerprint(ids);
  WindowPass pass(reference, models, ids, ctx);
  int64_t done = 0;
  const int64_t total = std::ssize(windows) * std::ssize(models);
  control.report(0, total);
  const auto lacks = [&](const std::string& key, int64_t window) { return state.window(key, window) == nullptr; };
  for (size_t begin = 0; begin < windows.size();) {
    const auto group = windows.subspan(begin, std::min(static_cast<size_t>(pass.most()), windows.size() - begin));
    begin += group.size();
    std::vector<Pending> pending;
    for (const ReportModel& model : models) {
      std::string key = window_key(model, reference, text, ctx);
      if (std::ranges::any_of(group, [&](int64_t window) { return lacks(key, window); }))
        pending.push_back({&model, std::move(key), std::vector<WindowSums>(group.size())});
    }
    if (!pending.empty()) HEARTH_TRY(pass.run(group, pending, control.stop));
    for (const Pending& p : pending)
      for (size_t w = 0; w < group.size(); ++w)
        if (lacks(p.key, group[w])) HEARTH_TRY(state.add_window(p.key, p.model->name, group[w], p.sums[w]));
    done += std::ssize(group) * std::ssize(models);
    control.report(done, total);
  }
  return {};
}

Status score_items(const ReportModel& model, std::span<const LambadaItem> items, std::span<const int64_t> chosen,
                   int64_t slots, ReportState& state, const EvalControl& control) {
  const std::string key = item_key(model, items);
  std::vector<int64_t> missing;
  for (const int64_t i : chosen)
    if (state.item(key, i) == nullptr) missing.push_back(i);
  const int64_t total = std::ssize(chosen);
  control.report(total - std::ssize(missing), total);
  for (size_t begin = 0; begin < missing.size(); begin += kItemsPerLine) {
    const auto numbers = std::span(missing).subspan(begin, std::min(kItemsPerLine, missing.size() - begin));
    std::vector<LambadaItem> part;
    for (const int64_t i : numbers) part.push_back(items[static_cast<size_t>(i)]);
    HEARTH_TRY_ASSIGN(
        const LambadaResult result,
        lambada(*model.runner, part, slots, {.progress = {}, .stop = control.stop}).with_context(model.name));
    HEARTH_TRY(state.add_items(key, model.name, numbers, result.scores));
    control.report(total - std::ssize(missing) + static_cast<int64_t>(begin + numbers.size()), total);
  }
  return {};
}

Result<SpeedSample> measure_speed(Runner& runner, const SpeedTask& task, const Clock& clock) {
  const int64_t vocab = runner.model().config().vocab_size;
  if (task.prompt_tokens + task.decode_tokens > runner.max_context())
    return invalid_argument("{} tokens of prompt and {} after them; the context holds {}", task.prompt_tokens,
                            task.decode_tokens, runner.max_context());
  std::vector<int32_t> prompt;
  for (int64_t i = 0; i < task.prompt_tokens; ++i) prompt.push_back(static_cast<int32_t>((i * 31 + 7) % vocab));
  runner.cut(0, 0);
  SpeedSample sample;
  const int64_t start = clock.now_ns();
  HEARTH_TRY(runner.feed(0, prompt));
  const int64_t middle = clock.now_ns();
  for (int64_t i = 0; i < task.decode_tokens; ++i) {
    const int32_t token = prompt[static_cast<size_t>(i % task.prompt_tokens)];
    HEARTH_TRY(runner.feed(0, {&token, 1}));
  }
  sample.prefill_s = static_cast<double>(middle - start) * 1e-9;
  sample.decode_s = static_cast<double>(clock.now_ns() - middle) * 1e-9;
  return sample;
}

}  // namespace hearth
