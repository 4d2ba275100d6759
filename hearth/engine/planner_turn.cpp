// SPDX-License-Identifier: Apache-2.0
// Whose turn it is: the local policy is shown all models, and what it says becomes a step.
#include <algorithm>
#include <utility>

#include "hearth/engine/planner.h"

namespace hearth {
namespace {

// Whether the first that waits finds no blocks: policies leave it out, and memory has to be made for it.
bool waits_for_blocks(std::span<const PolicySequence> views, const PolicyLimits& limits) {
  const auto waits = [](const PolicySequence& v) { return v.ready && !v.running; };
  auto first = std::ranges::find_if(views, [&](const auto& v) { return waits(v) && !v.late; });
  if (first == views.end()) first = std::ranges::find_if(views, waits);
  const int64_t running = std::ranges::count_if(views, &PolicySequence::running);
  return first != views.end() && running < limits.sequences && !admissible(*first, views, limits);
}

}  // namespace

bool Planner::plan_and_launch() {
  std::vector<int64_t> skipped;
  for (size_t tried = 0; tried < models_.size(); ++tried) {
    look_at_models(skipped);
    const Turn turn = next_turn(skipped);
    if (turn.model < 0) return false;
    const std::shared_ptr<ModelState> model = models_[static_cast<size_t>(turn.model)];
    std::unique_ptr<Step> step = plan(model, turn);
    if (!step) {
      skipped.push_back(turn.model);
      continue;
    }
    model->last_turn = ++turns_;
    model->share.charge(step->predicted_us, model->terms.weight);
    under_way_.launched(clock_.now_ns() / 1000, step->predicted_us);
    ++in_flight_;
    steps_.launch(std::move(step));
    return true;
  }
  return false;
}

// Views of all models, but for a turn of those skipped; those for whom nothing can be done now give back what was kept for them.
void Planner::look_at_models(std::span<const int64_t> skipped) {
  views_.resize(models_.size());
  locals_.clear();
  std::vector<const FairShare*> shares;
  for (const auto& model : models_) shares.push_back(&model->share);
  for (size_t m = 0; m < models_.size(); ++m) {
    ModelState& model = *models_[m];
    std::vector<PolicySequence>& views = views_[m];
    views.clear();
    lookups_ = 0;
    for (const auto& sequence : model.sequences) views.push_back(view(model, *sequence));
    // Between two steps of its own a sequence may have to wait for a mask: its model has work all the same.
    const auto has_work = [](const PolicySequence& v) { return (v.ready || v.pending > 0) && !v.paused; };
    model.share.look(std::ranges::any_of(views, has_work), shares);
    const bool idle = std::ranges::none_of(views, &PolicySequence::ready);
    const bool short_of_blocks = waits_for_blocks(views, limits(model));
    if (idle || short_of_blocks) make_room(model, {.feeds = {}, .preempted = {}, .short_of_blocks = short_of_blocks});
  }
  for (size_t m = 0; m < models_.size(); ++m) {
    const ModelState& model = *models_[m];
    locals_.push_back({.sequences = views_[m],
                       .limits = limits(model),
                       .cost = model.cost.cost(),
                       .slo = model.terms.slo,
                       .last_turn = model.last_turn,
                       .service = model.share.service});
  }
  for (const int64_t m : skipped) locals_[static_cast<size_t>(m)].skip = true;
}

Turn Planner::next_turn(std::span<const int64_t> skipped) {
  while (true) {
    // The step begins when those under way have ended.
    Turn turn = policy_->next(locals_, free_us());
    bool refused = false;
    for (const Hopeless& h : turn.hopeless) {
      models_[static_cast<size_t>(h.model)]->sequences[static_cast<size_t>(h.sequence)]->late = true;
      refused |= reject_hopeless_ && refuse(h);
    }
    if (!refused) return turn;
    look_at_models(skipped);  // the turn was made with those that are gone
  }
}

// Ends all choices of its request, unless one of them was ever admitted. Whether it did.
bool Planner::refuse(const Hopeless& hopeless) {
  ModelState& model = *models_[static_cast<size_t>(hopeless.model)];
  const Sequence& first = *model.sequences[static_cast<size_t>(hopeless.sequence)];
  if (first.ended || first.submission->begun()) return false;
  const Error why = resource_exhausted("overloaded: the first token would come later than its target of {:g} s",
                                       static_cast<double>(first.slo.ttft_us) * 1e-6);
  for (const auto& sequence : model.sequences) {
    if (sequence->submission != first.submission || sequence->ended) continue;
    ++model.attainment.refused;
    end(*sequence, FinishReason::kError, why);
  }
  return true;
}

PolicyLimits Planner::limits(const ModelState& model) const {
  return {.tokens = model.step_tokens,
          .rows = model.max_rows,
          .sequences = model.max_sequences,
          .block_tokens = model.block_tokens,
          .free_blocks = model.store->pool->available(model.kv_model)};
}

int64_t Planner::due_us(const Sequence& sequence) const {
  return hearth::due_us({.arrival_us = sequence.submission->submitted_ns() / 1000,
                         .planned = sequence.planned,
                         .out = std::ssize(sequence.outputs),
                         .first_us = sequence.first_token_ns / 1000,
                         .last_us = sequence.last_token_ns / 1000,
                         .late = sequence.late},
                        sequence.slo, free_us());
}

// What of the turn fits into memory; by index into the model's sequences.
StepChoice Planner::choose(const ModelState& model, const Turn& turn) {
  const std::vector<PolicySequence>& views = views_[static_cast<size_t>(turn.model)];
  ordered_.clear();
  for (const int64_t i : turn.order) ordered_.push_back(views[static_cast<size_t>(i)]);
  PolicyLimits limit = limits(model);
  limit.tokens = std::min(limit.tokens, turn.tokens);
  StepChoice choice = choose_step(ordered_, limit);
  for (StepFeed& feed : choice.feeds) feed.sequence = turn.order[static_cast<size_t>(feed.sequence)];
  for (int64_t& index : choice.preempted) index = turn.order[static_cast<size_t>(index)];
  choice.short_of_blocks |= waits_for_blocks(views, limits(model));
  return choice;
}

}  // namespace hearth
