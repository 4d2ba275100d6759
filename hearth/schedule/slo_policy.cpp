// SPDX-License-Identifier: Apache-2.0
// One decision: what decodes leave, which prompts can be on time, whose turn follows.
#include "hearth/schedule/slo_policy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "hearth/schedule/moore_hodgson.h"

namespace hearth {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kMargin = 0.05;            // of TPOT: due times are taken so much earlier
constexpr double kFirstMargin = 0.025;      // of TTFT: the same, for first tokens
constexpr double kMostDecode = 0.9;         // of the machine; beyond it nothing new is admitted
constexpr double kLeastPrefill = 0.1;       // of the machine, for estimates of how long prompts take
constexpr int64_t kLeastChunk = 32;         // tokens
constexpr int64_t kAll = int64_t{1} << 40;  // tokens
constexpr int64_t kMostWaiting = 256;       // prompts of a model that are looked at: the oldest that can be on time,
constexpr int64_t kMostLate = 16;           // and the oldest that were found late, which come last anyway

struct Decodes {
  double time_us = 0;      // of a step of all
  double due_us = kNever;  // from now, the earliest
  int64_t count = 0;
};

struct Prompt {
  int64_t model = 0, sequence = 0;
  Job job;
  bool late = false;
};

class Decision {
 public:
  Decision(std::span<const LocalModel> models, int64_t now_us) : models_(models), now_us_(now_us) {}

  Turn next() {
    look_at_decodes();
    look_at_prompts();
    if (!any_due_) return fcfs_turn(models_, least_served(models_));
    order_prompts();
    for (size_t i = 0; i < queue_.size(); ++i) {
      const Prompt* const prompt = queue_[i];
      if (!may_start(*prompt)) continue;
      const int64_t tokens = std::min(chunk(*prompt), company(i));
      if (tokens >= std::min(kLeastChunk, sequence(*prompt).pending)) return turn_of(prompt->model, tokens);
      break;  // decodes are urgent
    }
    const int64_t urgent = most_urgent();
    if (urgent >= 0) return turn_of(urgent, 0);
    // No decodes: a prompt must go on whatever room there is.
    for (const Prompt* prompt : queue_) return turn_of(prompt->model, model(prompt->model).limits.tokens);
    return turn_of(least_served(models_), std::numeric_limits<int64_t>::max());
  }

 private:
  const LocalModel& model(int64_t m) const { return models_[static_cast<size_t>(m)]; }
  const PolicySequence& sequence(const Prompt& p) const {
    return model(p.model).sequences[static_cast<size_t>(p.sequence)];
  }
  double from_now(int64_t due_us) const { return due_us == kNoDue ? kNever : static_cast<double>(due_us - now_us_); }

  void look_at_decodes() {
    decodes_.resize(models_.size());
    for (int64_t m = 0; m < std::ssize(models_); ++m) {
      Decodes& d = decodes_[static_cast<size_t>(m)];
      if (model(m).skip) continue;
      for (const PolicySequence& s : model(m).sequences) {
        if (!decodes(s) || !s.ready) continue;
        ++d.count;
        d.due_us = std::min(d.due_us, from_now(s.due_us));
        any_due_ |= s.due_us != kNoDue;
      }
      if (d.count == 0) continue;
      d.time_us = model(m).cost.us(decode_load(model(m)));
      const auto tpot_us = static_cast<double>(model(m).slo.tpot_us);
      d.due_us -= kMargin * tpot_us;
      if (tpot_us > 0) busy_ += d.time_us / tpot_us;
    }
  }

  // 1: microseconds of prefill that a step of model m may have.
  double room_us(int64_t m) const {
    const Decodes& own = decodes_[static_cast<size_t>(m)];
    double room = own.due_us - own.time_us;
    for (size_t k = 0; k < decodes_.size(); ++k) {
      if (static_cast<int64_t>(k) == m || decodes_[k].count == 0) continue;
      double behind = own.time_us;
      for (size_t j = 0; j < decodes_.size(); ++j)
        if (static_cast<int64_t>(j) != m && decodes_[j].due_us <= decodes_[k].due_us) behind += decodes_[j].time_us;
      room = std::min(room, decodes_[k].due_us - behind);
    }
    return room;
  }

