// SPDX-License-Identifier: Apache-2.0
// Pure functions.
#include "hearth/serve/reply.h"

#include <algorithm>

namespace hearth {
namespace {

std::vector<ScoredToken> scored_tokens(const ReplyPlan& plan, const std::vector<OutputToken>& tokens, int64_t offset) {
  std::vector<ScoredToken> scored;
  scored.reserve(tokens.size());
  for (const OutputToken& token : tokens) {
    scored.push_back({.id = token.id, .logprob = token.logprob, .top = token.top, .text_offset = offset});
    offset += token_width(plan, token.id);
  }
  return scored;
}

Json token_ids(const std::vector<OutputToken>& tokens) {
  Json ids = Json::array();
  for (const OutputToken& token : tokens) ids.push_back(token.id);
  return ids;
}

Json completion_choice(const ReplyPlan& plan, size_t index, const ReplyPrompt& prompt, const PromptState& state,
                       const ChoiceState& choice) {
  Json object = Json::object();
  object["index"] = index;
  object["text"] = plan.echo ? prompt.text + choice.text : choice.text;
  object["logprobs"] = nullptr;
  if (plan.logprobs) {
    std::vector<ScoredToken> scored;
    if (plan.echo) scored = scored_prompt(plan, prompt, state);
    const int64_t offset = plan.echo ? count_characters(prompt.text) : 0;
    const std::vector<ScoredToken> written = scored_tokens(plan, choice.tokens, offset);
    scored.insert(scored.end(), written.begin(), written.end());
    object["logprobs"] = completion_logprobs(plan.spelling(), scored, *plan.logprobs);
  }
  object["finish_reason"] = finish_json(choice);
  object["stop_reason"] = stop_reason_json(plan, choice);
  if (plan.prompt_logprobs)
    object["prompt_logprobs"] =
        prompt_logprobs_list(plan.spelling(), scored_prompt(plan, prompt, state), *plan.prompt_logprobs);
  if (plan.return_token_ids) {
    object["prompt_token_ids"] = prompt.ids;
    object["token_ids"] = token_ids(choice.tokens);
  }
  return object;
}

Json chat_choice(const ReplyPlan& plan, size_t index, const ChoiceState& choice) {
  Json object = Json::object();
  object["index"] = index;
  object["message"] = {{"role", "assistant"}, {"content", choice.text}, {"refusal", nullptr}};
  object["logprobs"] = nullptr;
  if (plan.logprobs)
    object["logprobs"] = chat_logprobs(plan.spelling(), scored_tokens(plan, choice.tokens, 0), *plan.logprobs);
  object["finish_reason"] = finish_json(choice);
  object["stop_reason"] = stop_reason_json(plan, choice);
  if (plan.return_token_ids) object["token_ids"] = token_ids(choice.tokens);
  return object;
}

Usage usage_of(const ReplyPlan& plan, const std::vector<PromptState>& prompts) {
  Usage usage;
  for (size_t p = 0; p < prompts.size(); ++p) {
    usage.prompt_tokens += std::ssize(plan.prompts[p].ids);
    int64_t shared = std::ssize(plan.prompts[p].ids);
    for (const ChoiceState& choice : prompts[p].choices) {
      usage.completion_tokens += std::ssize(choice.tokens);
      shared = std::min(shared, choice.shared_prompt_tokens);
    }
    // Choices of one request share the prompt with each other: only what all of them found was there before.
    usage.cached_tokens += shared;
  }
  return usage;
}

}  // namespace

void ChoiceState::take(Output&& output) {
  for (OutputToken& token : output.tokens) {
    text += token.text;
    token.text.clear();
    tokens.push_back(std::move(token));
  }
  text += output.rest;
  if (!output.finish) return;
  finish = output.finish;
  stop_text = std::move(output.stop_text);
  stop_token = output.stop_token;
  error = std::move(output.error);
  shared_prompt_tokens = output.shared_prompt_tokens;
}

std::optional<ApiError> failure(const ChoiceState& choice) {
  if (choice.finish == FinishReason::kCancelled) return not_now("cancelled", "the server ended the request");
  if (choice.finish != FinishReason::kError) return std::nullopt;
  if (choice.error) return to_api_error(*choice.error);
  return to_api_error(internal_error("the engine gave no reason"));
}

Json usage_json(const Usage& usage) {
  Json details = Json::object();
  details["cached_tokens"] = usage.cached_tokens;
  Json object = Json::object();
  object["prompt_tokens"] = usage.prompt_tokens;
  object["completion_tokens"] = usage.completion_tokens;
  object["total_tokens"] = usage.prompt_tokens + usage.completion_tokens;
  object["prompt_tokens_details"] = std::move(details);
  return object;
}

Json reply_head(const ReplyPlan& plan, const char* object) {
  Json head = Json::object();
  head["id"] = plan.id;
  head["object"] = object;
  head["created"] = plan.created_s;
  head["model"] = plan.model;
  head["system_fingerprint"] = plan.fingerprint;
  return head;
}

Json finish_json(const ChoiceState& choice) {
  return choice.finish ? Json(finish_reason_name(*choice.finish)) : Json(nullptr);
}

Json stop_reason_json(const ReplyPlan& plan, const ChoiceState& choice) {
  if (choice.stop_text) return *choice.stop_text;
  if (choice.stop_token && std::ranges::find(plan.stop_token_ids, *choice.stop_token) != plan.stop_token_ids.end())
    return *choice.stop_token;
  return nullptr;
}

std::vector<ScoredToken> scored_prompt(const ReplyPlan& plan, const ReplyPrompt& prompt, const PromptState& state) {
  const std::vector<int64_t> offsets = prompt_offsets(plan.tokenizer, prompt.text, prompt.ids);
  std::vector<ScoredToken> scored;
  scored.reserve(prompt.ids.size());
  for (size_t i = 0; i < prompt.ids.size(); ++i) {
    ScoredToken token{.id = prompt.ids[i], .logprob = std::nullopt, .top = {}, .text_offset = offsets[i]};
    if (i > 0 && i - 1 < state.logprobs.size()) {
      token.logprob = state.logprobs[i - 1].logprob;
      token.top = state.logprobs[i - 1].top;
    }
    scored.push_back(token);
  }
  return scored;
}

int64_t token_width(const ReplyPlan& plan, int32_t id) {
  if (id < 0 || id >= plan.tokenizer.vocab_size()) return 0;
  if (plan.skip_special && plan.tokenizer.is_special(id)) return 0;
  return count_characters(plan.tokenizer.token_bytes(id));
}

namespace {

constexpr int64_t kChoiceBytes = 200;
constexpr int64_t kIdBytes = 6;
// Of a token with its number, and of each alternative. In chat each is an object with its bytes.
constexpr int64_t kLogprobBytes = 30, kChatLogprobBytes = 80;

int64_t logprob_bytes(const ReplyPlan& plan, std::optional<int32_t> alternatives) {
  return alternatives ? (plan.chat ? kChatLogprobBytes : kLogprobBytes) * (1 + std::max(*alternatives, 0)) : 0;
}

}  // namespace

int64_t about_token_bytes(const ReplyPlan& plan, int64_t tokens) {
  return tokens * ((plan.return_token_ids ? kIdBytes : 0) + logprob_bytes(plan, plan.logprobs));
}

int64_t about_prompt_bytes(const ReplyPlan& plan, const ReplyPrompt& prompt) {
  const int64_t each = (plan.return_token_ids ? kIdBytes : 0) + (plan.echo ? logprob_bytes(plan, plan.logprobs) : 0) +
                       logprob_bytes(plan, plan.prompt_logprobs);
  return (plan.echo ? std::ssize(prompt.text) : 0) + std::ssize(prompt.ids) * each;
}

int64_t about_bytes(const ReplyPlan& plan, const std::vector<PromptState>& prompts) {
  int64_t bytes = 0;
  for (size_t p = 0; p < prompts.size(); ++p) {
    const int64_t said = kChoiceBytes + about_prompt_bytes(plan, plan.prompts[p]);
    for (const ChoiceState& choice : prompts[p].choices)
      bytes += said + std::ssize(choice.text) + about_token_bytes(plan, std::ssize(choice.tokens));
  }
  return bytes;
}

std::string whole_reply(const ReplyPlan& plan, const std::vector<PromptState>& prompts) {
  Json choices = Json::array();
  for (size_t p = 0; p < prompts.size(); ++p)
    for (const ChoiceState& choice : prompts[p].choices)
      choices.push_back(plan.chat ? chat_choice(plan, choices.size(), choice)
                                  : completion_choice(plan, choices.size(), plan.prompts[p], prompts[p], choice));
  Json reply = reply_head(plan, plan.chat ? "chat.completion" : "text_completion");
  reply["choices"] = std::move(choices);
  reply["usage"] = usage_json(usage_of(plan, prompts));
  if (plan.chat && plan.prompt_logprobs)
    reply["prompt_logprobs"] = prompt_logprobs_list(
        plan.spelling(), scored_prompt(plan, plan.prompts.front(), prompts.front()), *plan.prompt_logprobs);
  if (plan.chat && plan.return_token_ids) reply["prompt_token_ids"] = plan.prompts.front().ids;
  return dump(reply);
}

std::string dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace hearth
