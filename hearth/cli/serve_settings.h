// SPDX-License-Identifier: Apache-2.0
// The settings of `hearth serve`: one table from which come the flags, the HEARTH_* variables, the keys of
// hearth.toml, the help and docs/guides/settings.md. A flag counts before a variable, a variable before the
// file, the file before the default; lists are replaced, not joined. Main thread only.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/checkpoint/hub.h"
#include "hearth/serve/server.h"

namespace hearth {

// A model as the operator gave it: "name,alias=path" or "path".
struct ModelArgument {
  std::vector<std::string> names;  // empty: the folder's own
  std::string path;                // a folder, or org/name in the Hugging Face cache
};

// The values of all settings. What ServeOptions holds in another form is here as it was given.
struct ServeSettings {
  ServeOptions options;
  std::vector<ModelArgument> models;
  std::vector<std::string> served_model_name;
  std::vector<std::string> model_options;  // as parse_model_options() takes them
  std::string dtype = "auto";
  std::string kv_cache_dtype = "auto";
  std::string device = "cpu";
  std::string load_format = "auto";
  bool enforce_eager = false;
  bool no_prefix_caching = false;
  std::string kv_sharing = "shared";
  std::string api_key_file, admin_key_file;
  std::string log_level = "info";
  std::string pid_file;
  int64_t ttft_slo_ms = 0, tpot_slo_ms = 0;
  int64_t drain_timeout_ms = 30'000;
};

enum class SettingKind : uint8_t {
  kInteger,
  kBytes,    // 4096, 16Ki, 4G
  kSeconds,  // 0.5; kept in milliseconds
  kSwitch,   // true or false
  kText,
  kChoice,
  kTexts,   // a list; in a variable separated by `separator`
  kModels,  // a list of ModelArgument
};

struct ServeSetting {
  std::string section;  // of hearth.toml; empty: top level
  std::string key;
  SettingKind kind = SettingKind::kText;
  std::string value_name;
  int64_t min = 0, max = 0;  // of numbers; kSeconds in milliseconds
  std::string unit;
  std::vector<std::string> choices;
  std::string unset;  // what the default stands for, where its value does not say it
  std::string help;
  char separator = ',';
  bool secret = false;

  // The field, in the form of the kind: numbers and switches, or texts.
  std::function<void(ServeSettings&, std::optional<int64_t>)> set_number;
  std::function<std::optional<int64_t>(const ServeSettings&)> get_number;
  std::function<void(ServeSettings&, std::vector<std::string>)> set_texts;
  std::function<std::vector<std::string>(const ServeSettings&)> get_texts;

  bool is_list() const { return kind == SettingKind::kTexts || kind == SettingKind::kModels; }
  bool is_number() const {
    return kind == SettingKind::kInteger || kind == SettingKind::kBytes || kind == SettingKind::kSeconds;
  }
  std::string name() const { return section.empty() ? key : section + "-" + key; }
  std::string flag() const { return "--" + name(); }
  std::string variable() const;  // HEARTH_HTTP_BODY_BYTES
};

const std::vector<ServeSetting>& serve_settings();

// Sets the field from what was given. InvalidArgument says what was found and wanted, without naming the setting.
Status apply_setting(const ServeSetting& setting, const std::vector<std::string>& given, ServeSettings& settings);

// "name,alias=path" -> ModelArgument.
Result<ModelArgument> parse_model_argument(std::string_view text);

// What was given on the command line; `given` by the index of serve_settings().
struct ServeFlags {
  std::vector<std::vector<std::string>> given;
  std::vector<std::string> models;  // positional
  std::string config;
};
void add_serve_flags(CLI::App& app, ServeFlags& flags);

// A value of the configuration file.
struct ConfigEntry {
  size_t setting = 0;  // index of serve_settings()
  std::vector<std::string> given;
  int64_t line = 0;
};
// Errors name the file and the line: Corrupt for what is not TOML, InvalidArgument for unknown keys and for
// values of another type than the setting's.
Result<std::vector<ConfigEntry>> read_config_file(const std::filesystem::path& path);

struct EffectiveSettings {
  ServeSettings values;
  std::vector<std::string> origins;  // by index: "default", "--port", "HEARTH_PORT", "hearth.toml:3"
};
// All four layers. The file is --config's, else HEARTH_CONFIG's; none is read unasked.
Result<EffectiveSettings> effective_settings(const ServeFlags& flags, const Environment& environment);

// Those of `variables` ("NAME=value") that look like settings of the server but are none: a mistyped HEARTH_API_KEY
// must not pass unseen.
std::vector<std::string> unknown_variables(std::span<const char* const> variables);

// As a hearth.toml with the origins as comments; keys are not shown.
std::string show_settings(const EffectiveSettings& settings);
// docs/guides/settings.md.
std::string settings_page();

// What the server is created with: models found on disk, key file read. `settings.options` filled in.
Result<ServeOptions> make_serve_options(ServeSettings settings);

}  // namespace hearth