  void look_at_prompts() {
    const double part = std::max(kLeastPrefill, 1 - busy_);
    // Among equals the model that had least comes first.
    std::vector<int64_t> turns(models_.size());
    std::iota(turns.begin(), turns.end(), 0);
    std::ranges::stable_sort(turns, {}, [&](int64_t m) { return model(m).service; });
    for (const int64_t m : turns) {
      if (model(m).skip) continue;
      const StepCost& cost = model(m).cost;
      const double alone_us = decodes_[static_cast<size_t>(m)].count == 0 ? cost.step_us : 0;
      const double margin_us = kFirstMargin * static_cast<double>(model(m).slo.ttft_us);
      int64_t waiting = 0, late_waiting = 0;
      for (int64_t i = 0; i < std::ssize(model(m).sequences); ++i) {
        const PolicySequence& s = model(m).sequences[static_cast<size_t>(i)];
        if (!s.ready || s.pending < 1 || decodes(s)) continue;
        if (!s.running && (s.late ? ++late_waiting > kMostLate : ++waiting > kMostWaiting)) continue;
        const auto tokens = static_cast<double>(s.pending), fed = static_cast<double>(s.fed);
        const double time_us =
            alone_us + cost.prefill_token_us * tokens + cost.prefill_pair_us * tokens * (fed + tokens / 2);
        const double due_us = from_now(s.due_us);
        const bool late = s.late || (!s.first_out && time_us > due_us);
        if (late && !s.first_out && !s.running) hopeless_.push_back({m, i});
        any_due_ |= s.due_us != kNoDue;
        prompts_.push_back({m, i, {time_us / part, s.first_out ? due_us : due_us - margin_us}, late});
      }
    }
  }

  // 2: on time by due time; then those that could be but are left out; then, in turns, those that have no target and
  // those that are late for theirs, so that nobody waits for ever for requests without any.
  void order_prompts() {
    std::vector<const Prompt*> open, rest;
    std::vector<Job> jobs;
    for (const Prompt& p : prompts_) {
      if (p.late || p.job.due_us == kNever) continue;
      open.push_back(&p);
      jobs.push_back(p.job);
    }
    double end_us = 0;
    for (const int64_t i : on_time_jobs(jobs)) {
      const Job& job = jobs[static_cast<size_t>(i)];
      end_us += job.time_us;
      spare_us_ = std::min(spare_us_, job.due_us - end_us);
      queue_.push_back(open[static_cast<size_t>(i)]);
      open[static_cast<size_t>(i)] = nullptr;
    }
    on_time_ = queue_.size();
    for (const Prompt* p : open)
      if (p != nullptr) rest.push_back(p);
    std::ranges::stable_sort(rest, {}, [](const Prompt* p) { return p->job.due_us; });
    queue_.insert(queue_.end(), rest.begin(), rest.end());
    for (const Prompt& p : prompts_)
      if (p.late || p.job.due_us == kNever) queue_.push_back(&p);
  }

  // Whether memory, places and the machine have room for it, as far as can be told here.
  bool may_start(const Prompt& prompt) const {
    const PolicySequence& s = sequence(prompt);
    if (s.running) return true;
    if (busy_ > kMostDecode) return false;
    return admissible(s, model(prompt.model).sequences, model(prompt.model).limits);
  }

