// SPDX-License-Identifier: Apache-2.0
// The layers of `hearth serve`'s settings: the file (TOML), the environment, the flags; and what they come to.
#include <algorithm>

#include "hearth/base/log.h"
#include "hearth/checkpoint/file.h"
#include "hearth/checkpoint/quote.h"
#include "hearth/cli/help.h"
#include "hearth/cli/model_options.h"
#include "hearth/cli/serve_settings.h"
#include "hearth/cli/session.h"

#define TOML_EXCEPTIONS 0
#include <toml++/toml.h>

namespace hearth {
namespace {

constexpr int64_t kMaxFileBytes = 1 << 20;

int64_t line_of(const toml::node& node) { return static_cast<int64_t>(node.source().begin.line); }

class ConfigReader {
 public:
  explicit ConfigReader(std::string file) : file_(std::move(file)) {}

  Result<std::vector<ConfigEntry>> read(const toml::table& root) {
    for (const auto& [key, node] : root) {
      const std::string name(key.str());
      if (name == "model" && is_table_array(node)) {
        HEARTH_TRY(read_models(*node.as_array()));
      } else if (node.is_table() && is_section(name)) {
        for (const auto& [inner, value] : *node.as_table())
          HEARTH_TRY(read_value(name, std::string(inner.str()), value));
      } else {
        HEARTH_TRY(read_value("", name, node));
      }
    }
    if (!model_options_.given.empty()) {
      const auto same = std::ranges::find(entries_, model_options_.setting, &ConfigEntry::setting);
      if (same == entries_.end()) {
        entries_.push_back(std::move(model_options_));
      } else {
        same->given.insert(same->given.end(), model_options_.given.begin(), model_options_.given.end());
      }
    }
    return std::move(entries_);
  }

 private:
  static bool is_table_array(const toml::node& node) {
    const toml::array* const list = node.as_array();
    return list != nullptr && !list->empty() && list->get(0)->is_table();
  }
  static bool is_section(const std::string& name) {
    return std::ranges::any_of(serve_settings(), [&](const ServeSetting& s) { return s.section == name; });
  }
  std::string place(const toml::node& node) const { return fmt::format("{}:{}", file_, line_of(node)); }

  Error unknown_key(const std::string& section, const std::string& key, const toml::node& node) const {
    std::vector<std::string> known;
    for (const ServeSetting& s : serve_settings())
      if (s.section == section) known.push_back(s.key);
    if (section.empty())
      for (const ServeSetting& s : serve_settings())
        if (!s.section.empty()) known.push_back(s.section);
    std::string hint;
    if (const std::string near = nearest(key, known); !near.empty()) hint = fmt::format("; did you mean {}?", near);
    // The key of a section at top level, or the other way.
    for (const ServeSetting& s : serve_settings())
      if (hint.empty() && s.key == key)
        hint = s.section.empty() ? "; it belongs to the top level" : fmt::format("; it belongs to [{}]", s.section);
    const std::string where = section.empty() ? "" : fmt::format(" of [{}]", section);
    return invalid_argument("{}: unknown key {}{}{}", place(node), quote_name(key), where, hint);
  }

  Status read_value(const std::string& section, const std::string& key, const toml::node& node) {
    const std::vector<ServeSetting>& all = serve_settings();
    const auto found =
        std::ranges::find_if(all, [&](const ServeSetting& s) { return s.section == section && s.key == key; });
    if (found == all.end()) return unknown_key(section, key, node);
    ConfigEntry entry{.setting = static_cast<size_t>(found - all.begin()), .given = {}, .line = line_of(node)};
    if (const toml::array* const list = node.as_array(); list != nullptr && found->is_list()) {
      for (const toml::node& item : *list) {
        HEARTH_TRY_ASSIGN(std::string text, text_of(*found, item));
        entry.given.push_back(std::move(text));
      }
    } else {
      HEARTH_TRY_ASSIGN(std::string text, text_of(*found, node));
      entry.given.push_back(std::move(text));
    }
    return add(std::move(entry), node);
  }

