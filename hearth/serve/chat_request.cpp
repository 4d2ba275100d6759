// SPDX-License-Identifier: Apache-2.0
// Reads messages and what only chat completions have. Pure functions.
#include "hearth/serve/chat_request.h"

#include <algorithm>
#include <array>

namespace hearth {
namespace {

constexpr std::array<std::string_view, 5> kRoles = {"system", "developer", "user", "assistant", "tool"};

// The text of [{"type":"text","text":"..."}, ...]; parts stand on lines of their own, as in vLLM.
ApiResult<std::string> join_parts(const Json& parts, const std::string& what) {
  std::string text;
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string part = fmt::format("{}[{}]", what, i);
    if (!parts[i].is_object()) return bad_request(part, "{}: {}; wanted an object", part, describe(parts[i]));
    const Json* const type = find_field(parts[i], "type");
    if (type == nullptr || *type != "text")
      return bad_request(part, "{}.type: {}; wanted \"text\": models of text take nothing else", part,
                         type == nullptr ? "absent" : describe(*type));
    const Json* const piece = find_field(parts[i], "text");
    if (piece == nullptr || !piece->is_string())
      return bad_request(part, "{}.text: {}; wanted a string", part, piece == nullptr ? "absent" : describe(*piece));
    if (i > 0) text += '\n';
    text += piece->get_ref<const std::string&>();
  }
  return text;
}

// OpenAI has the arguments of a call as JSON text, templates want the object. Text that is none stays as it is.
ApiStatus open_arguments(Json& message, const ApiLimits& limits, JsonBudget& budget) {
  constexpr int64_t kDepth = 6;  // {"messages": [{"tool_calls": [{"function": {"arguments": ...
  const auto calls = message.find("tool_calls");
  if (calls == message.end() || !calls->is_array()) return {};
  for (Json& call : *calls) {
    if (!call.is_object() || !call.contains("function") || !call["function"].is_object()) continue;
    const auto arguments = call["function"].find("arguments");
    if (arguments == call["function"].end() || !arguments->is_string()) continue;
    auto parsed = parse_json_object(arguments->get_ref<const std::string&>(), limits, budget, kDepth);
    if (parsed) {
      *arguments = std::move(parsed).value();
    } else if (parsed.error().code == "limit_exceeded") {
      ApiError error = std::move(parsed).error();
      error.param = "messages";
      return error;
    }
  }
  return {};
}

ApiStatus read_message(Json& message, const std::string& what, const ApiLimits& limits, JsonBudget& budget) {
  if (!message.is_object()) return bad_request(what, "{}: {}; wanted an object", what, describe(message));
  const Json* const role = find_field(message, "role");
  const std::string name = role != nullptr && role->is_string() ? role->get<std::string>() : std::string();
  if (std::find(kRoles.begin(), kRoles.end(), name) == kRoles.end())
    return bad_request(what + ".role", "{}.role: {}; wanted system, developer, user, assistant or tool", what,
                       role == nullptr ? "absent" : describe(*role));
  const auto content = message.find("content");
  const bool called = name == "assistant" && find_field(message, "tool_calls") != nullptr;
  if (content == message.end() || content->is_null()) {
    // Templates add to the content without a look whether it is there.
    if (!called && name != "assistant")
      return bad_request(what + ".content", "{}.content: {}; wanted a string", what,
                         content == message.end() ? "absent" : "null");
    message["content"] = "";
  } else if (content->is_array()) {
    HEARTH_TRY_ASSIGN(std::string text, join_parts(*content, what + ".content"));
    *content = std::move(text);
  } else if (!content->is_string()) {
    return bad_request(what + ".content", "{}.content: {}; wanted a string or an array of parts", what,
                       describe(*content));
  }
  return open_arguments(message, limits, budget);
}

// Tools may be shown to the model; what it answers is not searched for calls yet.
ApiStatus read_tools(const Json& body, std::string& tools) {
  HEARTH_TRY(refuse_field(body, "functions", "is not supported, and OpenAI has deprecated it"));
  const Json* const field = find_field(body, "tools");
  const Json* const choice = find_field(body, "tool_choice");
  const bool none = choice != nullptr && *choice == "none";
  if (field != nullptr && !field->is_array())
    return bad_request("tools", "tools: {}; wanted an array", describe(*field));
  if (field == nullptr || field->empty()) {
    if (choice == nullptr || none || *choice == "auto") return {};
    return bad_request("tool_choice", "tool_choice: {}; there are no tools", describe(*choice));
  }
  if (!none) {
    ApiError error = bad_request(
        "tools", "tools: calls of tools are not supported; with tool_choice \"none\" the model sees the tools");
    error.code = "unsupported";
    return error;
  }
  tools = to_text(*field);
  return {};
}

ApiStatus read_logprobs(const Json& body, const ApiLimits& limits, GenerationCall& call) {
  bool wanted = false;
  std::optional<int64_t> top;
  HEARTH_TRY(read_bool(body, "logprobs", wanted));
  HEARTH_TRY(read_integer(body, "top_logprobs", {0, limits.logprobs}, top));
  if (wanted) {
    call.logprobs = static_cast<int32_t>(top.value_or(0));
  } else if (top.value_or(0) > 0) {
    return bad_request("top_logprobs", "top_logprobs: only with logprobs true");
  }
  return {};
}

}  // namespace

