// SPDX-License-Identifier: Apache-2.0
// Tokenizer against ids and texts that Hugging Face tokenizers gave (tests/fixtures/text), its files and its errors.
#include "hearth/text/tokenizer.h"

#include <gmock/gmock.h>

#include <thread>

#include "hearth/text/golden_util.h"
#include "hearth/text/test_util.h"

namespace hearth {
namespace {

using namespace text_test;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(TokenizerTest, DemoModelAgreesWithGolden) {
  expect_golden(load_demo(), Json::parse(read_file(kFixtures / "tokenizer_golden.json")));
}

TEST(TokenizerTest, DemoModelPromptsAgreeWithModelGolden) {
  const Tokenizer tokenizer = load_demo();
  const Json golden = Json::parse(read_file(kDemoModel / "golden.json"));
  ASSERT_GE(golden.at("prompts").size(), 6u);
  for (const Json& prompt : golden["prompts"]) {
    EXPECT_EQ(tokenizer.encode(prompt.at("text").get<std::string>()).value(), ids_of(prompt.at("ids")));
  }
}

TEST(TokenizerTest, SpecialTokensOfDemoModel) {
  const Tokenizer tokenizer = load_demo();
  EXPECT_EQ(tokenizer.bos_id(), 0);
  EXPECT_EQ(tokenizer.eos_id(), 1);
  EXPECT_EQ(tokenizer.pad_id(), 4);
  EXPECT_EQ(tokenizer.unk_id(), std::nullopt);
  EXPECT_THAT(tokenizer.eos_ids(), ElementsAre(1));
  EXPECT_TRUE(tokenizer.is_eos(1));
  EXPECT_FALSE(tokenizer.is_eos(0));
  EXPECT_EQ(tokenizer.model_max_length(), 1024);
  EXPECT_EQ(tokenizer.special_tokens().at("bos_token"), "<|begin_of_text|>");
  EXPECT_TRUE(tokenizer.chat_templates().contains("default"));
  for (TokenId id = 0; id < 5; ++id) EXPECT_TRUE(tokenizer.is_special(id)) << id;
  EXPECT_FALSE(tokenizer.is_special(5));
  EXPECT_FALSE(tokenizer.is_special(-1));
  EXPECT_FALSE(tokenizer.is_special(8192));
}

TEST(TokenizerTest, BytesAreTheTokensOfTheByteTokenizer) {
  const Tokenizer tokenizer = Tokenizer::bytes().value();
  EXPECT_EQ(tokenizer.vocab_size(), 256);
  const std::string text = "A \n\t~\x7F caf\xC3\xA9 \xE2\x82\xAC\xF0\x9F\x98\x80";
  std::vector<TokenId> bytes;
  for (const char c : text) bytes.push_back(static_cast<unsigned char>(c));
  EXPECT_EQ(tokenizer.encode(text).value(), bytes);
  EXPECT_EQ(tokenizer.decode(bytes).value(), text);
  for (TokenId id = 0; id < 256; ++id)
    EXPECT_EQ(tokenizer.token_bytes(id), std::string(1, static_cast<char>(id))) << id;
  EXPECT_TRUE(tokenizer.eos_ids().empty());
  EXPECT_EQ(tokenizer.bos_id(), std::nullopt);
}

TEST(TokenizerTest, PiecesAndBytes) {
  const Tokenizer tokenizer = load_demo();
  const TokenId the = tokenizer.token_to_id("Ġthe").value();
  EXPECT_EQ(tokenizer.id_to_piece(the), "Ġthe");
  EXPECT_EQ(tokenizer.token_bytes(the), " the");
  EXPECT_EQ(tokenizer.token_to_id("no such token"), std::nullopt);
  EXPECT_EQ(tokenizer.token_to_id("\xff"), std::nullopt);
  EXPECT_EQ(tokenizer.id_to_piece(8192), std::nullopt);
  EXPECT_EQ(tokenizer.id_to_piece(-1), std::nullopt);
  EXPECT_EQ(tokenizer.token_bytes(8192), "");
  EXPECT_EQ(tokenizer.token_bytes(0), "<|begin_of_text|>");
  // The bytes of a byte-level vocabulary add up to any text, cut characters included.
  const std::string text = "naïve — 👩‍👧 end\n";
  std::string bytes;
  const std::vector<TokenId> ids = tokenizer.encode(text, {.add_special_tokens = false}).value();
  for (const TokenId id : ids) bytes += tokenizer.token_bytes(id);
  EXPECT_EQ(bytes, text);
}

TEST(TokenizerTest, ErrorsOfCalls) {
  const Tokenizer tokenizer = load_demo();
  const auto bad = tokenizer.encode("abc\xff");
  ASSERT_FALSE(bad);
  EXPECT_EQ(bad.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(bad.error().message, HasSubstr("offset 3"));
  for (const TokenId id : {-1, 8192}) {
    const auto decoded = tokenizer.decode(std::vector<TokenId>{5, id});
    ASSERT_FALSE(decoded);
    EXPECT_EQ(decoded.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(decoded.error().message, HasSubstr("position 1"));
  }
  const Tokenizer strict = Tokenizer::load(kDemoModel, {.max_text_bytes = 3}).value();
  EXPECT_TRUE(strict.encode("abc"));
  EXPECT_EQ(strict.encode("abcd").error().code, ErrorCode::kResourceExhausted);
}

class TokenizerFilesTest : public testing::Test {
 protected:
  void SetUp() override { dir_.write("tokenizer.json", read_file(kDemoModel / "tokenizer.json")); }
  Tokenizer load() {
    Result<Tokenizer> tokenizer = Tokenizer::load(dir_.path());
    if (!tokenizer) ADD_FAILURE() << tokenizer.error().message;
    return std::move(tokenizer).value();
  }
  // The error of loading, and that it names `file`.
  ErrorCode load_error(const std::string& file) {
    const Result<Tokenizer> tokenizer = Tokenizer::load(dir_.path());
    EXPECT_FALSE(tokenizer);
    if (tokenizer) return ErrorCode::kInternal;
    EXPECT_THAT(tokenizer.error().message, HasSubstr(file));
    return tokenizer.error().code;
  }
  TempDir dir_;
};

TEST_F(TokenizerFilesTest, TokenizerJsonAloneIsEnough) {
  const Tokenizer tokenizer = load();
  EXPECT_EQ(tokenizer.bos_id(), std::nullopt);
  EXPECT_TRUE(tokenizer.eos_ids().empty());
  EXPECT_TRUE(tokenizer.chat_templates().empty());
  EXPECT_THAT(tokenizer.encode("a").value(), ElementsAre(0, 69));
}

// transformers 5 drops both flags where there is a tokenizer.json: the post-processor decides.
TEST_F(TokenizerFilesTest, AddBosTokenDoesNotChangeThePostProcessor) {
  dir_.write("tokenizer_config.json",
             R"({"add_bos_token": false, "add_eos_token": true, "bos_token": "<|begin_of_text|>"})");
  EXPECT_THAT(load().encode("a").value(), ElementsAre(0, 69));
}

TEST_F(TokenizerFilesTest, SpecialTokensAsStringOrObject) {
  dir_.write("tokenizer_config.json", R"({"bos_token": {"__type": "AddedToken", "content": "<|begin_of_text|>"},
    "eos_token": "<|end_of_text|>", "pad_token": null, "image_token": "<image>", "model_max_length": 1e30,
    "additional_special_tokens": ["<|im_end|>", {"content": "<extra>"}]})");
  const Tokenizer tokenizer = load();
  EXPECT_EQ(tokenizer.bos_id(), 0);
  EXPECT_EQ(tokenizer.eos_id(), 1);
  EXPECT_EQ(tokenizer.pad_id(), std::nullopt);
  EXPECT_EQ(tokenizer.model_max_length(), std::nullopt);
  EXPECT_EQ(tokenizer.special_tokens().at("image_token"), "<image>");
  // New tokens are numbered after the vocabulary, named ones first, and found in text, unless that is read as plain
  // text.
  EXPECT_EQ(tokenizer.vocab_size(), 8194);
  EXPECT_THAT(tokenizer.encode("<image><extra>", {.add_special_tokens = false}).value(), ElementsAre(8192, 8193));
  EXPECT_GT(tokenizer.encode("<image>", {.add_special_tokens = false, .parse_special = false}).value().size(), 2u);
  EXPECT_TRUE(tokenizer.is_special(8193));
}

TEST_F(TokenizerFilesTest, SpecialTokensMapOnlyWithoutAddedTokensDecoder) {
  dir_.write("special_tokens_map.json", R"({"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}})");
  dir_.write("tokenizer_config.json", R"({"bos_token": "<|begin_of_text|>"})");
  EXPECT_EQ(load().bos_id(), 0);
  EXPECT_EQ(load().eos_id(), 3);
  dir_.write(
      "tokenizer_config.json",
      R"({"added_tokens_decoder": {"5": {"content": "five", "special": false}, "1": {"content": "<|end_of_text|>",
                 "special": false, "normalized": false}}})");
  EXPECT_EQ(load().eos_id(), std::nullopt);
  EXPECT_TRUE(load().is_special(1));  // what tokenizer.json calls special stays so
}

