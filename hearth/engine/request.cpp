// SPDX-License-Identifier: Apache-2.0
// What can be said of a request without an engine: whether its model can do what it asks.
#include "hearth/engine/request.h"

#include <algorithm>

#include "hearth/engine/engine.h"

namespace hearth {

std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kCancelled: return "cancelled";
    case FinishReason::kError: return "error";
  }
  return "";
}

namespace {

Status check_prompt(const Request& request) {
  const int64_t vocab = request.model->model->config().vocab_size;
  if (request.prompt.empty()) return invalid_argument("the prompt has no tokens; wanted at least 1");
  for (const int32_t id : request.prompt)
    if (id < 0 || id >= vocab)
      return invalid_argument("the prompt has token {}; the model's vocabulary is 0 to {}", id, vocab - 1);
  const int64_t length = std::ssize(request.prompt);
  if (request.max_tokens < 0 || request.min_tokens < 0 || request.min_tokens > request.max_tokens)
    return invalid_argument(
        "min_tokens {} and max_tokens {}; wanted 0 or more, and no more of the first than of the second",
        request.min_tokens, request.max_tokens);
  if (length > request.model->max_context || request.max_tokens > request.model->max_context - length)
    return invalid_argument("{} prompt tokens and max_tokens {} are more than the model's context of {}", length,
                            request.max_tokens, request.model->max_context);
  return {};
}

}  // namespace

Status validate(const Request& request) {
  HEARTH_CHECK(request.model != nullptr, "a request without a model");
  HEARTH_TRY(check_prompt(request));
  if (request.n < 1) return invalid_argument("n is {}; wanted at least 1", request.n);
  if (request.adapter != -1) return unsupported("adapter {}: the model has none", request.adapter);
  if (!std::ranges::is_sorted(request.end_ids)) return invalid_argument("end_ids are not ascending");
  const auto check_top = [](std::string_view name, int32_t count) -> Status {
    if (count < kNoLogprobs || count > kMaxTopLogprobs)
      return invalid_argument("{} is {}; wanted 0 to {}", name, count, kMaxTopLogprobs);
    return {};
  };
  HEARTH_TRY(check_top("logprobs", request.logprobs));
  HEARTH_TRY(check_top("prompt_logprobs", request.prompt_logprobs));
  SampleRow row;
  row.params = request.params;
  row.logit_bias = request.logit_bias;
  row.banned = request.end_ids;
  row.top_logprobs = std::max(request.logprobs, 0);
  return validate(row, request.model->model->config().vocab_size);
}

}  // namespace hearth
