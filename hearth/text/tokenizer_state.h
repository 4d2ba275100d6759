// SPDX-License-Identifier: Apache-2.0
// What a Tokenizer's copies share: the bridge's handle and the vocabulary as flat tables. Internal to hearth/text.
// I1. Nothing changes after Tokenizer::load(); any thread reads.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/text/bridge.h"
#include "hearth/text/tokenizer.h"

namespace hearth::text_detail {

// The tables of htb_tokenizer_vocabulary, and their owner.
class Vocabulary {
 public:
  Vocabulary() = default;
  ~Vocabulary();
  Vocabulary(const Vocabulary&) = delete;
  Vocabulary& operator=(const Vocabulary&) = delete;

  Status load(const htb_tokenizer* tokenizer);
  int64_t size() const { return static_cast<int64_t>(raw_.count); }
  bool contains(TokenId id) const { return id >= 0 && id < size() && (raw_.flags.data[id] & HTB_PIECE_PRESENT); }
  bool special(TokenId id) const { return contains(id) && (raw_.flags.data[id] & HTB_PIECE_SPECIAL); }
  bool byte_token(TokenId id) const { return contains(id) && (raw_.flags.data[id] & HTB_PIECE_BYTE); }
  std::string_view piece(TokenId id) const { return entry(raw_.text, raw_.text_offsets, id); }
  std::string_view bytes(TokenId id) const { return entry(raw_.bytes, raw_.byte_offsets, id); }
  htb_decoder_kind decoder_kind() const { return static_cast<htb_decoder_kind>(raw_.decoder_kind); }
  uint32_t strip_char() const { return raw_.strip_char; }
  uint32_t strip_count() const { return raw_.strip_count; }

 private:
  std::string_view entry(const htb_buffer& data, const htb_ids& offsets, TokenId id) const {
    if (!contains(id)) return {};
    const uint32_t begin = offsets.data[id];
    return {reinterpret_cast<const char*>(data.data) + begin, offsets.data[id + 1] - begin};
  }
  htb_vocabulary raw_{};
};

struct TokenizerState {
  TokenizerState() = default;
  ~TokenizerState();
  TokenizerState(const TokenizerState&) = delete;
  TokenizerState& operator=(const TokenizerState&) = delete;

  Result<std::string> decode(std::span<const TokenId> ids, bool skip_special) const;

  htb_tokenizer* handle = nullptr;
  Vocabulary vocabulary;
  TokenizerLimits limits;
  std::map<std::string, std::string> special_tokens;
  std::map<std::string, std::string> chat_templates;
  std::optional<TokenId> bos, eos, pad, unk;
  std::vector<TokenId> eos_ids;
  std::optional<int64_t> model_max_length;
};

}  // namespace hearth::text_detail
