// SPDX-License-Identifier: Apache-2.0
// Grammars: random walks along the masks against a validator of JSON Schema, std::regex and rules by hand; wrong tokens,
// limits, threads. Grammars that are meant to take for ever are in grammar_attack_test.cpp. Random tests print their seed.
#include "hearth/text/grammar.h"

#include <gmock/gmock.h>

#include <optional>
#include <thread>

#include "hearth/text/grammar_test_util.h"

namespace hearth {
namespace {

using namespace text_test;
using testing::HasSubstr;

constexpr int64_t kDemoVocab = 8192 + 7;  // rows without a token behind the tokenizer's

struct Model {
  Tokenizer tokenizer;
  int64_t vocab;
  TokenId end;
  GrammarCompiler compiler;

  Grammar compile(GrammarKind kind, const std::string& source, const GrammarLimits& limits = {}) const {
    Result<Grammar> grammar = compiler.compile({kind, source}, limits);
    if (!grammar) ADD_FAILURE() << source.substr(0, 200) << ": " << grammar.error().message;
    return std::move(grammar).value();
  }
  Error error(GrammarKind kind, const std::string& source, const GrammarLimits& limits = {}) const {
    Result<Grammar> grammar = compiler.compile({kind, source}, limits);
    if (grammar) {
      ADD_FAILURE() << "compiled: " << source.substr(0, 200);
      return internal_error("compiled");
    }
    EXPECT_FALSE(grammar.error().message.empty());
    return grammar.error();
  }
  // Walks with single tokens for each byte run of `text`, as the tokenizer spells it; the state behind it.
  Status accepts(GrammarState& state, const std::string& text) const {
    for (const TokenId id : spell(text)) HEARTH_TRY(state.accept(id));
    return {};
  }
  std::vector<TokenId> spell(const std::string& text) const {
    std::vector<TokenId> ids;
    for (const char c : text) {
      for (TokenId id = 0; id < tokenizer.vocab_size(); ++id) {
        if (!tokenizer.is_special(id) && tokenizer.token_bytes(id) == std::string_view(&c, 1)) {
          ids.push_back(id);
          break;
        }
      }
    }
    EXPECT_EQ(ids.size(), text.size());
    return ids;
  }
  bool complete(GrammarKind kind, const std::string& source, const std::string& text) const {
    GrammarState state = compile(kind, source).start();
    return accepts(state, text) && state.accept(end);
  }
};

Model make_model(Tokenizer tokenizer, int64_t vocab, TokenId end) {
  Result<GrammarCompiler> compiler = GrammarCompiler::create(tokenizer, vocab, std::array{end});
  if (!compiler) ADD_FAILURE() << compiler.error().message;
  return {std::move(tokenizer), vocab, end, std::move(compiler).value()};
}

// The tries are the expensive part, so one of each for all tests.
const Model& demo() {
  static const Model model = make_model(load_demo(), kDemoVocab, 1);
  return model;
}
const Model& fallback() {
  static const Model model = [] {
    Tokenizer tokenizer = fallback_tokenizer();
    const int64_t vocab = tokenizer.vocab_size();
    return make_model(std::move(tokenizer), vocab, 2);
  }();
  return model;
}

const std::vector<std::string>& schemas() {
  static const std::vector<std::string> all = {
      R"({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0,
          "maximum": 120}, "tags": {"type": "array", "items": {"enum": ["a", "b", 3, null]}, "maxItems": 4}},
          "required": ["name", "age"], "additionalProperties": false})",
      R"({"type": "object", "properties": {"shape": {"anyOf": [{"$ref": "#/$defs/circle"}, {"$ref": "#/$defs/box"}]}},
          "required": ["shape"], "additionalProperties": false,
          "$defs": {"circle": {"type": "object", "properties": {"kind": {"const": "circle"}, "r": {"type": "number",
                      "exclusiveMinimum": 0, "exclusiveMaximum": 10}}, "required": ["kind", "r"],
                      "additionalProperties": false},
                    "box": {"type": "object", "properties": {"kind": {"const": "box"}, "sides": {"type": "array",
                      "items": {"type": "number", "minimum": -1.5, "maximum": 1.5}, "minItems": 2, "maxItems": 2}},
                      "required": ["kind", "sides"], "additionalProperties": false}}})",
      R"({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"value": {"type": "integer",
          "multipleOf": 7, "minimum": -700, "maximum": 700}, "children": {"type": "array",
          "items": {"$ref": "#/$defs/node"}, "maxItems": 2}}, "required": ["value"], "additionalProperties": false}}})",
      R"({"type": "array", "minItems": 1, "maxItems": 3, "items": {"type": "string", "pattern": "^[a-z]{2,5}-[0-9]+$"}})",
      R"({"type": "string", "minLength": 3, "maxLength": 6})",
      R"({"enum": [{"a": [1, 2]}, "x", -2.5, false, [null]]})",
      R"({"type": ["boolean", "null", "integer"]})",
      R"({"type": "object", "additionalProperties": {"type": "boolean"}})",
      R"({"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
          {"properties": {"a": {"maximum": 5}, "b": {"type": "null"}}, "required": ["b"]}],
          "additionalProperties": false, "properties": {"a": true, "b": true}})",
  };
  return all;
}

