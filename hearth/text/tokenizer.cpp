// SPDX-License-Identifier: Apache-2.0
// Tokenizer over the text bridge. All state is set in load() and only read afterwards; any thread.
#include "hearth/text/tokenizer.h"

#include <algorithm>

#include "hearth/text/model_files.h"
#include "hearth/text/tokenizer_state.h"

namespace hearth {
namespace text_detail {

Vocabulary::~Vocabulary() {
  htb_buffer_free(raw_.text);
  htb_ids_free(raw_.text_offsets);
  htb_buffer_free(raw_.bytes);
  htb_ids_free(raw_.byte_offsets);
  htb_buffer_free(raw_.flags);
}

Status Vocabulary::load(const htb_tokenizer* tokenizer) {
  const BridgeCall call;
  BridgeBuffer error;
  const htb_status status = htb_tokenizer_vocabulary(tokenizer, &raw_, error.out());
  if (status != HTB_OK) return bridge_error(status, error.view());
  return {};
}

TokenizerState::~TokenizerState() {
  const BridgeCall call;
  htb_tokenizer_free(handle);
}

Result<std::string> TokenizerState::decode(std::span<const TokenId> ids, bool skip_special) const {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocabulary.size()) {
      return invalid_argument("decode: id {} at position {}, wanted 0 to {}", ids[i], i, vocabulary.size() - 1);
    }
  }
  const BridgeCall call;
  BridgeBuffer text, error;
  // int32 and uint32 may alias, and no id is negative.
  const htb_status status = htb_tokenizer_decode(handle, reinterpret_cast<const uint32_t*>(ids.data()), ids.size(),
                                                 skip_special, text.out(), error.out());
  if (status != HTB_OK) return bridge_error(status, error.view()).with_context("decode");
  return text.str();
}

namespace {

std::optional<TokenId> find_token(const htb_tokenizer* handle, std::string_view piece) {
  const BridgeCall call;
  BridgeBuffer error;
  int64_t id = -1;
  const htb_status status = htb_tokenizer_token_to_id(handle, bridge_bytes(piece), piece.size(), &id, error.out());
  if (status != HTB_OK || id < 0) return std::nullopt;
  return static_cast<TokenId>(id);
}

Status open_tokenizer(const ModelFiles& files, TokenizerState& state) {
  const BridgeCall call;
  BridgeBuffer error;
  htb_status status =
      htb_tokenizer_new(bridge_bytes(files.tokenizer_json), files.tokenizer_json.size(), &state.handle, error.out());
  if (status == HTB_INVALID_ARGUMENT) status = HTB_CORRUPT;  // what is wrong is the file
  if (status != HTB_OK) return bridge_error(status, error.view()).with_context("tokenizer.json");
  BridgeBuffer add_error;
  status = htb_tokenizer_add_tokens(state.handle, bridge_bytes(files.added_tokens_json), files.added_tokens_json.size(),
                                    add_error.out());
  if (status != HTB_OK) return bridge_error(status, add_error.view()).with_context("special tokens");
  return state.vocabulary.load(state.handle);
}

}  // namespace
}  // namespace text_detail

Result<Tokenizer> Tokenizer::load(const std::filesystem::path& model_dir, const TokenizerLimits& limits) {
  HEARTH_TRY_ASSIGN(text_detail::ModelFiles files, text_detail::read_model_files(model_dir, limits.max_file_bytes));
  return make(std::move(files), limits).with_context(model_dir.string());
}

Result<Tokenizer> Tokenizer::bytes() { return make(text_detail::byte_model_files(), {}); }

Result<Tokenizer> Tokenizer::make(text_detail::ModelFiles files, const TokenizerLimits& limits) {
  using namespace text_detail;
  auto state = std::make_shared<TokenizerState>();
  HEARTH_TRY(open_tokenizer(files, *state));
  state->limits = limits;
  const auto named = [&](const char* name) -> std::optional<TokenId> {
    const auto it = files.special_tokens.find(name);
    return it == files.special_tokens.end() ? std::nullopt : find_token(state->handle, it->second);
  };
  state->bos = named("bos_token");
  state->eos = named("eos_token");
  state->pad = named("pad_token");
  state->unk = named("unk_token");
  for (const int64_t id : files.generation_eos_ids) state->eos_ids.push_back(static_cast<TokenId>(id));
  if (state->eos) state->eos_ids.push_back(*state->eos);
  std::ranges::sort(state->eos_ids);
  // Not ranges::unique: clang 14, which builds the fuzz targets, does not compile libstdc++'s subrange.
  state->eos_ids.erase(std::unique(state->eos_ids.begin(), state->eos_ids.end()), state->eos_ids.end());
  state->special_tokens = std::move(files.special_tokens);
  state->chat_templates = std::move(files.chat_templates);
  state->model_max_length = files.model_max_length;
  return Tokenizer(std::move(state));
}

Result<std::vector<TokenId>> Tokenizer::encode(std::string_view text, const TokenizeOptions& options) const {
  using namespace text_detail;
  if (static_cast<int64_t>(text.size()) > state_->limits.max_text_bytes) {
    return resource_exhausted("encode: text of {} bytes, wanted at most {}", text.size(),
                              state_->limits.max_text_bytes);
  }
  const BridgeCall call;
  BridgeIds ids;
  BridgeBuffer error;
  const htb_status status =
      htb_tokenizer_encode(state_->handle, bridge_bytes(text), text.size(), options.add_special_tokens,
                           options.parse_special, ids.out(), error.out());
  if (status != HTB_OK) return bridge_error(status, error.view()).with_context("encode");
  return std::vector<TokenId>(ids.begin(), ids.end());
}

Result<std::string> Tokenizer::decode(std::span<const TokenId> ids, bool skip_special) const {
  return state_->decode(ids, skip_special);
}

std::optional<std::string> Tokenizer::id_to_piece(TokenId id) const {
  if (!state_->vocabulary.contains(id)) return std::nullopt;
  return std::string(state_->vocabulary.piece(id));
}

std::optional<TokenId> Tokenizer::token_to_id(std::string_view piece) const {
  return text_detail::find_token(state_->handle, piece);
}

std::string_view Tokenizer::token_bytes(TokenId id) const { return state_->vocabulary.bytes(id); }
int64_t Tokenizer::vocab_size() const { return state_->vocabulary.size(); }
bool Tokenizer::is_special(TokenId id) const { return state_->vocabulary.special(id); }
std::optional<TokenId> Tokenizer::bos_id() const { return state_->bos; }
std::optional<TokenId> Tokenizer::eos_id() const { return state_->eos; }
std::optional<TokenId> Tokenizer::pad_id() const { return state_->pad; }
std::optional<TokenId> Tokenizer::unk_id() const { return state_->unk; }
const std::vector<TokenId>& Tokenizer::eos_ids() const { return state_->eos_ids; }
bool Tokenizer::is_eos(TokenId id) const { return std::ranges::binary_search(state_->eos_ids, id); }
const std::map<std::string, std::string>& Tokenizer::special_tokens() const { return state_->special_tokens; }
const std::map<std::string, std::string>& Tokenizer::chat_templates() const { return state_->chat_templates; }
std::optional<int64_t> Tokenizer::model_max_length() const { return state_->model_max_length; }

}  // namespace hearth
