// SPDX-License-Identifier: Apache-2.0
// One function for each group of fields. Pure functions.
#include "hearth/serve/generation_request.h"

#include <charconv>
#include <limits>

namespace hearth {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxModelBytes = 512;
constexpr int64_t kMaxSaltBytes = 1024;

ApiStatus read_sampling(const Json& body, GenerationCall& call) {
  HEARTH_TRY(read_number(body, "temperature", {.min = 0, .max = 1000}, call.temperature));
  HEARTH_TRY(read_number(body, "top_p", {.min = 0, .max = 1, .min_open = true}, call.top_p));
  HEARTH_TRY(read_integer(body, "top_k", {-1, kMaxInt32}, call.top_k));
  HEARTH_TRY(read_number(body, "min_p", {.min = 0, .max = 1}, call.min_p));
  HEARTH_TRY(
      read_number(body, "repetition_penalty", {.min = 0, .max = 1e6, .min_open = true}, call.repetition_penalty));
  std::optional<double> presence, frequency;
  HEARTH_TRY(read_number(body, "presence_penalty", {.min = -2, .max = 2}, presence));
  HEARTH_TRY(read_number(body, "frequency_penalty", {.min = -2, .max = 2}, frequency));
  call.presence_penalty = presence.value_or(0);
  call.frequency_penalty = frequency.value_or(0);
  std::optional<int64_t> seed;
  HEARTH_TRY(read_integer(body, "seed", {}, seed));
  if (seed) call.seed = static_cast<uint64_t>(*seed);
  return {};
}

// {"50256": -100}: the keys are ids.
ApiStatus read_logit_bias(const Json& body, const ApiLimits& limits, GenerationCall& call) {
  const Json* const map = find_field(body, "logit_bias");
  if (map == nullptr) return {};
  if (!map->is_object())
    return bad_request("logit_bias", "logit_bias: {}; wanted an object of token id to number", describe(*map));
  if (std::ssize(*map) > limits.logit_bias)
    return over_limit("logit_bias", fmt::format("logit_bias: {} entries; at most {}", map->size(), limits.logit_bias));
  for (const auto& [key, value] : map->items()) {
    int32_t id = -1;
    const char* const end = key.data() + key.size();
    const auto parsed = std::from_chars(key.data(), end, id);
    // One spelling for each id, so that none can be given twice.
    const bool plain = !key.empty() && (key == "0" || (key[0] != '0' && key[0] != '-'));
    if (parsed.ec != std::errc() || parsed.ptr != end || !plain)
      return bad_request("logit_bias", "logit_bias: the key {} is no token id", to_text(Json(key.substr(0, 40))));
    if (!value.is_number() || !(value.get<double>() >= -100) || !(value.get<double>() <= 100))
      return bad_request("logit_bias", "logit_bias[{}]: {}; wanted a number from -100 to 100", key, describe(value));
    call.logit_bias.push_back({.token = id, .bias = static_cast<float>(value.get<double>())});
  }
  return {};
}

ApiStatus add_stop(const Json& value, const std::string& what, const ApiLimits& limits, GenerationCall& call) {
  if (!value.is_string()) return bad_request("stop", "{}: {}; wanted a string", what, describe(value));
  const auto& text = value.get_ref<const std::string&>();
  if (text.empty()) return bad_request("stop", "{}: the string is empty", what);
  if (std::ssize(text) > limits.stop_bytes)
    return over_limit("stop", fmt::format("{}: {} bytes; at most {}", what, text.size(), limits.stop_bytes));
  call.stop.push_back(text);
  return {};
}

ApiStatus read_stop(const Json& body, const ApiLimits& limits, GenerationCall& call) {
  if (const Json* const stop = find_field(body, "stop")) {
    if (stop->is_array()) {
      if (std::ssize(*stop) > limits.stop)
        return over_limit("stop", fmt::format("stop: {} strings; at most {}", stop->size(), limits.stop));
      for (size_t i = 0; i < stop->size(); ++i)
        HEARTH_TRY(add_stop((*stop)[i], fmt::format("stop[{}]", i), limits, call));
    } else if (stop->is_string()) {
      HEARTH_TRY(add_stop(*stop, "stop", limits, call));
    } else {
      return bad_request("stop", "stop: {}; wanted a string or an array of strings", describe(*stop));
    }
  }
  if (const Json* const ids = find_field(body, "stop_token_ids")) {
    if (!ids->is_array())
      return bad_request("stop_token_ids", "stop_token_ids: {}; wanted an array of token ids", describe(*ids));
    if (std::ssize(*ids) > limits.stop_token_ids)
      return over_limit("stop_token_ids",
                        fmt::format("stop_token_ids: {} ids; at most {}", ids->size(), limits.stop_token_ids));
    HEARTH_TRY_ASSIGN(call.stop_token_ids, to_token_ids(*ids, "stop_token_ids"));
  }
  HEARTH_TRY(read_bool(body, "include_stop_str_in_output", call.include_stop));
  HEARTH_TRY(read_bool(body, "ignore_eos", call.ignore_eos));
  std::optional<int64_t> min_tokens;
  HEARTH_TRY(read_integer(body, "min_tokens", {0, kMaxInt32}, min_tokens));
  call.min_tokens = min_tokens.value_or(0);
  return {};
}

ApiStatus read_stream(const Json& body, GenerationCall& call) {
  HEARTH_TRY(read_bool(body, "stream", call.stream));
  const Json* const options = find_field(body, "stream_options");
  if (options == nullptr) return {};
  if (!options->is_object())
    return bad_request("stream_options", "stream_options: {}; wanted an object", describe(*options));
  if (!call.stream) return bad_request("stream_options", "stream_options: only with stream true");
  HEARTH_TRY(read_bool(*options, "include_usage", call.include_usage));
  HEARTH_TRY(read_bool(*options, "continuous_usage_stats", call.continuous_usage));
  // As vLLM: numbers on the way are asked for together with those at the end.
  call.continuous_usage = call.continuous_usage && call.include_usage;
  return {};
}

ApiStatus set_grammar(GenerationCall& call, const char* param, GrammarKind kind, std::string source,
                      const ApiLimits& limits) {
  if (call.grammar)
    return bad_request(param, "{}: {} asks for a form of the text too; wanted one of them", param, call.grammar_param);
  if (std::ssize(source) > limits.grammar.max_source_bytes)
    return over_limit(param,
                      fmt::format("{}: {} bytes; at most {}", param, source.size(), limits.grammar.max_source_bytes));
  call.grammar = GrammarSpec{.kind = kind, .source = std::move(source)};
  call.grammar_param = param;
  return {};
}

// Where a text of JSON lies, and what is left to it.
struct JsonPlace {
  JsonBudget& budget;
  int64_t depth;
};

// A schema, as an object or as its text.
ApiStatus set_schema(GenerationCall& call, const char* param, const Json& schema, const ApiLimits& limits,
                     JsonPlace place) {
  if (schema.is_string()) {
    HEARTH_TRY_ASSIGN(const Json parsed,
                      parse_json_object(schema.get_ref<const std::string&>(), limits, place.budget, place.depth));
    return set_grammar(call, param, GrammarKind::kJsonSchema, to_text(parsed), limits);
  }
  if (!schema.is_object() && !schema.is_boolean())
    return bad_request(param, "{}: {}; wanted a JSON schema", param, describe(schema));
  return set_grammar(call, param, GrammarKind::kJsonSchema, to_text(schema), limits);
}

ApiStatus read_response_format(const Json& body, const ApiLimits& limits, JsonBudget& budget, GenerationCall& call) {
  constexpr int64_t kDepth = 3;  // {"response_format": {"json_schema": {"schema": ...
  constexpr const char* kField = "response_format";
  const Json* const format = find_field(body, kField);
  if (format == nullptr) return {};
  if (!format->is_object()) return bad_request(kField, "{}: {}; wanted an object", kField, describe(*format));
  const Json* const type = find_field(*format, "type");
  const std::string name = type != nullptr && type->is_string() ? type->get<std::string>() : std::string();
  if (name == "text") return {};
  if (name == "json_object") return set_grammar(call, kField, GrammarKind::kJsonObject, {}, limits);
  if (name == "json_schema") {
    const Json* const outer = find_field(*format, "json_schema");
    if (outer == nullptr || !outer->is_object())
      return bad_request("response_format.json_schema", "response_format.json_schema: {}; wanted an object",
                         outer == nullptr ? "absent" : describe(*outer));
    const Json* const schema = find_field(*outer, "schema");
    if (schema == nullptr)
      return bad_request("response_format.json_schema", "response_format.json_schema.schema: absent; wanted a schema");
    return set_schema(call, kField, *schema, limits, {budget, kDepth});
  }
  return bad_request(kField, "response_format.type: {}; wanted text, json_object or json_schema",
                     type == nullptr ? "absent" : describe(*type));
}

// The texts of `choices`, as a grammar.
ApiStatus set_choice(GenerationCall& call, const char* param, const Json& choices, const ApiLimits& limits) {
  if (!choices.is_array() || choices.empty())
    return bad_request(param, "{}: {}; wanted an array of strings", param, describe(choices));
  std::string source = "start: ";
  for (size_t i = 0; i < choices.size(); ++i) {
    if (!choices[i].is_string() || choices[i].get_ref<const std::string&>().empty())
      return bad_request(param, "{}[{}]: {}; wanted a string that is not empty", param, i, describe(choices[i]));
    source += (i == 0 ? "" : " | ") + to_text(choices[i]);
  }
  return set_grammar(call, param, GrammarKind::kLark, std::move(source), limits);
}

struct GuideFields {
  const char *json, *regex, *grammar, *choice;
};

ApiStatus read_guides(const Json& fields, const GuideFields& names, const ApiLimits& limits, JsonPlace place,
                      GenerationCall& call) {
  if (const Json* const schema = find_field(fields, names.json))
    HEARTH_TRY(set_schema(call, names.json, *schema, limits, place));
  if (const Json* const choices = find_field(fields, names.choice))
    HEARTH_TRY(set_choice(call, names.choice, *choices, limits));
  std::optional<std::string> regex, grammar;
  HEARTH_TRY(read_string(fields, names.regex, limits.grammar.max_source_bytes, regex));
  if (regex) HEARTH_TRY(set_grammar(call, names.regex, GrammarKind::kRegex, std::move(*regex), limits));
  HEARTH_TRY(read_string(fields, names.grammar, limits.grammar.max_source_bytes, grammar));
  if (grammar) HEARTH_TRY(set_grammar(call, names.grammar, GrammarKind::kLark, std::move(*grammar), limits));
  return {};
}

// vLLM's ways to ask for a form, the present one and the one before it.
ApiStatus read_structured_outputs(const Json& body, const ApiLimits& limits, JsonBudget& budget, GenerationCall& call) {
  constexpr GuideFields kOlder = {"guided_json", "guided_regex", "guided_grammar", "guided_choice"};
  HEARTH_TRY(read_guides(body, kOlder, limits, {budget, 1}, call));
  const Json* const outputs = find_field(body, "structured_outputs");
  if (outputs == nullptr) return {};
  constexpr const char* kField = "structured_outputs";
  if (!outputs->is_object()) return bad_request(kField, "{}: {}; wanted an object", kField, describe(*outputs));
  HEARTH_TRY(read_guides(*outputs, {"json", "regex", "grammar", "choice"}, limits, {budget, 2}, call));
  bool any_object = false;
  HEARTH_TRY(read_bool(*outputs, "json_object", any_object));
  if (any_object) HEARTH_TRY(set_grammar(call, kField, GrammarKind::kJsonObject, {}, limits));
  return refuse_field(*outputs, "structural_tag", "is not supported");
}

// What other servers know and would give another text here if it were passed over.
ApiStatus refuse_unsupported(const Json& body) {
  HEARTH_TRY(refuse_field(body, "use_beam_search", "beam search is not supported"));
  HEARTH_TRY(refuse_field(body, "allowed_token_ids", "is not supported; logit_bias or a grammar may do"));
  HEARTH_TRY(refuse_field(body, "bad_words", "is not supported; logit_bias may do"));
  HEARTH_TRY(refuse_field(body, "logits_processors", "code from requests is never run"));
  HEARTH_TRY(refuse_field(body, "prompt_embeds", "embeddings from requests are not supported"));
  return refuse_field(body, "truncate_prompt_tokens", "is not supported; send a prompt that fits");
}

}  // namespace

