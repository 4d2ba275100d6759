// SPDX-License-Identifier: Apache-2.0
// The loop: everybody waits, time goes to the next arrival or to where the step under way ends.
#include "tests/virtual_time/play.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "tests/virtual_time/virtual_device.h"

namespace hearth::virtual_time {
namespace {

constexpr int kTextWorkers = 1;
// They wait by the engine's clock: planner, step thread, keeper, text workers.
constexpr size_t kThreads = 3 + kTextWorkers;
constexpr uint64_t kNoiseStream = 98, kPromptStream = 97;

// Called by the planner's thread, read by the player while all threads wait.
class Counter final : public EngineObserver {
 public:
  Counter(const Load& load, std::span<const LoadRequest> requests, const Clock& clock, PlayOutcome& out)
      : load_(load), requests_(requests), clock_(clock), out_(out) {}

  void on_step(const StepRecord& record) override {
    if (!counts) return;
    ++out_.told.steps;
    const auto model_index = index_of(record.model);
    out_.steps.push_back({.model = model_index, .end_ns = clock_.now_ns(), .features = record.features});
    if (record.predicted_us > 0) {
      error_ += std::abs(static_cast<double>(record.predicted_us - record.measured_us)) /
                static_cast<double>(record.measured_us);
      ++predictions_;
    }
    out_.told.prediction_error = predictions_ > 0 ? error_ / static_cast<double>(predictions_) : 0;
    ModelOutcome& model = out_.told.models[static_cast<size_t>(model_index)];
    model.recomputed += record.preemptions;
    if (static_cast<double>(clock_.now_ns()) * 1e-9 >= load_.seconds) return;
    model.generated_tokens += record.generated_tokens;
    model.prompt_tokens += record.features.prefill_tokens;
    out_.told.busy += static_cast<double>(record.measured_us) * 1e-6 / load_.seconds;
  }

  void on_choice(const ChoiceRecord& record) override {
    if (!counts) return;
    size_t index = 0;
    std::from_chars(record.request.data(), record.request.data() + record.request.size(), index);
    ended.push_back(index);
    PlayedAnswer& answer = out_.answers[index];
    const int64_t arrival_ns = requests_[index].arrival_us * 1000;
    const auto at_ns = [&](double after_s) { return arrival_ns + std::llround(after_s * 1e9); };
    answer.tokens = record.generated_tokens;
    if (record.first_token_s >= 0) answer.first_ns = at_ns(record.first_token_s);
    if (record.reason == FinishReason::kLength) answer.last_ns = at_ns(record.finished_s);
    answer.rejected = record.reason == FinishReason::kError;
  }

  std::vector<size_t> ended;  // since the player looked
  bool counts = true;         // what the engine does as it ends is not of the load

 private:
  int64_t index_of(std::string_view name) const {
    return std::ranges::find(load_.models, name, &LoadModel::name) - load_.models.begin();
  }