  // Prefill tokens that a step led by prompt i of the queue may have: its own, those of the model that follow it on
  // time, and what else keeps all on time. All first tokens come at the end of the step.
  int64_t company(size_t i) const {
    const Prompt& lead = *queue_[i];
    if (i >= on_time_) return kAll;
    double time_us = 0;
    int64_t tokens = 0;
    for (size_t k = i; k < on_time_ && queue_[k]->model == lead.model; ++k) {
      time_us += queue_[k]->job.time_us;
      if (k > i && time_us > lead.job.due_us) return tokens;
      tokens += sequence(*queue_[k]).pending;
    }
    const double more_us = std::min(spare_us_, lead.job.due_us - time_us);
    const double token_us = lead.job.time_us / static_cast<double>(sequence(lead).pending);
    return more_us >= token_us * static_cast<double>(kAll) ? kAll : tokens + static_cast<int64_t>(more_us / token_us);
  }

  // 3: tokens of the prompt and its like that fit into the room.
  int64_t chunk(const Prompt& prompt) const {
    const PolicySequence& s = sequence(prompt);
    const StepCost& cost = model(prompt.model).cost;
    const Decodes& own = decodes_[static_cast<size_t>(prompt.model)];
    const auto most = std::max<int64_t>(model(prompt.model).limits.tokens - own.count, 0);
    const double room = room_us(prompt.model) - (own.count == 0 ? cost.step_us : 0) - cost.sequence_us -
                        cost.context_token_us * static_cast<double>(s.fed + s.pending);
    const double token_us = cost.prefill_token_us + cost.prefill_pair_us * static_cast<double>(s.fed + s.pending / 2);
    if (room == kNever || room >= token_us * static_cast<double>(most)) return most;
    return room <= 0 ? 0 : static_cast<int64_t>(room / token_us);
  }

  int64_t most_urgent() const {
    int64_t best = -1;
    for (int64_t m = 0; m < std::ssize(models_); ++m) {
      const Decodes& d = decodes_[static_cast<size_t>(m)];
      if (d.count == 0) continue;
      if (best < 0) {
        best = m;
        continue;
      }
      const Decodes& other = decodes_[static_cast<size_t>(best)];
      if (d.due_us < other.due_us || (d.due_us == other.due_us && model(m).service < model(best).service)) best = m;
    }
    return best;
  }

  // A step of model m with `prefill` tokens beside its decodes. Running ones first, late ones behind the others; then
  // who waits, in the order of the queue.
  Turn turn_of(int64_t m, int64_t prefill) {
    Turn turn{.model = m, .hopeless = std::move(hopeless_)};
    if (m < 0) return turn;
    const LocalModel& mine = model(m);
    turn.tokens =
        std::min(mine.limits.tokens, decodes_[static_cast<size_t>(m)].count + std::min(prefill, mine.limits.tokens));
    const auto add = [&](auto&& wanted) {
      for (int64_t i = 0; i < std::ssize(mine.sequences); ++i)
        if (wanted(mine.sequences[static_cast<size_t>(i)])) turn.order.push_back(i);
    };
    // Half-fed prompts take the queue's order, which add() would not; decodes come first in a step anyway.
    add([](const PolicySequence& s) { return s.running && (decodes(s) || !s.ready || s.pending < 1) && !s.late; });
    for (const Prompt* p : queue_)
      if (p->model == m && sequence(*p).running) turn.order.push_back(p->sequence);
    add([](const PolicySequence& s) { return s.running && (decodes(s) || !s.ready || s.pending < 1) && s.late; });
    if (prefill == 0 || (busy_ > kMostDecode && !turn.order.empty())) return turn;
    for (const Prompt* p : queue_)
      if (p->model == m && !sequence(*p).running) turn.order.push_back(p->sequence);
    return turn;
  }

  std::span<const LocalModel> models_;
  const int64_t now_us_;
  std::vector<Decodes> decodes_;
  bool any_due_ = false;
  double busy_ = 0;  // part of the machine that decodes need to keep TPOT
  std::vector<Prompt> prompts_;
  std::vector<const Prompt*> queue_;
  size_t on_time_ = 0;        // of the queue
  double spare_us_ = kNever;  // by which all of those could be later and still on time
  std::vector<Hopeless> hopeless_;
};

}  // namespace

Turn SloPolicy::next(std::span<const LocalModel> models, int64_t now_us) const {
  return Decision(models, now_us).next();
}

}  // namespace hearth
