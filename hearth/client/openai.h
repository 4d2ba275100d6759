// SPDX-License-Identifier: Apache-2.0
// What a server with OpenAI's API says: events of a streamed completion or chat, error objects. Pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/client/http_client.h"

namespace hearth {

struct TokenCounts {
  int64_t prompt = 0;
  int64_t completion = 0;
};

struct StreamEvent {
  enum class Kind {
    kNothing,    // a role, usage, something unknown
    kToken,      // at least one token, whose text may be empty
    kMaybeToken  // the end of a choice without text: with servers that say the end with the last token, that token
  };
  Kind kind = Kind::kNothing;
  bool done = false;  // [DONE]
  std::string text;
  std::string finish_reason;
  std::optional<TokenCounts> usage;
  std::string error;  // the server's message; the stream is over
};

// The data of one event. Corrupt: not a JSON object.
Result<StreamEvent> parse_stream_event(std::string_view data);

// What an answer that is no success says: the message of its error object, else the beginning of its text.
std::string error_message(std::string_view body);

// The error of an answer with that status, "HTTP 404: the model x does not exist".
Error status_error(int status, std::string_view body);

// "authorization: Bearer KEY", or nothing for an empty key.
std::vector<std::pair<std::string, std::string>> authorization(const std::string& key);

struct ModelCard {
  std::string id;
  std::optional<int64_t> max_model_len;  // servers of OpenAI's kind say it beside their own fields
};
// GET /v1/models.
Result<std::vector<ModelCard>> list_models(boost::asio::io_context& context, HttpClient& client,
                                           const std::atomic<bool>& stop);
// The one of that name, or the only one where `name` is empty. NotFound and InvalidArgument list what there is.
Result<ModelCard> choose_model(const std::vector<ModelCard>& models, const std::string& name);

// POST /tokenize: the ids of `text`, without special tokens.
Result<std::vector<int32_t>> tokenize(boost::asio::io_context& context, HttpClient& client, const std::string& model,
                                      const std::string& text, const std::atomic<bool>& stop);

}  // namespace hearth
