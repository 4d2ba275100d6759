// SPDX-License-Identifier: Apache-2.0
// ChatTemplate over the text bridge: checks the parts of a request, joins them to the variables of the template, and
// adds what the message of an error needs. Immutable after compile(); any thread.
#include "hearth/text/chat_template.h"

#include <nlohmann/json.hpp>

#include "hearth/text/bridge.h"

namespace hearth {
namespace {

using namespace text_detail;
using Json = nlohmann::json;

// `text` must be JSON of the wanted kind. It is passed on as it is: the order of members and the spelling of numbers
// are the template's business.
Status check_json(std::string_view text, std::string_view what, Json::value_t wanted) {
  if (!Json::accept(text)) return invalid_argument("{}: not valid JSON", what);
  const size_t start = text.find_first_not_of(" \t\r\n");
  const bool array = text[start] == '[';
  if (array || text[start] == '{') {
    if (array == (wanted == Json::value_t::array)) return {};
  }
  return invalid_argument("{}: wanted a JSON {}", what, wanted == Json::value_t::array ? "array" : "object");
}

std::string json_string(std::string_view text) {
  return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
}

// One JSON object; of equal names the last one counts, so the order is the precedence.
std::string variables_json(const ChatTemplateArgs& args) {
  std::string out = "{";
  const auto add = [&](std::string_view name, std::string_view value) {
    if (out.size() > 1) out += ',';
    out += json_string(name);
    out += ':';
    out += value;
  };
  for (const auto& [name, token] : args.special_tokens) add(name, json_string(token));
  add("messages", args.messages_json);
  add("tools", args.tools_json.empty() ? "null" : args.tools_json);
  add("documents", "null");
  add("add_generation_prompt", args.add_generation_prompt ? "true" : "false");
  if (!args.extra_json.empty()) {
    const size_t open = args.extra_json.find('{');
    const size_t close = args.extra_json.rfind('}');
    const std::string_view members = args.extra_json.substr(open + 1, close - open - 1);
    if (members.find_first_not_of(" \t\r\n") != members.npos) out.append(",").append(members);
  }
  return out + "}";
}

}  // namespace

struct ChatTemplate::Impl {
  Impl() = default;
  ~Impl() {
    const BridgeCall call;
    htb_template_free(handle);
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  htb_template* handle = nullptr;
  ChatTemplateLimits limits;
};

Result<ChatTemplate> ChatTemplate::compile(std::string_view source, const ChatTemplateLimits& limits) {
  if (static_cast<int64_t>(source.size()) > limits.max_source_bytes) {
    return resource_exhausted("chat template of {} bytes, wanted at most {}", source.size(), limits.max_source_bytes);
  }
  const htb_template_limits raw = {.max_output_bytes = static_cast<uint64_t>(limits.max_output_bytes),
                                   .max_steps = static_cast<uint64_t>(limits.max_steps),
                                   .max_work_bytes = static_cast<uint64_t>(limits.max_work_bytes),
                                   .max_time_ms = static_cast<uint64_t>(limits.max_time_ms)};
  auto impl = std::make_shared<Impl>();
  impl->limits = limits;
  const BridgeCall call;
  BridgeBuffer error;
  const htb_status status = htb_template_new(bridge_bytes(source), source.size(), &raw, &impl->handle, error.out());
  if (status != HTB_OK) return bridge_error(status, error.view()).with_context("chat template");
  return ChatTemplate(std::move(impl));
}

Result<ChatTemplate> ChatTemplate::from_tokenizer(const Tokenizer& tokenizer, std::string_view name,
                                                  const ChatTemplateLimits& limits) {
  const auto& templates = tokenizer.chat_templates();
  const auto it = templates.find(std::string(name));
  if (it == templates.end()) {
    return not_found("the model has no chat template \"{}\" (it has {})", name, templates.size());
  }
  return compile(it->second, limits);
}

Result<std::string> ChatTemplate::render(const ChatTemplateArgs& args) const {
  const auto size = static_cast<int64_t>(args.messages_json.size() + args.tools_json.size() + args.extra_json.size());
  if (size > impl_->limits.max_input_bytes) {
    return resource_exhausted("messages, tools and variables of {} bytes, wanted at most {}", size,
                              impl_->limits.max_input_bytes);
  }
  HEARTH_TRY(check_json(args.messages_json, "messages", Json::value_t::array));
  if (!args.tools_json.empty()) HEARTH_TRY(check_json(args.tools_json, "tools", Json::value_t::array));
  if (!args.extra_json.empty()) HEARTH_TRY(check_json(args.extra_json, "template variables", Json::value_t::object));

  const std::string variables = variables_json(args);
  const BridgeCall call;
  BridgeBuffer text, error;
  const htb_status status = htb_template_render(impl_->handle, bridge_bytes(variables), variables.size(),
                                                args.local_time_s, text.out(), error.out());
  if (status != HTB_OK) return bridge_error(status, error.view()).with_context("chat template");
  return text.str();
}

}  // namespace hearth
