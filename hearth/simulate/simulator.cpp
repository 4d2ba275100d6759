// SPDX-License-Identifier: Apache-2.0
// The loop: arrivals, a turn, a step, the clock. As in the engine, the next step is planned while one computes: who
// comes or ends meanwhile is in the step after it.
#include "hearth/simulate/simulator.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <memory>
#include <utility>

#include "hearth/base/check.h"
#include "hearth/base/random.h"
#include "hearth/schedule/local_policy.h"
#include "hearth/schedule/step_queue.h"
#include "hearth/schedule/swap_books.h"
#include "hearth/simulate/simulator_state.h"

namespace hearth {
namespace {

using namespace simulated;

constexpr int64_t kMostWaiting = 256, kMostLate = 16;  // of a model that a policy sees at once
constexpr int64_t kMaxMoveBytes = int64_t{64} << 20;   // by compaction, in a step
constexpr uint64_t kNoiseStream = 99;

class Simulator {
 public:
  Simulator(const Load& load, std::span<const LoadRequest> requests, const SimulatorOptions& options,
            SimulatedMemory memory, std::unique_ptr<LocalPolicy> policy)
      : load_(load),
        requests_(requests),
        options_(options),
        memory_(std::move(memory)),
        policy_(std::move(policy)),
        noise_(load.seed, kNoiseStream),
        models_(load.models.size()),
        rejects_(options.reject_hopeless || options.policy == "fineserve"),
        swap_(load.swap_bytes, load.swap_us_per_mib / (1 << 20)) {
    for (size_t m = 0; m < models_.size(); ++m) models_[m].kv = memory_.places[m];
    for (const Model& m : models_) shares_.push_back(&m.share);
    outcome_.models.resize(models_.size());
    outcome_.requests = std::ssize(requests);
    last_us_ = static_cast<int64_t>(load.seconds * 1e6);
    warm_us_ = static_cast<int64_t>(load.warmup_seconds * 1e6);
  }

  SimulationOutcome run() {
    const int64_t end_us = last_us_ + static_cast<int64_t>(options_.drain_seconds * 1e6);
    while (now_us_ < end_us) {
      if (!flights_.empty() && flights_.front().end_us <= now_us_) collect();
      arrive();
      sample();
      const bool may_plan = std::ssize(flights_) <= load_.steps_ahead;
      if (may_plan && step()) continue;
      if (flights_.empty() && next_ == requests_.size()) break;
      int64_t next_us = flights_.empty() ? std::numeric_limits<int64_t>::max() : flights_.front().end_us;
      if (may_plan && next_ < requests_.size()) next_us = std::min(next_us, requests_[next_].arrival_us);
      now_us_ = std::max(now_us_, next_us);
    }
    finish();
    return std::move(outcome_);
  }

 private:
  Model& model(int64_t m) { return models_[static_cast<size_t>(m)]; }
  const LoadModel& load_of(int64_t m) const { return load_.models[static_cast<size_t>(m)]; }
  ModelOutcome& outcome(const Sequence& s) { return outcome_.models[static_cast<size_t>(s.request.model)]; }
  bool counts(const Sequence& s) const { return s.request.arrival_us >= warm_us_; }
  int64_t blocks_for(int64_t tokens) const { return (tokens + load_.block_tokens - 1) / load_.block_tokens; }

  void arrive() {
    for (; next_ < requests_.size() && requests_[next_].arrival_us <= now_us_; ++next_) {
      auto owned = std::make_unique<Sequence>();
      owned->request = requests_[next_];
      Model& m = model(owned->request.model);
      if (counts(*owned)) ++outcome(*owned).requests;
      const int64_t most = blocks_for(owned->request.input_tokens + owned->request.output_tokens);
      if (most > m.kv.pool->most(m.kv.model)) {
        reject(*owned);
        continue;
      }
      m.waiting.push_back(std::move(owned));
    }
  }

  void reject(const Sequence& s) {
    if (counts(s)) ++outcome(s).rejected;
    ++ended_;
  }

  // ---- what the policy sees

  PolicySequence view(const Sequence& s) const {
    PolicySequence v;
    v.running = s.running;
    v.in_flight = s.in_flight > 0;
    v.fed = s.fed;
    v.pending = s.pending();
    v.ready = v.pending > 0 && !s.gives_way;
    v.blocks = v.own_blocks = std::ssize(s.blocks);
    v.first_out = s.planned > 0;
    v.late = s.late;
    v.due_us = due_us(s);
    return v;
  }

