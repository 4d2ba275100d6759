// SPDX-License-Identifier: Apache-2.0
// Pure functions.
#include "hearth/client/load_plan.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>

#include "hearth/client/request_body.h"

namespace hearth {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kInputStream = 0, kOutputStream = 1;

struct Source {
  LoadPlanSettings settings;
  Json extra = Json::object();
  std::vector<PromptLine> prompts;
  std::vector<PlannedRequest> requests;
  bool recorded_times = false;

  std::string body(size_t index) const;
};

std::string Source::body(size_t index) const {
  const PlannedRequest& request = requests[index];
  const std::string text = open_body(
      {.model = settings.model, .ignore_eos = settings.ignore_eos, .temperature = settings.temperature, .slo = {}},
      request.output_tokens, extra);
  if (settings.dataset == Dataset::kPrompts) {
    const PromptLine& line = prompts[index % prompts.size()];
    if (!settings.chat) return fmt::format("{},\"prompt\":{}}}", text, line.prompt_json);
    if (!line.messages_json.empty()) return fmt::format("{},\"messages\":{}}}", text, line.messages_json);
    return fmt::format("{},\"messages\":[{{\"role\":\"user\",\"content\":{}}}]}}", text, line.prompt_json);
  }
  if (settings.chat)
    return fmt::format("{},\"messages\":[{{\"role\":\"user\",\"content\":\"{}\"}}]}}", text,
                       draw_text(request.input_tokens, settings.seed, index));
  return fmt::format("{},\"prompt\":{}}}", text,
                     ids_text(draw_prompt(settings.token_ids, request.input_tokens, settings.seed, index)));
}

void set_times(Source& source) {
  const LoadPlanSettings& s = source.settings;
  const auto times = draw_arrivals(std::ssize(source.requests), s.request_rate, s.burstiness, s.seed);
  for (size_t i = 0; i < times.size(); ++i) source.requests[i].arrival_s = times[i];
}

void plan_random(Source& source) {
  const LoadPlanSettings& s = source.settings;
  const int64_t count = s.num_prompts.value_or(kDefaultNumPrompts);
  const auto inputs = draw_lengths(count, s.input_len, s.range_ratio, s.seed, kInputStream);
  const auto outputs = draw_lengths(count, s.output_len, s.range_ratio, s.seed, kOutputStream);
  for (size_t i = 0; i < inputs.size(); ++i)
    source.requests.push_back({.arrival_s = 0, .input_tokens = inputs[i], .output_tokens = outputs[i]});
  set_times(source);
}

Status plan_trace(Source& source) {
  const LoadPlanSettings& s = source.settings;
  HEARTH_TRY_ASSIGN(Trace trace, parse_trace(s.file_text));
  const int64_t rows = std::ssize(trace.requests);
  if (trace.has_times) {
    if (std::isfinite(s.request_rate))
      return invalid_argument("the trace says when its requests arrive: --trace-scale, not --request-rate, changes it");
    if (s.num_prompts.value_or(0) > rows)
      return invalid_argument("the trace has {} requests and --num-prompts asks for {}", rows, *s.num_prompts);
    trace.requests.resize(static_cast<size_t>(s.num_prompts.value_or(rows)));
    for (PlannedRequest& request : trace.requests) request.arrival_s *= s.trace_scale;
    source.requests = std::move(trace.requests);
    source.recorded_times = true;
    return {};
  }
  if (s.trace_scale != 1) return invalid_argument("--trace-scale: the trace has no times; --request-rate says them");
  const int64_t count = s.num_prompts.value_or(std::min(rows, kDefaultNumPrompts));
  for (int64_t i = 0; i < count; ++i) source.requests.push_back(trace.requests[static_cast<size_t>(i % rows)]);
  set_times(source);
  return {};
}

Status plan_prompts(Source& source) {
  const LoadPlanSettings& s = source.settings;
  HEARTH_TRY_ASSIGN(source.prompts, parse_prompt_lines(s.file_text));
  for (size_t i = 0; i < source.prompts.size(); ++i) {
    const PromptLine& line = source.prompts[i];
    if (!s.chat && line.prompt_json.empty())
      return invalid_argument("prompt {} has messages, which /v1/completions does not take", i + 1);
    if (s.chat && line.input_tokens > 0)
      return invalid_argument("prompt {} is a list of token ids, which /v1/chat/completions does not take", i + 1);
  }
  const int64_t rows = std::ssize(source.prompts);
  const int64_t count = s.num_prompts.value_or(std::min(rows, kDefaultNumPrompts));
  for (int64_t i = 0; i < count; ++i) {
    const PromptLine& line = source.prompts[static_cast<size_t>(i % rows)];
    source.requests.push_back({.arrival_s = 0,
                               .input_tokens = line.input_tokens,
                               .output_tokens = line.output_tokens > 0 ? line.output_tokens : s.output_len});
  }
  set_times(source);
  return {};
}

Status check_context(const Source& source) {
  const int64_t context = source.settings.max_context;
  int64_t too_long = 0;
  const PlannedRequest* longest = nullptr;
  for (const PlannedRequest& request : source.requests) {
    const int64_t tokens = request.input_tokens + request.output_tokens;
    if (tokens <= context) continue;
    ++too_long;
    if (longest == nullptr || tokens > longest->input_tokens + longest->output_tokens) longest = &request;
  }
  if (context == 0 || longest == nullptr) return {};
  const char* const advice = source.settings.dataset == Dataset::kRandom
                                 ? "--random-input-len and --random-output-len set them"
                                 : "--max-input-len and --max-output-len cap them";
  return invalid_argument(
      "{} of {} requests are longer than the model's context of {} tokens (the longest: {} + {}); {}", too_long,
      source.requests.size(), context, longest->input_tokens, longest->output_tokens, advice);
}

}  // namespace

Result<LoadPlan> make_load_plan(LoadPlanSettings settings) {
  const auto source = std::make_shared<Source>();
  source->settings = std::move(settings);
  const LoadPlanSettings& s = source->settings;
  HEARTH_TRY_ASSIGN(source->extra, parse_extra_body(s.extra_body));
  switch (s.dataset) {
    case Dataset::kRandom: plan_random(*source); break;
    case Dataset::kTrace: HEARTH_TRY(plan_trace(*source)); break;
    case Dataset::kPrompts: HEARTH_TRY(plan_prompts(*source)); break;
  }
  for (PlannedRequest& request : source->requests) {
    if (s.max_input_len > 0 && s.dataset != Dataset::kPrompts)
      request.input_tokens = std::min(request.input_tokens, s.max_input_len);
    if (s.max_output_len > 0) request.output_tokens = std::min(request.output_tokens, s.max_output_len);
  }
  HEARTH_TRY(check_context(*source));
  source->settings.file_text.clear();
  return LoadPlan{.requests = source->requests,
                  .recorded_times = source->recorded_times,
                  .make_body = [source](size_t index) { return source->body(index); }};
}

}  // namespace hearth
