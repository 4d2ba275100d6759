// SPDX-License-Identifier: Apache-2.0
#include "hearth/cli/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>

namespace hearth {
namespace {

constexpr int64_t kMaxTokenId = std::numeric_limits<int32_t>::max();

// JSON and every number of a user's script hold integers of 53 bits.
constexpr int64_t kMaxSeed = (int64_t{1} << 53) - 1;

constexpr Setting<int64_t> kThreads{
    "--threads", "N", 0, 1024, "threads", "Threads that compute; 0 takes every CPU that the process may use."};
constexpr Setting<int64_t> kMaxModelLen{
    "--max-model-len", "N",      1,
    int64_t{1} << 31,  "tokens", "Longest context, prompt and output together. Memory for it is set aside."};
constexpr Setting<int64_t> kMaxTokens{"--max-tokens", "N", 1, int64_t{1} << 31, "tokens", "Most tokens to write."};
constexpr Setting<int64_t> kMinTokens{
    "--min-tokens", "N", 0, int64_t{1} << 31, "tokens", "No end of text or stop token before so many tokens."};
constexpr Setting<double> kTemperature{
    "--temperature", "T", 0, 1000, "", "Below 1 the likely tokens become likelier; 0 always takes the likeliest."};
constexpr Setting<int64_t> kTopK{"--top-k",   "K", -1,
                                 kMaxTokenId, "",  "Choose among the K likeliest tokens; 0 or -1 among all."};
constexpr Setting<double> kTopP{
    "--top-p", "P", 1e-6, 1, "", "Choose among the likeliest tokens whose probabilities reach P together."};
constexpr Setting<double> kMinP{"--min-p", "P", 0,
                                1,         "",  "Choose among tokens at least P times as likely as the likeliest."};
constexpr Setting<double> kRepetition{
    "--repetition-penalty", "R", 1e-3, 1e3, "", "Above 1: makes tokens of the prompt and the output less likely."};
constexpr Setting<double> kPresence{
    "--presence-penalty", "X", -2, 2, "", "Taken from the logit of every token that the output has."};
constexpr Setting<double> kFrequency{
    "--frequency-penalty", "X", -2, 2, "", "Taken from a token's logit for each time that the output has it."};
constexpr Setting<int64_t> kSeed{
    "--seed", "N", 0, kMaxSeed, "", "The same seed gives the same text, on any machine that computes the same logits."};
constexpr Setting<int64_t> kTokenId{"", "", 0, kMaxTokenId, "", ""};
constexpr Setting<double> kBias{"", "", -100, 100, "", ""};

std::string number_text(int64_t value) { return fmt::format("{}", value); }
std::string number_text(double value) { return fmt::format("{:g}", value); }

// "1 to 100 tokens", "at least 0" where there is no limit above
template <class T>
std::string range_text(const Setting<T>& s) {
  const std::string unit = *s.unit ? fmt::format(" {}", s.unit) : "";
  if (s.max == std::numeric_limits<T>::max()) return fmt::format("at least {}{}", number_text(s.min), unit);
  return fmt::format("{} to {}{}", number_text(s.min), number_text(s.max), unit);
}

// A validator of CLI11: empty where the text is a value.
template <class T>
std::function<std::string(const std::string&)> number_check(const Setting<T>& setting) {
  return [&setting](const std::string& text) {
    const auto parsed = parse_number(text, setting);
    return parsed ? std::string() : parsed.error().message;
  };
}

template <class T, class Field>
CLI::Option* add_number(CLI::App& app, const Setting<T>& setting, Field& field, std::string_view default_text) {
  const std::string help = fmt::format("{} ({}; default: {})", setting.help, range_text(setting), default_text);
  const auto store = [&field, &setting](const std::string& text) { field = *parse_number(text, setting); };
  return app.add_option_function<std::string>(setting.flag, store, help)
      ->type_name(setting.value_name)
      ->check(number_check(setting))
      ->take_last();
}

}  // namespace

template <class T>
Result<T> parse_number(std::string_view text, const Setting<T>& setting) {
  T value{};
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  const char* const kind = std::is_integral_v<T> ? "a whole number" : "a number";
  if (error == std::errc::result_out_of_range && stop == end)
    return invalid_argument("{} is out of range; wanted {}", text, range_text(setting));
  bool finite = true;
  if constexpr (!std::is_integral_v<T>) finite = std::isfinite(value);
  if (error != std::errc() || stop != end || !finite)
    return invalid_argument("'{}' is not {}; wanted {}", text, kind, range_text(setting));
  if (value < setting.min || value > setting.max)
    return invalid_argument("{} is out of range; wanted {}", text, range_text(setting));
  return value;
}
template Result<int64_t> parse_number(std::string_view, const Setting<int64_t>&);
template Result<double> parse_number(std::string_view, const Setting<double>&);

template <class T>
CLI::Option* add_setting(CLI::App& app, const Setting<T>& setting, T& field) {
  return add_number(app, setting, field, number_text(field));
}
template CLI::Option* add_setting(CLI::App&, const Setting<int64_t>&, int64_t&);
template CLI::Option* add_setting(CLI::App&, const Setting<double>&, double&);

template <class T>
CLI::Option* add_setting(CLI::App& app, const Setting<T>& setting, std::optional<T>& field, std::string_view unset) {
  return add_number(app, setting, field, unset);
}
template CLI::Option* add_setting(CLI::App&, const Setting<int64_t>&, std::optional<int64_t>&, std::string_view);
template CLI::Option* add_setting(CLI::App&, const Setting<double>&, std::optional<double>&, std::string_view);

CLI::Option* add_text(CLI::App& app, const char* flag, const char* value_name, const std::string& help,
                      std::string& field) {
  return app.add_option(flag, field, help)->type_name(value_name)->take_last();
}

bool is_choice(std::string_view choice, std::string_view text) {
  if (!choice.ends_with(":N")) return text == choice;
  const std::string_view prefix = choice.substr(0, choice.size() - 1);
  if (!text.starts_with(prefix) || text.size() == prefix.size() || text.size() > prefix.size() + 4) return false;
  return std::ranges::all_of(text.substr(prefix.size()), [](char c) { return c >= '0' && c <= '9'; });
}

CLI::Option* add_choice(CLI::App& app, const char* flag, std::span<const char* const> choices, const std::string& help,
                        std::string& field) {
  const std::string list = fmt::format("{}", fmt::join(choices, ", "));
  const auto check = [choices, list](const std::string& text) {
    for (const char* choice : choices)
      if (is_choice(choice, text)) return std::string();
    return fmt::format("'{}' is unknown; wanted one of {}", text, list);
  };
  return app.add_option(flag, field, fmt::format("{} (one of {}; default: {})", help, list, field))
      ->type_name("NAME")
      ->check(check)
      ->take_last();
}

CLI::Option* add_texts(CLI::App& app, const char* flag, const char* value_name, const std::string& help,
                       std::vector<std::string>& field) {
  return app.add_option(flag, field, help)->type_name(value_name)->allow_extra_args(false);
}

void add_model_options(CLI::App& app, ModelSettings& settings) {
  static constexpr const char* kDTypes[] = {"auto", "f32", "bf16", "float32", "bfloat16"};
  static constexpr const char* kKvTypes[] = {"auto", "f32",  "bf16",       "float32", "bfloat16",
                                             "fp8",  "int4", "int4-fireq", "int4-saw"};
  static constexpr const char* kDevices[] = {"cpu", "cuda", "cuda:N", "ref"};
  static constexpr const char* kLoadFormats[] = {"auto", "dummy"};
  app.add_option("MODEL", settings.model,
                 "A folder in the Hugging Face layout, or org/name (org/name@revision) in the Hugging Face cache.")
      ->type_name("")
      ->required();
  constexpr const char* kGroup = "Model";
  add_choice(app, "--dtype", kDTypes,
             "Type of the values between the layers; auto is f32, on a GPU bf16. Weights keep their own type, but for "
             "bf16, which rounds them to it.",
             settings.dtype)
      ->group(kGroup);
  add_choice(app, "--kv-cache-dtype", kKvTypes,
             "Format of the stored keys and values; auto is what the checkpoint names, or that of --dtype.",
             settings.kv_cache_dtype)
      ->group(kGroup);
  add_choice(
      app, "--device", kDevices,
      "What computes: cpu; cuda, the first GPU; cuda:N, GPU N, counted from 0; or ref, the plain loops in double "
      "precision that others are tested against (slow).",
      settings.device)
      ->group(kGroup);
  add_choice(
      app, "--load-format", kLoadFormats,
      "Where weights come from: auto, the model's safetensors; dummy, seeded random numbers, quantized as config.json "
      "says or else bf16, for a folder that has only a config.json (or for that file): to measure a model without its "
      "weights. Without a tokenizer.json tokens are bytes.",
      settings.load_format)
      ->group(kGroup);
  app.add_flag("--enforce-eager", settings.enforce_eager,
               "On a GPU: starts every kernel of a decode step by itself instead of a recorded graph.")
      ->group(kGroup);
  add_setting(app, kThreads, settings.threads)->group(kGroup);
  app.add_flag("-q,--quiet", settings.quiet, "No progress and no statistics on standard error.");
}

void add_max_model_len(CLI::App& app, std::optional<int64_t>& field, std::string_view unset) {
  add_setting(app, kMaxModelLen, field, unset)->group("Model");
}

void add_sampling_options(CLI::App& app, SamplingSettings& s, std::string_view default_max_tokens) {
  static constexpr const char* kConfigs[] = {"auto", "none"};
  constexpr const char* kGroup = "Sampling";
  constexpr std::string_view kOr1 = "generation_config.json's, else 1", kOr0 = "generation_config.json's, else 0";
  add_setting(app, kTemperature, s.temperature, kOr1)->group(kGroup);
  add_setting(app, kTopK, s.top_k, kOr0)->group(kGroup);
  add_setting(app, kTopP, s.top_p, kOr1)->group(kGroup);
  add_setting(app, kMinP, s.min_p, kOr0)->group(kGroup);
  add_setting(app, kRepetition, s.repetition_penalty, kOr1)->group(kGroup);
  add_setting(app, kPresence, s.presence_penalty)->group(kGroup);
  add_setting(app, kFrequency, s.frequency_penalty)->group(kGroup);
  add_setting(app, kSeed, s.seed, "a random one, which the statistics state")->group(kGroup);
  add_texts(app, "--logit-bias", "ID=BIAS", "Adds BIAS, -100 to 100, to the logit of token ID. May be repeated.",
            s.logit_bias)
      ->group(kGroup);
  add_choice(app, "--generation-config", kConfigs,
             "Where the defaults of temperature, top-k, top-p, min-p and repetition penalty come from: auto reads the "
             "model's generation_config.json (and is greedy where that says do_sample: false), none does not.",
             s.generation_config)
      ->group(kGroup);

  constexpr const char* kEnd = "End of the text";
  add_setting(app, kMaxTokens, s.max_tokens, default_max_tokens)->group(kEnd);
  add_setting(app, kMinTokens, s.min_tokens)->group(kEnd);
  add_texts(app, "--stop", "TEXT", "The text ends before TEXT. May be repeated.", s.stop)->group(kEnd);
  add_texts(app, "--stop-token-ids", "ID", "The text ends at token ID. May be repeated.", s.stop_token_ids)
      ->group(kEnd);
  app.add_flag("--include-stop-str-in-output", s.include_stop, "The text ends with the stop text, not before it.")
      ->group(kEnd);
  app.add_flag("--ignore-eos", s.ignore_eos, "Goes on after the model's end of text.")->group(kEnd);
}

Result<LogitBias> parse_logit_bias(std::string_view text) {
  const size_t equals = text.find('=');
  if (equals == std::string_view::npos)
    return invalid_argument("--logit-bias: '{}' has no '='; wanted ID=BIAS, such as 17=-2.5", text);
  HEARTH_TRY_ASSIGN(const int32_t token, parse_token_id("--logit-bias", text.substr(0, equals)));
  HEARTH_TRY_ASSIGN(const double bias, parse_number(text.substr(equals + 1), kBias).with_context("--logit-bias"));
  return LogitBias{.token = token, .bias = static_cast<float>(bias)};
}

Result<int32_t> parse_token_id(std::string_view flag, std::string_view text) {
  HEARTH_TRY_ASSIGN(const int64_t id, parse_number(text, kTokenId).with_context(flag));
  return static_cast<int32_t>(id);
}

}  // namespace hearth
