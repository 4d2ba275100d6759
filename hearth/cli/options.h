// SPDX-License-Identifier: Apache-2.0
// Settings of the command line. A setting is one entry of a table in options.cpp: flag, unit, range and
// help; the field that it fills holds its default. Groups of them are shared by the commands. Flags are
// named as vLLM names them where they mean the same.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/kernels/sample/sample.h"

namespace hearth {

// What is known of a setting with a number of type T beside its default.
template <class T>
struct Setting {
  const char* flag;
  const char* value_name;  // in the help: --flag VALUE
  T min, max;
  const char* unit;  // "" for a plain number
  const char* help;
};

inline constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

// A number in [min, max], or InvalidArgument that names what was found and wanted.
template <class T>
Result<T> parse_number(std::string_view text, const Setting<T>& setting);

// Adds the setting to `app`. `field` holds the default, which the help states; an optional field has
// none, and `unset` says what that means.
template <class T>
CLI::Option* add_setting(CLI::App& app, const Setting<T>& setting, T& field);
template <class T>
CLI::Option* add_setting(CLI::App& app, const Setting<T>& setting, std::optional<T>& field, std::string_view unset);

// A text; the last one given counts.
CLI::Option* add_text(CLI::App& app, const char* flag, const char* value_name, const std::string& help,
                      std::string& field);
// Whether `text` is what `choice` stands for: the same, or for "cuda:N" and its like a number of up to four digits
// in place of N.
bool is_choice(std::string_view choice, std::string_view text);
// One of `choices` (is_choice()); others are an error that lists them.
CLI::Option* add_choice(CLI::App& app, const char* flag, std::span<const char* const> choices, const std::string& help,
                        std::string& field);
// A text that may be given several times, one each time.
CLI::Option* add_texts(CLI::App& app, const char* flag, const char* value_name, const std::string& help,
                       std::vector<std::string>& field);

// Which model, and how it is run.
struct ModelSettings {
  std::string model;
  std::string dtype = "auto";
  std::string kv_cache_dtype = "auto";
  std::string device = "cpu";
  std::string load_format = "auto";
  bool enforce_eager = false;
  int64_t threads = 0;
  bool quiet = false;
};
// `with_model`: the positional MODEL too.
void add_model_options(CLI::App& app, ModelSettings& settings);

// Tokens of context; for the commands that keep one.
void add_max_model_len(CLI::App& app, std::optional<int64_t>& field, std::string_view unset);

// How tokens are chosen and when the text ends. Empty: as the model's generation_config.json says.
struct SamplingSettings {
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k;
  std::optional<int64_t> max_tokens;
  std::optional<int64_t> seed;
  double presence_penalty = 0;
  double frequency_penalty = 0;
  int64_t min_tokens = 0;
  std::vector<std::string> stop;
  std::vector<std::string> stop_token_ids;
  std::vector<std::string> logit_bias;
  bool include_stop = false;
  bool ignore_eos = false;
  std::string generation_config = "auto";
};
void add_sampling_options(CLI::App& app, SamplingSettings& settings, std::string_view default_max_tokens);

// "ID=BIAS" -> LogitBias; "17" -> 17. InvalidArgument names the flag, what was found and wanted.
Result<LogitBias> parse_logit_bias(std::string_view text);
Result<int32_t> parse_token_id(std::string_view flag, std::string_view text);

}  // namespace hearth
