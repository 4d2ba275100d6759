// SPDX-License-Identifier: Apache-2.0
// Detokenizer against Tokenizer::decode over golden texts and random ids, and against a search in the whole text for
// stop strings. Random tests print their seed.
#include "hearth/text/detokenizer.h"

#include <gmock/gmock.h>

#include <chrono>
#include <random>

#include "hearth/text/golden_util.h"
#include "hearth/text/test_util.h"

namespace hearth {
namespace {

using namespace text_test;
using testing::ElementsAre;

TEST(DetokenizerTest, I2DemoModelStreamsAsDecoded) {
  expect_streams_as_decoded(load_demo(), Json::parse(read_file(kFixtures / "tokenizer_golden.json")));
}

// Small vocabularies whose decoders the models at hand do not have. `decoder` is JSON.
Tokenizer small_tokenizer(const std::string& decoder) {
  const TempDir dir;
  dir.write("tokenizer.json", R"({"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
    "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                      "normalized": false, "special": true}],
    "pre_tokenizer": null, "post_processor": null, "decoder": )" +
                                  decoder + R"(,
    "model": {"type": "WordLevel", "unk_token": "<s>", "vocab": {"<s>": 0, "▁": 1, "▁▁a": 2, "a▁b": 3, "##ing": 4,
              "walk": 5, "ä": 6, "<0xC3>": 7, "<0xA4>": 8, "<0x20>": 9, "  x": 10, "": 11}}})");
  Result<Tokenizer> tokenizer = Tokenizer::load(dir.path());
  if (!tokenizer) ADD_FAILURE() << tokenizer.error().message;
  return std::move(tokenizer).value();
}

TEST(DetokenizerTest, I2OtherDecodersStreamAsDecoded) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (const char* decoder :
       {R"(null)", R"({"type": "ByteFallback"})", R"({"type": "Fuse"})",
        R"({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true})",
        R"({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": true})",
        R"({"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 3, "stop": 0}]})",
        R"({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": "ä", "start": 2, "stop": 0}]})"}) {
    SCOPED_TRACE(decoder);
    const Tokenizer tokenizer = small_tokenizer(decoder);
    for (int round = 0; round < 500; ++round) {
      std::vector<TokenId> ids(random() % 8);
      for (TokenId& id : ids) id = static_cast<TokenId>(random() % 12);
      for (const bool skip : {true, false}) {
        ASSERT_EQ(stream(tokenizer, ids, {.skip_special = skip}).text, tokenizer.decode(ids, skip).value())
            << testing::PrintToString(ids);
      }
    }
  }
}