  const Load& load_;
  const std::span<const LoadRequest> requests_;
  const Clock& clock_;
  PlayOutcome& out_;
  double error_ = 0;
  int64_t predictions_ = 0;
};

// Without which two requests would begin alike.
std::vector<int32_t> prompt_of(int64_t tokens, Random& random) {
  std::vector<int32_t> prompt(static_cast<size_t>(tokens));
  for (int32_t& id : prompt) id = static_cast<int32_t>(random.below(256));
  return prompt;
}

// As the simulator counts.
void count(const Load& load, std::span<const LoadRequest> requests, PlayOutcome& out) {
  std::vector<std::vector<double>> ttft_s(load.models.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    const auto m = static_cast<size_t>(requests[i].model);
    const PlayedAnswer& answer = out.answers[i];
    const int64_t arrival_us = requests[i].arrival_us;
    if (answer.first_ns >= 0) ttft_s[m].push_back(static_cast<double>(answer.first_ns - arrival_us * 1000) * 1e-9);
    if (static_cast<double>(arrival_us) < load.warmup_seconds * 1e6) continue;
    ModelOutcome& told = out.told.models[m];
    ++told.requests;
    told.rejected += answer.rejected;
    if (answer.rejected) continue;
    told.unfinished += answer.last_ns < 0;
    if (answer.last_ns < 0) continue;
    const Slo& slo = load.models[m].slo;
    const int64_t first_us = answer.first_ns / 1000, last_us = answer.last_ns / 1000;
    told.attained += attained(arrival_us, first_us, last_us, answer.tokens, slo);
    told.first_on_time += first_us <= first_due_us(arrival_us, slo);
    told.pace_kept += attained(first_us, first_us, last_us, answer.tokens, slo);
  }
  for (size_t m = 0; m < load.models.size(); ++m) {
    std::ranges::sort(ttft_s[m]);
    const auto quantile = [&](double p) {
      return ttft_s[m].empty() ? 0 : ttft_s[m][static_cast<size_t>(p * static_cast<double>(ttft_s[m].size() - 1))];
    };
    out.told.models[m].ttft_p50_s = quantile(0.5);
    out.told.models[m].ttft_p99_s = quantile(0.99);
  }
}

}  // namespace

Result<PlayOutcome> play(const Load& load, std::span<const LoadRequest> requests, const PlayOptions& options) {
  PlayOutcome out;
  out.told.requests = std::ssize(requests);
  out.told.models.resize(load.models.size());
  out.answers.resize(requests.size());
  VirtualClock clock(kThreads);
  VirtualDevice device(clock, load.noise, load.seed + kNoiseStream);
  Counter counter(load, requests, clock, out);
  int64_t max_context = 1;
  for (const LoadRequest& r : requests) max_context = std::max(max_context, r.input_tokens + r.output_tokens);
  std::vector<RequestHandle> handles(requests.size());
  HEARTH_TRY_ASSIGN(std::unique_ptr<Engine> engine,
                    Engine::create({.threads = 1,
                                    .text_workers = kTextWorkers,
                                    .max_sequences = load.max_sequences,
                                    .step_tokens = load.step_tokens,
                                    .block_tokens = load.block_tokens,
                                    .kv_bytes = load.pool_bytes,
                                    .kv_parts = options.static_parts ? std::ssize(load.models) : 0,
                                    .schedule = options.schedule,
                                    .reject_hopeless = options.reject_hopeless,
                                    .prefix_cache = options.prefix_cache,
                                    .max_waiting = std::numeric_limits<int64_t>::max() / 2,
                                    .max_unread = std::numeric_limits<int64_t>::max()},
                                   &counter, clock));
  // Before the engine ends, also where a model cannot be added.
  const std::shared_ptr<void> lets_go(nullptr, [&clock](void*) { clock.let_go(); });
  std::vector<std::shared_ptr<const ServedModel>> models;
  for (const LoadModel& model : load.models) {
    HEARTH_TRY_ASSIGN(models.emplace_back(), device.load(model, load.block_tokens, max_context));
    HEARTH_TRY(engine->add_model(models.back(), {.slo = model.slo, .weight = model.weight}));
  }

  clock.conduct();
  Random prompts(load.seed, kPromptStream);
  const auto end_ns = static_cast<int64_t>((load.seconds + options.drain_seconds) * 1e9);
  for (size_t next = 0;;) {
    clock.settle();
    for (const size_t ended : std::exchange(counter.ended, {})) handles[ended] = {};
    const std::optional<int64_t> wake_ns = clock.next_wake_ns();
    const bool arrives = next < requests.size() && (!wake_ns || requests[next].arrival_us * 1000 <= *wake_ns);
    if (!arrives && !wake_ns) break;
    const int64_t then_ns = arrives ? requests[next].arrival_us * 1000 : *wake_ns;
    if (then_ns > end_ns) break;
    clock.advance_to(then_ns);
    if (!arrives) continue;
    Request request;
    request.id = std::to_string(next);
    request.model = models[static_cast<size_t>(requests[next].model)];
    request.prompt = prompt_of(requests[next].input_tokens, prompts);
    request.max_tokens = requests[next].output_tokens;
    auto handle = engine->submit(std::move(request), [](Output&&) {});
    out.answers[next].rejected = !handle;
    if (handle) handles[next] = std::move(*handle);
    ++next;
  }
  for (const ModelStats& stats : engine->stats()) out.counted.push_back(stats.attainment);
  counter.counts = false;
  clock.let_go();
  engine.reset();
  count(load, requests, out);
  return out;
}

}  // namespace hearth::virtual_time