  int64_t due_us(const Sequence& s) const {
    const Slo& slo = load_of(s.request.model).slo;
    if (!options_.clairvoyant || s.late || s.out == 0 || slo.tpot_us <= 0)
      return hearth::due_us({.arrival_us = s.request.arrival_us,
                             .planned = s.planned,
                             .out = s.out,
                             .first_us = s.first_us,
                             .last_us = s.last_us,
                             .late = s.late},
                            slo, free_us());
    const int64_t last_due = next_due_us(s.first_us, s.request.output_tokens - 1, slo);
    return last_due - (s.request.output_tokens - 1 - s.planned) * slo.tpot_us / 2;
  }

  // When the steps under way will have ended, as far as is known.
  int64_t free_us() const { return under_way_.free_us(now_us_); }
  // What a policy that is to know them knows.
  bool knows_costs() const { return options_.clairvoyant || options_.policy == "fineserve"; }  // it profiles beforehand

  void look_at(int64_t index) {
    Model& m = model(index);
    m.views.clear();
    m.seen.clear();
    const auto add = [&](const Owned& s) {
      m.views.push_back(view(*s));
      m.seen.push_back(s.get());
    };
    std::ranges::for_each(m.running, add);
    for (int64_t i = 0; i < std::min(kMostWaiting, std::ssize(m.waiting)); ++i) add(m.waiting[static_cast<size_t>(i)]);
    for (int64_t i = 0; i < std::min(kMostLate, std::ssize(m.late)); ++i) add(m.late[static_cast<size_t>(i)]);
  }

  PolicyLimits limits(int64_t index) {
    Model& m = model(index);
    const bool admits = m.kv.pool->admits() || running_ == 0;
    return {.tokens = load_.step_tokens,
            .rows = std::max(load_.step_tokens, load_.max_sequences),
            .sequences = admits ? load_.max_sequences : std::ssize(m.running),
            .block_tokens = load_.block_tokens,
            .free_blocks = m.kv.pool->available(m.kv.model),
            .growth_blocks = load_.growth_blocks};
  }

  Turn next_turn() {
    locals_.clear();
    for (int64_t i = 0; i < std::ssize(models_); ++i) {
      Model& m = model(i);
      locals_.push_back({.sequences = m.views,
                         .limits = limits(i),
                         .cost = knows_costs() ? load_of(i).cost : m.cost.cost(),
                         .slo = load_of(i).slo,
                         .last_turn = m.last_turn,
                         .service = m.share.service,
                         .skip = m.skip});
    }
    return policy_->next(locals_, free_us());
  }

  void mark_hopeless(const Turn& turn) {
    for (const Hopeless& h : turn.hopeless) {
      Sequence* const s = model(h.model).seen[static_cast<size_t>(h.sequence)];
      if (s->late || s->running) continue;
      s->late = true;
      auto& waiting = model(h.model).waiting;
      const auto at = std::ranges::find_if(waiting, [&](const Owned& o) { return o.get() == s; });
      Owned owned = std::move(*at);
      waiting.erase(at);
      if (rejects_) {
        if (owned->swapped_at) swap_.give_back(*owned->swapped_at);
        reject(*owned);
        dropped_.push_back(std::move(owned));  // views of this turn still name it
      } else {
        model(h.model).late.push_back(std::move(owned));
      }
    }
  }

  // ---- a step

  // False: nobody has anything to do, or can.
  bool step() {
    for (int64_t i = 0; i < std::ssize(models_); ++i) {
      model(i).skip = false;
      look_at(i);
      model(i).share.look(std::ranges::any_of(model(i).views, [](const auto& v) { return v.pending > 0; }), shares_);
    }
    for (size_t tries = 0; tries < 8 * models_.size(); ++tries) {
      const Turn turn = next_turn();
      mark_hopeless(turn);
      if (turn.model < 0) return false;
      if (take_turn(turn)) return true;
      for (int64_t i = 0; i < std::ssize(models_); ++i) look_at(i);
      dropped_.clear();
    }
    return false;
  }