TEST(DetokenizerTest, WordPieceStreamsOrdinaryText) {
  const Tokenizer tokenizer = small_tokenizer(R"({"type": "WordPiece", "prefix": "##", "cleanup": false})");
  const std::vector<TokenId> ids = {5, 4, 6, 5, 5, 4, 4, 6};
  EXPECT_EQ(stream(tokenizer, ids).text, tokenizer.decode(ids).value());
  EXPECT_EQ(stream(tokenizer, ids).text, "walking ä walk walkinging ä");
}

// The library's Strip decoder panics on a token that is shorter than what it strips; here that is an error.
TEST(DetokenizerTest, PanicsOfTheLibraryAreErrors) {
  const Tokenizer tokenizer = small_tokenizer(R"({"type": "Strip", "content": "x", "start": 0, "stop": 9})");
  const Result<std::string> text = tokenizer.decode(std::vector<TokenId>{11});
  ASSERT_FALSE(text);
  EXPECT_EQ(text.error().code, ErrorCode::kInternal);
  EXPECT_THAT(text.error().message, testing::HasSubstr("panic"));
  Detokenizer detokenizer = Detokenizer::create(tokenizer).value();
  EXPECT_EQ(detokenizer.push(11).error().code, ErrorCode::kInternal);
  EXPECT_EQ(tokenizer.decode(std::vector<TokenId>{5}).value(), "walk");
}

TEST(DetokenizerTest, ContinuesText) {
  const Tokenizer tokenizer = small_tokenizer(
      R"({"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
          {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})");
  EXPECT_EQ(stream(tokenizer, {1, 5}).text, "walk");
  EXPECT_EQ(stream(tokenizer, {1, 5}, {.continues_text = true}).text, " walk");
}

TEST(DetokenizerTest, EmitsAtOnceAndOnlyWholeCharacters) {
  const Tokenizer tokenizer = load_demo();
  const std::string text = "It was 東京 there. 😀!";
  const std::vector<TokenId> ids = tokenizer.encode(text, {.add_special_tokens = false}).value();
  const Stream out = stream(tokenizer, ids);
  EXPECT_EQ(out.text, text);
  // Everything that is whole after a push is out after it.
  std::string bytes;
  std::string emitted;
  for (size_t i = 0; i < ids.size(); ++i) {
    bytes += tokenizer.token_bytes(ids[i]);
    emitted += out.pieces[i];
    EXPECT_LT(bytes.size() - emitted.size(), 4u);
    EXPECT_TRUE(bytes.starts_with(emitted));
  }
}

TEST(DetokenizerTest, InvalidBytesBecomeReplacementCharacters) {
  const Tokenizer tokenizer = load_demo();
  const std::vector<TokenId> ids = tokenizer.encode("😀", {.add_special_tokens = false}).value();
  ASSERT_GE(ids.size(), 2u);
  const Stream cut = stream(tokenizer, {ids[0]});
  EXPECT_THAT(cut.pieces, ElementsAre("", "\xef\xbf\xbd"));
  const TokenId a = tokenizer.token_to_id("a").value();
  EXPECT_THAT(stream(tokenizer, {ids[0], a}).pieces, ElementsAre("",
                                                                 "\xef\xbf\xbd"
                                                                 "a",
                                                                 ""));
}

TEST(DetokenizerTest, SpecialTokens) {
  const Tokenizer tokenizer = load_demo();
  EXPECT_EQ(stream(tokenizer, {0, 69, 1}).text, "a");
  EXPECT_EQ(stream(tokenizer, {0, 69, 1}, {.skip_special = false}).text, "<|begin_of_text|>a<|end_of_text|>");
}

TEST(DetokenizerTest, StopAcrossTokenBorders) {
  const Tokenizer tokenizer = load_demo();
  const std::string text = "One, two.\nUser: three";
  std::vector<TokenId> ids = tokenizer.encode(text).value();
  Stream out = stream(tokenizer, ids, {.stop = {"nothing", "\nUser:"}});
  EXPECT_EQ(out.text, "One, two.");
  EXPECT_EQ(out.stop_hit, 1);
  out = stream(tokenizer, ids, {.stop = {"\nUser:"}, .include_stop = true});
  EXPECT_EQ(out.text, "One, two.\nUser:");
  // Not met: what was held comes out.
  out = stream(tokenizer, ids, {.stop = {"three!"}});
  EXPECT_EQ(out.text, text);
  EXPECT_EQ(out.stop_hit, std::nullopt);
  EXPECT_EQ(out.pieces.back(), "three");
}

TEST(DetokenizerTest, StopThatEndsFirstAndLongest) {
  const Tokenizer tokenizer = load_demo();
  const std::vector<TokenId> ids = tokenizer.encode("xabcdefx").value();
  Stream out = stream(tokenizer, ids, {.stop = {"cd", "abcde", "bcd"}});
  EXPECT_EQ(out.text, "xa");
  EXPECT_EQ(out.stop_hit, 2);
}

// The whole text, and where in it the first-ending stop string is.
TEST(DetokenizerTest, I3StopsAgreeWithASearchInTheWholeText) {
  const Tokenizer tokenizer = load_demo();
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  const auto random_text = [&](size_t length) {
    static constexpr const char* kLetters[] = {"a", "b", "ä", "\n"};
    std::string text;
    for (size_t i = 0; i < length; ++i) text += kLetters[random() % 4];
    return text;
  };
  int hits = 0;
  for (int round = 0; round < 2000; ++round) {
    const std::string text = random_text(1 + random() % 60);
    std::vector<std::string> stops(1 + random() % 3);
    for (std::string& stop : stops) stop = random_text(1 + random() % 5);
    size_t end = std::string::npos;
    size_t start = 0;
    for (const std::string& stop : stops) {
      const size_t at = text.find(stop);
      if (at == std::string::npos) continue;
      const bool better = end == std::string::npos || at + stop.size() < end || (at + stop.size() == end && at < start);
      if (better) end = at + stop.size(), start = at;
    }
    const std::vector<TokenId> ids = tokenizer.encode(text).value();
    const bool include = random() % 2;
    const Stream out = stream(tokenizer, ids, {.stop = stops, .include_stop = include});
    const bool hit = end != std::string::npos;
    hits += hit;
    ASSERT_EQ(out.stop_hit.has_value(), hit);
    ASSERT_EQ(out.text, hit ? text.substr(0, include ? end : start) : text) << testing::PrintToString(stops);
    if (hit) {
      ASSERT_EQ(stops[static_cast<size_t>(*out.stop_hit)], text.substr(start, end - start));
    }
  }
  EXPECT_GT(hits, 200);
}

TEST(DetokenizerTest, BadOptionsAndIds) {
  const Tokenizer tokenizer = load_demo();
  for (const std::vector<std::string>& stop :
       {std::vector<std::string>{""}, std::vector<std::string>{"a", "\xff"}, std::vector<std::string>(65, "a"),
        std::vector<std::string>{std::string(100000, 'a')}}) {
    const Result<Detokenizer> detokenizer = Detokenizer::create(tokenizer, {.stop = stop});
    ASSERT_FALSE(detokenizer);
    EXPECT_EQ(detokenizer.error().code, ErrorCode::kInvalidArgument);
  }
  Detokenizer detokenizer = Detokenizer::create(tokenizer).value();
  EXPECT_EQ(detokenizer.push(-1).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(detokenizer.push(8192).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(detokenizer.push(69).value(), "a");
}

// I4: ten times the tokens may cost about ten times the time; a quadratic detokenizer would take a hundred times.
TEST(DetokenizerTest, I4TimeIsLinear) {
  const Tokenizer tokenizer = load_demo();
  const auto seconds = [&](size_t count) {
    double best = 1e9;
    for (int repeat = 0; repeat < 5; ++repeat) {
      Detokenizer detokenizer = Detokenizer::create(tokenizer, {.stop = {"\n\nUser:"}}).value();
      const auto begin = std::chrono::steady_clock::now();
      for (size_t i = 0; i < count; ++i) EXPECT_TRUE(detokenizer.push(static_cast<TokenId>(5 + i % 8000)));
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    return best;
  };
  EXPECT_LT(seconds(100000), 40 * seconds(10000));
}

}  // namespace
}  // namespace hearth