// A text may spell a lone surrogate, which is JSON by its grammar and which the parser of the test refuses.
bool has_surrogate(const std::string& text) { return text.find("\\ud") != text.npos || text.find("\\uD") != text.npos; }

void walk_schemas(const Model& model, int rounds) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (const std::string& source : schemas()) {
    const Json schema = Json::parse(source);
    const Grammar grammar = model.compile(GrammarKind::kJsonSchema, source);
    int checked = 0;
    for (int round = 0; round < rounds; ++round) {
      const Walk walk = random_walk(grammar, model.tokenizer, model.vocab, model.end, random);
      ASSERT_TRUE(walk.status) << source << ": " << walk.status.error().message;
      ASSERT_TRUE(walk.ended) << source << ": " << walk.text;
      if (has_surrogate(walk.text)) continue;
      const Json value = Json::parse(walk.text, nullptr, false);
      ASSERT_FALSE(value.is_discarded()) << source << ": " << walk.text;
      ASSERT_TRUE(valid(value, schema, schema)) << source << ": " << walk.text;
      ++checked;
    }
    EXPECT_GT(checked, rounds / 2) << source;
  }
}

TEST(GrammarTest, I3WalksOfSchemasAreValidByteLevel) { walk_schemas(demo(), 20); }
TEST(GrammarTest, I3WalksOfSchemasAreValidByteFallback) { walk_schemas(fallback(), 20); }

TEST(GrammarTest, OracleRefuses) {
  const Json schema = Json::parse(schemas()[0]);
  EXPECT_TRUE(valid(Json::parse(R"({"name": "x", "age": 3})"), schema, schema));
  for (const char* wrong : {R"({"name": "x"})", R"({"name": "x", "age": 121})", R"({"name": 1, "age": 3})", "[]",
                            R"({"name": "x", "age": 3, "b": 1})", R"({"name": "x", "age": 3, "tags": ["c"]})"}) {
    EXPECT_FALSE(valid(Json::parse(wrong), schema, schema)) << wrong;
  }
}

TEST(GrammarTest, JsonObjectIsAnyObject) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (const Model* model : {&demo(), &fallback()}) {
    const Grammar grammar = model->compile(GrammarKind::kJsonObject, "");
    for (int round = 0; round < 30; ++round) {
      const Walk walk = random_walk(grammar, model->tokenizer, model->vocab, model->end, random);
      ASSERT_TRUE(walk.ended) << walk.text;
      EXPECT_TRUE(walk.text.starts_with("{")) << walk.text;
      // Numbers beyond double and lone surrogates are JSON, but not for this parser.
      if (has_surrogate(walk.text) || walk.text.find_first_of("eE") != walk.text.npos) continue;
      EXPECT_TRUE(Json::accept(walk.text)) << walk.text;
    }
    GrammarState state = grammar.start();
    EXPECT_TRUE(model->accepts(state, R"({ "a" : [1.5e3, "\u000b\nä", {}, [], true,null]})"));
    EXPECT_TRUE(state.finished());
    EXPECT_TRUE(state.accept(model->end));
  }
}

