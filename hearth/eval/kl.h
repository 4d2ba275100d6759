// SPDX-License-Identifier: Apache-2.0
// How far a model is from another one on known ids: what quantization is judged by.
#pragma once

#include <cstdint>
#include <span>

#include "hearth/base/result.h"
#include "hearth/eval/control.h"
#include "hearth/model/runner.h"

namespace hearth {

struct KlResult {
  double kl = 0;                 // mean of KL(P || Q) per token in nats; P the reference, Q the model
  double kl_standard_error = 0;  // of that mean, tokens taken as independent
  double kl_max = 0;
  double same_top = 0;       // share of positions where both find the same token most likely
  double nll_per_token = 0;  // of the model
  double nll_per_token_reference = 0;
  int64_t tokens = 0;
  int64_t windows = 0;
};

// Both runners, made by eval_runner_options, read the same windows (tokens.h). InvalidArgument where the
// vocabularies differ in size, else as perplexity().
Result<KlResult> kl_divergence(Runner& model, Runner& reference, std::span<const int32_t> ids, int64_t ctx,
                               std::span<const int64_t> windows, const EvalControl& control = {});

}  // namespace hearth
