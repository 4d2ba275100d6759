// SPDX-License-Identifier: Apache-2.0
// Tokenizer: text <-> token ids as Hugging Face's fast tokenizers do it, from the files of a model folder.
// I1. Immutable after load(): every const method may be called from many threads at once.
// I2. Copies share one read-only state; a copy costs a pointer.
// I3. decode(ids) is the reference of Detokenizer (detokenizer.h): the streamed pieces add up to it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"

namespace hearth {

using TokenId = std::int32_t;

struct TokenizerLimits {
  // Longest text that encode() takes; longer is ResourceExhausted. 64 MiB holds any context a model has.
  int64_t max_text_bytes = int64_t{64} << 20;
  // Longest tokenizer.json (and each other file) that load() reads.
  int64_t max_file_bytes = int64_t{256} << 20;
};

struct TokenizeOptions {
  // Adds what the post-processor of tokenizer.json says, usually BOS in front.
  bool add_special_tokens = true;
  // false: the text of a special token inside `text` is plain text. Text that comes from outside must be
  // encoded so, or a user could write the end of a turn. Added tokens that are not special are still found.
  bool parse_special = true;
};

namespace text_detail {
struct ModelFiles;
struct TokenizerState;
}  // namespace text_detail

class Tokenizer {
 public:
  // Reads tokenizer.json (needed) and, where present, tokenizer_config.json, special_tokens_map.json,
  // generation_config.json, chat_template.jinja and additional_chat_templates/*.jinja of `model_dir`.
  // NotFound: no tokenizer.json. Corrupt: a file that is not what it should be; the message names the file.
  static Result<Tokenizer> load(const std::filesystem::path& model_dir, const TokenizerLimits& limits = {});

  // A tokenizer whose token i is byte i of the text, without special tokens: for models that have none of their own.
  static Result<Tokenizer> bytes();

  // Ids of `text` (UTF-8; InvalidArgument with the offset of the first bad byte otherwise).
  // The rule for BOS and EOS with add_special_tokens: the post-processor of tokenizer.json alone decides, as in
  // transformers 5, which ignores add_bos_token and add_eos_token where there is a tokenizer.json.
  Result<std::vector<TokenId>> encode(std::string_view text, const TokenizeOptions& options = {}) const;

  // Text of `ids`, bytes that are no UTF-8 replaced by U+FFFD. An id without a token below vocab_size() adds
  // nothing; an id outside [0, vocab_size()) is InvalidArgument.
  Result<std::string> decode(std::span<const TokenId> ids, bool skip_special = true) const;

  // The token as it stands in the vocabulary ("Ġthe", "▁the", "<0x0A>"); nullopt where there is none.
  std::optional<std::string> id_to_piece(TokenId id) const;
  std::optional<TokenId> token_to_id(std::string_view piece) const;

  // The bytes that a token adds to the text: "Ġthe" is " the", "<0x0A>" is "\n", "▁the" is " the" (also
  // where it stands first and decode() would drop the space). Empty where there is no token. The view lives
  // as long as any copy of this tokenizer.
  std::string_view token_bytes(TokenId id) const;

  // One more than the largest id. A model's vocab_size is often larger: its rows are padded.
  int64_t vocab_size() const;
  // A token that decode(skip_special = true) leaves out.
  bool is_special(TokenId id) const;

  std::optional<TokenId> bos_id() const;
  std::optional<TokenId> eos_id() const;  // of tokenizer_config.json
  std::optional<TokenId> pad_id() const;
  std::optional<TokenId> unk_id() const;
  // Every id that ends a generation: eos_id() and generation_config.json's eos_token_id, ascending.
  const std::vector<TokenId>& eos_ids() const;
  bool is_eos(TokenId id) const;

  // "bos_token" -> "<s>" and so on, as a chat template sees them.
  const std::map<std::string, std::string>& special_tokens() const;
  // Template sources by name; "default" is the one used unless another is asked for. Empty: none.
  const std::map<std::string, std::string>& chat_templates() const;
  // tokenizer_config.json's model_max_length where it is a real limit (transformers writes 1e30 for none).
  std::optional<int64_t> model_max_length() const;

 private:
  friend class Detokenizer;
  static Result<Tokenizer> make(text_detail::ModelFiles files, const TokenizerLimits& limits);
  explicit Tokenizer(std::shared_ptr<const text_detail::TokenizerState> state) : state_(std::move(state)) {}
  std::shared_ptr<const text_detail::TokenizerState> state_;
};

}  // namespace hearth
