// SPDX-License-Identifier: Apache-2.0
// Figures with standard errors, from sums per window (per item, per repetition). The error is that of the jackknife:
// the figure is computed again with each window left out, so that one rule serves means, differences, ratios and
// shares, and windows that two models share are paired by themselves. For a mean it is the usual s / sqrt(n).
// Windows are taken as independent; tokens within one are not. Stateless.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "hearth/base/function_ref.h"
#include "hearth/eval/lambada.h"

namespace hearth {

struct Estimate {
  double value = 0;                      // not finite where a ratio has no denominator
  std::optional<double> standard_error;  // none for fewer than two windows
};

// figure(i): the figure without window i; figure(-1): with all of n.
Estimate jackknife(int64_t n, FunctionRef<double(int64_t left_out)> figure);

// What one pass over a window leaves of model and reference. Sums over its tokens, in nats.
struct WindowSums {
  double nll = 0;            // of the model
  double nll_reference = 0;  // of the reference
  double kl = 0;             // KL(reference || model)
  double kl_max = 0;         // of one token
  int64_t same_top = 0;      // tokens where both find the same one likeliest

  friend bool operator==(const WindowSums&, const WindowSums&) = default;
};

struct QualityFigures {
  Estimate nll;       // per token, nats
  Estimate ppl;       // exp of it
  Estimate ppl_rise;  // ppl less the reference's, windows paired
  Estimate kl;        // per token, nats
  Estimate same_top;  // share of tokens
  double kl_max = 0;
  // Shares of a baseline of the same windows, paired: its ppl_rise and its kl are 1.
  std::optional<Estimate> rise_share, kl_share;
};

// `windows` of `ctx` tokens each; `baseline` the same windows of the baseline, or empty.
// REQUIRES: at least one window.
QualityFigures quality_figures(std::span<const WindowSums> windows, std::span<const WindowSums> baseline, int64_t ctx);

struct LambadaFigures {
  Estimate acc;
  Estimate acc_change;  // against the reference, items paired
  Estimate nll_per_word;
};
// REQUIRES: the same items, at least one.
LambadaFigures lambada_figures(std::span<const LambadaScore> model, std::span<const LambadaScore> reference);

struct SpeedFigures {
  Estimate tokens_per_s;
  std::optional<Estimate> ratio;  // to the baseline's, repetitions paired
};
// Seconds of each repetition that took `tokens` tokens; `baseline` may be empty. REQUIRES: at least one; as many.
SpeedFigures speed_figures(std::span<const double> seconds, std::span<const double> baseline, int64_t tokens);

}  // namespace hearth
