// SPDX-License-Identifier: Apache-2.0
// The loop, and how requests become sequences and leave again; planner_step.cpp plans and collects.
#include "hearth/engine/planner.h"

#include <algorithm>
#include <utility>

#include "hearth/base/log.h"

namespace hearth {

void Planner::run() {
  while (true) {
    for (Message& message : inbox_->take()) handle(message);
    look_at_flags();
    while (auto step = steps_.finished()) collect(std::move(step));
    for (const auto& model : models_) {
      sweep(*model);
      give_way(*model);
      if (model->leaving && model->sequences.empty()) leave_store(*model);
    }
    std::erase_if(models_, [](const auto& model) {
      const bool gone = model->leaving && model->sequences.empty();
      if (gone && model->left) std::exchange(model->left, std::nullopt)->set_value();
      return gone;
    });
    look_at_clock();
    publish();
    if (in_flight_ < 2 && !bitten_ && launch_bite()) continue;
    bitten_ = false;  // a bite, a step, a bite
    if (in_flight_ < 2 && (plan_and_launch() || launch_bite())) continue;
    if (stopping_.load() && in_flight_ == 0 && stats_.unfinished.load() == 0) return;
    inbox_->wait(clock_);
  }
}

void Planner::stop() {
  stopping_.store(true);
  inbox_->poke();
}

ModelState* Planner::state_of(const Request& request) {
  for (const auto& model : models_)
    if (model->served == request.model) return model.get();
  return nullptr;
}

// What other threads have said of requests since the last look.
void Planner::look_at_flags() {
  const bool stopping = stopping_.load();
  for (const auto& model : models_) {
    for (const auto& sequence : model->sequences) {
      if (stopping || sequence->submission->cancelled()) cancel(*sequence);
      if (sequence->submission->take_mask_ready(sequence->choice)) sequence->mask_ready = true;
      if (!sequence->done && sequence->submission->done(sequence->choice)) choice_done(*model, *sequence);
    }
  }
}

void Planner::handle(Message& message) {
  switch (message.kind) {
    case Message::Kind::kSubmit: submit(message.submission); break;
    case Message::Kind::kAddModel: {
      message.model->leaving = false;
      auto tokens = add_to_store(*message.model);
      if (tokens) models_.push_back(std::move(message.model));
      message.tokens.set_value(std::move(tokens));
      break;
    }
    case Message::Kind::kRemoveModel:
      if (std::ranges::find(models_, message.model) != models_.end())
        message.model->leaving = message.model->removed = true;
      break;
    case Message::Kind::kAsk: message.ask(); break;
  }
}

void Planner::submit(const std::shared_ptr<Submission>& submission) {
  const Request& request = submission->request();
  ModelState* model = state_of(request);
  HEARTH_CHECK(model != nullptr, "a request for the model {} that the planner does not have", request.model->name);
  auto share = std::make_shared<PromptShare>();
  share->tokens = (std::ssize(request.prompt) - 1) / model->block_tokens * model->block_tokens;
  share->waiting = request.n - 1;
  const int64_t arrival = arrivals_++;
  model->used_us = clock_.now_ns() / 1000;
  // Behind all of its priority, before the less urgent.
  auto at = std::ranges::upper_bound(model->sequences, request.priority, {},
                                     [](const auto& sequence) { return sequence->request().priority; });
  for (int32_t i = 0; i < request.n; ++i) {
    auto owned = std::make_unique<Sequence>();
    Sequence& sequence = *owned;
    sequence.submission = submission;
    sequence.choice = i;
    sequence.slo = slo_or(request.slo, model->terms.slo);
    sequence.arrival = arrival;
    if (request.n > 1 && share->tokens > 0) sequence.share = share;
    at = std::next(model->sequences.insert(at, std::move(owned)));
    if (request.grammar) submission->push({.choice = i, .kind = TokenEvent::Kind::kStart});
    // Without tokens to draw, only the prompt's logprobs are wanted, and they come with the first choice.
    if (request.max_tokens == 0 && (i > 0 || sequence.feed_end() == 0)) end(sequence, FinishReason::kLength, {});
    if (lost_ && !sequence.ended) end(sequence, FinishReason::kError, lost_);  // I5: submitted as it happened
    // Limits were changed as it was submitted.
    if (const int64_t tokens = sequence.prompt_size() + request.max_tokens;
        tokens > model->kv_tokens && !sequence.ended)
      end(sequence, FinishReason::kError,
          resource_exhausted("{} tokens need more than the KV cache of {} tokens that is left for {}", tokens,
                             model->kv_tokens.load(), request.model->name));
  }
  submission->flush();
}

void Planner::cancel(Sequence& sequence) {
  if (!sequence.ended) end(sequence, FinishReason::kCancelled, {});
}

// Nothing more is planned for it; the text side is told, and closes the choice in its own time.
void Planner::end(Sequence& sequence, FinishReason reason, std::optional<Error> error) {
  sequence.ended = true;
  sequence.submission->push(
      {.choice = sequence.choice, .kind = TokenEvent::Kind::kEnd, .reason = reason, .error = std::move(error)});
  sequence.submission->flush();
}

// The text has ended: by a stop string the planner knows nothing of, or after end().
void Planner::choice_done(ModelState& model, Sequence& sequence) {
  sequence.ended = true;
  sequence.done = true;
  model.used_us = clock_.now_ns() / 1000;
  stats_.unfinished.fetch_sub(1);
  count_attainment(model, sequence);
  if (observer_ == nullptr) return;
  const Submission& submission = *sequence.submission;
  const Request& request = submission.request();
  const auto seconds = [&](int64_t ns) {
    return ns < 0 ? -1.0 : static_cast<double>(ns - submission.submitted_ns()) * 1e-9;
  };
  observer_->on_choice({.model = request.model->name,
                        .request = request.id,
                        .reason = submission.reason(sequence.choice),
                        .prompt_tokens = sequence.prompt_size(),
                        .shared_prompt_tokens = submission.shared_prompt_tokens(sequence.choice),
                        .generated_tokens = submission.generated_tokens(sequence.choice),
                        .max_tokens = request.max_tokens,
                        .n = request.n,
                        .admitted_s = seconds(sequence.admitted_ns),
                        .first_token_s = seconds(sequence.first_token_ns),
                        .finished_s = seconds(clock_.now_ns())});
}

void Planner::count_attainment(ModelState& model, const Sequence& sequence) {
  using End = EndedAnswer::End;
  const FinishReason reason = sequence.submission->reason(sequence.choice);
  const auto us = [](int64_t ns) { return ns < 0 ? -1 : ns / 1000; };
  model.attainment.count({.end = reason == FinishReason::kCancelled ? End::kLeft
                                 : reason == FinishReason::kError   ? End::kFailed
                                                                    : End::kComplete,
                          .arrival_us = us(sequence.submission->submitted_ns()),
                          .first_us = us(sequence.first_token_ns),
                          .last_us = us(sequence.last_token_ns),
                          .tokens = std::ssize(sequence.outputs),
                          .end_us = us(clock_.now_ns())},
                         sequence.slo);
}

// Takes out what has ended and is in no step any more.
void Planner::sweep(ModelState& model) {
  for (const auto& sequence : model.sequences) {
    if (!sequence->ended || sequence->in_flight > 0) continue;
    if (sequence->running()) give_back(model, *sequence);
    drop_swapped(model, *sequence);
    if (std::exchange(sequence->counted_waiting, false)) stats_.waiting.fetch_sub(1);
    leave_share(model, *sequence);
  }
  std::erase_if(model.sequences, [](const auto& sequence) {
    return sequence->done && sequence->in_flight == 0 && !sequence->running();
  });
}

void Planner::tell(const ModelState& model, ModelStats& stats) const {
  const auto running = std::ranges::count_if(model.sequences, [](const auto& s) { return s->running(); });
  const auto open = std::ranges::count_if(model.sequences, [](const auto& s) { return !s->ended; });
  if (stats.model != model.served->name) stats.model = model.served->name;
  stats.running = running;
  stats.waiting = std::max<int64_t>(0, open - running);
  const bool has_kv = model.kv_model >= 0;
  stats.kv_blocks = has_kv ? model.store->pool->most(model.kv_model) : 0;
  stats.kv = has_kv ? model.store->pool->stats(model.kv_model) : KvModelStats();
  stats.kv.asked_blocks += model.kv_before.asked_blocks;
  stats.kv.hit_blocks += model.kv_before.hit_blocks;
  stats.kv.evicted_blocks += model.kv_before.evicted_blocks;
  stats.kv_blocks_used = stats.kv.live;
  stats.block_tokens = model.block_tokens;
  stats.max_sequences = model.max_sequences;
  stats.slo = model.terms.slo;
  stats.attainment = model.attainment;
  stats.pinned = model.pinned;
  stats.limits = model.limits;
  stats.weight_bytes = *model.weight_bytes;
  stats.weight = model.terms.weight;
  stats.device_s = model.device_us * 1e-6;
  stats.swapped_out = model.swapped_out;
  stats.swap_bytes = model.store->swap.used_bytes();
  stats.used_us = model.used_us;
}

void Planner::publish() {
  const std::lock_guard lock(stats_.mutex);
  stats_.models.resize(models_.size());
  for (size_t i = 0; i < models_.size(); ++i) tell(*models_[i], stats_.models[i]);
}

}  // namespace hearth
