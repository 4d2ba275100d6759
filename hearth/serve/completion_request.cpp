// SPDX-License-Identifier: Apache-2.0
// Reads the four forms of a prompt and what only completions have. Pure functions.
#include "hearth/serve/completion_request.h"

namespace hearth {
namespace {

ApiError wrong_prompt(const std::string& what, const Json& value) {
  return bad_request("prompt", "{}: {}; wanted a string, an array of strings, of token ids or of arrays of token ids",
                     what, describe(value));
}

ApiResult<std::vector<int32_t>> prompt_ids(const Json& array, const std::string& what) {
  auto ids = to_token_ids(array, what);
  if (!ids) {
    ApiError error = std::move(ids).error();
    error.param = "prompt";
    return error;
  }
  return std::move(ids).value();
}

ApiResult<std::vector<Prompt>> read_prompts(const Json& body, const ApiLimits& limits) {
  const Json* const prompt = find_field(body, "prompt");
  if (prompt == nullptr) return bad_request("prompt", "prompt: absent; wanted a text or token ids");
  std::vector<Prompt> prompts;
  if (prompt->is_string()) {
    prompts.emplace_back(prompt->get_ref<const std::string&>());
    return prompts;
  }
  if (!prompt->is_array()) return wrong_prompt("prompt", *prompt);
  if (prompt->empty()) return bad_request("prompt", "prompt: the array is empty");
  if (prompt->front().is_number()) {
    HEARTH_TRY_ASSIGN(std::vector<int32_t> ids, prompt_ids(*prompt, "prompt"));
    prompts.emplace_back(std::move(ids));
    return prompts;
  }
  if (std::ssize(*prompt) > limits.prompts)
    return over_limit("prompt", fmt::format("prompt: {} prompts; at most {}", prompt->size(), limits.prompts));
  for (size_t i = 0; i < prompt->size(); ++i) {
    const Json& one = (*prompt)[i];
    const std::string what = fmt::format("prompt[{}]", i);
    if (one.type() != prompt->front().type()) return wrong_prompt(what, one);
    if (one.is_string()) {
      prompts.emplace_back(one.get_ref<const std::string&>());
    } else if (one.is_array()) {
      if (one.empty()) return bad_request("prompt", "{}: the array is empty", what);
      HEARTH_TRY_ASSIGN(std::vector<int32_t> ids, prompt_ids(one, what));
      prompts.emplace_back(std::move(ids));
    } else {
      return wrong_prompt(what, one);
    }
  }
  return prompts;
}

}  // namespace

ApiResult<CompletionCall> parse_completion(std::string_view body, const ApiLimits& limits) {
  JsonBudget budget{.values = limits.json_values};
  HEARTH_TRY_ASSIGN(const Json json, parse_json_object(body, limits, budget));
  CompletionCall call;
  HEARTH_TRY(read_generation(json, limits, budget, call));
  HEARTH_TRY_ASSIGN(call.prompts, read_prompts(json, limits));
  if (std::ssize(call.prompts) * call.n > limits.choices)
    return over_limit("n", fmt::format("n: {} prompts of {} choices each; at most {} choices in all",
                                       call.prompts.size(), call.n, limits.choices));
  HEARTH_TRY(refuse_field(json, "suffix", "texts are continued, not filled in; leave suffix out"));
  std::optional<int64_t> best_of, logprobs;
  HEARTH_TRY(read_integer(json, "best_of", {}, best_of));
  if (best_of && *best_of != 1)
    return bad_request("best_of", "best_of: found {}; wanted 1 or nothing: every choice is returned (n)", *best_of);
  HEARTH_TRY(read_bool(json, "echo", call.echo));
  HEARTH_TRY(read_bool(json, "add_special_tokens", call.add_special_tokens));
  HEARTH_TRY(read_integer(json, "logprobs", {0, limits.logprobs}, logprobs));
  if (logprobs) call.logprobs = static_cast<int32_t>(*logprobs);
  const int64_t most = limits.max_tokens > 0 ? limits.max_tokens : std::numeric_limits<int32_t>::max();
  // No token at all makes sense where the prompt itself is what is asked for.
  const int64_t least = call.echo || call.prompt_logprobs ? 0 : 1;
  HEARTH_TRY(read_integer(json, "max_tokens", {least, most}, call.max_tokens));
  return call;
}

}  // namespace hearth
