// SPDX-License-Identifier: Apache-2.0
// One thread at a time.
#include "hearth/serve/stream_reply.h"

#include <algorithm>
#include <iterator>

namespace hearth {

void append_event(const std::string& data, std::string& events) {
  events += "data: ";
  events += data;
  events += "\n\n";
}

StreamReply::StreamReply(ReplyPlan plan)
    : plan_(std::move(plan)),
      head_(reply_head(plan_, plan_.chat ? "chat.completion.chunk" : "text_completion")),
      prompts_(plan_.prompts.size()),
      open_(plan_.choices()),
      unbegun_(open_),
      untold_(plan_.return_token_ids ? open_ : 0) {
  for (size_t p = 0; p < prompts_.size(); ++p) {
    prompts_[p].choices.resize(static_cast<size_t>(plan_.n));
    begin_bytes_ += plan_.n * about_prompt_bytes(plan_, plan_.prompts[p]);
    prompts_[p].scored = !plan_.echoes_logprobs() || plan_.prompts[p].ids.size() < 2;
  }
}

int64_t StreamReply::about_bytes(const Output& output) const {
  constexpr int64_t kEventBytes = 250;
  const int64_t tokens = std::ssize(output.tokens);
  // The text is counted with the events: it is a few bytes a token.
  return (1 + tokens) * kEventBytes + std::ssize(output.rest) + about_token_bytes(plan_, tokens);
}

void StreamReply::take(size_t prompt, Output&& output, std::string& events) {
  if (error_) return;
  if (output.finish == FinishReason::kError || output.finish == FinishReason::kCancelled) {
    ChoiceState failed;
    failed.take(std::move(output));
    fail(*failure(failed), events);
    return;
  }
  PromptStream& stream = prompts_[prompt];
  std::move(output.prompt.begin(), output.prompt.end(), std::back_inserter(stream.state.logprobs));
  output.prompt.clear();
  if (!stream.scored) {
    if (stream.state.logprobs.size() + 1 < plan_.prompts[prompt].ids.size()) {
      const bool says = !output.tokens.empty() || !output.rest.empty() || output.finish;
      if (says) stream.waiting.push_back(std::move(output));
      return;
    }
    stream.scored = true;
    for (Output& held : std::exchange(stream.waiting, {})) write(prompt, std::move(held), events);
  }
  write(prompt, std::move(output), events);
}

void StreamReply::write(size_t prompt, Output&& output, std::string& events) {
  const int32_t index = output.choice;
  Choice& choice = prompts_[prompt].choices[static_cast<size_t>(index)];
  if (!choice.begun) begin(prompt, index, events);
  // In completions the last token's event says how the text ended, in chat an event of its own, as OpenAI has it.
  const bool ends = output.finish.has_value();
  const bool merged = ends && !plan_.chat && !output.tokens.empty();
  const std::vector<OutputToken> tokens = std::move(output.tokens);
  const std::string rest = std::move(output.rest);
  output.tokens.clear();
  output.rest.clear();
  for (size_t i = 0; i < tokens.size(); ++i) {
    const bool last = merged && i + 1 == tokens.size();
    if (last) choice.ending.take(std::move(output));
    emit(prompt, index, token_choice(prompt, index, tokens[i], last ? rest : std::string()), events);
  }
  if (!ends) return;
  --open_;
  if (merged) return;
  choice.ending.take(std::move(output));
  emit(prompt, index, end_choice(prompt, index, rest), events);
}

void StreamReply::begin(size_t prompt, int32_t index, std::string& events) {
  Choice& choice = prompts_[prompt].choices[static_cast<size_t>(index)];
  choice.begun = true;
  --unbegun_;
  if (plan_.chat) {
    Json first = empty_choice(prompt, index);
    first["delta"]["role"] = "assistant";
    first["delta"]["content"] = "";
    emit(prompt, index, std::move(first), events);
    return;
  }
  if (!plan_.echo) return;
  const ReplyPrompt& said = plan_.prompts[prompt];
  Json first = empty_choice(prompt, index);
  first["text"] = said.text;
  if (plan_.logprobs)
    first["logprobs"] =
        completion_logprobs(plan_.spelling(), scored_prompt(plan_, said, prompts_[prompt].state), *plan_.logprobs);
  choice.offset = count_characters(said.text);
  emit(prompt, index, std::move(first), events);
}

Json StreamReply::empty_choice(size_t prompt, int32_t index) const {
  Json object = Json::object();
  object["index"] = static_cast<int64_t>(prompt) * plan_.n + index;
  if (plan_.chat) {
    object["delta"] = Json::object();
  } else {
    object["text"] = "";
  }
  object["logprobs"] = nullptr;
  object["finish_reason"] = nullptr;
  return object;
}

Json StreamReply::token_choice(size_t prompt, int32_t index, const OutputToken& token, const std::string& rest) {
  Choice& choice = prompts_[prompt].choices[static_cast<size_t>(index)];
  Json object = empty_choice(prompt, index);
  if (plan_.chat) {
    object["delta"]["content"] = token.text + rest;
  } else {
    object["text"] = token.text + rest;
  }
  if (plan_.logprobs) {
    const ScoredToken scored{.id = token.id, .logprob = token.logprob, .top = token.top, .text_offset = choice.offset};
    object["logprobs"] = plan_.chat ? chat_logprobs(plan_.spelling(), {&scored, 1}, *plan_.logprobs)
                                    : completion_logprobs(plan_.spelling(), {&scored, 1}, *plan_.logprobs);
    choice.offset += token_width(plan_, token.id);
  }
  if (plan_.return_token_ids) object["token_ids"] = Json::array({token.id});
  ++choice.tokens;
  if (choice.ending.finish) {
    object["finish_reason"] = finish_json(choice.ending);
    object["stop_reason"] = stop_reason_json(plan_, choice.ending);
  }
  return object;
}

Json StreamReply::end_choice(size_t prompt, int32_t index, const std::string& rest) {
  const Choice& choice = prompts_[prompt].choices[static_cast<size_t>(index)];
  Json object = empty_choice(prompt, index);
  if (!plan_.chat) {
    object["text"] = rest;
  } else if (!rest.empty()) {
    object["delta"]["content"] = rest;
  }
  object["finish_reason"] = finish_json(choice.ending);
  object["stop_reason"] = stop_reason_json(plan_, choice.ending);
  return object;
}

void StreamReply::emit(size_t prompt, int32_t index, Json choice, std::string& events) {
  Choice& told = prompts_[prompt].choices[static_cast<size_t>(index)];
  const bool tell_prompt = plan_.return_token_ids && !std::exchange(told.told_prompt, true);
  if (tell_prompt) --untold_;
  if (tell_prompt && !plan_.chat) choice["prompt_token_ids"] = plan_.prompts[prompt].ids;
  Json chunk = head_;
  chunk["choices"] = Json::array({std::move(choice)});
  if (tell_prompt && plan_.chat) chunk["prompt_token_ids"] = plan_.prompts[prompt].ids;
  if (plan_.continuous_usage) {
    chunk["usage"] = usage_json(
        {.prompt_tokens = std::ssize(plan_.prompts[prompt].ids), .completion_tokens = told.tokens, .cached_tokens = 0});
  } else if (plan_.include_usage) {
    chunk["usage"] = nullptr;
  }
  append_event(dump(chunk), events);
}

Usage StreamReply::usage() const {
  Usage usage;
  for (size_t p = 0; p < prompts_.size(); ++p) {
    int64_t shared = std::ssize(plan_.prompts[p].ids);
    usage.prompt_tokens += shared;
    for (const Choice& choice : prompts_[p].choices) {
      usage.completion_tokens += choice.tokens;
      shared = std::min(shared, choice.ending.shared_prompt_tokens);
    }
    usage.cached_tokens += shared;
  }
  return usage;
}

void StreamReply::end(std::string& events) {
  if (error_) return;
  if (plan_.include_usage) {
    Json chunk = head_;
    chunk["choices"] = Json::array();
    chunk["usage"] = usage_json(usage());
    append_event(dump(chunk), events);
  }
  append_event("[DONE]", events);
}

void StreamReply::fail(const ApiError& error, std::string& events) {
  if (error_) return;
  error_ = error;
  append_event(error_json(error), events);
}

}  // namespace hearth