  // One value as the text that a flag would have.
  Result<std::string> text_of(const ServeSetting& setting, const toml::node& node) const {
    const char* wanted = "a string";
    if (setting.kind == SettingKind::kSwitch) {
      if (const auto value = node.value_exact<bool>()) return std::string(*value ? "true" : "false");
      wanted = "true or false";
    } else if (setting.is_number()) {
      if (const auto value = node.value_exact<int64_t>()) return fmt::format("{}", *value);
      if (const auto value = node.value_exact<double>(); value && setting.kind != SettingKind::kBytes)
        return fmt::format("{}", *value);
      if (const auto value = node.value_exact<std::string>(); value && setting.kind == SettingKind::kBytes)
        return *value;
      wanted = setting.kind == SettingKind::kBytes ? "a number of bytes, or a string such as \"64Mi\"" : "a number";
    } else {
      if (auto value = node.value_exact<std::string>()) return std::move(*value);
      if (setting.is_list()) wanted = "a string or a list of them";
    }
    return invalid_argument("{}: {} is {}; wanted {}", place(node), setting.key, type_name(node), wanted);
  }
  static std::string_view type_name(const toml::node& node) {
    switch (node.type()) {
      case toml::node_type::table: return "a table";
      case toml::node_type::array: return "a list";
      case toml::node_type::string: return "a string";
      case toml::node_type::integer: return "a whole number";
      case toml::node_type::floating_point: return "a number";
      case toml::node_type::boolean: return "true or false";
      default: return "a date";
    }
  }

  // [[model]] tables: path, name or names, and the model's own options.
  Status read_models(const toml::array& tables) {
    const std::vector<ServeSetting>& all = serve_settings();
    const auto setting = std::ranges::find(all, SettingKind::kModels, &ServeSetting::kind);
    ConfigEntry entry{.setting = static_cast<size_t>(setting - all.begin()), .given = {}, .line = line_of(tables)};
    for (const toml::node& node : tables) {
      const toml::table* const table = node.as_table();
      if (table == nullptr) return invalid_argument("{}: wanted a [[model]] table", place(node));
      std::vector<std::string> names;
      std::string path, options;
      for (const auto& [key, value] : *table) {
        const std::string name(key.str());
        const auto text = value.value_exact<std::string>();
        const toml::array* const list = value.as_array();
        if (name == "path" && text) {
          path = *text;
        } else if ((name == "name" || name == "names") && text) {
          names.push_back(*text);
        } else if (name == "names" && list != nullptr) {
          for (const toml::node& item : *list) {
            const auto one = item.value_exact<std::string>();
            if (!one) return invalid_argument("{}: names is not a list of strings", place(value));
            names.push_back(*one);
          }
        } else if (name == "path" || name == "name" || name == "names") {
          return invalid_argument("{}: {} is {}; wanted a string", place(value), name, type_name(value));
        } else if (std::ranges::find(model_option_keys(), name) != model_option_keys().end()) {
          HEARTH_TRY_ASSIGN(const std::string option, option_text(name, value));
          options += (options.empty() ? "" : ", ") + option;
        } else {
          return invalid_argument("{}: unknown key {} of [[model]]; wanted path, name, names or one of {}",
                                  place(value), quote_name(name), fmt::join(model_option_keys(), ", "));
        }
      }
      if (path.empty()) return invalid_argument("{}: [[model]] without a path", place(node));
      for (const std::string& name : names)
        if (name.empty() || name.find_first_of(",=") != std::string::npos)
          return invalid_argument("{}: the name {} is empty or has ',' or '='", place(node), quote_name(name));
      if (names.empty() && path.find('=') != std::string::npos)
        return invalid_argument("{}: a path with '=' needs a name beside it", place(node));
      if (!options.empty()) HEARTH_TRY(add_model_options(names.empty() ? path : names.front(), options, node));
      entry.given.push_back(names.empty() ? path : fmt::format("{}={}", fmt::join(names, ","), path));
    }
    return add(std::move(entry), tables);
  }

  Result<std::string> option_text(const std::string& key, const toml::node& node) const {
    if (const auto value = node.value_exact<int64_t>()) return fmt::format("{}={}", key, *value);
    if (const auto value = node.value_exact<double>()) return fmt::format("{}={}", key, *value);
    if (const auto value = node.value_exact<std::string>()) return fmt::format("{}={}", key, *value);
    return invalid_argument("{}: {} is {}; wanted a number, or bytes such as \"4Gi\"", place(node), key,
                            type_name(node));
  }
  // Joined to what the key model-options says, if it is there.
  Status add_model_options(const std::string& model, const std::string& options, const toml::node& node) {
    const std::string text = fmt::format("{}: {}", model, options);
    auto parsed = parse_model_options(text);
    if (!parsed) return std::move(parsed).error().with_context(place(node));
    const std::vector<ServeSetting>& all = serve_settings();
    const auto setting = std::ranges::find(all, "model-options", &ServeSetting::key);
    if (model_options_.given.empty())
      model_options_ = {.setting = static_cast<size_t>(setting - all.begin()), .given = {}, .line = line_of(node)};
    model_options_.given.push_back(text);
    return {};
  }

