// SPDX-License-Identifier: Apache-2.0
// Grammars: which tokens may come next so that the text keeps the form that was asked for. JSON Schema,
// "any JSON object", regular expressions and llguidance's Lark dialect.
// I1. GrammarCompiler and Grammar are immutable: any thread may use them, copies share one state.
// I2. A schema comes from a request: whatever it says, every call ends within the limits.
// I3. A token that fill_allowed() allows, accept() takes, unless that alone reaches a limit (ResourceExhausted).
// JSON may have white space between its tokens, but after 65 bytes of it (a line break, 32 levels) other text must come.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/text/tokenizer.h"

namespace hearth {

// Reaching one is ResourceExhausted, with a message that names it.
struct GrammarLimits {
  int64_t max_source_bytes = 64 << 10;
  int64_t max_depth = 32;              // of objects and arrays in the text of a schema
  int64_t max_compile_time_ms = 2000;  // DeadlineExceeded; looked at between the parts of a compilation
};

enum class GrammarKind : uint8_t { kJsonObject, kJsonSchema, kRegex, kLark };

struct GrammarSpec {
  GrammarKind kind = GrammarKind::kJsonObject;
  std::string source;  // the schema, the expression or the grammar; empty for kJsonObject
};

// The state of one sequence. One thread at a time.
class GrammarState {
 public:
  GrammarState(GrammarState&&) noexcept;
  GrammarState& operator=(GrammarState&&) noexcept;
  ~GrammarState();

  // Sets bit t % 32 of word t / 32 of `allowed` for every token that may come next and clears all others; the
  // ids that end a text are allowed where the text may end here. REQUIRES: room for the model's vocabulary.
  // ResourceExhausted: the grammar needs too many states here. After an error the state is unusable.
  Status fill_allowed(std::span<uint32_t> allowed);
  // Takes the next token. InvalidArgument where it was not allowed; the state is then unusable.
  Status accept(TokenId token);
  // True once nothing but the end may follow; also after the end.
  bool finished() const;

 private:
  friend class Grammar;
  struct Impl;
  explicit GrammarState(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

class Grammar {
 public:
  GrammarState start() const;

 private:
  friend class GrammarCompiler;
  struct Impl;
  explicit Grammar(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

class GrammarCompiler {
 public:
  // For models of `model_vocab_size` rows of logits whose text ends with one of `end_ids`. Costs a walk over
  // the vocabulary; one for each served model.
  static Result<GrammarCompiler> create(const Tokenizer& tokenizer, int64_t model_vocab_size,
                                        std::span<const TokenId> end_ids);

  // InvalidArgument: no such grammar, or a feature of JSON Schema that is not supported; the message names it.
  Result<Grammar> compile(const GrammarSpec& spec, const GrammarLimits& limits = {}) const;

 private:
  struct Impl;
  explicit GrammarCompiler(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

}  // namespace hearth
