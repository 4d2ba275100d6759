// SPDX-License-Identifier: Apache-2.0
// Fuzz target of grammars from requests. The first byte says what the rest is: a JSON Schema, a regular expression or a
// Lark grammar. Whatever compiles is walked for a few tokens that the input chooses among the allowed ones; a token
// that the mask allows must be taken, unless that reaches a limit. The vocabulary is bytes and a few longer tokens.
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "hearth/base/check.h"
#include "hearth/text/grammar.h"

namespace hearth {
namespace {

constexpr TokenId kEnd = 0;

Tokenizer make_tokenizer() {
  nlohmann::json vocabulary = {{"</s>", kEnd}};
  const auto add = [&](const std::string& piece) { vocabulary.emplace(piece, vocabulary.size()); };
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", byte);
    add(name);
  }
  for (const char* piece : {"{\"", "\":", "\",", "\"}", "true", "null", "  ", "]}", "\\u00", "ab"}) add(piece);
  const nlohmann::json end = {{"id", kEnd},      {"content", "</s>"},   {"single_word", false}, {"lstrip", false},
                              {"rstrip", false}, {"normalized", false}, {"special", true}};
  const nlohmann::json decoder =
      nlohmann::json::parse(R"({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]})");
  const nlohmann::json model = {{"type", "BPE"},
                                {"unk_token", nullptr},
                                {"byte_fallback", true},
                                {"vocab", vocabulary},
                                {"merges", nlohmann::json::array()}};
  const nlohmann::json file = {{"version", "1.0"},          {"truncation", nullptr}, {"padding", nullptr},
                               {"normalizer", nullptr},     {"added_tokens", {end}}, {"pre_tokenizer", nullptr},
                               {"post_processor", nullptr}, {"decoder", decoder},    {"model", model}};
  std::string dir = (std::filesystem::temp_directory_path() / "hearth-fuzz-XXXXXX").string();
  HEARTH_CHECK(mkdtemp(dir.data()) != nullptr, "no folder {}", dir);
  std::ofstream(std::filesystem::path(dir) / "tokenizer.json") << file.dump();
  Result<Tokenizer> tokenizer = Tokenizer::load(dir);
  std::filesystem::remove_all(dir);
  HEARTH_CHECK(tokenizer.has_value(), "{}", tokenizer.error().message);
  return std::move(tokenizer).value();
}

// What a request may cause.
void check_error(const Error& error) {
  HEARTH_CHECK(!error.message.empty(), "an error without a message");
  HEARTH_CHECK(error.code == ErrorCode::kInvalidArgument || error.code == ErrorCode::kResourceExhausted ||
                   error.code == ErrorCode::kDeadlineExceeded,
               "code of: {}", error.message);
}

void walk(const Grammar& grammar, int64_t vocab, std::span<const uint8_t> choices) {
  GrammarState state = grammar.start();
  std::vector<uint32_t> words(static_cast<size_t>(vocab + 31) / 32);
  for (const uint8_t choice : choices) {
    const Status filled = state.fill_allowed(words);
    if (!filled) return check_error(filled.error());
    std::vector<TokenId> allowed;
    for (TokenId id = 0; id < vocab; ++id) {
      if (words[static_cast<size_t>(id) / 32] >> (id % 32) & 1) allowed.push_back(id);
    }
    HEARTH_CHECK(!allowed.empty(), "an empty mask");
    const TokenId token = allowed[choice % allowed.size()];
    const Status accepted = state.accept(token);
    if (!accepted) {
      HEARTH_CHECK(accepted.error().code == ErrorCode::kResourceExhausted, "token {} was allowed: {}", token,
                   accepted.error().message);
      return;
    }
    if (token == kEnd) return;
  }
}

}  // namespace
}  // namespace hearth

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hearth;
  static const Tokenizer tokenizer = make_tokenizer();
  static const GrammarCompiler compiler =
      GrammarCompiler::create(tokenizer, tokenizer.vocab_size(), std::span(&kEnd, 1)).value();
  if (size == 0) return 0;
  constexpr GrammarKind kKinds[] = {GrammarKind::kJsonSchema, GrammarKind::kRegex, GrammarKind::kLark};
  const GrammarKind kind = kKinds[data[0] % 3];
  const std::span<const uint8_t> rest(data + 1, size - 1);
  const auto grammar = compiler.compile({kind, std::string(rest.begin(), rest.end())}, {.max_source_bytes = 4096});
  if (!grammar) {
    check_error(grammar.error());
    return 0;
  }
  walk(*grammar, tokenizer.vocab_size(), rest.first(std::min<size_t>(rest.size(), 24)));
  return 0;
}