  bool take_turn(const Turn& turn) {
    Model& m = model(turn.model);
    ordered_.clear();
    chosen_.clear();
    for (const int64_t i : turn.order) {
      Sequence* const s = m.seen[static_cast<size_t>(i)];
      if (rejects_ && s->late && !s->running) continue;
      ordered_.push_back(m.views[static_cast<size_t>(i)]);
      chosen_.push_back(s);
    }
    PolicyLimits limit = limits(turn.model);
    limit.tokens = std::min(limit.tokens, turn.tokens);
    const StepChoice choice = choose_step(ordered_, limit);
    for (const int64_t i : choice.preempted) preempt(m, *chosen_[static_cast<size_t>(i)]);
    if (choice.feeds.empty()) {
      if (choice.preempted.empty() && !(choice.short_of_blocks && take_from_others(turn.model))) m.skip = true;
      return false;
    }
    launch(turn.model, choice);
    return true;
  }

  // A sequence of the model that the pool says should give. False: there is none.
  bool take_from_others(int64_t index) {
    Model& m = model(index);
    // Only for those that run: who waits can wait.
    if (m.running.empty()) return false;
    const auto victim = m.kv.pool->victim_for(m.kv.model);
    if (!victim || *victim == m.kv.model) return false;
    for (Model& other : models_) {
      if (other.kv.pool != m.kv.pool || other.kv.model != *victim || other.running.empty()) continue;
      Sequence& last = *other.running.back();
      if (last.in_flight > 0) {
        last.gives_way = true;
        return false;
      }
      preempt(other, last);
      return true;
    }
    return false;
  }

  void preempt(Model& m, Sequence& s) {
    m.written_tokens -= s.fed;
    swap_out(m, s);
    m.kv.pool->release(s.blocks);
    s.blocks.clear();
    if (!s.swapped_at) s.fed = 0;
    s.running = s.gives_way = false;
    --running_;
    ++(s.swapped_at ? outcome(s).swapped : outcome(s).recomputed);
    const auto at = std::ranges::find_if(m.running, [&](const Owned& o) { return o.get() == &s; });
    Owned owned = std::move(*at);
    m.running.erase(at);
    auto& queue = owned->late ? m.late : m.waiting;
    const auto place = std::ranges::upper_bound(queue, owned->request.arrival_us, {},
                                                [](const Owned& o) { return o->request.arrival_us; });
    queue.insert(place, std::move(owned));
  }

  // As in the engine, copies ride with the next step.
  void swap_out(const Model& m, Sequence& s) {
    const StepCost cost = knows_costs() ? load_of(s.request.model).cost : m.cost.cost();
    s.swapped_at = swap_.take_if_cheaper(cost, s.fed, kv_bytes(s));
    if (s.swapped_at) copies_us_ += swap_.round_trip_us(kv_bytes(s)) / 2;
  }

  void swap_in(Sequence& s) {
    copies_us_ += swap_.round_trip_us(kv_bytes(s)) / 2;
    swap_.give_back(*std::exchange(s.swapped_at, std::nullopt));
  }

  // Of the blocks that hold what was fed.
  int64_t kv_bytes(const Sequence& s) const {
    return blocks_for(s.fed) * load_.block_tokens * load_of(s.request.model).kv_token_bytes;
  }

  void admit(Model& m, Sequence& s) {
    auto& queue = s.late ? m.late : m.waiting;
    const auto at = std::ranges::find_if(queue, [&](const Owned& o) { return o.get() == &s; });
    Owned owned = std::move(*at);
    queue.erase(at);
    owned->running = true;
    ++running_;
    const auto place = std::ranges::upper_bound(m.running, owned->request.arrival_us, {},
                                                [](const Owned& o) { return o->request.arrival_us; });
    m.running.insert(place, std::move(owned));
  }

