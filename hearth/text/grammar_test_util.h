// SPDX-License-Identifier: Apache-2.0
// What the tests of grammars share: tokenizers of both kinds, random walks along the masks, and a small validator of
// JSON Schema as the oracle. Tests only, one thread.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <chrono>
#include <cmath>
#include <random>
#include <regex>
#include <string>
#include <vector>

#include "hearth/text/grammar.h"
#include "hearth/text/test_util.h"

namespace hearth::text_test {

// A byte-fallback vocabulary in the shape of a converted sentencepiece model.
inline Tokenizer fallback_tokenizer() {
  Json vocabulary = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  const auto add = [&](const std::string& piece) { vocabulary.emplace(piece, vocabulary.size()); };
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", byte);
    add(name);
  }
  for (char c = 0x21; c < 0x7f; ++c) add(std::string(1, c));
  for (const char* piece :
       {"▁", "▁▁", "▁{", "{\"", "\":", "\",", "▁\"", "\"}", "true", "▁1", "name", "▁a", "ä", "東"}) {
    add(piece);
  }
  const auto special = [](int id, const char* content) {
    return Json{{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
                {"rstrip", false}, {"normalized", false}, {"special", true}};
  };
  const Json tokenizer = {{"version", "1.0"},
                          {"truncation", nullptr},
                          {"padding", nullptr},
                          {"normalizer", nullptr},
                          {"added_tokens", {special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")}},
                          {"pre_tokenizer", nullptr},
                          {"post_processor", nullptr},
                          {"decoder", Json::parse(R"({"type": "Sequence", "decoders": [
          {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
          {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})")},
                          {"model",
                           {{"type", "BPE"},
                            {"unk_token", "<unk>"},
                            {"fuse_unk", true},
                            {"byte_fallback", true},
                            {"vocab", vocabulary},
                            {"merges", Json::array()}}}};
  const TempDir dir;
  dir.write("tokenizer.json", tokenizer.dump());
  Result<Tokenizer> loaded = Tokenizer::load(dir.path());
  if (!loaded) ADD_FAILURE() << loaded.error().message;
  return std::move(loaded).value();
}

inline std::vector<TokenId> set_bits(const std::vector<uint32_t>& words) {
  std::vector<TokenId> ids;
  for (size_t w = 0; w < words.size(); ++w) {
    for (uint32_t bits = words[w]; bits != 0; bits &= bits - 1) {
      ids.push_back(static_cast<TokenId>(w * 32 + static_cast<size_t>(std::countr_zero(bits))));
    }
  }
  return ids;
}

inline double elapsed_ms(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

struct Walk {
  std::string text;
  std::vector<TokenId> ids;
  bool ended = false;
  double mask_ms_max = 0, mask_ms_sum = 0;
  Status status;
};

inline bool in_json_string(std::string_view text) {
  bool inside = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (inside && text[i] == '\\') {
      ++i;
    } else if (text[i] == '"') {
      inside = !inside;
    }
  }
  return inside;
}

// Follows the masks of `grammar`: any allowed token at first, and after `wander` tokens what is likely to end.
inline Walk random_walk(const Grammar& grammar, const Tokenizer& tokenizer, int64_t model_vocab, TokenId end,
                        std::mt19937_64& random, int wander = 40, int most = 2000) {
  Walk walk;
  GrammarState state = grammar.start();
  std::vector<uint32_t> words(static_cast<size_t>(model_vocab + 31) / 32);
  while (static_cast<int>(walk.ids.size()) < most) {
    const auto start = std::chrono::steady_clock::now();
    walk.status = state.fill_allowed(words);
    const double ms = elapsed_ms(start);
    walk.mask_ms_max = std::max(walk.mask_ms_max, ms);
    walk.mask_ms_sum += ms;
    if (!walk.status) return walk;
    const std::vector<TokenId> allowed = set_bits(words);
    EXPECT_FALSE(allowed.empty());
    if (allowed.empty()) return walk;
    TokenId chosen = allowed[random() % allowed.size()];
    if (static_cast<int>(walk.ids.size()) >= wander) {
      const bool string = in_json_string(walk.text);
      int best = 0;
      for (const TokenId id : allowed) {
        const std::string_view bytes = tokenizer.token_bytes(id);
        const bool digit = bytes.size() == 1 && bytes[0] >= '0' && bytes[0] <= '9';
        int rank = 0;
        if (id == end) rank = 6;
        if (bytes == "\"") rank = string ? 5 : 1;
        if (!string && bytes == "}") rank = 5;
        if (!string && bytes == "]") rank = 4;
        if (!string && bytes == "," && random() % 2 == 0) rank = 3;
        if (!string && digit && random() % 4 == 0) rank = 2;
        if (rank > best) best = rank, chosen = id;
      }
    }
    if (state.finished()) {
      EXPECT_EQ(allowed, std::vector<TokenId>{end}) << walk.text;
      chosen = end;
    }
    walk.status = state.accept(chosen);
    EXPECT_TRUE(walk.status || walk.status.error().code == ErrorCode::kResourceExhausted)
        << "token " << chosen << " after " << walk.text << ": " << walk.status.error().message;
    if (!walk.status) return walk;
    walk.ids.push_back(chosen);
    if (chosen == end) {
      EXPECT_TRUE(state.finished());
      walk.ended = true;
      return walk;
    }
    walk.text += tokenizer.token_bytes(chosen);
  }
  return walk;
}

// Whether `value` is an instance of `schema`, for the keywords that the tests use; `root` resolves "#/$defs/...".
inline bool valid(const Json& value, const Json& schema, const Json& root) {
  if (schema.is_boolean()) return schema.get<bool>();
  const auto is_type = [&](const std::string& type) {
    if (type == "integer")
      return value.is_number_integer() || (value.is_number() && std::floor(value.get<double>()) == value.get<double>());
    if (type == "number") return value.is_number();
    return type == (value.is_boolean() ? "boolean" : value.type_name());
  };
  const auto count = [](const std::string& text) {
    return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xc0) != 0x80; });
  };
  for (const auto& [key, wanted] : schema.items()) {
    bool good = true;
    if (key == "type") {
      good = wanted.is_string() ? is_type(wanted)
                                : std::any_of(wanted.begin(), wanted.end(), [&](const Json& t) { return is_type(t); });
    } else if (key == "enum") {
      good = std::find(wanted.begin(), wanted.end(), value) != wanted.end();
    } else if (key == "const") {
      good = value == wanted;
    } else if (key == "anyOf") {
      good = std::any_of(wanted.begin(), wanted.end(), [&](const Json& s) { return valid(value, s, root); });
    } else if (key == "allOf") {
      good = std::all_of(wanted.begin(), wanted.end(), [&](const Json& s) { return valid(value, s, root); });
    } else if (key == "$ref") {
      good = valid(value, root.at(Json::json_pointer(wanted.get<std::string>().substr(1))), root);
    } else if (value.is_object() && key == "required") {
      good = std::all_of(wanted.begin(), wanted.end(),
                         [&](const Json& name) { return value.contains(name.get<std::string>()); });
    } else if (value.is_object() && key == "properties") {
      for (const auto& [name, sub] : wanted.items())
        good = good && (!value.contains(name) || valid(value[name], sub, root));
    } else if (value.is_object() && key == "additionalProperties") {
      const Json known = schema.value("properties", Json::object());
      for (const auto& [name, member] : value.items())
        good = good && (known.contains(name) || valid(member, wanted, root));
    } else if (value.is_array() && key == "items") {
      good = std::all_of(value.begin(), value.end(), [&](const Json& item) { return valid(item, wanted, root); });
    } else if (value.is_array() && key == "minItems") {
      good = value.size() >= wanted.get<size_t>();
    } else if (value.is_array() && key == "maxItems") {
      good = value.size() <= wanted.get<size_t>();
    } else if (value.is_string() && key == "minLength") {
      good = count(value.get<std::string>()) >= wanted.get<int64_t>();
    } else if (value.is_string() && key == "maxLength") {
      good = count(value.get<std::string>()) <= wanted.get<int64_t>();
    } else if (value.is_string() && key == "pattern") {
      good = std::regex_search(value.get<std::string>(), std::regex(wanted.get<std::string>()));
    } else if (value.is_number() && key == "minimum") {
      good = value.get<double>() >= wanted.get<double>();
    } else if (value.is_number() && key == "maximum") {
      good = value.get<double>() <= wanted.get<double>();
    } else if (value.is_number() && key == "exclusiveMinimum") {
      good = value.get<double>() > wanted.get<double>();
    } else if (value.is_number() && key == "exclusiveMaximum") {
      good = value.get<double>() < wanted.get<double>();
    } else if (value.is_number_integer() && key == "multipleOf") {
      good = value.get<int64_t>() % wanted.get<int64_t>() == 0;
    }
    if (!good) return false;
  }
  return true;
}

}  // namespace hearth::text_test
