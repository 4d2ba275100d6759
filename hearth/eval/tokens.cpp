// SPDX-License-Identifier: Apache-2.0
#include "hearth/eval/tokens.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>

#include "hearth/checkpoint/fingerprint.h"

namespace hearth {
namespace {

// The id that the tokenizer puts before any text, if that is BOS.
Result<std::optional<TokenId>> leading_bos(const Tokenizer& tokenizer) {
  HEARTH_TRY_ASSIGN(const std::vector<TokenId> empty, tokenizer.encode(""));
  if (!empty.empty() && tokenizer.bos_id() && empty.front() == *tokenizer.bos_id())
    return std::optional<TokenId>(empty.front());
  return std::optional<TokenId>();
}

std::string_view trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

std::optional<int64_t> parse_number(std::string_view text) {
  text = trim(text);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

}  // namespace

std::vector<std::string_view> split_documents(std::string_view text) {
  std::vector<std::string_view> documents;
  while (true) {
    const size_t at = text.find(kDocumentSeparator);
    const std::string_view document = text.substr(0, at);
    if (!document.empty()) documents.push_back(document);
    if (at == std::string_view::npos) return documents;
    text.remove_prefix(at + kDocumentSeparator.size());
  }
}

Result<std::vector<TokenId>> encode_documents(const Tokenizer& tokenizer, std::string_view text) {
  HEARTH_TRY_ASSIGN(const std::optional<TokenId> bos, leading_bos(tokenizer));
  const bool separated = text.find(kDocumentSeparator) != std::string_view::npos;
  std::vector<TokenId> ids;
  const std::vector<std::string_view> documents = split_documents(text);
  for (size_t i = 0; i < documents.size(); ++i) {
    auto encoded = tokenizer.encode(documents[i], {.add_special_tokens = false});
    if (!encoded && documents.size() > 1) return std::move(encoded).error().with_context(fmt::format("document {}", i));
    HEARTH_TRY_ASSIGN(const std::vector<TokenId> document, std::move(encoded));
    if (bos) ids.push_back(*bos);
    ids.insert(ids.end(), document.begin(), document.end());
    if (separated && tokenizer.eos_id()) ids.push_back(*tokenizer.eos_id());
  }
  return ids;
}

Result<int64_t> count_windows(int64_t ids, int64_t ctx) {
  if (ctx < 1) return invalid_argument("window of {} tokens; wanted at least 1", ctx);
  const int64_t windows = ids > 0 ? (ids - 1) / ctx : 0;
  if (windows == 0)
    return invalid_argument("the text has {} tokens; one window needs {}: {} that are fed and the one after them", ids,
                            ctx + 1, ctx);
  return windows;
}

Result<std::vector<int64_t>> parse_windows(std::string_view list, int64_t count) {
  std::vector<int64_t> windows;
  list = trim(list);
  if (list.empty()) {
    for (int64_t w = 0; w < count; ++w) windows.push_back(w);
    return windows;
  }
  while (true) {
    const size_t comma = list.find(',');
    const std::string_view part = trim(list.substr(0, comma));
    const size_t dash = part.find('-');
    const std::optional<int64_t> first = parse_number(part.substr(0, dash));
    const std::optional<int64_t> last = dash == std::string_view::npos ? first : parse_number(part.substr(dash + 1));
    if (!first || !last || *first > *last)
      return invalid_argument("windows: '{}' is neither a number nor a range such as 0-127", part);
    if (*last >= count)
      return invalid_argument("windows: '{}' is beyond the last window, {} of {}", part, count - 1, count);
    for (int64_t w = *first; w <= *last; ++w) windows.push_back(w);
    if (comma == std::string_view::npos) break;
    list.remove_prefix(comma + 1);
  }
  std::sort(windows.begin(), windows.end());
  const auto twice = std::adjacent_find(windows.begin(), windows.end());
  if (twice != windows.end()) return invalid_argument("windows: {} is listed twice", *twice);
  return windows;
}

Result<std::string> read_text_file(const std::filesystem::path& path) {
  std::error_code code;
  if (std::filesystem::is_directory(path, code))
    return invalid_argument("{} is a folder; wanted a file", path.string());
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (file == nullptr) {
    if (errno == ENOENT) return not_found("{}: no such file", path.string());
    return unavailable("cannot open {}: {}", path.string(), std::strerror(errno));
  }
  std::string text;
  char buffer[1 << 16];
  size_t got = 0;
  while ((got = std::fread(buffer, 1, sizeof buffer, file.get())) > 0) text.append(buffer, got);
  if (std::ferror(file.get())) return unavailable("cannot read {}: {}", path.string(), std::strerror(errno));
  return text;
}

std::string ids_fingerprint(std::span<const int32_t> ids) {
  Fingerprint print;
  print.add(std::as_bytes(ids));
  return print.text();
}

}  // namespace hearth
