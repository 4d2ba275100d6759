// SPDX-License-Identifier: Apache-2.0
// Reads the small text files of a model folder, with the precedence that transformers 5 gives them. Any thread.
#include "hearth/text/model_files.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>

namespace hearth::text_detail {
namespace {

namespace fs = std::filesystem;
// The order of members is the order in which new tokens are numbered.
using Json = nlohmann::ordered_json;

// The named special tokens that every tokenizer class has, in the order in which they are added.
constexpr const char* kStandardTokens[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                           "pad_token", "cls_token", "mask_token"};

// A JSON object from `path`; a null Json if there is no such file.
Result<Json> read_optional_object(const fs::path& path, int64_t max_bytes) {
  std::error_code ec;
  if (!fs::exists(path, ec)) return Json();
  HEARTH_TRY_ASSIGN(std::string text, read_text_file(path, max_bytes));
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return corrupt("{}: not valid JSON", path.string());
  if (!json.is_object()) return corrupt("{}: a JSON {}, wanted an object", path.string(), json.type_name());
  return json;
}

bool flag(const Json& token, const char* name, bool fallback) {
  const auto it = token.find(name);
  return it != token.end() && it->is_boolean() ? it->get<bool>() : fallback;
}

// A token is spelled as a string or as the members of an AddedToken.
std::optional<std::string> token_content(const Json& token) {
  if (token.is_string()) return token.get<std::string>();
  if (!token.is_object()) return std::nullopt;
  const auto it = token.find("content");
  if (it == token.end() || !it->is_string()) return std::nullopt;
  return it->get<std::string>();
}

// As transformers adds a named special token: always special, and not normalized unless it says so.
Json special_token(const Json& token, const std::string& content) {
  if (token.is_string()) return Json{{"content", content}, {"special", true}, {"normalized", false}};
  return Json{{"content", content},
              {"special", true},
              {"normalized", flag(token, "normalized", false)},
              {"lstrip", flag(token, "lstrip", false)},
              {"rstrip", flag(token, "rstrip", false)},
              {"single_word", flag(token, "single_word", false)}};
}

struct TokenCollector {
  ModelFiles& files;
  Json added = Json::array();

  // Named special tokens, every member that ends in _token, and then the lists of further ones.
  Status add_special_members(const Json& object, const fs::path& path) {
    for (const char* name : kStandardTokens) {
      if (object.contains(name)) HEARTH_TRY(add_named(name, object[name], path));
    }
    for (const auto& [key, value] : object.items()) {
      if (key.ends_with("_token")) HEARTH_TRY(add_named(key, value, path));
    }
    for (const char* name : {"additional_special_tokens", "extra_special_tokens"}) {
      if (object.contains(name)) HEARTH_TRY(add_list(object[name], path, name));
    }
    return {};
  }

  Status add_named(const std::string& key, const Json& value, const fs::path& path) {
    const std::optional<std::string> content = token_content(value);
    if (!content) {
      if (value.is_null() || value.is_boolean()) return {};  // add_bos_token is a flag
      return corrupt("{}: {} is a JSON {}, wanted a string or an object with `content`", path.string(), key,
                     value.type_name());
    }
    if (content->empty() || !files.special_tokens.emplace(key, *content).second) return {};
    added.push_back(special_token(value, *content));
    return {};
  }

  Status add_list(const Json& list, const fs::path& path, const std::string& key) {
    if (list.is_null()) return {};
    if (!list.is_array() && !list.is_object()) {
      return corrupt("{}: {} is a JSON {}, wanted an array", path.string(), key, list.type_name());
    }
    for (const auto& item : list.items()) {
      const std::optional<std::string> content = token_content(item.value());
      if (!content) return corrupt("{}: {} has an entry that is no token", path.string(), key);
      if (list.is_object()) files.special_tokens.emplace(item.key(), *content);
      if (!content->empty()) added.push_back(special_token(item.value(), *content));
    }
    return {};
  }

  // In the order of their ids, which is the order in which new ones would be numbered.
  Status add_decoder(const Json& decoder, const fs::path& path) {
    if (!decoder.is_object()) return corrupt("{}: added_tokens_decoder is no object", path.string());
    std::map<int64_t, Json> by_id;
    for (const auto& [key, value] : decoder.items()) {
      const std::optional<std::string> content = token_content(value);
      if (key.empty() || key.size() > 9 || key.find_first_not_of("0123456789") != std::string::npos || !content) {
        return corrupt("{}: added_tokens_decoder: \"{}\" is no id with a token", path.string(), key);
      }
      Json token = special_token(value, *content);
      token["special"] = flag(value, "special", false);
      token["normalized"] = flag(value, "normalized", !flag(value, "special", false));
      by_id[std::stoll(key)] = std::move(token);
    }
    for (auto& [id, token] : by_id) added.push_back(std::move(token));
    return {};
  }
};

Status read_inline_templates(const Json& value, const fs::path& path, ModelFiles& files) {
  if (value.is_null()) return {};
  if (value.is_string()) {
    files.chat_templates["default"] = value.get<std::string>();
    return {};
  }
  if (!value.is_array()) {
    return corrupt("{}: chat_template is a JSON {}, wanted a string or an array", path.string(), value.type_name());
  }
  for (const Json& entry : value) {
    if (!entry.is_object() || !entry.contains("name") || !entry["name"].is_string() || !entry.contains("template") ||
        !entry["template"].is_string()) {
      return corrupt("{}: chat_template has an entry without the strings `name` and `template`", path.string());
    }
    files.chat_templates[entry["name"].get<std::string>()] = entry["template"].get<std::string>();
  }
  return {};
}

// Files of their own replace what tokenizer_config.json has.
Status read_template_files(const fs::path& model_dir, int64_t max_bytes, ModelFiles& files) {
  std::map<std::string, std::string> found;
  std::error_code ec;
  const fs::path single = model_dir / "chat_template.jinja";
  if (fs::exists(single, ec)) {
    HEARTH_TRY_ASSIGN(found["default"], read_text_file(single, max_bytes));
  }
  fs::directory_iterator it(model_dir / "additional_chat_templates", ec);
  for (; !ec && it != fs::directory_iterator(); it.increment(ec)) {
    const fs::path& path = it->path();
    if (path.extension() != ".jinja") continue;
    HEARTH_TRY_ASSIGN(found[path.stem().string()], read_text_file(path, max_bytes));
  }
  if (!found.empty()) files.chat_templates = std::move(found);
  return {};
}

Status read_eos_ids(const Json& object, const fs::path& path, ModelFiles& files) {
  const auto it = object.find("eos_token_id");
  if (it == object.end() || it->is_null()) return {};
  const Json list = it->is_array() ? *it : Json::array({*it});
  for (const Json& id : list) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX) {
      return corrupt("{}: eos_token_id is {}, wanted a token id or an array of them", path.string(), it->dump());
    }
    files.generation_eos_ids.push_back(id.get<int64_t>());
  }
  return {};
}

}  // namespace

