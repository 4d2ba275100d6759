// SPDX-License-Identifier: Apache-2.0
// The body of POST /v1/chat/completions. Messages are brought into the form that chat templates know: content is one
// string, arguments of tool calls are objects; members that hearth does not know go to the template as they are.
// Pure; any thread. Compiles without coroutines.
#pragma once

#include <string>
#include <string_view>

#include "hearth/serve/generation_request.h"

namespace hearth {

struct ChatMessages {
  Json messages;      // an array
  std::string tools;  // JSON array; empty: none
  std::string extra;  // JSON object of chat_template_kwargs; empty: none
  bool add_generation_prompt = true;
};

struct ChatCall : GenerationCall {
  ChatMessages chat;
  bool add_special_tokens = false;  // to what the template wrote, which has its own
};

ApiResult<ChatCall> parse_chat(std::string_view body, const ApiLimits& limits);

// The part of it that /tokenize takes too. `budget`: what the body has left.
ApiResult<ChatMessages> read_chat_messages(const Json& body, const ApiLimits& limits, JsonBudget& budget);

}  // namespace hearth
