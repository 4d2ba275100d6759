// SPDX-License-Identifier: Apache-2.0
// Tokens and their log probabilities as answers spell them. Pure; any thread. Compiles without coroutines.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/engine/request.h"
#include "hearth/serve/json_request.h"
#include "hearth/text/tokenizer.h"

namespace hearth {

// How tokens are written in logprobs: their text; "bytes:\xe2\x80" where that is not UTF-8 (chat: without "bytes:"),
// as OpenAI writes them; "token_id:17" where the request asks for ids.
struct TokenSpelling {
  const Tokenizer* tokenizer = nullptr;
  bool as_ids = false;
  bool chat = false;
};
std::string spell_token(const TokenSpelling& spelling, int32_t id);

// JSON has no infinities: -9999.0 stands for -inf, as in vLLM.
double json_logprob(float logprob);

// A token with what the model thought of it and of its `top` rivals, most likely first.
struct ScoredToken {
  int32_t id = 0;
  std::optional<float> logprob;  // unset: the first of a prompt
  std::span<const TokenLogprob> top;
  int64_t text_offset = 0;  // characters of the choice's text before it
};

// {"tokens":[],"token_logprobs":[],"top_logprobs":[],"text_offset":[]}. In top_logprobs each token has a dictionary
// of at most `alternatives` rivals and itself. Two ids of one text would be one key: the less likely one is written
// "token_id:17".
Json completion_logprobs(const TokenSpelling& spelling, std::span<const ScoredToken> tokens, int64_t alternatives);
// {"content":[{"token","logprob","bytes","top_logprobs"}],"refusal":null}
Json chat_logprobs(const TokenSpelling& spelling, std::span<const ScoredToken> tokens, int64_t alternatives);
// vLLM's prompt_logprobs: null for the first token, then {"17":{"logprob","rank","decoded_token"}}; rank is null for
// a token that is not among the alternatives.
Json prompt_logprobs_list(const TokenSpelling& spelling, std::span<const ScoredToken> tokens, int64_t alternatives);

// Unicode characters of UTF-8 text; bytes that continue a character count nothing.
int64_t count_characters(std::string_view text);
// For each id, the characters of `text` before it, where `ids` are the tokens of `text`. Special tokens that are not
// in the text have no width.
std::vector<int64_t> prompt_offsets(const Tokenizer& tokenizer, std::string_view text, std::span<const int32_t> ids);

}  // namespace hearth
