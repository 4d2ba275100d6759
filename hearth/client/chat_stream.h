// SPDX-License-Identifier: Apache-2.0
// One streamed answer of /v1/chat/completions, for a dialogue. The thread that runs the io_context.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "hearth/client/http_client.h"
#include "hearth/client/openai.h"

namespace hearth {

struct ChatReply {
  std::string text;  // what came, also where the answer failed or was cancelled
  std::string finish_reason;
  std::optional<TokenCounts> usage;
  int64_t events = 0;            // with tokens
  double first_s = 0;            // from the call to the first of them
  double seconds = 0;            // from the call to the end
  bool cancelled = false;        // by `stop`
  std::optional<Error> failure;  // of the server or the way to it
};

// Called with each piece of text; an error ends the answer.
using OnChatText = std::function<Status(std::string_view piece)>;

// Sends `body`, which asks for a stream, and reads the answer; `stop` true closes the connection. The error is
// that of on_text; what the server did wrong is in ChatReply::failure.
Result<ChatReply> stream_chat(boost::asio::io_context& context, HttpClient& client, std::string body,
                              const OnChatText& on_text, const std::atomic<bool>& stop);

// "12 prompt tokens, first token after 0.05 s, 34 tokens (28.3 tokens/s)": for people.
std::string describe_speed(const ChatReply& reply);

}  // namespace hearth