TEST(GrammarTest, RegexAgreesWithStdRegex) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (const char* source : {"(foo|bar)+x?", "[0-9]{3}-[0-9]{4}", "a*b", "(yes|no)", "/[a-c/]+\\\\"}) {
    const std::regex oracle(source);
    for (const Model* model : {&demo(), &fallback()}) {
      const Grammar grammar = model->compile(GrammarKind::kRegex, source);
      for (int round = 0; round < 20; ++round) {
        const Walk walk = random_walk(grammar, model->tokenizer, model->vocab, model->end, random, 10, 300);
        ASSERT_TRUE(walk.status) << walk.status.error().message;
        if (walk.ended) {
          EXPECT_TRUE(std::regex_match(walk.text, oracle)) << source << ": " << walk.text;
        }
      }
      // The other direction: short texts over the alphabet are taken exactly where the oracle matches.
      for (int round = 0; round < 50; ++round) {
        std::string text;
        for (size_t i = random() % 6; i > 0; --i) text += "abfor-0c/\\x"[random() % 11];
        GrammarState state = grammar.start();
        const bool taken = model->accepts(state, text) && state.accept(model->end);
        EXPECT_EQ(taken, std::regex_match(text, oracle)) << source << ": " << text;
      }
    }
  }
}

TEST(GrammarTest, Lark) {
  const std::string source = R"(
    start: "<" sum ">"
    sum: NUMBER ("+" NUMBER)*
    NUMBER: /[1-9][0-9]?/
  )";
  EXPECT_TRUE(demo().complete(GrammarKind::kLark, source, "<1+22>"));
  EXPECT_TRUE(fallback().complete(GrammarKind::kLark, source, "<7>"));
  EXPECT_FALSE(demo().complete(GrammarKind::kLark, source, "<1+>"));
  EXPECT_FALSE(demo().complete(GrammarKind::kLark, source, "<123>"));
  const std::string tool = R"(start: "call " %json {"type": "object", "properties": {"x": {"type": "integer"}},
                              "required": ["x"], "additionalProperties": false})";
  EXPECT_TRUE(demo().complete(GrammarKind::kLark, tool, R"(call {"x": 3})"));
  EXPECT_FALSE(demo().complete(GrammarKind::kLark, tool, R"(call {"y": 3})"));
}

TEST(GrammarTest, SpecialTokensAreNoText) {
  const Model& model = demo();
  std::vector<uint32_t> words(static_cast<size_t>(kDemoVocab + 31) / 32);
  GrammarState state = model.compile(GrammarKind::kRegex, "(?s:.*)").start();
  ASSERT_TRUE(state.fill_allowed(words));
  for (const TokenId id : set_bits(words)) {
    if (id == model.end) continue;
    EXPECT_FALSE(model.tokenizer.is_special(id)) << id;
    EXPECT_LT(id, model.tokenizer.vocab_size());
    EXPECT_FALSE(model.tokenizer.token_bytes(id).empty());
  }
  EXPECT_GT(set_bits(words).size(), 8000u);
  EXPECT_EQ(state.accept(0).error().code, ErrorCode::kInvalidArgument);
  // The spelling of one is text like any other.
  EXPECT_TRUE(model.complete(GrammarKind::kRegex, "<\\|begin_of_text\\|>", "<|begin_of_text|>"));
  // A Lark grammar can name one.
  const std::string source = "start: <|begin_of_text|> \"a\"";
  GrammarState named = model.compile(GrammarKind::kLark, source).start();
  ASSERT_TRUE(named.fill_allowed(words));
  EXPECT_EQ(set_bits(words), std::vector<TokenId>{0});
  EXPECT_TRUE(named.accept(0));
  EXPECT_TRUE(model.accepts(named, "a"));
  EXPECT_TRUE(named.finished());
}

TEST(GrammarTest, EveryEndIdEnds) {
  const Model& model = demo();
  const GrammarCompiler compiler = GrammarCompiler::create(model.tokenizer, kDemoVocab, std::array{1, 3, 8195}).value();
  const Grammar grammar = compiler.compile({GrammarKind::kRegex, "ab?"}).value();
  std::vector<uint32_t> words(static_cast<size_t>(kDemoVocab + 31) / 32 + 2, ~0u);
  for (const TokenId end : {1, 3, 8195}) {
    GrammarState state = grammar.start();
    EXPECT_EQ(grammar.start().accept(end).error().code, ErrorCode::kInvalidArgument);
    ASSERT_TRUE(model.accepts(state, "a"));
    EXPECT_FALSE(state.finished());
    ASSERT_TRUE(state.fill_allowed(words));
    EXPECT_EQ(words.back(), 0u);
    EXPECT_THAT(set_bits(words), testing::IsSupersetOf({1, 3, 8195, model.spell("b")[0]}));
    EXPECT_TRUE(state.accept(end));
    EXPECT_TRUE(state.finished());
    ASSERT_TRUE(state.fill_allowed(words));
    EXPECT_THAT(set_bits(words), testing::ElementsAre(1, 3, 8195));
    EXPECT_EQ(state.accept(model.spell("b")[0]).error().code, ErrorCode::kInvalidArgument);
  }
}

