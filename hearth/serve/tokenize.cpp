// SPDX-License-Identifier: Apache-2.0
// Pure functions.
#include "hearth/serve/tokenize.h"

#include "hearth/serve/make_request.h"
#include "hearth/serve/reply.h"

namespace hearth {
namespace {

constexpr int64_t kMaxModelBytes = 512;

ApiResult<std::shared_ptr<const ApiModel>> find_model(const Json& json, const ModelRegistry& models) {
  std::optional<std::string> name;
  HEARTH_TRY(read_string(json, "model", kMaxModelBytes, name));
  return models.find_asleep_too(name.value_or(""));
}

}  // namespace

ApiResult<std::string> tokenize_reply(std::string_view body, const ModelRegistry& models, const ApiLimits& limits) {
  JsonBudget budget{.values = limits.json_values};
  HEARTH_TRY_ASSIGN(const Json json, parse_json_object(body, limits, budget));
  HEARTH_TRY_ASSIGN(const std::shared_ptr<const ApiModel> model, find_model(json, models));
  const Json* const prompt = find_field(json, "prompt");
  const bool chat = prompt == nullptr && find_field(json, "messages") != nullptr;
  std::string text;
  if (chat) {
    HEARTH_TRY_ASSIGN(const ChatMessages messages, read_chat_messages(json, limits, budget));
    HEARTH_TRY_ASSIGN(text, render_chat(*model, messages));
  } else {
    if (prompt == nullptr || !prompt->is_string())
      return bad_request("prompt", "prompt: {}; wanted a string, or messages", prompt ? describe(*prompt) : "absent");
    text = prompt->get_ref<const std::string&>();
  }
  bool special = !chat, strings = false;
  HEARTH_TRY(read_bool(json, "add_special_tokens", special));
  HEARTH_TRY(read_bool(json, "return_token_strs", strings));
  HEARTH_TRY_ASSIGN(const std::vector<int32_t> ids, encode_prompt(*model, text, special, chat ? "messages" : "prompt"));
  Json reply = Json::object();
  reply["count"] = ids.size();
  reply["max_model_len"] = model->served->max_context;
  reply["tokens"] = ids;
  reply["token_strs"] = nullptr;
  if (strings) {
    Json pieces = Json::array();
    for (const int32_t id : ids) pieces.push_back(model->served->tokenizer.id_to_piece(id).value_or(""));
    reply["token_strs"] = std::move(pieces);
  }
  return dump(reply);
}

ApiResult<std::string> detokenize_reply(std::string_view body, const ModelRegistry& models, const ApiLimits& limits) {
  HEARTH_TRY_ASSIGN(const Json json, parse_json_object(body, limits));
  HEARTH_TRY_ASSIGN(const std::shared_ptr<const ApiModel> model, find_model(json, models));
  const Json* const tokens = find_field(json, "tokens");
  if (tokens == nullptr || !tokens->is_array())
    return bad_request("tokens", "tokens: {}; wanted an array of token ids", tokens ? describe(*tokens) : "absent");
  HEARTH_TRY_ASSIGN(const std::vector<int32_t> ids, to_token_ids(*tokens, "tokens"));
  const int64_t vocab = model->served->tokenizer.vocab_size();
  for (size_t i = 0; i < ids.size(); ++i)
    if (ids[i] >= vocab)
      return bad_request("tokens", "tokens: {} at position {} is not in the vocabulary of {}", ids[i], i, vocab);
  HEARTH_TRY_ASSIGN(const std::string text, model->served->tokenizer.decode(ids, false));
  Json reply = Json::object();
  reply["prompt"] = text;
  return dump(reply);
}

}  // namespace hearth