  // Every value is tried here, where its line is known.
  Status add(ConfigEntry entry, const toml::node& node) {
    const ServeSetting& setting = serve_settings()[entry.setting];
    ServeSettings scratch;
    auto status = apply_setting(setting, entry.given, scratch);
    if (!status) return std::move(status).error().with_context(fmt::format("{}: {}", place(node), setting.key));
    entries_.push_back(std::move(entry));
    return {};
  }

  const std::string file_;
  std::vector<ConfigEntry> entries_;
  ConfigEntry model_options_;  // of [[model]] tables
};

// The parts of a variable that holds a list.
std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  while (true) {
    const size_t end = text.find(separator);
    if (const std::string_view part = text.substr(0, end); !part.empty()) parts.emplace_back(part);
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

bool is_loopback(std::string_view address) {
  return address == "localhost" || address == "::1" || address.starts_with("127.");
}

Status read_key_file(const char* setting_name, const std::string& path, std::vector<std::string>& keys) {
  HEARTH_TRY_ASSIGN(const std::string text, read_text_file(path, kMaxFileBytes).with_context(setting_name));
  std::vector<std::string> found = split(text, '\n');
  for (std::string& key : found)
    while (!key.empty() && (key.back() == '\r' || key.back() == ' ')) key.pop_back();
  std::erase_if(found, [](const std::string& key) { return key.empty(); });
  if (found.empty()) return invalid_argument("{}: {} holds no key", setting_name, path);
  for (std::string& key : found) keys.push_back(std::move(key));
  const auto setting = std::ranges::find(serve_settings(), "api-key", &ServeSetting::key);
  ServeSettings scratch;
  auto status = apply_setting(*setting, keys, scratch);
  if (!status) return std::move(status).error().with_context(fmt::format("{}: {}", setting_name, path));
  return {};
}

// To the models that they name. REQUIRES: `models` and `arguments` are the same, in the same order.
Status apply_model_options(const std::vector<std::string>& texts, const std::vector<ModelArgument>& arguments,
                           std::vector<ModelSource>& models) {
  for (const std::string& text : texts) {
    HEARTH_TRY_ASSIGN(NamedTerms named, parse_model_options(text).with_context("model-options"));
    bool found = false;
    for (size_t i = 0; i < models.size(); ++i) {
      const auto& names = models[i].names;
      if (arguments[i].path != named.model && std::ranges::find(names, named.model) == names.end()) continue;
      models[i].terms = named.terms;
      models[i].limits = named.limits;
      found = true;
    }
    if (found) continue;
    std::string known;
    for (const ModelSource& model : models) known += (known.empty() ? "" : ", ") + model.names.front();
    return invalid_argument("model-options: there is no model {}; there is {}", quote_name(named.model), known);
  }
  return {};
}

}  // namespace

Result<std::vector<ConfigEntry>> read_config_file(const std::filesystem::path& path) {
  HEARTH_TRY_ASSIGN(const std::string text, read_text_file(path, kMaxFileBytes));
  const toml::parse_result parsed = toml::parse(text, path.string());
  if (!parsed) {
    const toml::parse_error& error = parsed.error();
    return corrupt("{}:{}:{}: {}", path.string(), error.source().begin.line, error.source().begin.column,
                   error.description());
  }
  return ConfigReader(path.string()).read(parsed.table());
}

Result<EffectiveSettings> effective_settings(const ServeFlags& flags, const Environment& environment) {
  const std::vector<ServeSetting>& all = serve_settings();
  EffectiveSettings out;
  out.origins.assign(all.size(), "default");
  const auto apply = [&](size_t i, const std::vector<std::string>& given, std::string origin) -> Status {
    auto status = apply_setting(all[i], given, out.values);
    if (!status) return std::move(status).error().with_context(origin);
    out.origins[i] = std::move(origin);
    return {};
  };

  const std::string file = flags.config.empty() ? environment.get("HEARTH_CONFIG").value_or("") : flags.config;
  if (!file.empty()) {
    HEARTH_TRY_ASSIGN(const std::vector<ConfigEntry> entries,
                      read_config_file(file).with_context(flags.config.empty() ? "HEARTH_CONFIG" : "--config"));
    for (const ConfigEntry& entry : entries)
      HEARTH_TRY(apply(entry.setting, entry.given, fmt::format("{}:{}", file, entry.line)));
  }
  for (size_t i = 0; i < all.size(); ++i) {
    const auto value = environment.get(all[i].variable().c_str());
    if (!value || value->empty()) continue;
    HEARTH_TRY(apply(i, all[i].is_list() ? split(*value, all[i].separator) : std::vector<std::string>{*value},
                     all[i].variable()));
  }
  for (size_t i = 0; i < flags.given.size(); ++i) {
    std::vector<std::string> given = flags.given[i];
    const bool positional = all[i].kind == SettingKind::kModels && !flags.models.empty();
    if (positional) given.insert(given.begin(), flags.models.begin(), flags.models.end());
    if (!given.empty()) HEARTH_TRY(apply(i, given, positional ? "MODEL" : all[i].flag()));
  }
  return out;
}

std::vector<std::string> unknown_variables(std::span<const char* const> variables) {
  // Of other commands, of the build and of the tests.
  constexpr std::string_view kOthers[] = {"HEARTH_CONFIG", "HEARTH_DATA",       "HEARTH_JOBS",
                                          "HEARTH_BINARY", "HEARTH_CMAKE_ARGS", "HEARTH_COMMIT"};
  std::vector<std::string> unknown;
  for (const std::string_view variable : variables) {
    const std::string_view name = variable.substr(0, variable.find('='));
    if (!name.starts_with("HEARTH_") || std::ranges::find(kOthers, name) != std::end(kOthers)) continue;
    const auto is_it = [&](const ServeSetting& setting) { return setting.variable() == name; };
    if (std::ranges::none_of(serve_settings(), is_it)) unknown.emplace_back(name);
  }
  return unknown;
}

Result<ServeOptions> make_serve_options(ServeSettings s) {
  ServeOptions& options = s.options;
  if (!s.admin_key_file.empty()) HEARTH_TRY(read_key_file("admin-key-file", s.admin_key_file, options.admin_keys));
  if (s.models.empty() && options.admin_keys.empty())
    return invalid_argument(
        "no model; give `hearth serve MODEL`, --model NAME=PATH or [[model]] in a configuration, or --admin-key-file "
        "to "
        "load models later");
  if (!s.served_model_name.empty() && s.models.size() != 1)
    return invalid_argument("--served-model-name with {} models; wanted one: give --model NAME=PATH for each",
                            s.models.size());
  options.engine.slo = {.ttft_us = 1000 * s.ttft_slo_ms, .tpot_us = 1000 * s.tpot_slo_ms};
  for (const ModelArgument& model : s.models) {
    HEARTH_TRY_ASSIGN(FoundModel found, find_model(model.path, s.load_format == "dummy"));
    std::vector<std::string> names = s.served_model_name.empty() ? model.names : s.served_model_name;
    if (names.empty()) names.push_back(std::move(found.name));
    options.models.push_back({.names = std::move(names), .dir = std::move(found.dir)});
  }
  HEARTH_TRY(apply_model_options(s.model_options, s.models, options.models));
  if (!s.api_key_file.empty()) HEARTH_TRY(read_key_file("api-key-file", s.api_key_file, options.api_keys));
  options.load.activation = activation_of(s.dtype, s.device);
  options.engine.decode_graphs = !s.enforce_eager;
  options.engine.prefix_cache = !s.no_prefix_caching;
  if (s.kv_sharing == "static") options.engine.kv_parts = std::ssize(options.models);
  options.load.dummy_weights = s.load_format == "dummy";
  options.load.kv_format = kv_format_of(s.kv_cache_dtype);
  HEARTH_TRY_ASSIGN(options.ops, ops_of(s.device));
  if (options.api_keys.empty() && !is_loopback(options.address))
    spdlog::warn(
        "{} is reached from other machines and no API key is asked for: anyone can use the models; give "
        "--api-key-file, or --host 127.0.0.1",
        options.address);
  return std::move(options);
}

}  // namespace hearth
