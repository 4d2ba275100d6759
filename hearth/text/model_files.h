// SPDX-License-Identifier: Apache-2.0
// What the small text files of a model folder say about its tokens: tokenizer_config.json, special_tokens_map.json,
// generation_config.json, chat_template.jinja, additional_chat_templates/*.jinja. Internal to hearth/text.
// Pure functions of the files; any thread.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"

namespace hearth::text_detail {

struct ModelFiles {
  std::string tokenizer_json;
  // bos_token, eos_token, ...: the spelling of each named special token.
  std::map<std::string, std::string> special_tokens;
  // Tokens that the tokenizer must know beside those of tokenizer.json, as the JSON array that
  // htb_tokenizer_add_tokens takes.
  std::string added_tokens_json;
  std::map<std::string, std::string> chat_templates;
  std::vector<int64_t> generation_eos_ids;
  std::optional<int64_t> model_max_length;
};

Result<ModelFiles> read_model_files(const std::filesystem::path& model_dir, int64_t max_file_bytes);

// A tokenizer of 256 tokens, one for each byte, and nothing beside it.
ModelFiles byte_model_files();

// The whole file. NotFound, or ResourceExhausted if it is longer than `max_bytes`.
Result<std::string> read_text_file(const std::filesystem::path& path, int64_t max_bytes);

}  // namespace hearth::text_detail