ApiResult<ChatMessages> read_chat_messages(const Json& body, const ApiLimits& limits, JsonBudget& budget) {
  ChatMessages chat;
  const Json* const messages = find_field(body, "messages");
  if (messages == nullptr) return bad_request("messages", "messages: absent; wanted an array of messages");
  if (!messages->is_array()) return bad_request("messages", "messages: {}; wanted an array", describe(*messages));
  if (messages->empty()) return bad_request("messages", "messages: the array is empty");
  if (std::ssize(*messages) > limits.messages)
    return over_limit("messages", fmt::format("messages: {}; at most {}", messages->size(), limits.messages));
  chat.messages = *messages;
  for (size_t i = 0; i < chat.messages.size(); ++i)
    HEARTH_TRY(read_message(chat.messages[i], fmt::format("messages[{}]", i), limits, budget));
  HEARTH_TRY(read_tools(body, chat.tools));
  HEARTH_TRY(refuse_field(body, "chat_template", "templates from requests are never run"));
  HEARTH_TRY(refuse_field(body, "continue_final_message", "is not supported"));
  HEARTH_TRY(read_bool(body, "add_generation_prompt", chat.add_generation_prompt));
  if (const Json* const extra = find_field(body, "chat_template_kwargs")) {
    if (!extra->is_object())
      return bad_request("chat_template_kwargs", "chat_template_kwargs: {}; wanted an object", describe(*extra));
    if (!extra->empty()) chat.extra = to_text(*extra);
  }
  return chat;
}

ApiResult<ChatCall> parse_chat(std::string_view body, const ApiLimits& limits) {
  JsonBudget budget{.values = limits.json_values};
  HEARTH_TRY_ASSIGN(const Json json, parse_json_object(body, limits, budget));
  ChatCall call;
  HEARTH_TRY(read_generation(json, limits, budget, call));
  HEARTH_TRY_ASSIGN(call.chat, read_chat_messages(json, limits, budget));
  if (call.n > limits.choices)
    return over_limit("n", fmt::format("n: {} choices; at most {} in all", call.n, limits.choices));
  HEARTH_TRY(read_logprobs(json, limits, call));
  HEARTH_TRY(refuse_field(json, "echo", "is not supported with chat"));
  HEARTH_TRY(refuse_field(json, "audio", "models of text write no sound"));
  HEARTH_TRY(read_bool(json, "add_special_tokens", call.add_special_tokens));
  const int64_t most = limits.max_tokens > 0 ? limits.max_tokens : std::numeric_limits<int32_t>::max();
  // The newer name counts where both are given.
  HEARTH_TRY(read_integer(json, "max_tokens", {1, most}, call.max_tokens));
  HEARTH_TRY(read_integer(json, "max_completion_tokens", {1, most}, call.max_tokens));
  return call;
}

}  // namespace hearth
