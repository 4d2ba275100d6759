// SPDX-License-Identifier: Apache-2.0
// Fuzz target of what clients send to the API. Each input is read as a completion, as a chat and as messages to
// tokenize. What is refused says so in a 4xx of the right form; what is accepted is within the limits.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "hearth/base/check.h"
#include "hearth/serve/chat_request.h"
#include "hearth/serve/completion_request.h"

namespace hearth {
namespace {

ApiLimits fuzz_limits() {
  ApiLimits limits;
  limits.json_depth = 16;
  limits.json_values = 1000;
  limits.prompts = 4;
  limits.n = 4;
  limits.choices = 8;
  limits.logit_bias = 4;
  limits.stop = 4;
  limits.stop_bytes = 16;
  limits.stop_token_ids = 4;
  limits.messages = 4;
  limits.max_tokens = 1000;
  limits.grammar.max_source_bytes = 128;
  return limits;
}

void check_refusal(const ApiError& error) {
  HEARTH_CHECK(error.status == 400, "status {}: {}", error.status, error.message);
  HEARTH_CHECK(error.type == "invalid_request_error", "type {}", error.type);
  HEARTH_CHECK(!error.message.empty() && error.message.size() < 2000, "a message of {} bytes", error.message.size());
  // The error object must be JSON, whatever bytes the message quotes.
  const Json body = Json::parse(error_json(error), nullptr, false);
  HEARTH_CHECK(body.is_object() && body["error"].size() == 4, "error object of: {}", error.message);
}

void check_call(const GenerationCall& call, const ApiLimits& limits) {
  HEARTH_CHECK(call.n >= 1 && call.n <= limits.n, "n {}", call.n);
  HEARTH_CHECK(!call.temperature || (*call.temperature >= 0 && *call.temperature <= 1000), "temperature");
  HEARTH_CHECK(!call.top_p || (*call.top_p > 0 && *call.top_p <= 1), "top_p");
  HEARTH_CHECK(!call.max_tokens || (*call.max_tokens >= 0 && *call.max_tokens <= limits.max_tokens), "max_tokens");
  HEARTH_CHECK(!call.logprobs || (*call.logprobs >= 0 && *call.logprobs <= limits.logprobs), "logprobs");
  HEARTH_CHECK(std::ssize(call.stop) <= limits.stop, "stop");
  for (const std::string& stop : call.stop)
    HEARTH_CHECK(!stop.empty() && std::ssize(stop) <= limits.stop_bytes, "stop of {} bytes", stop.size());
  for (const int32_t id : call.stop_token_ids) HEARTH_CHECK(id >= 0, "stop token {}", id);
  HEARTH_CHECK(std::ssize(call.logit_bias) <= limits.logit_bias, "logit_bias");
  for (size_t i = 0; i < call.logit_bias.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      HEARTH_CHECK(call.logit_bias[i].token != call.logit_bias[j].token, "token {} biased twice",
                   call.logit_bias[i].token);
  HEARTH_CHECK(!call.grammar || std::ssize(call.grammar->source) <= limits.grammar.max_source_bytes, "grammar");
  HEARTH_CHECK(call.stream || !call.include_usage, "usage without a stream");
}

void check_completion(std::string_view body, const ApiLimits& limits) {
  const auto call = parse_completion(body, limits);
  if (!call) return check_refusal(call.error());
  check_call(*call, limits);
  const int64_t prompts = std::ssize(call->prompts);
  HEARTH_CHECK(prompts >= 1 && prompts <= limits.prompts && prompts * call->n <= limits.choices, "{} prompts", prompts);
  for (const Prompt& prompt : call->prompts)
    if (const auto* ids = std::get_if<std::vector<int32_t>>(&prompt))
      for (const int32_t id : *ids) HEARTH_CHECK(id >= 0, "prompt token {}", id);
}

void check_chat(std::string_view body, const ApiLimits& limits) {
  const auto call = parse_chat(body, limits);
  if (!call) return check_refusal(call.error());
  check_call(*call, limits);
  HEARTH_CHECK(!call->chat.messages.empty() && std::ssize(call->chat.messages) <= limits.messages, "messages");
  for (const Json& message : call->chat.messages)
    HEARTH_CHECK(message["role"].is_string() && message["content"].is_string(), "a message that no template knows");
}

}  // namespace
}  // namespace hearth

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const hearth::ApiLimits limits = hearth::fuzz_limits();
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  hearth::check_completion(body, limits);
  hearth::check_chat(body, limits);
  return 0;
}