  void launch(int64_t index, const StepChoice& choice) {
    Model& m = model(index);
    Flight& flight = flights_.emplace_back();
    if (!spare_.empty()) {
      flight.feeds = std::move(spare_.back());
      spare_.pop_back();
    }
    StepLoad& work = flight.work;
    for (const StepFeed& feed : choice.feeds) {
      Sequence& s = *chosen_[static_cast<size_t>(feed.sequence)];
      if (!s.running) admit(m, s);
      if (s.swapped_at) {
        swap_in(s);
        m.written_tokens += s.fed;
      }
      const bool got = m.kv.pool->allocate(m.kv.model, feed.new_blocks, s.blocks);
      HEARTH_CHECK(got, "the step policy gave out {} KV blocks, {} are available", feed.new_blocks,
                   m.kv.pool->available(m.kv.model));
      const bool brings_output = s.fed + feed.tokens == s.known();
      const int64_t prefill = feed.tokens - brings_output;
      ++work.sequences;
      work.context_tokens += static_cast<double>(s.fed + feed.tokens);
      work.prefill_tokens += static_cast<double>(prefill);
      work.prefill_pairs +=
          static_cast<double>(prefill) * (static_cast<double>(s.fed) + 0.5 * static_cast<double>(prefill + 1));
      s.fed += feed.tokens;
      s.planned += brings_output;
      ++s.in_flight;
      flight.feeds.push_back({.sequence = &s, .tokens = feed.tokens, .brings_output = brings_output});
    }
    flight.model = index;
    flight.begin_us = flights_.size() > 1 ? flights_[flights_.size() - 2].end_us : now_us_;
    const double mean_us = load_of(index).cost.us(work);
    const StepSpread& spread = load_of(index).spread;
    flight.true_us =
        mean_us * (spread.empty() ? std::max(0.1, 1 + load_.noise * noise_.normal()) : spread.draw(mean_us, noise_));
    flight.copies_us = std::exchange(copies_us_, 0);
    flight.end_us = flight.begin_us + std::max<int64_t>(1, std::llround(flight.true_us + flight.copies_us));
    flight.predicted_us = knows_costs() ? mean_us : m.cost.predict_us(work);
    under_way_.launched(now_us_, flight.predicted_us);
    m.share.charge(flight.predicted_us, load_of(index).weight);
    m.last_turn = ++outcome_.steps;
  }

  // The oldest step has ended.
  void collect() {
    Flight flight = std::move(flights_.front());
    flights_.pop_front();
    under_way_.ended(now_us_);
    Model& m = model(flight.model);
    if (const double predicted = m.cost.predict_us(flight.work); predicted > 0) {
      error_ += std::abs(predicted - flight.true_us) / flight.true_us;
      ++predictions_;
    }
    m.cost.observe(flight.work, flight.true_us);
    m.share.charge(flight.true_us + flight.copies_us - flight.predicted_us, load_of(flight.model).weight);
    busy_us_ += std::max<int64_t>(0, std::min(flight.end_us, last_us_) - flight.begin_us);
    for (const Flight::Fed& fed : flight.feeds) {
      m.written_tokens += fed.tokens;
      if (now_us_ < last_us_) outcome(*fed.sequence).prompt_tokens += fed.tokens - fed.brings_output;
    }
    measure();
    bool any_ended = false;
    for (const Flight::Fed& fed : flight.feeds) any_ended |= take_in(m, *fed.sequence, fed.brings_output);
    if (any_ended) remove_ended(m);
    look_after_pools(m, std::ssize(flight.feeds));
    spare_.push_back(std::move(flight.feeds));
    spare_.back().clear();
  }

  // Whether it has ended.
  bool take_in(Model& m, Sequence& s, bool output) {
    --s.in_flight;
    if (output) {
      ++s.out;
      if (now_us_ < last_us_) ++outcome(s).generated_tokens;
      s.last_us = now_us_;
    }
    if (output && s.out == 1) {
      s.first_us = now_us_;
      s.late = now_us_ > first_due_us(s.request.arrival_us, load_of(s.request.model).slo);
      m.ttft_s.push_back(static_cast<double>(now_us_ - s.request.arrival_us) * 1e-6);
    }
    if (s.out >= s.request.output_tokens) return true;
    if (s.gives_way && s.in_flight == 0) preempt(m, s);
    return false;
  }

  void remove_ended(Model& m) {
    std::erase_if(m.running, [&](const Owned& s) {
      if (s->out < s->request.output_tokens) return false;
      m.kv.pool->release(s->blocks);
      m.written_tokens -= s->fed;
      --running_;
      count(*s);
      return true;
    });
  }

  void count(const Sequence& s) {
    const Slo& slo = load_of(s.request.model).slo;
    const bool first = s.first_us <= first_due_us(s.request.arrival_us, slo);
    const bool kept = attained(s.request.arrival_us, s.first_us, s.last_us, s.out, slo);
    const bool pace = attained(s.first_us, s.first_us, s.last_us, s.out, slo);
    ++ended_;
    attained_ += kept;
    if (!counts(s)) return;
    outcome(s).attained += kept;
    outcome(s).first_on_time += first;
    outcome(s).pace_kept += pace;
  }

