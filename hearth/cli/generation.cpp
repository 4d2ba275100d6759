// SPDX-License-Identifier: Apache-2.0
#include "hearth/cli/generation.h"

#include <sys/random.h>

#include <algorithm>

#include "hearth/base/clock.h"
#include "hearth/text/detokenizer.h"

namespace hearth {
namespace {

// Tokens of a prompt between two looks at Ctrl-C.
constexpr size_t kPromptChunk = 512;

double seconds_between(int64_t begin_ns, int64_t end_ns) { return static_cast<double>(end_ns - begin_ns) * 1e-9; }

// The logits after the prompt; empty where `stop` was set before the end. `fed` follows.
Result<std::optional<ConstTensorView>> feed_prompt(Runner& runner, const std::vector<int32_t>& prompt,
                                                   std::vector<int32_t>& fed, int64_t& fed_tokens,
                                                   const std::atomic<bool>& stop) {
  const auto differs = std::mismatch(fed.begin(), fed.end(), prompt.begin(), prompt.end()).first;
  // The last token is always fed: its logits are what is wanted.
  const size_t common = std::min(static_cast<size_t>(differs - fed.begin()), prompt.size() - 1);
  fed.resize(common);
  runner.cut(0, static_cast<int64_t>(common));
  fed_tokens = static_cast<int64_t>(prompt.size() - common);
  std::span<const int32_t> rest = std::span(prompt).subspan(common);
  while (true) {
    if (stop.load(std::memory_order_relaxed)) return std::optional<ConstTensorView>();
    const auto chunk = rest.first(std::min(rest.size(), kPromptChunk));
    HEARTH_TRY_ASSIGN(const ConstTensorView logits, runner.feed(0, chunk));
    fed.insert(fed.end(), chunk.begin(), chunk.end());
    rest = rest.subspan(chunk.size());
    if (rest.empty()) return std::optional<ConstTensorView>(logits);
  }
}

Result<GeneratedToken> sample_token(Runner& runner, const GenerationPlan& plan, ConstTensorView logits,
                                    std::span<const int32_t> prompt, std::span<const int32_t> output) {
  SampleRow row;
  row.params = plan.params;
  row.position = runner.context(0);
  row.prompt_tokens = prompt;
  row.output_tokens = output;
  row.logit_bias = plan.logit_bias;
  row.allowed = plan.allowed;
  if (std::ssize(output) < plan.min_tokens) row.banned = plan.end_ids;
  row.top_logprobs = plan.logprobs;
  GeneratedToken token;
  token.top.resize(static_cast<size_t>(std::max(plan.logprobs, 0)));
  SampleResult result;
  result.top = token.top;
  HEARTH_TRY(
      runner.model().ops().sample({.logits = logits, .rows = {&row, 1}, .results = {&result, 1}}, runner.exec()));
  token.id = result.token;
  token.logprob = result.logprob;
  return token;
}

}  // namespace

uint64_t random_seed() {
  uint32_t seed = 0;
  if (getrandom(&seed, sizeof seed, 0) != sizeof seed) seed = static_cast<uint32_t>(SteadyClock().now_ns());
  return seed;
}

Result<GenerationPlan> plan_generation(const SamplingSettings& s, const ServedModel& model, uint64_t seed) {
  const GenerationDefaults defaults = s.generation_config == "auto" ? model.defaults : GenerationDefaults();
  const double usual_temperature = defaults.do_sample == false ? 0.0 : defaults.temperature.value_or(1.0);
  GenerationPlan plan;
  SamplingParams& p = plan.params;
  p.temperature = static_cast<float>(s.temperature.value_or(usual_temperature));
  const int64_t top_k = s.top_k.value_or(defaults.top_k.value_or(0));
  p.top_k = static_cast<int32_t>(std::clamp<int64_t>(top_k, -2, std::numeric_limits<int32_t>::max()));
  p.top_p = static_cast<float>(s.top_p.value_or(defaults.top_p.value_or(1.0)));
  p.min_p = static_cast<float>(s.min_p.value_or(defaults.min_p.value_or(0.0)));
  p.repetition_penalty = static_cast<float>(s.repetition_penalty.value_or(defaults.repetition_penalty.value_or(1.0)));
  p.presence_penalty = static_cast<float>(s.presence_penalty);
  p.frequency_penalty = static_cast<float>(s.frequency_penalty);
  p.seed = s.seed ? static_cast<uint64_t>(*s.seed) : seed;
  HEARTH_TRY(validate(p));

  const ModelConfig& config = model.model->config();
  const auto check_id = [&](std::string_view flag, int32_t id) -> Status {
    if (id >= config.vocab_size)
      return invalid_argument("{}: token {} is beyond the model's vocabulary of {}", flag, id, config.vocab_size);
    return {};
  };
  for (const std::string& text : s.logit_bias) {
    HEARTH_TRY_ASSIGN(const LogitBias bias, parse_logit_bias(text));
    HEARTH_TRY(check_id("--logit-bias", bias.token));
    for (const LogitBias& other : plan.logit_bias)
      if (other.token == bias.token) return invalid_argument("--logit-bias: token {} is given twice", bias.token);
    plan.logit_bias.push_back(bias);
  }
  for (const std::string& text : s.stop_token_ids) {
    HEARTH_TRY_ASSIGN(const int32_t id, parse_token_id("--stop-token-ids", text));
    HEARTH_TRY(check_id("--stop-token-ids", id));
    plan.end_ids.push_back(id);
  }
  if (!s.ignore_eos) plan.end_ids.insert(plan.end_ids.end(), model.end_ids.begin(), model.end_ids.end());
  std::sort(plan.end_ids.begin(), plan.end_ids.end());
  plan.end_ids.erase(std::unique(plan.end_ids.begin(), plan.end_ids.end()), plan.end_ids.end());
  for (const std::string& text : s.stop)
    if (text.empty()) return invalid_argument("--stop: the text is empty");
  plan.stop = s.stop;
  plan.include_stop = s.include_stop;
  plan.allowed = model.allowed;
  plan.min_tokens = s.min_tokens;
  return plan;
}

Result<Generation> generate(Runner& runner, const Tokenizer& tokenizer, const GenerationPlan& plan,
                            const std::vector<int32_t>& prompt, std::vector<int32_t>& fed, const OnText& on_text,
                            const std::atomic<bool>& stop) {
  HEARTH_CHECK(!prompt.empty() && std::ssize(prompt) + plan.max_tokens <= runner.max_context() + 1,
               "prompt of {} and {} tokens in a context of {}", prompt.size(), plan.max_tokens, runner.max_context());
  HEARTH_TRY_ASSIGN(Detokenizer detokenizer, Detokenizer::create(tokenizer, {.skip_special = true,
                                                                             .continues_text = true,
                                                                             .stop = plan.stop,
                                                                             .include_stop = plan.include_stop}));
  Generation result;
  const auto emit = [&](std::string piece) -> Status {
    result.text += piece;
    return piece.empty() ? Status() : on_text(piece);
  };
  const SteadyClock clock;
  const int64_t begin_ns = clock.now_ns();
  int64_t first_ns = 0;
  std::vector<int32_t> output;
  HEARTH_TRY_ASSIGN(std::optional<ConstTensorView> logits, feed_prompt(runner, prompt, fed, result.fed_tokens, stop));
  if (!logits) result.reason = FinishReason::kCancelled;
  while (logits) {
    HEARTH_TRY_ASSIGN(GeneratedToken token, sample_token(runner, plan, *logits, prompt, output));
    const int32_t id = token.id;
    if (first_ns == 0) first_ns = clock.now_ns();
    result.tokens.push_back(std::move(token));
    output.push_back(id);
    if (std::binary_search(plan.end_ids.begin(), plan.end_ids.end(), id)) {
      result.reason = FinishReason::kStop;
      result.stop_token = id;
      break;
    }
    HEARTH_TRY_ASSIGN(std::string piece, detokenizer.push(id));
    HEARTH_TRY(emit(std::move(piece)));
    if (const auto hit = detokenizer.stop_hit()) {
      result.reason = FinishReason::kStop;
      result.stop_text = plan.stop[static_cast<size_t>(*hit)];
      break;
    }
    result.reason = FinishReason::kLength;
    if (std::ssize(output) >= plan.max_tokens) break;
    if (stop.load(std::memory_order_relaxed)) {
      result.reason = FinishReason::kCancelled;
      break;
    }
    HEARTH_TRY_ASSIGN(logits, runner.feed(0, {&id, 1}));
    fed.push_back(id);
  }
  HEARTH_TRY_ASSIGN(std::string rest, detokenizer.flush());
  HEARTH_TRY(emit(std::move(rest)));
  const int64_t end_ns = clock.now_ns();
  if (first_ns == 0) first_ns = end_ns;
  result.prefill_seconds = seconds_between(begin_ns, first_ns);
  result.decode_seconds = seconds_between(first_ns, end_ns);
  return result;
}

std::string describe_speed(const Generation& g) {
  const auto rate = [](int64_t tokens, double seconds) {
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
  };
  const int64_t count = std::ssize(g.tokens);
  std::string text = fmt::format("{} prompt token{} ({:.0f} tokens/s), first token after {:.0f} ms, {} token{} written",
                                 g.fed_tokens, g.fed_tokens == 1 ? "" : "s", rate(g.fed_tokens, g.prefill_seconds),
                                 g.prefill_seconds * 1e3, count, count == 1 ? "" : "s");
  // The first token belongs to the prompt's time.
  if (count > 1) text += fmt::format(" ({:.1f} tokens/s)", rate(count - 1, g.decode_seconds));
  return text;
}

}  // namespace hearth
