// SPDX-License-Identifier: Apache-2.0
#include "hearth/checkpoint/config_object.h"

#include <algorithm>

#include "hearth/checkpoint/quote.h"

namespace hearth {
namespace {

Error wrong(const std::string& path, std::string_view key, const nlohmann::ordered_json& found,
            std::string_view wanted) {
  return corrupt("{}.{} is {}; wanted {}", path, key, shown(found), wanted);
}

Error absent_error(const std::string& path, std::string_view key) { return corrupt("{} has no '{}'", path, key); }

}  // namespace

std::string shown(const nlohmann::ordered_json& value) {
  constexpr size_t kShown = 120;
  std::string text = value.dump(-1, ' ', true, nlohmann::ordered_json::error_handler_t::replace);
  if (text.size() > kShown) text = text.substr(0, kShown) + "...";
  return escape_controls(text);
}

Result<ConfigObject> ConfigObject::make(const nlohmann::ordered_json& value, std::string path) {
  if (!value.is_object()) return corrupt("{} is {}; wanted an object", path, shown(value));
  return ConfigObject(value, std::move(path));
}

const nlohmann::ordered_json* ConfigObject::find(std::string_view key) const {
  const auto it = value_->find(std::string(key));
  return it == value_->end() || it->is_null() ? nullptr : &*it;
}

Result<int64_t> ConfigObject::integer(std::string_view key, std::optional<int64_t> absent) const {
  const auto* const value = find(key);
  if (value == nullptr && absent) return *absent;
  if (value == nullptr) return absent_error(path_, key);
  if (!value->is_number_integer() || (value->is_number_unsigned() && value->get<uint64_t>() > INT64_MAX))
    return wrong(path_, key, *value, "a whole number");
  return value->get<int64_t>();
}

Result<bool> ConfigObject::boolean(std::string_view key, std::optional<bool> absent) const {
  const auto* const value = find(key);
  if (value == nullptr && absent) return *absent;
  if (value == nullptr) return absent_error(path_, key);
  if (!value->is_boolean()) return wrong(path_, key, *value, "true or false");
  return value->get<bool>();
}

Result<std::string> ConfigObject::string(std::string_view key, std::optional<std::string> absent) const {
  const auto* const value = find(key);
  if (value == nullptr && absent) return *std::move(absent);
  if (value == nullptr) return absent_error(path_, key);
  if (!value->is_string()) return wrong(path_, key, *value, "a string");
  return value->get<std::string>();
}

Result<std::vector<std::string>> ConfigObject::strings(std::string_view key) const {
  const auto* const value = find(key);
  if (value == nullptr) return std::vector<std::string>();
  if (!value->is_array() || !std::ranges::all_of(*value, [](const auto& item) { return item.is_string(); }))
    return wrong(path_, key, *value, "a list of strings");
  return value->get<std::vector<std::string>>();
}

Result<std::vector<int64_t>> ConfigObject::integers(std::string_view key) const {
  const auto* const value = find(key);
  if (value == nullptr) return std::vector<int64_t>();
  if (!value->is_array() || !std::ranges::all_of(*value, [](const auto& item) { return item.is_number_integer(); }))
    return wrong(path_, key, *value, "a list of whole numbers");
  return value->get<std::vector<int64_t>>();
}

Result<ConfigObject> ConfigObject::object(std::string_view key) const {
  const auto* const value = find(key);
  if (value == nullptr) return absent_error(path_, key);
  return make(*value, fmt::format("{}.{}", path_, key));
}

Status ConfigObject::only(std::initializer_list<std::string_view> keys) const {
  for (const auto& [key, value] : value_->items()) {
    if (std::ranges::find(keys, std::string_view(key)) == keys.end())
      return unsupported("{} has {}, which this version does not know", path_, quote_name(key));
  }
  return {};
}

Result<NamePattern> NamePattern::make(std::string_view pattern) {
  constexpr size_t kLongest = 1000;
  if (pattern.size() > kLongest)
    return unsupported("a pattern of {} bytes; wanted at most {}", pattern.size(), kLongest);
  auto flags = std::regex::ECMAScript | std::regex::optimize;
#ifdef __GLIBCXX__
  flags |= std::regex_constants::__polynomial;  // no backtracking: a hostile pattern costs no more than another
#endif
  try {
    return NamePattern(std::regex(pattern.begin(), pattern.end(), flags));
  } catch (const std::exception& error) {
    return unsupported("pattern {}: {}", quote_name(pattern), error.what());
  }
}

bool NamePattern::matches(std::string_view name) const {
  try {
    return std::regex_search(name.begin(), name.end(), regex_, std::regex_constants::match_continuous);
  } catch (const std::exception&) {
    return false;  // a name too long for the engine
  }
}

}  // namespace hearth
