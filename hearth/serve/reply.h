// SPDX-License-Identifier: Apache-2.0
// Answers of completions and chat completions in OpenAI's forms, from what the engine said. ReplyPlan is what an
// answer needs of its request; ChoiceState collects one choice; completion_reply and chat_reply are whole answers.
// Streams are stream_reply.h. Pure; one thread at a time. Compiles without coroutines.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "hearth/engine/request.h"
#include "hearth/serve/json_request.h"
#include "hearth/serve/logprobs_reply.h"

namespace hearth {

struct ReplyPrompt {
  std::vector<int32_t> ids;
  std::string text;  // for echo
};

struct ReplyPlan {
  std::string id;           // cmpl-..., chatcmpl-...
  std::string model;        // as answers call it
  std::string fingerprint;  // of the build
  int64_t created_s = 0;
  Tokenizer tokenizer;
  bool chat = false;
  int32_t n = 1;
  bool echo = false;
  std::optional<int32_t> logprobs, prompt_logprobs;
  bool include_usage = false, continuous_usage = false;
  bool return_token_ids = false, tokens_as_ids = false, skip_special = true;
  std::vector<int32_t> stop_token_ids;  // that the request asked for
  std::vector<ReplyPrompt> prompts;

  // Choice c of prompt p is choices[p * n + c] of the answer.
  int64_t choices() const { return std::ssize(prompts) * n; }
  TokenSpelling spelling() const { return {.tokenizer = &tokenizer, .as_ids = tokens_as_ids, .chat = chat}; }
  bool echoes_logprobs() const { return echo && logprobs.has_value(); }
};

// What is known of one choice.
struct ChoiceState {
  std::string text;
  std::vector<OutputToken> tokens;
  std::optional<FinishReason> finish;
  std::optional<std::string> stop_text;
  std::optional<int32_t> stop_token;
  std::optional<Error> error;
  int64_t shared_prompt_tokens = 0;

  // Everything of `output` but its prompt.
  void take(Output&& output);
};

// A request's prompt and its n choices.
struct PromptState {
  std::vector<PromptLogprob> logprobs;  // of ids[1] on
  std::vector<ChoiceState> choices;
};

// Why the answer cannot be given: a choice that failed or was cancelled.
std::optional<ApiError> failure(const ChoiceState& choice);

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t cached_tokens = 0;
};
Json usage_json(const Usage& usage);

// {"id","object","created","model","system_fingerprint"}: what all answers and chunks begin with.
Json reply_head(const ReplyPlan& plan, const char* object);
// "stop", "length"
Json finish_json(const ChoiceState& choice);
// vLLM's: the stop string or the id of stop_token_ids that ended the text, null for the model's own end.
Json stop_reason_json(const ReplyPlan& plan, const ChoiceState& choice);
// The prompt of a choice as scored tokens. `state` outlives the result.
std::vector<ScoredToken> scored_prompt(const ReplyPlan& plan, const ReplyPrompt& prompt, const PromptState& state);
// Characters that a generated token adds to the text.
int64_t token_width(const ReplyPlan& plan, int32_t id);

// Answers up to this many bytes are made where they are sent; larger ones would keep the connections' threads.
inline constexpr int64_t kSmallReplyBytes = 32 << 10;
// About how many bytes of an answer these take: one choice's written tokens; what is said of a prompt in each of its
// choices.
int64_t about_token_bytes(const ReplyPlan& plan, int64_t tokens);
int64_t about_prompt_bytes(const ReplyPlan& plan, const ReplyPrompt& prompt);
// And a whole answer.
int64_t about_bytes(const ReplyPlan& plan, const std::vector<PromptState>& prompts);

// The whole answer, as text. REQUIRES: every choice has finished without a failure.
std::string whole_reply(const ReplyPlan& plan, const std::vector<PromptState>& prompts);

// JSON text of an answer: what is not UTF-8 becomes U+FFFD.
std::string dump(const Json& json);

}  // namespace hearth
