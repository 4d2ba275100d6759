// SPDX-License-Identifier: Apache-2.0
// How the table of settings is written: a row for each setting, with the field that it sets. Main thread only.
#pragma once

#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "hearth/cli/serve_settings.h"

namespace hearth {

inline constexpr int64_t kDayMs = 86'400'000;
inline constexpr int64_t kKi = int64_t{1} << 10, kMi = int64_t{1} << 20, kGi = int64_t{1} << 30, kTi = int64_t{1} << 40;

// A field of ServeSettings, for reading and writing: one member after the other.
template <auto... kMembers>
struct Member {
  auto& operator()(auto& settings) const { return (settings.*....*kMembers); }
};
template <auto kMember>
using Own = Member<kMember>;
template <auto kMember>
using OfServer = Member<&ServeSettings::options, kMember>;
template <auto kMember>
using OfEngine = Member<&ServeSettings::options, &ServeOptions::engine, kMember>;
template <auto kMember>
using OfHttp = Member<&ServeSettings::options, &ServeOptions::http, kMember>;
template <auto kMember>
using OfApi = Member<&ServeSettings::options, &ServeOptions::api, kMember>;
template <auto kMember>
using OfGrammar = Member<&ServeSettings::options, &ServeOptions::api, &ApiLimits::grammar, kMember>;

class SettingTable {
 public:
  // `field` gives a reference to a number, a switch or an optional number of ServeSettings.
  template <class Field>
  void number(ServeSetting row, Field field) {
    row.set_number = [field](ServeSettings& s, std::optional<int64_t> value) {
      auto& target = field(s);
      using T = std::remove_reference_t<decltype(target)>;
      if constexpr (std::is_same_v<T, std::optional<int64_t>>) {
        target = value;
      } else {
        target = static_cast<T>(value.value_or(0));
      }
    };
    row.get_number = [field](const ServeSettings& s) -> std::optional<int64_t> { return field(s); };
    rows_.push_back(std::move(row));
  }
  template <class Field>
  void text(ServeSetting row, Field field) {
    row.set_texts = [field](ServeSettings& s, std::vector<std::string> given) { field(s) = given.back(); };
    row.get_texts = [field](const ServeSettings& s) { return std::vector<std::string>{field(s)}; };
    rows_.push_back(std::move(row));
  }
  template <class Field>
  void texts(ServeSetting row, Field field) {
    row.set_texts = [field](ServeSettings& s, std::vector<std::string> given) { field(s) = std::move(given); };
    row.get_texts = [field](const ServeSettings& s) { return field(s); };
    rows_.push_back(std::move(row));
  }
  void models(ServeSetting row) {
    row.get_texts = [](const ServeSettings& s) {
      std::vector<std::string> texts;
      for (const ModelArgument& model : s.models)
        texts.push_back(model.names.empty() ? model.path
                                            : fmt::format("{}={}", fmt::join(model.names, ","), model.path));
      return texts;
    };
    rows_.push_back(std::move(row));
  }
  std::vector<ServeSetting> take() { return std::move(rows_); }

 private:
  std::vector<ServeSetting> rows_;
};

// Rows by section.
void add_http_rows(SettingTable& table);  // serve_settings_limits.cpp, as the next
void add_limit_rows(SettingTable& table);

}  // namespace hearth