TEST(GrammarTest, WrongTokens) {
  const Model& model = demo();
  const Grammar grammar = model.compile(GrammarKind::kJsonSchema, schemas()[0]);
  for (const TokenId wrong :
       {model.spell("x")[0], TokenId{-1}, TokenId{8192}, TokenId{1 << 30}, model.end, TokenId{0}}) {
    GrammarState state = grammar.start();
    ASSERT_TRUE(model.accepts(state, "{"));
    EXPECT_EQ(state.accept(wrong).error().code, ErrorCode::kInvalidArgument) << wrong;
    // Unusable from here on, and it says so.
    EXPECT_EQ(state.accept(model.spell("\"")[0]).error().code, ErrorCode::kInvalidArgument);
    std::vector<uint32_t> words(300);
    EXPECT_EQ(state.fill_allowed(words).error().code, ErrorCode::kInvalidArgument);
  }
  std::vector<uint32_t> small(3);
  EXPECT_EQ(grammar.start().fill_allowed(small).error().code, ErrorCode::kInvalidArgument);
}

TEST(GrammarTest, MaskIsExactlyWhatIsAccepted) {
  const Model& model = fallback();
  const Grammar grammar = model.compile(GrammarKind::kJsonSchema, schemas()[1]);
  std::vector<uint32_t> words(static_cast<size_t>(model.vocab + 31) / 32);
  for (const char* text : {"", "{", R"({"shape": {"kind": ")", R"({"shape": {"kind": "box", "sides": [1)"}) {
    GrammarState state = grammar.start();
    ASSERT_TRUE(model.accepts(state, text));
    ASSERT_TRUE(state.fill_allowed(words));
    const std::vector<TokenId> allowed = set_bits(words);
    for (TokenId id = 0; id < model.vocab; ++id) {
      GrammarState other = grammar.start();
      ASSERT_TRUE(model.accepts(other, text));
      EXPECT_EQ(other.accept(id).has_value(), std::ranges::binary_search(allowed, id)) << text << " then " << id;
    }
  }
}

TEST(GrammarTest, StatesAreIndependent) {
  const Model& model = demo();
  const Grammar grammar = model.compile(GrammarKind::kRegex, "(ab|cd)e");
  GrammarState first = grammar.start(), second = grammar.start();
  ASSERT_TRUE(model.accepts(first, "a"));
  ASSERT_TRUE(model.accepts(second, "cd"));
  EXPECT_FALSE(second.accept(model.spell("b")[0]));
  EXPECT_TRUE(model.accepts(first, "be"));
  EXPECT_TRUE(first.finished());
  EXPECT_FALSE(second.finished());
  GrammarState moved = std::move(first);
  EXPECT_TRUE(moved.accept(model.end));
}

TEST(GrammarTest, OutlivesItsCompiler) {
  std::optional<GrammarState> state;
  {
    const GrammarCompiler compiler = GrammarCompiler::create(demo().tokenizer, kDemoVocab, std::array{1}).value();
    state = compiler.compile({GrammarKind::kRegex, "ab"}).value().start();
  }
  EXPECT_TRUE(demo().accepts(*state, "ab"));
  EXPECT_TRUE(state->finished());
}

TEST(GrammarTest, WhiteSpaceOfJsonEnds) {
  const Model& model = demo();
  const Grammar grammar = model.compile(GrammarKind::kJsonObject, "");
  GrammarState state = grammar.start();
  EXPECT_TRUE(model.accepts(state, "{\n" + std::string(64, ' ')));
  std::vector<uint32_t> words(static_cast<size_t>(kDemoVocab + 31) / 32);
  ASSERT_TRUE(state.fill_allowed(words));
  const std::vector<TokenId> allowed = set_bits(words);
  EXPECT_FALSE(allowed.empty());
  for (const TokenId id : allowed) EXPECT_NE(model.tokenizer.token_bytes(id).find_first_of(" \n\r\t"), 0u) << id;
  EXPECT_TRUE(model.accepts(state, "\"a"));
  // Inside of a string it is text.
  EXPECT_TRUE(model.accepts(state, std::string(200, ' ')));
  EXPECT_TRUE(model.accepts(state, "\\\" \":" + std::string(65, '\n')));
  EXPECT_EQ(state.accept(model.spell(" ")[0]).error().code, ErrorCode::kInvalidArgument);
}

TEST(GrammarTest, BadGrammars) {
  const Model& model = demo();
  const auto schema = [&](const std::string& source) { return model.error(GrammarKind::kJsonSchema, source); };
  for (const char* source :
       {"", "{", "[]", "3", "false", R"({"type": "strin"})", R"({"enum": 3})", R"({"type": 3})",
        R"({"$ref": "#/$defs/none"})", R"({"$ref": "https://example.com/schema.json"})",
        R"({"type": "string", "pattern": "("})", R"({"minimum": 5, "maximum": 4, "type": "integer"})",
        R"({"type": "integer", "minimum": "éééééééééééééééééééééééééééééééééééééééééééééééééééééé"})",
        R"({"properties": [], "x-guidance": {}})", "{\"type\": \"\xff\"}"}) {
    EXPECT_EQ(schema(source).code, ErrorCode::kInvalidArgument) << source << ": " << schema(source).message;
  }
  EXPECT_THAT(schema(R"({"type": "object", "not": {"required": ["a"]}})").message, HasSubstr("not"));
  EXPECT_THAT(schema(R"({"type": "array", "uniqueItems": true})").message, HasSubstr("uniqueItems"));
  EXPECT_THAT(schema(R"({"x-guidance": {"lenient": true}})").message, HasSubstr("x-guidance"));
  EXPECT_THAT(schema(R"({"type": "string", "format": "no-such"})").message, HasSubstr("no-such"));
  EXPECT_EQ(model.error(GrammarKind::kRegex, "(a").code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(model.error(GrammarKind::kRegex, "a(?=b)").code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(model.error(GrammarKind::kLark, "start: nothing").code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(model.error(GrammarKind::kLark, "start: %json {\"x-guidance\": {}}").code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(GrammarCompiler::create(model.tokenizer, 0, {}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(GrammarCompiler::create(model.tokenizer, 100, std::array{100}).error().code, ErrorCode::kInvalidArgument);
}

TEST(GrammarTest, Limits) {
  const Model& model = demo();
  std::string nested = "{}";
  for (int i = 0; i < 16; ++i) nested = R"({"type":"object","properties":{"a":)" + nested + "}}";
  EXPECT_EQ(model.error(GrammarKind::kJsonSchema, nested).code, ErrorCode::kResourceExhausted);
  EXPECT_THAT(model.error(GrammarKind::kJsonSchema, nested).message, HasSubstr("33 deep, wanted at most 32"));
  model.compile(GrammarKind::kJsonSchema, nested, {.max_depth = 33});
  EXPECT_THAT(model.error(GrammarKind::kRegex, "abc", {.max_source_bytes = 2}).message,
              HasSubstr("3 bytes, wanted at most 2"));
  EXPECT_EQ(model.error(GrammarKind::kRegex, "abc", {.max_source_bytes = 2}).code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(model.error(GrammarKind::kJsonObject, "", {.max_compile_time_ms = 0}).code, ErrorCode::kDeadlineExceeded);
}

TEST(GrammarTest, I1ThreadsShareACompiler) {
  const Model& model = demo();
  const Grammar shared = model.compile(GrammarKind::kJsonSchema, schemas()[0]);
  std::vector<std::thread> threads;
  std::vector<int> ended(4);
  for (size_t t = 0; t < ended.size(); ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      for (int round = 0; round < 5; ++round) {
        const Result<Grammar> own = model.compiler.compile({GrammarKind::kJsonSchema, schemas()[(t + 1) % 4]});
        if (!own) return;
        ended[t] += random_walk(shared, model.tokenizer, model.vocab, model.end, random).ended;
        ended[t] += random_walk(*own, model.tokenizer, model.vocab, model.end, random).ended;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(ended, testing::Each(10));
}

}  // namespace
}  // namespace hearth