ApiStatus refuse_field(const Json& body, const char* name, const char* why) {
  const Json* const field = find_field(body, name);
  if (field == nullptr) return {};
  const bool nothing = *field == false || (field->is_number() && *field == 0) ||
                       (field->is_string() && field->get_ref<const std::string&>().empty()) ||
                       (field->is_structured() && field->empty());
  if (nothing) return {};
  ApiError error = bad_request(name, "{}: {}", name, why);
  error.code = "unsupported";
  return error;
}

ApiStatus read_generation(const Json& body, const ApiLimits& limits, JsonBudget& budget, GenerationCall& call) {
  std::optional<std::string> model, salt;
  HEARTH_TRY(read_string(body, "model", kMaxModelBytes, model));
  call.model = std::move(model).value_or("");
  std::optional<int64_t> n;
  HEARTH_TRY(read_integer(body, "n", {1, limits.n}, n));
  call.n = static_cast<int32_t>(n.value_or(1));
  HEARTH_TRY(read_sampling(body, call));
  HEARTH_TRY(read_logit_bias(body, limits, call));
  HEARTH_TRY(read_stop(body, limits, call));
  HEARTH_TRY(read_stream(body, call));
  std::optional<int64_t> prompt_logprobs;
  HEARTH_TRY(read_integer(body, "prompt_logprobs", {0, limits.logprobs}, prompt_logprobs));
  if (prompt_logprobs) call.prompt_logprobs = static_cast<int32_t>(*prompt_logprobs);
  if (call.prompt_logprobs && call.stream)
    return bad_request("prompt_logprobs", "prompt_logprobs: not with stream true");
  HEARTH_TRY(read_response_format(body, limits, budget, call));
  HEARTH_TRY(read_structured_outputs(body, limits, budget, call));
  std::optional<int64_t> priority;
  HEARTH_TRY(read_integer(body, "priority", {-kMaxInt32, kMaxInt32}, priority));
  call.priority = static_cast<int32_t>(priority.value_or(0));
  constexpr int64_t kMaxSloMs = 3'600'000;
  std::optional<int64_t> ttft_slo_ms, tpot_slo_ms;
  HEARTH_TRY(read_integer(body, "ttft_slo_ms", {0, kMaxSloMs}, ttft_slo_ms));
  HEARTH_TRY(read_integer(body, "tpot_slo_ms", {0, kMaxSloMs}, tpot_slo_ms));
  call.ttft_slo_ms = ttft_slo_ms.value_or(0);
  call.tpot_slo_ms = tpot_slo_ms.value_or(0);
  HEARTH_TRY(read_string(body, "cache_salt", kMaxSaltBytes, salt));
  call.cache_salt = std::move(salt).value_or("");
  HEARTH_TRY(read_bool(body, "skip_special_tokens", call.skip_special));
  HEARTH_TRY(read_bool(body, "return_token_ids", call.return_token_ids));
  HEARTH_TRY(read_bool(body, "return_tokens_as_token_ids", call.tokens_as_ids));
  return refuse_unsupported(body);
}

}  // namespace hearth
