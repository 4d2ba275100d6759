// SPDX-License-Identifier: Apache-2.0
// Checks of one tokenizer against an entry of the golden files in tests/fixtures/text: its ids and texts, and that
// what it streams adds up to what it decodes. Random tests print their seed. Tests only, one thread.
#pragma once

#include <gtest/gtest.h>

#include <optional>
#include <random>
#include <string>
#include <vector>

#include "hearth/text/detokenizer.h"
#include "hearth/text/test_util.h"
#include "hearth/text/utf8.h"

namespace hearth::text_test {

inline std::vector<TokenId> ids_of(const Json& json) { return json.get<std::vector<TokenId>>(); }

// Every string and every decoding of one golden file.
inline void expect_golden(const Tokenizer& tokenizer, const Json& golden) {
  EXPECT_EQ(tokenizer.vocab_size(), golden.at("vocab_size"));
  ASSERT_GT(golden.at("strings").size(), 50u);
  for (const Json& entry : golden["strings"]) {
    const std::string text = entry.at("text");
    SCOPED_TRACE(entry.at("text").dump());
    const auto bare = tokenizer.encode(text, {.add_special_tokens = false});
    ASSERT_TRUE(bare) << bare.error().message;
    EXPECT_EQ(*bare, ids_of(entry.at("ids")));
    const auto full = tokenizer.encode(text);
    ASSERT_TRUE(full) << full.error().message;
    EXPECT_EQ(*full, ids_of(entry.at("ids_special")));
    const auto plain = tokenizer.encode(text, {.add_special_tokens = false, .parse_special = false});
    ASSERT_TRUE(plain) << plain.error().message;
    EXPECT_EQ(*plain, ids_of(entry.contains("ids_as_text") ? entry["ids_as_text"] : entry["ids"]));
    EXPECT_EQ(tokenizer.decode(*full).value(), entry.value("decoded", text));
    if (!entry.contains("decoded_special")) {
      EXPECT_EQ(tokenizer.decode(*full, false).value(), text);
    } else if (entry["decoded_special"].is_string()) {
      EXPECT_EQ(tokenizer.decode(*full, false).value(), entry["decoded_special"]);
    }
  }
  for (const Json& entry : golden.at("decodings")) {
    SCOPED_TRACE(entry.at("ids").dump());
    EXPECT_EQ(tokenizer.decode(ids_of(entry["ids"])).value(), entry.at("decoded"));
    if (entry.at("decoded_special").is_string()) {
      EXPECT_EQ(tokenizer.decode(ids_of(entry["ids"]), false).value(), entry["decoded_special"]);
    }
  }
}

struct Stream {
  std::vector<std::string> pieces;  // of every push, then of flush
  std::string text;
  std::optional<int64_t> stop_hit;
};

inline Stream stream(const Tokenizer& tokenizer, const std::vector<TokenId>& ids, DetokenizerOptions options = {}) {
  Stream out;
  Result<Detokenizer> detokenizer = Detokenizer::create(tokenizer, std::move(options));
  if (!detokenizer) {
    ADD_FAILURE() << detokenizer.error().message;
    return out;
  }
  const auto take = [&](Result<std::string> piece) {
    if (!piece) return ADD_FAILURE() << piece.error().message, void();
    EXPECT_TRUE(text_detail::is_valid_utf8(*piece));  // I1
    out.pieces.push_back(*piece);
    out.text += *piece;
  };
  for (const TokenId id : ids) take(detokenizer->push(id));
  take(detokenizer->flush());
  out.stop_hit = detokenizer->stop_hit();
  return out;
}

// Ids as a broken model would give them: mostly any token, and runs of single bytes and of special tokens.
inline std::vector<TokenId> random_ids(const Tokenizer& tokenizer, std::mt19937_64& random, size_t count) {
  constexpr size_t kShort = 300;  // byte and fallback tokens come first in every vocabulary at hand
  std::vector<TokenId> ids;
  while (ids.size() < count) {
    const uint64_t r = random();
    const uint64_t range = r % 3 == 0 ? static_cast<uint64_t>(tokenizer.vocab_size()) : r % 3 == 1 ? kShort : 12;
    for (uint64_t n = 1 + random() % 4; n > 0; --n) ids.push_back(static_cast<TokenId>(random() % range));
  }
  return ids;
}

inline void expect_streams_as_decoded(const Tokenizer& tokenizer, const Json& golden) {
  for (const char* list : {"strings", "decodings"}) {
    for (const Json& entry : golden.at(list)) {
      const auto ids = entry.at(entry.contains("ids_special") ? "ids_special" : "ids").get<std::vector<TokenId>>();
      EXPECT_EQ(stream(tokenizer, ids).text, entry.value("decoded", entry.value("text", "")));
      EXPECT_EQ(stream(tokenizer, ids, {.skip_special = false}).text, tokenizer.decode(ids, false).value());
    }
  }
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 300; ++round) {
    const std::vector<TokenId> ids = random_ids(tokenizer, random, 1 + random() % 60);
    for (const bool skip : {true, false}) {
      ASSERT_EQ(stream(tokenizer, ids, {.skip_special = skip}).text, tokenizer.decode(ids, skip).value())
          << "round " << round << " ids " << testing::PrintToString(ids);
    }
  }
}

}  // namespace hearth::text_test
