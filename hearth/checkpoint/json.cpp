// SPDX-License-Identifier: Apache-2.0
#include "hearth/checkpoint/json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "hearth/checkpoint/file.h"
#include "hearth/checkpoint/quote.h"

namespace hearth {
namespace {

// Where the nesting first exceeds `limit`. Knows of JSON only strings and brackets, which is enough up to
// the first syntax error, where the parser stops anyway.
std::optional<size_t> too_deep_at(std::string_view text, int limit) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > limit) return i;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return std::nullopt;
}

// "line 3, column 14" of the byte at `offset`, both from 1.
std::string place_of(std::string_view text, size_t offset) {
  const std::string_view before = text.substr(0, std::min(offset, text.size()));
  const auto line = std::count(before.begin(), before.end(), '\n') + 1;
  const size_t newline = before.rfind('\n');
  const size_t column = before.size() - (newline == std::string_view::npos ? 0 : newline + 1) + 1;
  return fmt::format("line {}, column {}", line, column);
}

// The library's message without its id and without the place, which we state ourselves. It quotes the
// token that it stopped at, which may be as long as the file: the middle is left out then.
std::string reason_of(std::string_view what) {
  constexpr size_t kHead = 200, kTail = 100;
  for (const std::string_view mark : {std::string_view("] "), std::string_view(": ")}) {
    if (const size_t at = what.find(mark); at != std::string_view::npos) what.remove_prefix(at + mark.size());
  }
  if (what.size() <= kHead + kTail) return std::string(what);
  return fmt::format("{} ... {}", what.substr(0, kHead), what.substr(what.size() - kTail));
}

// Accepts every event and remembers the first error: checks syntax without building values.
class SyntaxCheck : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t& text) override {
    if (big_integer.empty() && text.find_first_of(".eE") == text.npos) big_integer = text, big_integer_key = key_;
    return true;
  }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(size_t) override { return ++depth_ > 0; }
  bool key(string_t& name) override {
    if (depth_ == 1) key_ = name;
    return true;
  }
  bool end_object() override { return --depth_ >= 0; }
  bool start_array(size_t) override { return true; }
  bool end_array() override { return true; }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception& error) override {
    offset = position == 0 ? 0 : position - 1;
    reason = reason_of(error.what());
    return false;
  }
  size_t offset = 0;
  std::string reason;
  // The first whole number that 64 bits do not hold, and the outermost key that it is under.
  std::string big_integer, big_integer_key;

 private:
  int depth_ = 0;
  std::string key_;
};

}  // namespace

std::optional<std::string> json_syntax_error(std::string_view text) {
  if (const auto deep = too_deep_at(text, kMaxJsonDepth)) {
    return fmt::format("{}: nests deeper than {}", place_of(text, *deep), kMaxJsonDepth);
  }
  SyntaxCheck check;
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &check)) {
    return fmt::format("{}: {}", place_of(text, check.offset), check.reason);
  }
  if (check.big_integer.empty()) return std::nullopt;
  return fmt::format("{}: the number {}; wanted at most 64 bits", quote_name(check.big_integer_key),
                     quote_name(check.big_integer));
}

Result<nlohmann::json> parse_json(std::string_view text) {
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  if (const auto deep = too_deep_at(text, kMaxJsonDepth)) {
    return corrupt("{}: JSON nests deeper than {}", place_of(text, *deep), kMaxJsonDepth);
  }
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::parse_error& error) {
    return corrupt("{}: not JSON: {}", place_of(text, error.byte == 0 ? 0 : error.byte - 1), reason_of(error.what()));
  } catch (const nlohmann::json::exception& error) {
    return corrupt("not JSON: {}", reason_of(error.what()));  // a number beyond the range of double
  } catch (const std::bad_alloc&) {
    return resource_exhausted("no memory for the {} bytes of JSON", text.size());
  }
}

Result<nlohmann::json> read_json_file(const std::filesystem::path& path) {
  HEARTH_TRY_ASSIGN(const std::string text, read_text_file(path, kMaxJsonFileBytes));
  return parse_json(text).with_context(path.string());
}

Result<nlohmann::json> read_json_object(const std::filesystem::path& path) {
  HEARTH_TRY_ASSIGN(nlohmann::json value, read_json_file(path));
  if (!value.is_object()) return corrupt("{} holds {}; wanted an object", path.string(), value.type_name());
  return value;
}

}  // namespace hearth
