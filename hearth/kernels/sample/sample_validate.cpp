// SPDX-License-Identifier: Apache-2.0
// What a sampling call may ask for: ranges of the parameters, token ids, sizes. No state; any thread.
#include <algorithm>
#include <cmath>

#include "hearth/kernels/sample/sample.h"

namespace hearth {
namespace {

Status check_range(const char* field, double value, double low, double high) {
  if (value >= low && value <= high) return {};  // false for NaN
  return invalid_argument("{} is {}, wanted a value in [{}, {}]", field, value, low, high);
}

Status check_tokens(const char* field, std::span<const int32_t> tokens, int64_t vocab) {
  for (const int32_t token : tokens) {
    if (token < 0 || token >= vocab) {
      return invalid_argument("{} has token {}, wanted ids in [0, {})", field, token, vocab);
    }
  }
  return {};
}

Status check_bias(std::span<const LogitBias> bias, int64_t vocab) {
  bool ascending = true;  // then no token is there twice
  for (size_t i = 0; i < bias.size(); ++i) {
    const int32_t token = bias[i].token;
    if (token < 0 || token >= vocab) {
      return invalid_argument("logit_bias has token {}, wanted ids in [0, {})", token, vocab);
    }
    if (!(bias[i].bias >= -100.0f && bias[i].bias <= 100.0f)) {
      return invalid_argument("logit_bias of token {} is {}, wanted a value in [-100, 100]", token, bias[i].bias);
    }
    ascending = ascending && (i == 0 || token > bias[i - 1].token);
    // OpenAI's callers send 300 at most, in any order.
    for (size_t j = 0; j < i && !ascending; ++j) {
      if (bias[j].token == token) return invalid_argument("logit_bias names token {} twice", token);
    }
  }
  return {};
}

}  // namespace

Status validate(const SamplingParams& params) {
  HEARTH_TRY(check_range("temperature", params.temperature, 0, 1000));
  if (params.top_k < -1) return invalid_argument("top_k is {}, wanted at least 1, or 0 or -1 for all", params.top_k);
  if (!(params.top_p > 0 && params.top_p <= 1)) {
    return invalid_argument("top_p is {}, wanted a value in (0, 1]", params.top_p);
  }
  HEARTH_TRY(check_range("min_p", params.min_p, 0, 1));
  if (!(params.repetition_penalty > 0 && std::isfinite(params.repetition_penalty))) {
    return invalid_argument("repetition_penalty is {}, wanted a finite value above 0", params.repetition_penalty);
  }
  HEARTH_TRY(check_range("presence_penalty", params.presence_penalty, -2, 2));
  return check_range("frequency_penalty", params.frequency_penalty, -2, 2);
}

Status validate(const SampleRow& row, int64_t vocab) {
  HEARTH_TRY(validate(row.params));
  if (row.position < 0) return invalid_argument("position is {}, wanted at least 0", row.position);
  HEARTH_TRY(check_bias(row.logit_bias, vocab));
  HEARTH_TRY(check_tokens("banned", row.banned, vocab));
  if (row.params.penalises()) {
    HEARTH_TRY(check_tokens("prompt_tokens", row.prompt_tokens, vocab));
    HEARTH_TRY(check_tokens("output_tokens", row.output_tokens, vocab));
  }
  const int64_t words = (vocab + 31) / 32;
  if (!row.allowed.empty() && static_cast<int64_t>(row.allowed.size()) < words) {
    return invalid_argument("allowed has {} words of 32 bits, wanted {} for a vocabulary of {}", row.allowed.size(),
                            words, vocab);
  }
  if (row.forced_token < -1 || row.forced_token >= vocab) {
    return invalid_argument("forced_token is {}, wanted an id in [0, {}) or -1", row.forced_token, vocab);
  }
  const int64_t most = std::min<int64_t>(kMaxTopLogprobs, vocab);
  if (row.top_logprobs < kNoLogprobs || row.top_logprobs > most) {
    return invalid_argument("top_logprobs is {}, wanted a value in [{}, {}]", row.top_logprobs, kNoLogprobs, most);
  }
  return {};
}

Status validate(const SampleArgs& args) {
  const ConstTensorView& logits = args.logits;
  if (logits.dtype != DType::kF32 || logits.shape.rank() != 2) {
    return invalid_argument("sample: logits are {} {}, wanted f32 [rows, vocab]", dtype_name(logits.dtype),
                            to_string(logits.shape));
  }
  const int64_t rows = logits.shape[0], vocab = logits.shape[1];
  if (vocab < 1 || vocab > kMaxSampleVocab) {
    return invalid_argument("sample: the vocabulary has {} tokens, wanted 1 to {}", vocab, kMaxSampleVocab);
  }
  if (static_cast<int64_t>(args.rows.size()) != rows || static_cast<int64_t>(args.results.size()) != rows) {
    return invalid_argument("sample: {} rows and {} results for {} rows of logits", args.rows.size(),
                            args.results.size(), rows);
  }
  for (int64_t r = 0; r < rows; ++r) {
    if (Status status = validate(args.rows[r], vocab); !status) {
      return std::move(status).error().with_context(fmt::format("sample: row {}", r));
    }
    const int64_t room = static_cast<int64_t>(args.results[r].top.size());
    if (args.rows[r].top_logprobs > room) {
      return invalid_argument("sample: row {}: top_logprobs is {}, the result has room for {}", r,
                              args.rows[r].top_logprobs, room);
    }
  }
  return {};
}

Status sample_status(std::span<const SampleResult> results) {
  for (size_t r = 0; r < results.size(); ++r) {
    if (results[r].outcome == SampleOutcome::kBadLogits) {
      return internal_error(
          "sample: row {}: the logits hold a NaN or +inf, or nothing but -inf where a token may "
          "be chosen; the model's output is broken",
          r);
    }
    if (results[r].outcome == SampleOutcome::kNoToken) {
      return invalid_argument("sample: row {}: the allowed and banned tokens leave nothing to choose", r);
    }
  }
  return {};
}

}  // namespace hearth
