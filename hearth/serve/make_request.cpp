// SPDX-License-Identifier: Apache-2.0
// Defaults as in vLLM: the request's value, else that of generation_config.json, else the neutral one.
#include "hearth/serve/make_request.h"

#include <sys/random.h>

#include <algorithm>
#include <ctime>

#include "hearth/base/clock.h"
#include "hearth/engine/engine.h"

namespace hearth {
namespace {

constexpr int64_t kCompletionMaxTokens = 16;  // OpenAI's default

uint64_t random_seed() {
  uint64_t seed = 0;
  if (getrandom(&seed, sizeof seed, 0) != sizeof seed) seed = static_cast<uint64_t>(SteadyClock().now_ns());
  return seed;
}

int64_t local_time() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  return static_cast<int64_t>(now) + local.tm_gmtoff;
}

SamplingParams sampling_params(const GenerationCall& call, const GenerationDefaults& defaults) {
  const double usual_temperature = defaults.do_sample == false ? 0.0 : defaults.temperature.value_or(1.0);
  const int64_t top_k = call.top_k.value_or(defaults.top_k.value_or(0));
  SamplingParams p;
  p.temperature = static_cast<float>(call.temperature.value_or(usual_temperature));
  p.top_k = static_cast<int32_t>(std::clamp<int64_t>(top_k, -1, std::numeric_limits<int32_t>::max()));
  p.top_p = static_cast<float>(call.top_p.value_or(defaults.top_p.value_or(1.0)));
  p.min_p = static_cast<float>(call.min_p.value_or(defaults.min_p.value_or(0.0)));
  p.repetition_penalty =
      static_cast<float>(call.repetition_penalty.value_or(defaults.repetition_penalty.value_or(1.0)));
  p.presence_penalty = static_cast<float>(call.presence_penalty);
  p.frequency_penalty = static_cast<float>(call.frequency_penalty);
  p.seed = call.seed ? *call.seed : random_seed();
  return p;
}

ApiStatus check_ids(std::span<const int32_t> ids, const ApiModel& model, const char* param) {
  const int64_t vocab = model.served->model->config().vocab_size;
  for (size_t i = 0; i < ids.size(); ++i)
    if (ids[i] < 0 || ids[i] >= vocab)
      return bad_request(param, "{}: token {} at position {} is not in the model's vocabulary of {}", param, ids[i], i,
                         vocab);
  return {};
}

std::vector<int32_t> end_ids(const GenerationCall& call, const ServedModel& model) {
  std::vector<int32_t> ids = call.stop_token_ids;
  if (!call.ignore_eos) ids.insert(ids.end(), model.end_ids.begin(), model.end_ids.end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

// What a request asks beyond a limit of a lower layer is no fault of the server.
ApiError blame(Error error, const std::string& param) {
  const bool limit = error.code == ErrorCode::kResourceExhausted || error.code == ErrorCode::kDeadlineExceeded;
  if (limit) return over_limit(param, fmt::format("{}: {}", param, error.message));
  ApiError answer = to_api_error(error);
  if (answer.status == 400) answer.message = fmt::format("{}: {}", param, answer.message), answer.param = param;
  return answer;
}

ApiStatus set_grammar(const GenerationCall& call, const ApiModel& model, const ApiLimits& limits, Request& request) {
  if (!call.grammar) return {};
  if (call.ignore_eos)
    return bad_request("ignore_eos", "ignore_eos: a text of a given form ends; not with {}", call.grammar_param);
  if (!model.served->grammars)
    return bad_request(call.grammar_param, "{}: this server compiles no grammars", call.grammar_param);
  auto grammar = model.served->grammars->compile(*call.grammar, limits.grammar);
  // What is too complex now is so at the next try.
  if (!grammar && grammar.error().code == ErrorCode::kResourceExhausted)
    return over_limit(call.grammar_param, grammar.error().message);
  if (!grammar) return blame(std::move(grammar).error(), call.grammar_param);
  request.grammar = std::move(grammar).value();
  return {};
}

// All of a request but its prompt and max_tokens.
ApiResult<Request> make_base(const GenerationCall& call, const ApiModel& model, const ApiLimits& limits,
                             const RequestOrigin& origin) {
  Request request;
  request.id = origin.id;
  request.tenant = origin.tenant;
  request.model = model.served;
  request.n = call.n;
  request.params = sampling_params(call, model.served->defaults);
  request.logit_bias = call.logit_bias;
  std::vector<int32_t> biased;
  for (const LogitBias& bias : call.logit_bias) biased.push_back(bias.token);
  HEARTH_TRY(check_ids(biased, model, "logit_bias"));
  HEARTH_TRY(check_ids(call.stop_token_ids, model, "stop_token_ids"));
  request.stop = call.stop;
  request.include_stop = call.include_stop;
  request.skip_special = call.skip_special;
  request.end_ids = end_ids(call, *model.served);
  request.min_tokens = call.min_tokens;
  request.logprobs = call.logprobs.value_or(kNoLogprobs);
  request.prompt_logprobs = call.prompt_logprobs.value_or(kNoLogprobs);
  request.priority = call.priority;
  request.slo = {.ttft_us = 1000 * call.ttft_slo_ms, .tpot_us = 1000 * call.tpot_slo_ms};
  request.cache_salt = call.cache_salt;
  HEARTH_TRY(set_grammar(call, model, limits, request));
  return request;
}

// The tokens that a sequence may have. A KV pool that is smaller than the model's context is the context there is.
int64_t context_of(const ApiModel& model, const RequestOrigin& origin) {
  const int64_t longest = model.served->max_context;
  return origin.kv_tokens > 0 ? std::min(longest, origin.kv_tokens) : longest;
}

struct PromptRoom {
  const char* param;         // what errors call the prompt
  int64_t context;           // tokens of prompt and output
  int64_t usual_max_tokens;  // where the request says nothing, if it fits
};

// Checks the prompt against the context, and settles max_tokens: what was asked for, else the usual or what fits.
ApiStatus set_prompt(Request& request, std::vector<int32_t> ids, const std::optional<int64_t>& wanted,
                     const PromptRoom& room) {
  const int64_t context = room.context, tokens = std::ssize(ids);
  const char* const param = room.param;
  if (ids.empty()) return bad_request(param, "{}: no tokens; wanted at least one", param);
  const int64_t left = context - tokens;
  if (left < 0 || (left == 0 && wanted.value_or(1) > 0))
    return too_long(param, fmt::format("{} has {} tokens; the model's maximum context length is {} tokens, those to "
                                       "be written among them",
                                       param, tokens, context));
  if (wanted && *wanted > left)
    return too_long("max_tokens",
                    fmt::format("{} has {} tokens and max_tokens asks for {} more; the model's maximum context length "
                                "is {} tokens",
                                param, tokens, *wanted, context));
  request.prompt = std::move(ids);
  request.max_tokens = wanted.value_or(std::min(left, room.usual_max_tokens));
  if (request.min_tokens > request.max_tokens)
    return bad_request("min_tokens", "min_tokens: found {}; wanted at most max_tokens, which is {}", request.min_tokens,
                       request.max_tokens);
  return {};
}

int64_t usual_max_tokens(const ApiLimits& limits, int64_t usual) {
  return limits.max_tokens > 0 ? std::min(limits.max_tokens, usual) : usual;
}

}  // namespace

ApiResult<std::vector<int32_t>> encode_prompt(const ApiModel& model, std::string_view text, bool add_special_tokens,
                                              const char* param) {
  if (std::ssize(text) > model.max_prompt_bytes)
    return too_long(param, fmt::format("{} has {} bytes; the model's maximum context length is {} tokens, which never "
                                       "hold more than {} bytes",
                                       param, text.size(), model.served->max_context, model.max_prompt_bytes));
  auto ids = model.served->tokenizer.encode(text, {.add_special_tokens = add_special_tokens});
  if (!ids) return blame(std::move(ids).error(), param);
  return std::move(ids).value();
}

ApiResult<std::string> render_chat(const ApiModel& model, const ChatMessages& chat) {
  if (!model.served->chat_template)
    return bad_request("messages",
                       "the model {} has no chat template, so it was not trained to chat; /v1/completions "
                       "continues a text",
                       model.served->name);
  std::string messages;
  if (model.knows_developer) {
    messages = to_text(chat.messages);
  } else {
    Json renamed = chat.messages;
    for (Json& message : renamed)
      if (message["role"] == "developer") message["role"] = "system";
    messages = to_text(renamed);
  }
  auto text = model.served->chat_template->render({.messages_json = messages,
                                                   .tools_json = chat.tools,
                                                   .extra_json = chat.extra,
                                                   .add_generation_prompt = chat.add_generation_prompt,
                                                   .special_tokens = model.served->tokenizer.special_tokens(),
                                                   .local_time_s = local_time()});
  if (!text) return blame(std::move(text).error(), "messages");
  return std::move(text).value();
}

ApiResult<std::vector<PreparedPrompt>> prepare_completion(const CompletionCall& call, const ApiModel& model,
                                                          const ApiLimits& limits, const RequestOrigin& origin) {
  HEARTH_TRY_ASSIGN(Request base, make_base(call, model, limits, origin));
  if (call.echo && call.logprobs) base.prompt_logprobs = std::max(base.prompt_logprobs, *call.logprobs);
  const PromptRoom room = {.param = "prompt",
                           .context = context_of(model, origin),
                           .usual_max_tokens = usual_max_tokens(limits, kCompletionMaxTokens)};
  std::vector<PreparedPrompt> prepared;
  for (const Prompt& prompt : call.prompts) {
    if (origin.gone && origin.gone()) return to_api_error(cancelled("the client is gone"));
    PreparedPrompt one{.request = base, .text = {}};
    // Equal prompts of one request give equal texts only where a seed was asked for.
    if (!call.seed) one.request.params.seed = random_seed();
    std::vector<int32_t> ids;
    if (const auto* text = std::get_if<std::string>(&prompt)) {
      HEARTH_TRY_ASSIGN(ids, encode_prompt(model, *text, call.add_special_tokens, "prompt"));
      if (call.echo) one.text = *text;
    } else {
      ids = std::get<std::vector<int32_t>>(prompt);
    }
    HEARTH_TRY(check_ids(ids, model, "prompt"));
    HEARTH_TRY(set_prompt(one.request, std::move(ids), call.max_tokens, room));
    if (call.echo && std::holds_alternative<std::vector<int32_t>>(prompt)) {
      // Rows of a padded vocabulary have no token, and so no text.
      std::vector<int32_t> known = one.request.prompt;
      std::erase_if(known, [&](int32_t id) { return id >= model.served->tokenizer.vocab_size(); });
      HEARTH_TRY_ASSIGN(one.text, model.served->tokenizer.decode(known, call.skip_special));
    }
    HEARTH_TRY(validate(one.request));
    prepared.push_back(std::move(one));
  }
  return prepared;
}

ApiResult<std::vector<PreparedPrompt>> prepare_chat(const ChatCall& call, const ApiModel& model,
                                                    const ApiLimits& limits, const RequestOrigin& origin) {
  HEARTH_TRY_ASSIGN(const std::string text, render_chat(model, call.chat));
  if (origin.gone && origin.gone()) return to_api_error(cancelled("the client is gone"));
  HEARTH_TRY_ASSIGN(std::vector<int32_t> ids, encode_prompt(model, text, call.add_special_tokens, "messages"));
  HEARTH_TRY(check_ids(ids, model, "messages"));
  HEARTH_TRY_ASSIGN(Request request, make_base(call, model, limits, origin));
  const PromptRoom room = {.param = "messages",
                           .context = context_of(model, origin),
                           .usual_max_tokens = usual_max_tokens(limits, std::numeric_limits<int32_t>::max())};
  HEARTH_TRY(set_prompt(request, std::move(ids), call.max_tokens, room));
  HEARTH_TRY(validate(request));
  std::vector<PreparedPrompt> prepared;
  prepared.push_back({.request = std::move(request), .text = {}});
  return prepared;
}

}  // namespace hearth