TEST_F(TokenizerFilesTest, EosIdsOfGenerationConfigOrConfig) {
  dir_.write("config.json", R"({"eos_token_id": 4})");
  EXPECT_THAT(load().eos_ids(), ElementsAre(4));
  dir_.write("generation_config.json", R"({"eos_token_id": [3, 1, 3]})");
  dir_.write("tokenizer_config.json", R"({"eos_token": "<|im_start|>"})");
  EXPECT_THAT(load().eos_ids(), ElementsAre(1, 2, 3));
  dir_.write("generation_config.json", R"({"eos_token_id": "one"})");
  EXPECT_EQ(load_error("generation_config.json"), ErrorCode::kCorrupt);
}

TEST_F(TokenizerFilesTest, ChatTemplatesInlineAndAsFiles) {
  dir_.write("tokenizer_config.json",
             R"({"chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]})");
  using Templates = std::map<std::string, std::string>;
  EXPECT_EQ(load().chat_templates(), (Templates{{"default", "D"}, {"tool_use", "T"}}));
  dir_.write("chat_template.jinja", "file");
  dir_.write("additional_chat_templates/rag.jinja", "rag");
  dir_.write("additional_chat_templates/readme.txt", "no template");
  EXPECT_EQ(load().chat_templates(), (Templates{{"default", "file"}, {"rag", "rag"}}));
}

