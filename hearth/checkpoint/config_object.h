// SPDX-License-Identifier: Apache-2.0
// ConfigObject: a JSON object of a configuration with typed access, and patterns of module names. A member that is
// absent or null takes the default; one of another type is Corrupt, named with its whole path. One thread.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"

namespace hearth {

class ConfigObject {
 public:
  // REQUIRES: `value` outlives this. Corrupt where it is no object.
  static Result<ConfigObject> make(const nlohmann::ordered_json& value, std::string path);

  const std::string& path() const { return path_; }
  const nlohmann::ordered_json& json() const { return *value_; }
  // The member; null where it is absent or null.
  const nlohmann::ordered_json* find(std::string_view key) const;

  Result<int64_t> integer(std::string_view key, std::optional<int64_t> absent = std::nullopt) const;
  Result<bool> boolean(std::string_view key, std::optional<bool> absent = std::nullopt) const;
  Result<std::string> string(std::string_view key, std::optional<std::string> absent = std::nullopt) const;
  // Empty where absent.
  Result<std::vector<std::string>> strings(std::string_view key) const;
  Result<std::vector<int64_t>> integers(std::string_view key) const;
  Result<ConfigObject> object(std::string_view key) const;
  // Unsupported where a member is none of `keys`.
  Status only(std::initializer_list<std::string_view> keys) const;

 private:
  ConfigObject(const nlohmann::ordered_json& value, std::string path) : value_(&value), path_(std::move(path)) {}
  const nlohmann::ordered_json* value_;
  std::string path_;
};

// `value` as text for a message, at most 120 bytes of it.
std::string shown(const nlohmann::ordered_json& value);

// A regular expression that must match from a name's first character on and may end before its last, as Python's
// re.match. Time is polynomial in the name's length.
class NamePattern {
 public:
  // Unsupported for what this engine's grammar lacks, or a pattern above 1,000 bytes.
  static Result<NamePattern> make(std::string_view pattern);
  bool matches(std::string_view name) const;

 private:
  explicit NamePattern(std::regex regex) : regex_(std::move(regex)) {}
  std::regex regex_;
};

}  // namespace hearth
