// SPDX-License-Identifier: Apache-2.0
// Pure functions, and calls that run the io_context they are given.
#include "hearth/client/openai.h"

#include <limits>
#include <nlohmann/json.hpp>

namespace hearth {
namespace {

using Json = nlohmann::json;

constexpr size_t kShownBytes = 300;

const Json* find(const Json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

std::string text_of(const Json& object, const char* key) {
  const Json* const value = find(object, key);
  return value != nullptr && value->is_string() ? value->get<std::string>() : std::string();
}

std::optional<int64_t> count_of(const Json& object, const char* key) {
  const Json* const value = find(object, key);
  if (value == nullptr || !value->is_number_integer()) return std::nullopt;
  const int64_t count = value->get<int64_t>();
  return count < 0 ? std::nullopt : std::optional(count);
}

// "error": {"message": "..."}, and servers that write "error": "...".
std::string message_of(const Json& object) {
  const Json* const error = find(object, "error");
  if (error == nullptr) return text_of(object, "message");
  if (error->is_string()) return error->get<std::string>();
  const std::string message = text_of(*error, "message");
  return message.empty() ? "an error without a message" : message;
}

void read_choice(const Json& choice, StreamEvent& event) {
  event.finish_reason = text_of(choice, "finish_reason");
  const Json* const delta = find(choice, "delta");
  if (delta == nullptr) {
    event.text = text_of(choice, "text");
    const bool end = !event.finish_reason.empty() && event.text.empty();
    event.kind = end ? StreamEvent::Kind::kMaybeToken : StreamEvent::Kind::kToken;
    return;
  }
  event.text = text_of(*delta, "content");
  const bool says = find(*delta, "content") != nullptr || find(*delta, "reasoning_content") != nullptr ||
                    find(*delta, "reasoning") != nullptr || find(*delta, "refusal") != nullptr ||
                    find(*delta, "tool_calls") != nullptr;
  // The first event of a chat tells the role, with an empty text, before there is a token.
  const bool only_role = find(*delta, "role") != nullptr && event.text.empty() &&
                         find(*delta, "tool_calls") == nullptr && text_of(*delta, "reasoning_content").empty() &&
                         text_of(*delta, "reasoning").empty();
  if (says && !only_role && (!event.text.empty() || event.finish_reason.empty()))
    event.kind = StreamEvent::Kind::kToken;
  else if (!event.finish_reason.empty())
    event.kind = StreamEvent::Kind::kMaybeToken;
}

Error bad_answer(std::string_view what, std::string_view body) {
  return corrupt("{}: the server's answer is not understood: {}", what, body.substr(0, kShownBytes));
}

}  // namespace

Result<StreamEvent> parse_stream_event(std::string_view data) {
  StreamEvent event;
  if (data == "[DONE]") {
    event.done = true;
    return event;
  }
  const Json json = Json::parse(data, nullptr, false);
  if (!json.is_object()) return corrupt("an event of the stream is not a JSON object: {}", data.substr(0, kShownBytes));
  if (find(json, "error") != nullptr) {
    event.error = message_of(json);
    return event;
  }
  if (const Json* const choices = find(json, "choices"); choices != nullptr && choices->is_array() && !choices->empty())
    read_choice(choices->front(), event);
  if (const Json* const usage = find(json, "usage"); usage != nullptr && usage->is_object()) {
    const auto completion = count_of(*usage, "completion_tokens");
    if (completion) event.usage = {.prompt = count_of(*usage, "prompt_tokens").value_or(0), .completion = *completion};
  }
  return event;
}

std::string error_message(std::string_view body) {
  const Json json = Json::parse(body, nullptr, false);
  std::string message = message_of(json);
  if (message.empty()) message = body.substr(0, kShownBytes);
  while (!message.empty() && (message.back() == '\n' || message.back() == '\r')) message.pop_back();
  return message.empty() ? "an answer without a body" : message;
}

Error status_error(int status, std::string_view body) {
  const std::string message = fmt::format("HTTP {}: {}", status, error_message(body));
  if (status == 404) return not_found("{}", message);
  if (status == 429 || status == 413) return resource_exhausted("{}", message);
  if (status >= 500) return unavailable("{}", message);
  return invalid_argument("{}", message);
}

std::vector<std::pair<std::string, std::string>> authorization(const std::string& key) {
  if (key.empty()) return {};
  return {{"authorization", "Bearer " + key}};
}

Result<std::vector<ModelCard>> list_models(boost::asio::io_context& context, HttpClient& client,
                                           const std::atomic<bool>& stop) {
  constexpr const char* kWhat = "GET /v1/models";
  auto fetched =
      fetch(context, client, {.method = "GET", .target = client.url().target("/v1/models"), .body = {}}, stop);
  if (!fetched) return std::move(fetched).error();
  if (fetched->head.status != 200) return status_error(fetched->head.status, fetched->body).with_context(kWhat);
  const Json json = Json::parse(fetched->body, nullptr, false);
  const Json* const data = find(json, "data");
  if (data == nullptr || !data->is_array()) return bad_answer(kWhat, fetched->body);
  std::vector<ModelCard> models;
  for (const Json& card : *data) {
    const std::string id = text_of(card, "id");
    if (id.empty()) return bad_answer(kWhat, fetched->body);
    models.push_back({.id = id, .max_model_len = count_of(card, "max_model_len")});
  }
  return models;
}

Result<ModelCard> choose_model(const std::vector<ModelCard>& models, const std::string& name) {
  std::vector<std::string_view> ids;
  for (const ModelCard& card : models) {
    if (card.id == name || (name.empty() && models.size() == 1)) return card;
    ids.push_back(card.id);
  }
  const std::string list = ids.empty() ? "none" : fmt::format("{}", fmt::join(ids, ", "));
  if (!name.empty()) return not_found("the server has no model '{}'; it has: {}", name, list);
  return invalid_argument("--model is needed to choose one of the server's models: {}", list);
}

Result<std::vector<int32_t>> tokenize(boost::asio::io_context& context, HttpClient& client, const std::string& model,
                                      const std::string& text, const std::atomic<bool>& stop) {
  constexpr const char* kWhat = "POST /tokenize";
  const Json body = {{"model", model}, {"prompt", text}, {"add_special_tokens", false}};
  HttpUrl root = client.url();
  if (root.path.ends_with("/v1")) root.path.resize(root.path.size() - 3);
  auto fetched =
      fetch(context, client, {.method = "POST", .target = root.target("/tokenize"), .body = body.dump()}, stop);
  if (!fetched) return std::move(fetched).error();
  if (fetched->head.status != 200) return status_error(fetched->head.status, fetched->body).with_context(kWhat);
  const Json json = Json::parse(fetched->body, nullptr, false);
  const Json* const tokens = find(json, "tokens");
  if (tokens == nullptr || !tokens->is_array()) return bad_answer(kWhat, fetched->body);
  std::vector<int32_t> ids;
  for (const Json& token : *tokens) {
    if (!token.is_number_integer()) return bad_answer(kWhat, fetched->body);
    const int64_t id = token.get<int64_t>();
    if (id < 0 || id > std::numeric_limits<int32_t>::max()) return bad_answer(kWhat, fetched->body);
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

}  // namespace hearth
