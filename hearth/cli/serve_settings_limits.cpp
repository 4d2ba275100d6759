// SPDX-License-Identifier: Apache-2.0
// The rows of [http] and [limits].
#include "hearth/cli/serve_settings_table.h"

namespace hearth {

using enum SettingKind;

void add_http_rows(SettingTable& t) {
  const auto timeout = [](const char* key, const char* help) {
    return ServeSetting{
        .section = "http", .key = key, .kind = kSeconds, .value_name = "S", .min = 1, .max = kDayMs, .help = help};
  };
  t.number({.section = "http",
            .key = "threads",
            .kind = kInteger,
            .value_name = "N",
            .min = 1,
            .max = 256,
            .unit = "threads",
            .help = "Threads that serve connections."},
           OfServer<&ServeOptions::http_threads>());
  t.number({.section = "http",
            .key = "connections",
            .kind = kInteger,
            .value_name = "N",
            .min = 1,
            .max = 1'000'000,
            .unit = "connections",
            .help = "Most connections at once."},
           OfHttp<&HttpLimits::connections>());
  t.number({.section = "http",
            .key = "header-bytes",
            .kind = kBytes,
            .value_name = "BYTES",
            .min = 256,
            .max = kMi,
            .help = "Largest header of a request; larger gets 431."},
           OfHttp<&HttpLimits::header_bytes>());
  t.number({.section = "http",
            .key = "body-bytes",
            .kind = kBytes,
            .value_name = "BYTES",
            .min = kKi,
            .max = kGi,
            .help = "Largest body of a request; larger gets 413."},
           OfHttp<&HttpLimits::body_bytes>());
  t.number({.section = "http",
            .key = "bodies-bytes",
            .kind = kBytes,
            .value_name = "BYTES",
            .min = kKi,
            .max = kTi,
            .help = "Bodies of all requests together; more get 503."},
           OfHttp<&HttpLimits::bodies_bytes>());
  t.number(timeout("header-timeout", "From the first byte of a request to the end of its header."),
           OfHttp<&HttpLimits::header_timeout_ms>());
  t.number(timeout("body-timeout", "For a whole body."), OfHttp<&HttpLimits::body_timeout_ms>());
  t.number(timeout("idle-timeout", "Between two requests of a connection."), OfHttp<&HttpLimits::idle_timeout_ms>());
  t.number(timeout("write-timeout", "Without the client taking a byte."), OfHttp<&HttpLimits::write_timeout_ms>());
}

void add_limit_rows(SettingTable& t) {
  const auto limit = [](const char* key, int64_t min, int64_t max, const char* unit, const char* help) {
    return ServeSetting{.section = "limits",
                        .key = key,
                        .kind = kInteger,
                        .value_name = "N",
                        .min = min,
                        .max = max,
                        .unit = unit,
                        .help = help};
  };
  const auto bytes = [](const char* key, int64_t max, const char* help) {
    return ServeSetting{
        .section = "limits", .key = key, .kind = kBytes, .value_name = "BYTES", .min = 1, .max = max, .help = help};
  };
  const auto seconds = [](const char* key, const char* help) {
    return ServeSetting{
        .section = "limits", .key = key, .kind = kSeconds, .value_name = "S", .min = 1, .max = kDayMs, .help = help};
  };
  t.number(limit("requests", 1, 1'000'000, "requests", "Requests in flight; more get 503."),
           OfApi<&ApiLimits::requests>());
  ServeSetting per_key = limit("requests-per-key", 0, 1'000'000, "requests",
                               "Requests in flight of one API key; more "
                               "get 429.");
  per_key.unset = "no limit of its own";
  t.number(std::move(per_key), OfApi<&ApiLimits::requests_per_key>());
  ServeSetting max_tokens = limit("max-tokens", 0, int64_t{1} << 31, "tokens", "Most tokens of a choice.");
  max_tokens.unset = "what the context holds";
  t.number(std::move(max_tokens), OfApi<&ApiLimits::max_tokens>());
  t.number(limit("json-depth", 4, 1000, "levels", "How deep the JSON of a request may nest."),
           OfApi<&ApiLimits::json_depth>());
  t.number(limit("json-values", 100, 1'000'000'000, "values", "Values in the JSON of a request."),
           OfApi<&ApiLimits::json_values>());
  t.number(limit("prompts", 1, 65536, "prompts", "Prompts of a completion request."), OfApi<&ApiLimits::prompts>());
  t.number(limit("n", 1, 65536, "choices", "The largest n."), OfApi<&ApiLimits::n>());
  t.number(limit("choices", 1, 65536, "choices", "Prompts times n."), OfApi<&ApiLimits::choices>());
  t.number(limit("logprobs", 0, kMaxTopLogprobs, "tokens", "The largest logprobs and top_logprobs."),
           OfApi<&ApiLimits::logprobs>());
  t.number(limit("logit-bias", 0, 1'000'000, "tokens", "Entries of logit_bias."), OfApi<&ApiLimits::logit_bias>());
  t.number(limit("stop", 0, 64, "texts", "Stop strings."), OfApi<&ApiLimits::stop>());
  t.number(bytes("stop-bytes", 4096, "Longest stop string."), OfApi<&ApiLimits::stop_bytes>());
  t.number(limit("stop-token-ids", 0, 65536, "tokens", "Entries of stop_token_ids."),
           OfApi<&ApiLimits::stop_token_ids>());
  t.number(limit("messages", 1, 1'000'000, "messages", "Messages of a chat request."), OfApi<&ApiLimits::messages>());
  t.number(bytes("schema-bytes", 64 * kMi, "Longest JSON schema, expression or grammar."),
           OfGrammar<&GrammarLimits::max_source_bytes>());
  t.number(limit("schema-depth", 1, 1000, "levels", "How deep a JSON schema may nest."),
           OfGrammar<&GrammarLimits::max_depth>());
  t.number(seconds("schema-time", "For compiling a schema."), OfGrammar<&GrammarLimits::max_compile_time_ms>());
  t.number(seconds("template-time", "For rendering a chat template."), OfApi<&ApiLimits::template_time_ms>());
}

}  // namespace hearth