  void look_after_pools(Model& m, int64_t served) {
    m.kv.pool->served(m.kv.model, served);
    const bool window = now_us_ / 1'000'000 != last_window_;
    last_window_ = now_us_ / 1'000'000;
    for (const auto& pool : memory_.pools) {
      for (const KvMove& move : pool->compact(kMaxMoveBytes))
        outcome_.moved_bytes_per_step += static_cast<double>(move.size_bytes);
      pool->trim();
      if (window) pool->end_window();
    }
  }

  // ---- what is told

  double written_bytes(size_t m) const {
    return static_cast<double>(models_[m].written_tokens * load_.models[m].kv_token_bytes);
  }

  void measure() {
    if (now_us_ < warm_us_ || now_us_ > last_us_) return;
    double written = 0;
    for (size_t m = 0; m < models_.size(); ++m) written += written_bytes(m);
    const double part = written / static_cast<double>(load_.pool_bytes);
    ++measured_;
    outcome_.memory_mean += part;
    outcome_.memory_worst = std::min(outcome_.memory_worst, part);
  }

  void sample() {
    if (static_cast<double>(now_us_) * 1e-6 < next_sample_s_ || now_us_ > last_us_) return;
    Sample sample{.at_s = static_cast<double>(now_us_) * 1e-6, .written_bytes = {}, .running = {}, .waiting = {}};
    for (size_t m = 0; m < models_.size(); ++m) {
      sample.written_bytes.push_back(written_bytes(m));
      sample.running.push_back(std::ssize(models_[m].running));
      sample.waiting.push_back(models_[m].queued());
    }
    sample.attained = std::exchange(attained_, 0);
    sample.ended = std::exchange(ended_, 0);
    outcome_.samples.push_back(std::move(sample));
    next_sample_s_ = static_cast<double>(now_us_) * 1e-6 + options_.sample_seconds;
  }

  void finish() {
    for (size_t m = 0; m < models_.size(); ++m) tell_rest(models_[m], warm_us_, outcome_.models[m]);
    if (measured_ > 0) outcome_.memory_mean /= static_cast<double>(measured_);
    if (predictions_ > 0) outcome_.prediction_error = error_ / static_cast<double>(predictions_);
    if (outcome_.steps > 0) outcome_.moved_bytes_per_step /= static_cast<double>(outcome_.steps);
    outcome_.busy = static_cast<double>(busy_us_) / static_cast<double>(last_us_);
  }

  const Load& load_;
  const std::span<const LoadRequest> requests_;
  const SimulatorOptions& options_;
  SimulatedMemory memory_;
  std::unique_ptr<LocalPolicy> policy_;
  Random noise_;
  std::vector<Model> models_;
  std::vector<const FairShare*> shares_;
  const bool rejects_;
  std::vector<LocalModel> locals_;
  std::vector<PolicySequence> ordered_;
  std::vector<Sequence*> chosen_;  // by ordered_
  std::vector<Owned> dropped_;
  std::deque<Flight> flights_;  // by end
  std::vector<std::vector<Flight::Fed>> spare_;
  StepQueue under_way_;  // as far as is known
  SwapBooks swap_;
  double copies_us_ = 0;  // that the next step begins with
  SimulationOutcome outcome_;
  size_t next_ = 0;  // request
  int64_t now_us_ = 0, last_us_ = 0, warm_us_ = 0, last_window_ = 0, busy_us_ = 0, running_ = 0;
  int64_t measured_ = 0, predictions_ = 0, attained_ = 0, ended_ = 0;
  double error_ = 0, next_sample_s_ = 0;
};

}  // namespace

Result<SimulationOutcome> simulate(const Load& load, std::span<const LoadRequest> requests,
                                   const SimulatorOptions& options) {
  for (const LoadModel& model : load.models)
    if (model.cost.us({.prefill_tokens = 1, .sequences = 1, .context_tokens = 1, .prefill_pairs = 1}) <= 0)
      return invalid_argument("the steps of model '{}' take no time: step_us and prefill_token_us are missing",
                              model.name);
  HEARTH_TRY_ASSIGN(SimulatedMemory memory, SimulatedMemory::create(load, options.memory));
  HEARTH_TRY_ASSIGN(auto policy, make_local_policy(options.policy));
  return Simulator(load, requests, options, std::move(memory), std::move(policy)).run();
}

}  // namespace hearth
