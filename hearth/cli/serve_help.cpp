// SPDX-License-Identifier: Apache-2.0
// What is shown of the settings of `hearth serve`: flags with help, the effective values, the page of the guide.
#include <algorithm>
#include <map>

#include "hearth/cli/serve_settings.h"

namespace hearth {
namespace {

using enum SettingKind;

std::string bytes_text(int64_t bytes) {
  constexpr const char* kUnits[] = {"", "Ki", "Mi", "Gi", "Ti"};
  size_t unit = 0;
  for (; bytes != 0 && bytes % 1024 == 0 && unit + 1 < std::size(kUnits); ++unit) bytes /= 1024;
  return fmt::format("{}{}", bytes, kUnits[unit]);
}

std::string number_text(const ServeSetting& setting, int64_t value) {
  if (setting.kind == kBytes) return bytes_text(value);
  if (setting.kind == kSeconds) return fmt::format("{:g}", static_cast<double>(value) * 1e-3);
  return fmt::format("{}", value);
}

// "1 to 65535 tokens"
std::string range_text(const ServeSetting& s) {
  if (s.kind == kChoice) return fmt::format("one of {}", fmt::join(s.choices, ", "));
  if (s.kind == kSwitch) return "true or false";
  if (!s.is_number()) return "";
  const std::string unit = s.kind == kBytes ? "bytes" : s.kind == kSeconds ? "seconds" : s.unit;
  return fmt::format("{} to {}{}{}", number_text(s, s.min), number_text(s, s.max), unit.empty() ? "" : " ", unit);
}

// "8000", or what stands for it.
std::string default_text(const ServeSetting& s) {
  static const ServeSettings defaults;
  if (s.kind == kModels) return "none";
  if (!s.unset.empty()) return s.unset;
  if (s.kind == kSwitch) return s.get_number(defaults) == 0 ? "false" : "true";
  if (s.is_number()) return number_text(s, s.get_number(defaults).value_or(0));
  return fmt::format("{}", fmt::join(s.get_texts(defaults), ", "));
}

std::string help_text(const ServeSetting& s) {
  const std::string range = range_text(s);
  return fmt::format("{} ({}{}default: {})", s.help, range, range.empty() ? "" : "; ", default_text(s));
}

const char* group_of(const ServeSetting& s) {
  static const std::map<std::string, const char*> groups = {{"", "Settings"}, {"http", "HTTP"}, {"limits", "Limits"}};
  return groups.at(s.section);
}

// A string of TOML, which is one of Markdown's code too.
std::string toml_string(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte == 0x7F) {
      out += fmt::format("\\u{:04x}", byte);
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string value_text(const ServeSetting& setting, const ServeSettings& values) {
  if (setting.kind == kSwitch) return setting.get_number(values) == 0 ? "false" : "true";
  if (setting.is_number()) {
    const int64_t value = *setting.get_number(values);
    return setting.kind == kBytes ? toml_string(number_text(setting, value)) : number_text(setting, value);
  }
  std::vector<std::string> texts = setting.get_texts(values);
  for (std::string& text : texts) text = toml_string(text);
  return setting.is_list() ? fmt::format("[{}]", fmt::join(texts, ", ")) : texts.front();
}

// A cell of a table of Markdown.
std::string cell(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '|') out += '\\';
    out += c;
  }
  return out;
}

}  // namespace

void add_serve_flags(CLI::App& app, ServeFlags& flags) {
  const std::vector<ServeSetting>& all = serve_settings();
  flags.given.resize(all.size());
  for (size_t i = 0; i < all.size(); ++i) {
    const ServeSetting& s = all[i];
    std::vector<std::string>& given = flags.given[i];
    if (s.kind == kSwitch) {
      app.add_flag_function(
             s.flag() + ",!--no-" + s.name(), [&given](int64_t count) { given = {count > 0 ? "true" : "false"}; },
             help_text(s))
          ->group(group_of(s));
      continue;
    }
    app.add_option(s.flag(), given, help_text(s))
        ->type_name(s.value_name)
        ->allow_extra_args(false)
        ->expected(1)
        ->multi_option_policy(s.is_list() ? CLI::MultiOptionPolicy::TakeAll : CLI::MultiOptionPolicy::TakeLast)
        ->group(group_of(s));
  }
}

std::string show_settings(const EffectiveSettings& settings) {
  std::string out, section;
  const std::vector<ServeSetting>& all = serve_settings();
  for (size_t i = 0; i < all.size(); ++i) {
    const ServeSetting& s = all[i];
    if (s.section != section) out += fmt::format("\n[{}]\n", section = s.section);
    const bool unset = s.is_number() ? !s.get_number(settings.values) : false;
    std::string line;
    if (s.secret) {
      const size_t count = s.get_texts(settings.values).size();
      line = fmt::format("# {}: {} given, not shown", s.key, count);
    } else if (unset) {
      line = fmt::format("# {}: {}", s.key, s.unset);
    } else {
      line = fmt::format("{} = {}", s.key, value_text(s, settings.values));
    }
    out += fmt::format("{:<44}  # {}\n", line, settings.origins[i]);
  }
  return out;
}

std::string settings_page() {
  std::string out =
      "# Settings of `hearth serve`\n"
      "\n"
      "Written by `hearth serve --print-settings-doc` from the table in `hearth/cli/serve_settings.cpp`; a test keeps\n"
      "the two equal.\n"
      "\n"
      "A setting is a flag, a variable of the environment and a key of a TOML file. A flag counts before a variable, "
      "a\n"
      "variable before the file, the file before the default; a list is replaced, never joined. The file is the one\n"
      "that `--config FILE` or `HEARTH_CONFIG` names: none is read unasked, so that a folder which someone else wrote\n"
      "cannot set up a server. `hearth serve --show-config` prints what is in force and where it comes from.\n"
      "\n"
      "Bytes take the suffixes K, M, G, T (powers of 1000) and Ki, Mi, Gi, Ti (powers of 1024). Times are seconds,\n"
      "with a point where wanted. A list in a variable is separated by commas, `HEARTH_MODEL` by semicolons. Paths "
      "are\n"
      "relative to the folder that the server is started in.\n"
      "\n"
      "```toml\n"
      "host = \"127.0.0.1\"\n"
      "port = 8000\n"
      "api-key-file = \"/etc/hearth/keys\"\n"
      "kv-cache-memory-bytes = \"4Gi\"\n"
      "\n"
      "[[model]]\n"
      "path = \"models/fable-13m\"\n"
      "names = [\"fable\", \"stories\"]\n"
      "ttft-slo = 0.5\n"
      "\n"
      "[limits]\n"
      "n = 4\n"
      "```\n";
  std::string section = "-";
  for (const ServeSetting& s : serve_settings()) {
    if (s.section != section) {
      section = s.section;
      out += fmt::format(
          "\n## {}\n\n| key | flag | variable | what it does | range | default |\n|---|---|---|---|---|---|\n",
          section.empty() ? "Top level" : fmt::format("[{}]", section));
    }
    const std::string flag = s.kind == kSwitch ? s.flag() : fmt::format("{} {}", s.flag(), s.value_name);
    out += fmt::format("| `{}` | `{}` | `{}` | {} | {} | {} |\n", s.key, flag, s.variable(), cell(s.help),
                       cell(range_text(s)), cell(default_text(s)));
  }
  return out;
}

}  // namespace hearth