Result<std::string> read_text_file(const fs::path& path, int64_t max_bytes) {
  std::error_code ec;
  const auto size = fs::file_size(path, ec);
  if (ec) return not_found("{}: {}", path.string(), ec.message());
  if (size > static_cast<uint64_t>(max_bytes)) {
    return resource_exhausted("{}: {} bytes, wanted at most {}", path.string(), size, max_bytes);
  }
  std::ifstream in(path, std::ios::binary);
  std::string text(size, '\0');
  in.read(text.data(), static_cast<std::streamsize>(size));
  if (!in) return not_found("{}: cannot be read", path.string());
  return text;
}

Result<ModelFiles> read_model_files(const fs::path& model_dir, int64_t max_file_bytes) {
  ModelFiles files;
  HEARTH_TRY_ASSIGN(files.tokenizer_json, read_text_file(model_dir / "tokenizer.json", max_file_bytes));

  TokenCollector tokens{files};
  const fs::path config_path = model_dir / "tokenizer_config.json";
  HEARTH_TRY_ASSIGN(const Json config, read_optional_object(config_path, max_file_bytes));
  const bool has_decoder = config.is_object() && config.contains("added_tokens_decoder");
  if (config.is_object()) {
    if (has_decoder) HEARTH_TRY(tokens.add_decoder(config["added_tokens_decoder"], config_path));
    HEARTH_TRY(tokens.add_special_members(config, config_path));
    if (config.contains("chat_template")) {
      HEARTH_TRY(read_inline_templates(config["chat_template"], config_path, files));
    }
    // 1e15 and more is how transformers writes "no limit".
    const auto limit = config.find("model_max_length");
    if (limit != config.end() && limit->is_number() && limit->get<double>() >= 1 && limit->get<double>() < 1e15) {
      files.model_max_length = static_cast<int64_t>(limit->get<double>());
    }
  }
  if (!has_decoder) {
    const fs::path map_path = model_dir / "special_tokens_map.json";
    HEARTH_TRY_ASSIGN(const Json map, read_optional_object(map_path, max_file_bytes));
    if (map.is_object()) HEARTH_TRY(tokens.add_special_members(map, map_path));
  }
  files.added_tokens_json = tokens.added.dump(-1, ' ', false, Json::error_handler_t::replace);

  HEARTH_TRY(read_template_files(model_dir, max_file_bytes, files));

  // config.json stands in where there is no generation_config.json.
  fs::path eos_path = model_dir / "generation_config.json";
  HEARTH_TRY_ASSIGN(Json generation, read_optional_object(eos_path, max_file_bytes));
  if (generation.is_null()) {
    eos_path = model_dir / "config.json";
    HEARTH_TRY_ASSIGN(generation, read_optional_object(eos_path, max_file_bytes));
  }
  if (generation.is_object()) HEARTH_TRY(read_eos_ids(generation, eos_path, files));
  return files;
}

ModelFiles byte_model_files() {
  // Byte-level tokenizers write bytes that are no visible Latin-1 character as the characters from U+0100 on.
  Json vocab = Json::object();
  int hidden = 0;
  for (int byte = 0; byte < 256; ++byte) {
    const bool visible = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    const int code = visible ? byte : 0x100 + hidden++;
    std::string piece;
    if (code >= 0x80) piece.push_back(static_cast<char>(0xC0 | code >> 6));
    piece.push_back(static_cast<char>(code >= 0x80 ? 0x80 | (code & 0x3F) : code));
    vocab[piece] = byte;
  }
  const Json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
  const Json tokenizer = {{"version", "1.0"},
                          {"added_tokens", Json::array()},
                          {"normalizer", nullptr},
                          {"pre_tokenizer", byte_level},
                          {"post_processor", nullptr},
                          {"decoder", byte_level},
                          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}}}};
  ModelFiles files;
  files.tokenizer_json = tokenizer.dump();
  files.added_tokens_json = "[]";
  return files;
}

}  // namespace hearth::text_detail