TEST_F(TokenizerFilesTest, TruncationAndPaddingOfTokenizerJsonAreIgnored) {
  Json json = Json::parse(read_file(kDemoModel / "tokenizer.json"));
  json["truncation"] = {{"direction", "Right"}, {"max_length", 2}, {"strategy", "LongestFirst"}, {"stride", 0}};
  json["padding"] = {
      {"strategy", {{"Fixed", 9}}}, {"direction", "Right"},  {"pad_to_multiple_of", nullptr}, {"pad_id", 4},
      {"pad_type_id", 0},           {"pad_token", "<|pad|>"}};
  dir_.write("tokenizer.json", json.dump());
  EXPECT_EQ(load().encode("Hello, world!").value().size(), 7u);
}

TEST_F(TokenizerFilesTest, BadFiles) {
  const Result<Tokenizer> missing = Tokenizer::load(dir_.path() / "nowhere");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(missing.error().message, HasSubstr("tokenizer.json"));

  for (const char* bad : {"[]", "{\"bos_token\": 3}", "{\"chat_template\": 3}", "{\"additional_special_tokens\": [3]}",
                          "{\"added_tokens_decoder\": {\"x\": {\"content\": \"a\"}}}", "{\"chat_template\": [\"x\"]}",
                          "{\"bos_token\": ", "{\"bos_token\": \"\xff\"}", ""}) {
    SCOPED_TRACE(bad);
    dir_.write("tokenizer_config.json", bad);
    EXPECT_EQ(load_error("tokenizer_config.json"), ErrorCode::kCorrupt);
  }
  dir_.write("tokenizer_config.json", "{}");

  const std::string good = read_file(kDemoModel / "tokenizer.json");
  for (const std::string& bad :
       {std::string(), std::string("{}"), std::string("[]"), good.substr(0, good.size() / 2),
        std::string("{\"model\": {\"type\": \"BPE\"}}"), std::string(3, '\xff'), std::string(100000, '[')}) {
    SCOPED_TRACE(bad.substr(0, 20));
    dir_.write("tokenizer.json", bad);
    EXPECT_EQ(load_error("tokenizer.json"), ErrorCode::kCorrupt);
  }
  EXPECT_EQ(Tokenizer::load(kDemoModel, {.max_file_bytes = 100}).error().code, ErrorCode::kResourceExhausted);
}

// A merge that names a token outside the vocabulary, an id far outside: what an attacker would write.
TEST_F(TokenizerFilesTest, HostileTokenizerJson) {
  Json json = Json::parse(read_file(kDemoModel / "tokenizer.json"));
  json["model"]["merges"][0] = {"no such", "token"};
  dir_.write("tokenizer.json", json.dump());
  EXPECT_EQ(load_error("tokenizer.json"), ErrorCode::kCorrupt);
  json = Json::parse(read_file(kDemoModel / "tokenizer.json"));
  json["model"]["vocab"]["huge"] = 4000000000u;
  dir_.write("tokenizer.json", json.dump());
  EXPECT_EQ(load_error("4000000000"), ErrorCode::kCorrupt);
}

TEST(TokenizerTest, ManyThreads) {
  const Tokenizer tokenizer = load_demo();
  const Json golden = Json::parse(read_file(kFixtures / "tokenizer_golden.json"));
  std::vector<std::string> texts;
  std::vector<std::vector<TokenId>> wanted;
  for (const Json& entry : golden["strings"]) {
    texts.push_back(entry["text"]);
    wanted.push_back(ids_of(entry["ids_special"]));
  }
  std::vector<int> failures(8, 0);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < failures.size(); ++t) {
    threads.emplace_back([&, t] {
      const Tokenizer copy = tokenizer;
      for (size_t k = 0; k < 3 * texts.size(); ++k) {
        const size_t i = (k * 7 + t) % texts.size();
        const auto ids = copy.encode(texts[i]);
        const bool good = ids && *ids == wanted[i] && copy.decode(*ids) && copy.token_to_id("Ġthe");
        failures[t] += !good;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(failures, testing::Each(0));
}

}  // namespace
}  // namespace hearth
