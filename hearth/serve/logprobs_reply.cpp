// SPDX-License-Identifier: Apache-2.0
// Pure functions.
#include "hearth/serve/logprobs_reply.h"

#include <algorithm>
#include <cmath>

#include "hearth/text/utf8.h"

namespace hearth {
namespace {

std::string id_spelling(int32_t id) { return fmt::format("token_id:{}", id); }

Json byte_array(std::string_view bytes) {
  Json array = Json::array();
  for (const char byte : bytes) array.push_back(static_cast<uint8_t>(byte));
  return array;
}

std::span<const TokenLogprob> first(std::span<const TokenLogprob> top, int64_t count) {
  return top.first(std::min(top.size(), static_cast<size_t>(std::max<int64_t>(count, 0))));
}

Json top_dictionary(const TokenSpelling& spelling, const ScoredToken& token, int64_t alternatives) {
  Json::object_t entries;
  const auto add = [&](int32_t id, float logprob) {
    std::string name = spell_token(spelling, id);
    // At most 21 entries.
    const auto same = [&](const auto& entry) { return entry.first == name; };
    if (std::any_of(entries.begin(), entries.end(), same)) name = id_spelling(id);
    entries.emplace_back(std::move(name), json_logprob(logprob));
  };
  bool there = false;
  for (const TokenLogprob& rival : first(token.top, alternatives)) {
    add(rival.token, rival.logprob);
    there = there || rival.token == token.id;
  }
  if (!there) add(token.id, *token.logprob);
  return Json(std::move(entries));
}

}  // namespace

std::string spell_token(const TokenSpelling& spelling, int32_t id) {
  if (spelling.as_ids || id < 0 || id >= spelling.tokenizer->vocab_size()) return id_spelling(id);
  const std::string_view bytes = spelling.tokenizer->token_bytes(id);
  if (text_detail::is_valid_utf8(bytes)) return std::string(bytes);
  std::string text = spelling.chat ? "" : "bytes:";
  for (const char byte : bytes) text += fmt::format("\\x{:02x}", static_cast<uint8_t>(byte));
  return text;
}

double json_logprob(float logprob) {
  constexpr double kLowest = -9999.0;
  return std::isfinite(logprob) ? std::max<double>(logprob, kLowest) : kLowest;
}

Json completion_logprobs(const TokenSpelling& spelling, std::span<const ScoredToken> tokens, int64_t alternatives) {
  Json names = Json::array(), logprobs = Json::array(), tops = Json::array(), offsets = Json::array();
  for (const ScoredToken& token : tokens) {
    names.push_back(spell_token(spelling, token.id));
    logprobs.push_back(token.logprob ? Json(json_logprob(*token.logprob)) : Json(nullptr));
    tops.push_back(token.logprob ? top_dictionary(spelling, token, alternatives) : Json(nullptr));
    offsets.push_back(token.text_offset);
  }
  Json object = Json::object();
  object["tokens"] = std::move(names);
  object["token_logprobs"] = std::move(logprobs);
  object["top_logprobs"] = std::move(tops);
  object["text_offset"] = std::move(offsets);
  return object;
}

Json chat_logprobs(const TokenSpelling& spelling, std::span<const ScoredToken> tokens, int64_t alternatives) {
  const auto entry = [&](int32_t id, float logprob) {
    Json one = Json::object();
    one["token"] = spell_token(spelling, id);
    one["logprob"] = json_logprob(logprob);
    one["bytes"] = byte_array(spelling.tokenizer->token_bytes(id));
    return one;
  };
  Json content = Json::array();
  for (const ScoredToken& token : tokens) {
    Json one = entry(token.id, token.logprob.value_or(0));
    one["top_logprobs"] = Json::array();
    for (const TokenLogprob& rival : first(token.top, alternatives))
      one["top_logprobs"].push_back(entry(rival.token, rival.logprob));
    content.push_back(std::move(one));
  }
  Json object = Json::object();
  object["content"] = std::move(content);
  object["refusal"] = nullptr;
  return object;
}

Json prompt_logprobs_list(const TokenSpelling& spelling, std::span<const ScoredToken> tokens, int64_t alternatives) {
  Json list = Json::array();
  for (const ScoredToken& token : tokens) {
    if (!token.logprob) {
      list.push_back(nullptr);
      continue;
    }
    Json object = Json::object();
    const auto add = [&](int32_t id, float logprob, Json rank) {
      Json one = Json::object();
      one["logprob"] = json_logprob(logprob);
      one["rank"] = std::move(rank);
      one["decoded_token"] = spell_token(spelling, id);
      object[std::to_string(id)] = std::move(one);
    };
    int64_t rank = 0;
    for (const TokenLogprob& rival : first(token.top, alternatives)) add(rival.token, rival.logprob, ++rank);
    if (!object.contains(std::to_string(token.id))) add(token.id, *token.logprob, nullptr);
    list.push_back(std::move(object));
  }
  return list;
}

int64_t count_characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xc0) != 0x80; });
}

std::vector<int64_t> prompt_offsets(const Tokenizer& tokenizer, std::string_view text, std::span<const int32_t> ids) {
  std::vector<int64_t> offsets;
  offsets.reserve(ids.size());
  int64_t characters = 0;
  for (const int32_t id : ids) {
    offsets.push_back(characters);
    if (id < 0 || id >= tokenizer.vocab_size()) continue;
    std::string_view bytes = tokenizer.token_bytes(id);
    // The space that some tokenizers put before the first word.
    if (!text.starts_with(bytes) && bytes.starts_with(' ') && text.starts_with(bytes.substr(1))) bytes.remove_prefix(1);
    if (!text.starts_with(bytes) && tokenizer.is_special(id)) continue;
    // A normalizer may have changed the text: then the widths of tokens are the best there is.
    const std::string_view taken = text.substr(0, bytes.size());
    characters += count_characters(taken);
    text.remove_prefix(taken.size());
  }
  return offsets;
}

}  // namespace hearth
