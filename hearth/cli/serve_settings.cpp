// SPDX-License-Identifier: Apache-2.0
// The table but [http] and [limits], and how texts become values. Names are vLLM's where they mean the same.
#include "hearth/cli/serve_settings.h"

#include <algorithm>
#include <cmath>

#include "hearth/checkpoint/quote.h"
#include "hearth/cli/options.h"
#include "hearth/cli/serve_settings_table.h"

namespace hearth {
namespace {

using enum SettingKind;

void add_model_rows(SettingTable& t) {
  t.models({.key = "model",
            .kind = kModels,
            .value_name = "NAME=PATH",
            .help = "A model to serve, beside the positional ones: a folder in the Hugging Face layout or org/name in "
                    "its cache, under its own name or as NAME=PATH; NAME,ALIAS=PATH gives it several. May be repeated.",
            .separator = ';'});
  t.texts({.key = "served-model-name",
           .kind = kTexts,
           .value_name = "NAME",
           .unset = "the model's own",
           .help = "What requests call the model, where it is the only one. May be repeated: the first is in answers."},
          Own<&ServeSettings::served_model_name>());
  t.texts({.key = "model-options",
           .kind = kTexts,
           .value_name = "TEXT",
           .unset = "none",
           .help = "What one model has of its own: `NAME: ttft-slo=0.5, tpot-slo=0.05` in place of the settings of "
                   "those names; `weight=2`, its part of the device's time beside others that have work too "
                   "(default: 1); `kv-guarantee=1Gi, kv-cap=4Gi`, what of kv-cache-memory-bytes it can take back "
                   "from others (default: an equal part) and may have at most (default: all). In the file they are "
                   "keys of its [[model]]. May be repeated.",
           .separator = ';'},
          Own<&ServeSettings::model_options>());
  t.number({.key = "max-model-len",
            .kind = kInteger,
            .value_name = "N",
            .min = 1,
            .max = int64_t{1} << 31,
            .unit = "tokens",
            .unset = "the model's context",
            .help = "Longest sequence, prompt and output together."},
           Member<&ServeSettings::options, &ServeOptions::load, &LoadOptions::max_context>());
  t.text({.key = "dtype",
          .kind = kChoice,
          .value_name = "NAME",
          .choices = {"auto", "f32", "bf16", "float32", "bfloat16"},
          .help = "Type of the values between the layers; auto is f32, on a GPU bf16."},
         Own<&ServeSettings::dtype>());
  t.text({.key = "kv-cache-dtype",
          .kind = kChoice,
          .value_name = "NAME",
          .choices = {"auto", "f32", "bf16", "float32", "bfloat16", "fp8", "int4", "int4-fireq", "int4-saw"},
          .help = "Format of the stored keys and values; auto is what the checkpoint names, or that of dtype."},
         Own<&ServeSettings::kv_cache_dtype>());
  t.text({.key = "device",
          .kind = kChoice,
          .value_name = "NAME",
          .choices = {"cpu", "cuda", "cuda:N", "ref"},
          .help = "What computes: cpu; cuda, the first GPU; cuda:N, GPU N, counted from 0 (one for all models); or "
                  "ref, the plain loops in double precision that others are tested against."},
         Own<&ServeSettings::device>());
  t.text({.key = "load-format",
          .kind = kChoice,
          .value_name = "NAME",
          .choices = {"auto", "dummy"},
          .help = "Where weights come from: auto, the model's safetensors; dummy, seeded random numbers, quantized as "
                  "config.json says or else bf16, for a folder that has only a config.json (or for that file), whose "
                  "tokens are bytes where it has no tokenizer.json."},
         Own<&ServeSettings::load_format>());
}

void add_server_rows(SettingTable& t) {
  t.text({.key = "host",
          .value_name = "ADDRESS",
          .help = "The address to listen at. 0.0.0.0 and :: are reached from other machines: give an API key too."},
         OfServer<&ServeOptions::address>());
  t.number({.key = "port",
            .kind = kInteger,
            .value_name = "N",
            .max = 65535,
            .help = "The port to listen at; 0 takes a free one, which the line at the start names."},
           OfServer<&ServeOptions::port>());
  t.texts({.key = "api-key",
           .kind = kTexts,
           .value_name = "KEY",
           .unset = "none is asked for",
           .help = "A key that requests must have in `Authorization: Bearer KEY`. May be repeated. Others on this "
                   "machine can read command lines: the variable or api-key-file keep it to yourself.",
           .secret = true},
          OfServer<&ServeOptions::api_keys>());
  t.text({.key = "api-key-file",
          .value_name = "FILE",
          .unset = "none",
          .help = "A file with one API key a line, beside those of api-key."},
         Own<&ServeSettings::api_key_file>());
  t.texts({.key = "admin-key",
           .kind = kTexts,
           .value_name = "KEY",
           .unset = "there is no admin API",
           .help = "A key for the admin API, which loads and unloads models (docs/guides/admin.md); API keys are none. "
                   "May be repeated. As with api-key, the variable or the file keep it to yourself.",
           .secret = true},
          OfServer<&ServeOptions::admin_keys>());
  t.text({.key = "admin-key-file",
          .value_name = "FILE",
          .unset = "none",
          .help = "A file with one admin key a line, beside those of admin-key."},
         Own<&ServeSettings::admin_key_file>());
  t.number(
      {.key = "wake-on-request",
       .kind = kSwitch,
       .help = "A model that an operator put to sleep is woken by the next request for it, which waits. Without it "
               "such a request is answered with 503; one for a model that the server itself put to sleep waits in "
               "any case."},
      OfServer<&ServeOptions::wake_on_request>());
  t.number(
      {.key = "sleep-idle-for-room",
       .kind = kSwitch,
       .help = "Where a model that is loaded or woken finds no room, idle models that are not pinned sleep for it, "
               "the one that was used longest ago first. On a GPU."},
      OfServer<&ServeOptions::sleep_idle_for_room>());
  t.text({.key = "pid-file",
          .value_name = "FILE",
          .unset = "none",
          .help = "A file that holds the process's number while the server runs."},
         Own<&ServeSettings::pid_file>());
  t.number({.key = "drain-timeout",
            .kind = kSeconds,
            .value_name = "S",
            .max = kDayMs,
            .help = "After SIGTERM or SIGINT, how long answers in progress may take to their end."},
           Own<&ServeSettings::drain_timeout_ms>());
  t.number({.key = "access-log", .kind = kSwitch, .help = "Logs a line for every answer."},
           OfServer<&ServeOptions::access_log>());
  t.text({.key = "step-log",
          .value_name = "FILE",
          .help = "Writes every step there, a line of JSON each: what was in it and how long it took. hearth simulate "
                  "--fit makes a machine of it."},
         OfServer<&ServeOptions::step_log>());
  t.text({.key = "log-level",
          .kind = kChoice,
          .value_name = "NAME",
          .choices = {"trace", "debug", "info", "warn", "error", "off"},
          .help = "What the log on standard error tells."},
         Own<&ServeSettings::log_level>());
  t.number({.key = "request-workers",
            .kind = kInteger,
            .value_name = "N",
            .min = 1,
            .max = 256,
            .unit = "threads",
            .help = "Threads that read requests: JSON, templates, tokenizing."},
           OfServer<&ServeOptions::request_workers>());
  t.number({.key = "waiting-requests",
            .kind = kInteger,
            .value_name = "N",
            .min = 1,
            .max = 1'000'000,
            .unit = "requests",
            .help = "Requests that may wait for such a thread; more get 503."},
           OfServer<&ServeOptions::waiting_requests>());
}

void add_engine_rows(SettingTable& t) {
  t.number({.key = "threads",
            .kind = kInteger,
            .value_name = "N",
            .max = 1024,
            .unit = "threads",
            .unset = "a thread for every CPU that the process may use but one, which HTTP and text need",
            .help = "Threads that compute."},
           OfEngine<&EngineOptions::threads>());
  t.number({.key = "text-workers",
            .kind = kInteger,
            .value_name = "N",
            .min = 1,
            .max = 256,
            .unit = "threads",
            .help = "Threads that turn tokens into text and keep grammars."},
           OfEngine<&EngineOptions::text_workers>());
  t.number({.key = "max-num-seqs",
            .kind = kInteger,
            .value_name = "N",
            .min = 1,
            .max = 65536,
            .unit = "sequences",
            .help = "Most sequences of a model in a step."},
           OfEngine<&EngineOptions::max_sequences>());
  t.number({.key = "max-num-batched-tokens",
            .kind = kInteger,
            .value_name = "N",
            .min = 1,
            .max = int64_t{1} << 20,
            .unit = "tokens",
            .help = "Most tokens of a step; longer prompts take several."},
           OfEngine<&EngineOptions::step_tokens>());
  t.text({.key = "schedule",
          .kind = kChoice,
          .value_name = "NAME",
          .choices = {"slo", "fcfs", "fineserve"},
          .help = "Who gets the next step: slo, as many answers within their targets as can be, and first come, first "
                  "served where none has any; fcfs; or fineserve, the rule of arXiv 2509.06261 as released."},
         OfEngine<&EngineOptions::schedule>());
  t.number({.key = "reject-hopeless",
            .kind = kSwitch,
            .help = "A request whose first token would miss its target is answered with 503 before anything of it is "
                    "computed, instead of coming last."},
           OfEngine<&EngineOptions::reject_hopeless>());
  t.number({.key = "ttft-slo",
            .kind = kSeconds,
            .value_name = "S",
            .max = 3'600'000,
            .unit = "seconds",
            .help = "Target for the time to the first token, of requests that name none; 0: none."},
           Own<&ServeSettings::ttft_slo_ms>());
  t.number({.key = "tpot-slo",
            .kind = kSeconds,
            .value_name = "S",
            .max = 3'600'000,
            .unit = "seconds",
            .help = "Target for the time per token after the first, on average over an answer, of requests that name "
                    "none; 0: none."},
           Own<&ServeSettings::tpot_slo_ms>());
  t.number({.key = "block-size",
            .kind = kInteger,
            .value_name = "N",
            .min = 1,
            .max = 1024,
            .unit = "tokens",
            .help = "Tokens of a KV block."},
           OfEngine<&EngineOptions::block_tokens>());
  t.number({.key = "memory-bytes",
            .kind = kBytes,
            .value_name = "BYTES",
            .max = 1024 * kTi,
            .unset = "no total: the KV memory stays as it was made with the first model",
            .help = "What weights, step buffers, and keys and values on a device may have together: these have what "
                    "models leave, and give it back when a model is loaded or wakes."},
           OfEngine<&EngineOptions::memory_bytes>());
  t.number(
      {.key = "kv-cache-memory-bytes",
       .kind = kBytes,
       .value_name = "BYTES",
       .max = 1024 * kTi,
       .unset = "a quarter of the free memory of the device; on the CPU no more than what max-num-seqs whole contexts "
                "of the first model need, or 1Gi",
       .help = "Memory for keys and values, shared by all models of a device; with memory-bytes the most of it."},
      OfEngine<&EngineOptions::kv_bytes>());
  t.number({.key = "kv-swap-bytes",
            .kind = kBytes,
            .value_name = "BYTES",
            .max = 1024 * kTi,
            .help = "Host memory for keys and values of sequences that gave up theirs to others, where copying them "
                    "there and back takes less time than computing them again; 0: none."},
           OfEngine<&EngineOptions::kv_swap_bytes>());
  t.text(
      {.key = "kv-sharing",
       .kind = kChoice,
       .value_name = "NAME",
       .choices = {"shared", "static"},
       .help = "Who has which part of that memory: shared, every model what it needs and others do not; static, every "
               "model an equal part of its own and nothing more, to compare with."},
      Own<&ServeSettings::kv_sharing>());
  t.number({.key = "no-enable-prefix-caching",
            .kind = kSwitch,
            .help = "Keys and values go with their request, instead of staying for others that begin alike."},
           Own<&ServeSettings::no_prefix_caching>());
  t.number({.key = "enforce-eager",
            .kind = kSwitch,
            .help = "On a GPU: starts every kernel of a decode step by itself instead of a recorded graph."},
           Own<&ServeSettings::enforce_eager>());
  t.number({.key = "max-waiting",
            .kind = kInteger,
            .value_name = "N",
            .min = 1,
            .max = 1'000'000,
            .unit = "choices",
            .help = "Choices that may wait to be admitted; more get 429."},
           OfEngine<&EngineOptions::max_waiting>());
  t.number({.key = "max-unread",
            .kind = kInteger,
            .value_name = "N",
            .min = 1,
            .max = 1'000'000,
            .unit = "tokens",
            .help = "Tokens that a client has not taken before its sequence pauses."},
           OfEngine<&EngineOptions::max_unread>());
}

// The range of a setting as a number of parse_number(), which says it in its errors.
Setting<int64_t> integer_range(const ServeSetting& s) { return {"", "", s.min, s.max, s.unit.c_str(), ""}; }

Result<int64_t> parse_bytes(std::string_view text, const ServeSetting& setting) {
  struct Suffix {
    std::string_view name;
    int64_t factor;
  };
  constexpr Suffix kSuffixes[] = {{"Ki", kKi}, {"Mi", kMi},      {"Gi", kGi},          {"Ti", kTi},
                                  {"K", 1000}, {"M", 1'000'000}, {"G", 1'000'000'000}, {"T", 1'000'000'000'000},
                                  {"k", 1000}};
  std::string_view digits = text;
  int64_t factor = 1;
  if (digits.ends_with('B')) digits.remove_suffix(1);
  for (const Suffix& suffix : kSuffixes) {
    if (!digits.ends_with(suffix.name)) continue;
    digits.remove_suffix(suffix.name.size());
    factor = suffix.factor;
    break;
  }
  const auto count = parse_number(digits, Setting<int64_t>{"", "", 0, kNoLimit, "", ""});
  int64_t bytes = 0;
  if (!count)
    return invalid_argument("'{}' is no number of bytes; wanted a whole one such as 4096, 16Ki, 64Mi or 4G", text);
  if (__builtin_mul_overflow(*count, factor, &bytes) || bytes < setting.min || bytes > setting.max)
    return invalid_argument("{} is out of range; wanted {} to {} bytes", text, setting.min, setting.max);
  return bytes;
}

Result<int64_t> parse_seconds(std::string_view text, const ServeSetting& setting) {
  const Setting<double> range{
      "", "", static_cast<double>(setting.min) * 1e-3, static_cast<double>(setting.max) * 1e-3, "seconds", ""};
  HEARTH_TRY_ASSIGN(const double seconds, parse_number(text, range));
  return std::llround(seconds * 1e3);
}

Result<int64_t> parse_switch(std::string_view text) {
  for (const char* word : {"true", "1", "yes", "on"})
    if (text == word) return 1;
  for (const char* word : {"false", "0", "no", "off"})
    if (text == word) return 0;
  return invalid_argument("{} is neither true nor false", quote_name(text));
}

Result<int64_t> parse_value(const ServeSetting& setting, std::string_view text) {
  switch (setting.kind) {
    case kBytes: return parse_bytes(text, setting);
    case kSeconds: return parse_seconds(text, setting);
    case kSwitch: return parse_switch(text);
    default: return parse_number(text, integer_range(setting));
  }
}

// A key goes into a header as it is.
Status check_key(std::string_view key) {
  const bool visible = std::ranges::all_of(key, [](char c) { return c > 0x20 && c < 0x7F; });
  if (!key.empty() && key.size() <= 1024 && visible) return {};
  return invalid_argument("a key is empty, has more than 1024 characters or one that is not visible ASCII");
}

std::string replaced(std::string text, char from, char to) {
  std::ranges::replace(text, from, to);
  return text;
}

}  // namespace

std::string ServeSetting::variable() const {
  std::string name_upper = replaced(name(), '-', '_');
  for (char& c : name_upper)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  return "HEARTH_" + name_upper;
}

const std::vector<ServeSetting>& serve_settings() {
  static const std::vector<ServeSetting> settings = [] {
    SettingTable table;
    add_model_rows(table);
    add_server_rows(table);
    add_engine_rows(table);
    add_http_rows(table);
    add_limit_rows(table);
    return table.take();
  }();
  return settings;
}

Result<ModelArgument> parse_model_argument(std::string_view text) {
  ModelArgument model;
  const size_t equals = text.find('=');
  model.path = text.substr(equals == std::string_view::npos ? 0 : equals + 1);
  if (model.path.empty()) return invalid_argument("{} names no folder; wanted PATH or NAME=PATH", quote_name(text));
  if (equals == std::string_view::npos) return model;
  std::string_view names = text.substr(0, equals);
  while (true) {
    const size_t comma = names.find(',');
    const std::string_view name = names.substr(0, comma);
    if (name.empty()) return invalid_argument("{} has an empty name; wanted NAME=PATH", quote_name(text));
    model.names.emplace_back(name);
    if (comma == std::string_view::npos) return model;
    names.remove_prefix(comma + 1);
  }
}

Status apply_setting(const ServeSetting& setting, const std::vector<std::string>& given, ServeSettings& settings) {
  HEARTH_CHECK(!given.empty() || setting.is_list(), "{} without a value", setting.name());
  if (setting.is_number() || setting.kind == kSwitch) {
    HEARTH_TRY_ASSIGN(const int64_t value, parse_value(setting, given.back()));
    setting.set_number(settings, value);
    return {};
  }
  if (setting.kind == kModels) {
    std::vector<ModelArgument> models;
    for (const std::string& text : given) {
      HEARTH_TRY_ASSIGN(ModelArgument model, parse_model_argument(text));
      models.push_back(std::move(model));
    }
    settings.models = std::move(models);
    return {};
  }
  const auto meant = [&](std::string_view choice) { return is_choice(choice, given.back()); };
  if (setting.kind == kChoice && std::ranges::none_of(setting.choices, meant))
    return invalid_argument("{} is unknown; wanted one of {}", quote_name(given.back()),
                            fmt::join(setting.choices, ", "));
  if (setting.secret) {
    for (const std::string& key : given) HEARTH_TRY(check_key(key));
  } else if (setting.is_list()) {
    for (const std::string& text : given)
      if (text.empty()) return invalid_argument("an entry is empty");
  }
  setting.set_texts(settings, given);
  return {};
}

}  // namespace hearth
