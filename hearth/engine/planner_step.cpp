// SPDX-License-Identifier: Apache-2.0
// Planning a step of one model, and taking in what a step has brought.
#include <algorithm>
#include <utility>

#include "hearth/base/log.h"
#include "hearth/engine/planner.h"

namespace hearth {
namespace {

StepLoad step_load(const StepFeatures& features) {
  return {.prefill_tokens = static_cast<double>(features.prefill_tokens),
          .sequences = static_cast<double>(features.sequences),
          .context_tokens = static_cast<double>(features.context_tokens),
          .prefill_pairs = static_cast<double>(features.prefill_pairs)};
}

}  // namespace

bool Planner::reader_keeps_up(Sequence& sequence) const {
  if (sequence.submission->unread(sequence.choice) < max_unread_) return true;
  sequence.submission->wait_for_reader(sequence.choice);
  return sequence.submission->unread(sequence.choice) < max_unread_;  // it may have read just before
}

// Blocks that come free with it: those that no other choice of its request reads.
int64_t Planner::own_blocks(const ModelState& model, const Sequence& sequence) const {
  return std::ranges::count_if(sequence.blocks, [&](KvBlock block) { return !model.store->pool->shared(block); });
}

PolicySequence Planner::view(const ModelState& model, Sequence& sequence) {
  PolicySequence view;
  view.running = sequence.running();
  view.in_flight = sequence.in_flight > 0;
  if (sequence.ended) return view;  // neither ready nor of use as a victim: its blocks come back by themselves
  view.fed = sequence.fed;
  view.blocks = std::ssize(sequence.blocks);
  if (sequence.swapped) {
    view.fed = sequence.swapped->tokens;
  } else if (!sequence.running() && sequence.choice > 0 && sequence.share && sequence.share->computed) {
    view.fed = sequence.share->tokens;
    view.blocks = std::ssize(sequence.share->blocks);
  } else if (!sequence.running() && (sequence.choice == 0 || !sequence.share)) {
    look_up(model, sequence);
    view.fed = sequence.hit_blocks * model.block_tokens;
    view.blocks = sequence.hit_blocks - sequence.revived_blocks;
  }
  view.own_blocks = own_blocks(model, sequence);
  view.pending = std::max<int64_t>(0, sequence.feed_end() - view.fed);
  const Request& request = sequence.request();
  view.row_per_token =
      request.prompt_logprobs != kNoLogprobs && sequence.choice == 0 && sequence.prompt_scored < sequence.prompt_size();
  view.paused = !reader_keeps_up(sequence);
  // The first choice computes the shared prefix; the others start where it ends.
  const bool has_prefix = sequence.running() || sequence.choice == 0 || !sequence.share || sequence.share->computed;
  // A mask belongs to one token: with a grammar the next step waits until the text side knows it.
  const bool has_mask = !request.grammar || sequence.mask_ready;
  view.first_out = sequence.planned > 0;
  view.late = sequence.late;
  view.due_us = due_us(sequence);
  // While the pool shrinks nobody new comes in, unless it could not afterwards.
  const bool held = sequence.admitted_ns < 0 && model.store->wanted_slabs < model.store->pool->slabs() &&
                    sequence.prompt_size() + request.max_tokens <= model.kv_tokens;
  view.ready = view.pending > 0 && !view.paused && has_prefix && has_mask && !sequence.gives_way && !held;
  return view;
}

std::unique_ptr<Step> Planner::plan(const std::shared_ptr<ModelState>& model, const Turn& turn) {
  const StepChoice choice = choose(*model, turn);
  for (const int64_t index : choice.preempted) preempt(*model, *model->sequences[static_cast<size_t>(index)]);
  if (choice.feeds.empty()) {
    make_room(*model, choice);
    // Prefixes kept for choices that wait may be all that is in the way, once no step will free anything.
    const bool idle = std::ranges::none_of(model->sequences, [](const auto& s) { return s->in_flight > 0; });
    const bool dropped = choice.short_of_blocks && idle && drop_shares(*model);
    if (dropped || !choice.preempted.empty()) inbox_->poke();  // plan again
    return nullptr;
  }
  std::unique_ptr<Step> step = spare_step();
  step->model = model;
  allocate(*model, choice);
  for (const StepFeed& feed : choice.feeds) {
    Sequence& sequence = *model->sequences[static_cast<size_t>(feed.sequence)];
    if (blocks_for(sequence.fed + feed.tokens, model->block_tokens) > std::ssize(sequence.blocks)) continue;
    add_to_step(*step, sequence, feed.tokens);
    keep_share(*model, sequence);
  }
  if (step->sequences.empty()) {
    step->clear();
    spare_steps_.push_back(std::move(step));
    inbox_->poke();  // plan again
    return nullptr;
  }
  finish_arrays(*step);
  step->moves = std::exchange(model->store->moves, {});
  make_room(*model, choice);  // what moves from here on moves behind this step
  step->predicted_us = model->cost.predict_us(step_load(step->features));
  return step;
}

std::unique_ptr<Step> Planner::spare_step() {
  if (spare_steps_.empty()) return std::make_unique<Step>();
  std::unique_ptr<Step> step = std::move(spare_steps_.back());
  spare_steps_.pop_back();
  return step;
}

// Places, and blocks for all that is fed. There may be fewer than the policy gave out, by blocks that a victim shared
// with who is admitted in its place: then who was admitted last waits on, and who has too few blocks is not fed.
void Planner::allocate(ModelState& model, const StepChoice& choice) {
  SlabPool& pool = *model.store->pool;
  std::vector<Sequence*> admitted;
  // What sequences find in the cache first, so that nobody's new block takes its place.
  for (const StepFeed& feed : choice.feeds) {
    Sequence& sequence = *model.sequences[static_cast<size_t>(feed.sequence)];
    if (sequence.running()) continue;
    admit(model, sequence);
    admitted.push_back(&sequence);
  }
  for (const StepFeed& feed : choice.feeds) {
    Sequence& sequence = *model.sequences[static_cast<size_t>(feed.sequence)];
    while (sequence.running()) {
      const int64_t blocks = blocks_for(sequence.fed + feed.tokens, model.block_tokens) - std::ssize(sequence.blocks);
      if (pool.allocate(model.kv_model, blocks, sequence.blocks) || admitted.empty()) break;
      give_back(model, *admitted.back());
      admitted.pop_back();
    }
  }
  for (Sequence* const sequence : admitted) swap_in(model, *sequence);
}

void Planner::admit(ModelState& model, Sequence& sequence) {
  sequence.place = model.free_places.back();
  model.free_places.pop_back();
  sequence.new_place = true;
  if (std::exchange(sequence.counted_waiting, false)) stats_.waiting.fetch_sub(1);
  if (sequence.swapped) {
    sequence.fed = sequence.swapped->tokens;  // allocate() brings the blocks
  } else if (sequence.choice == 0 || !sequence.share) {
    match(model, sequence);
  } else {
    model.store->pool->retain(sequence.share->blocks);
    sequence.blocks = sequence.share->blocks;
    sequence.published = std::ssize(sequence.blocks);
    sequence.fed = sequence.share->tokens;
    leave_share(model, sequence);
  }
  if (sequence.admitted_ns >= 0) return;  // what it finds after a preemption had been computed for it
  sequence.admitted_ns = clock_.now_ns();
  sequence.submission->set_begun();
  sequence.submission->set_shared_prompt_tokens(sequence.choice, sequence.fed);
}

// Everything that the sequence has in the batch and in the KV cache goes back; its tokens stay known.
void Planner::give_back(ModelState& model, Sequence& sequence) {
  HEARTH_CHECK(sequence.in_flight == 0, "a sequence in {} steps gives its blocks back", sequence.in_flight);
  model.store->pool->release(sequence.blocks);
  sequence.blocks.clear();
  sequence.published = 0;
  sequence.fed = 0;
  model.free_places.push_back(sequence.place);
  sequence.place = -1;
}

void Planner::preempt(ModelState& model, Sequence& sequence) {
  SPDLOG_DEBUG("{}: choice {} of request {} gives its KV blocks up at {} tokens", model.served->name, sequence.choice,
               sequence.request().id, sequence.fed);
  swap_out(model, sequence);
  give_back(model, sequence);
  ++model.preemptions;
}

// The first choice has been fed past the shared prefix: keeps its blocks for the others.
void Planner::keep_share(ModelState& model, Sequence& sequence) {
  PromptShare* share = sequence.share.get();
  if (share == nullptr || sequence.choice != 0 || share->computed || sequence.fed < share->tokens) return;
  share->computed = true;
  if (share->waiting > 0) {
    share->blocks.assign(sequence.blocks.begin(), sequence.blocks.begin() + share->tokens / model.block_tokens);
    model.store->pool->retain(share->blocks);
  }
  sequence.share.reset();
}

void Planner::leave_share(ModelState& model, Sequence& sequence) {
  const std::shared_ptr<PromptShare> share = std::exchange(sequence.share, nullptr);
  if (!share) return;
  if (sequence.choice == 0) {
    share->computed = true;  // it ended before: the others compute the prompt themselves, from nothing
    if (share->blocks.empty()) share->tokens = 0;
    return;
  }
  if (--share->waiting > 0) return;
  model.store->pool->release(share->blocks);
  share->blocks.clear();
}

bool Planner::drop_shares(ModelState& model) {
  // Also a share whose blocks another choice still uses: that one can be preempted for them only afterwards.
  bool dropped = false;
  for (const auto& sequence : model.sequences) {
    if (sequence->choice == 0 || !sequence->share || !sequence->share->computed) continue;
    leave_share(model, *sequence);
    dropped = true;
  }
  return dropped;
}

void Planner::add_row(Step& step, Sequence& sequence, int64_t token_index, int64_t prompt_index) {
  const Request& request = sequence.request();
  SampleRow row;
  if (prompt_index > 0) {
    row.params.temperature = 0;
    row.forced_token = request.prompt[static_cast<size_t>(prompt_index)];
    row.top_logprobs = request.prompt_logprobs;
  } else {
    row.params = request.params;
    row.params.choice = static_cast<uint32_t>(sequence.choice);
    row.prompt_tokens = request.prompt;
    row.logit_bias = request.logit_bias;
    row.allowed = request.grammar ? sequence.submission->mask(sequence.choice) : request.model->allowed;
    if (sequence.planned < request.min_tokens) row.banned = request.end_ids;
    row.top_logprobs = request.logprobs;
  }
  row.position = sequence.fed;
  step.logit_rows.push_back(static_cast<int32_t>(token_index));
  step.rows.push_back(row);
  step.owners.push_back({.sequence = &sequence, .place = sequence.place, .prompt_index = prompt_index});
}

void Planner::add_to_step(Step& step, Sequence& sequence, int64_t tokens) {
  const Request& request = sequence.request();
  if (std::exchange(sequence.new_place, false)) {
    step.new_places.push_back({sequence.place, sequence.outputs});
    step.new_places.back().outputs.reserve(
        static_cast<size_t>(request.max_tokens));  // the step thread allocates nothing
  }
  const int64_t prompt_size = sequence.prompt_size(), end = sequence.fed + tokens;
  const bool scores_prompt = request.prompt_logprobs != kNoLogprobs && sequence.choice == 0;
  for (int64_t i = sequence.fed; i < end; ++i) {
    const int64_t index = std::ssize(step.tokens);
    int32_t id = 0;
    if (i < prompt_size) {
      id = request.prompt[static_cast<size_t>(i)];
    } else if (i - prompt_size < std::ssize(sequence.outputs)) {
      id = sequence.outputs[static_cast<size_t>(i - prompt_size)];
    } else {
      step.from_place.push_back({.token = index, .place = sequence.place});
    }
    step.tokens.push_back(id);
    step.positions.push_back(static_cast<int32_t>(i));
    if (i + 1 < sequence.known()) {
      ++step.features.prefill_tokens;
      step.features.prefill_pairs += i + 1;
    }
    if (scores_prompt && i + 1 < prompt_size && i + 1 >= sequence.prompt_scored) {
      add_row(step, sequence, index, i + 1);
      sequence.prompt_scored = i + 2;
    }
  }
  sequence.fed = end;
  if (end == sequence.known() && sequence.planned < request.max_tokens) {
    add_row(step, sequence, std::ssize(step.tokens) - 1, 0);
    ++sequence.planned;
    sequence.mask_ready = false;
  }
  if (step.query_start.empty()) step.query_start.push_back(0);
  step.query_start.push_back(static_cast<int32_t>(step.tokens.size()));
  step.context_len.push_back(static_cast<int32_t>(end));
  step.features.context_tokens += end;
  step.sequences.push_back(&sequence);
  step.block_table_stride = std::max(step.block_table_stride, std::ssize(sequence.blocks));
  ++sequence.in_flight;
}

// What can be laid out only when the whole step is known.
void Planner::finish_arrays(Step& step) {
  const KvStore& store = *step.model->store;
  for (const Sequence* sequence : step.sequences) {
    const size_t begin = step.block_table.size();
    step.block_table.resize(begin + static_cast<size_t>(step.block_table_stride), 0);
    std::ranges::transform(sequence->blocks, step.block_table.begin() + static_cast<std::ptrdiff_t>(begin),
                           [&](KvBlock block) { return store.offset_bytes(store.pool->offset_bytes(block)); });
  }
  size_t top = 0;
  for (const SampleRow& row : step.rows) top += static_cast<size_t>(std::max(row.top_logprobs, 0));
  step.top.resize(top);
  step.results.assign(step.rows.size(), {});
  top = 0;
  for (size_t r = 0; r < step.rows.size(); ++r) {
    const auto count = static_cast<size_t>(std::max(step.rows[r].top_logprobs, 0));
    step.results[r].top = std::span(step.top).subspan(top, count);
    top += count;
  }
  step.features.tokens = std::ssize(step.tokens);
  step.features.sequences = std::ssize(step.sequences);
  step.features.logit_rows = std::ssize(step.rows);
}

void Planner::collect_row(Step& step, size_t row, std::vector<float>& ttft_s, std::vector<float>& inter_token_s,
                          int64_t& generated) {
  Sequence& sequence = *step.owners[row].sequence;
  const SampleResult& result = step.results[row];
  if (result.outcome != SampleOutcome::kOk) {
    const Status why = sample_status({&result, 1});
    sequence.sound = false;
    if (!sequence.ended) end(sequence, FinishReason::kError, why.error());
    return;
  }
  if (sequence.ended) return;  // it ended while this step was under way: dropped, and not billed
  std::vector<TokenLogprob> top(result.top.begin(), result.top.end());
  if (step.owners[row].prompt_index > 0) {
    sequence.submission->push({.choice = sequence.choice,
                               .kind = TokenEvent::Kind::kPrompt,
                               .prompt = {.logprob = result.logprob, .top = std::move(top)}});
    return;
  }
  const Request& request = sequence.request();
  const int64_t now_ns = clock_.now_ns();
  const bool first = sequence.first_token_ns < 0;
  const int64_t since_ns = first ? sequence.submission->submitted_ns() : sequence.last_token_ns;
  (first ? ttft_s : inter_token_s).push_back(static_cast<float>(static_cast<double>(now_ns - since_ns) * 1e-9));
  if (first) {
    sequence.first_token_ns = now_ns;
    sequence.late = now_ns / 1000 > first_due_us(since_ns / 1000, sequence.slo);
  }
  sequence.last_token_ns = now_ns;
  sequence.outputs.push_back(result.token);
  ++generated;
  const bool stop = std::ranges::binary_search(request.end_ids, result.token);
  sequence.submission->push(
      {.choice = sequence.choice,
       .kind = TokenEvent::Kind::kToken,
       .token = {.id = result.token, .logprob = result.logprob, .top = std::move(top), .text = {}},
       .stop_token = stop});
  if (stop) {
    sequence.ended = true;
  } else if (std::ssize(sequence.outputs) >= request.max_tokens) {
    end(sequence, FinishReason::kLength, {});
  }
}

// I5. What every model had under way is logged: with what the device said it is all that is known of the cause.
void Planner::lose_device(const Step& step) {
  lost_ = step.status.error();
  {
    const std::lock_guard lock(stats_.mutex);
    stats_.lost = lost_;
  }
  const StepFeatures& f = step.features;
  spdlog::critical(
      "{}: the device is lost in step {}: {} tokens, {} of prompts, of {} sequences with {} context tokens, "
      "{} rows of logits",
      step.model ? step.model->served->name : "the KV pool", step_count_, f.tokens, f.prefill_tokens, f.sequences,
      f.context_tokens, f.logit_rows);
  for (const auto& model : models_) {
    spdlog::critical("{}: {} choices, {} of {} KV blocks of {} tokens in use", model->served->name,
                     model->sequences.size(), model->store->pool->live(model->kv_model),
                     model->store->pool->most(model->kv_model), model->block_tokens);
    for (const auto& sequence : model->sequences)
      if (!sequence->ended) end(*sequence, FinishReason::kError, lost_);
  }
}

void Planner::collect(std::unique_ptr<Step> step) {
  --in_flight_;
  under_way_.ended(clock_.now_ns() / 1000);
  if (step->store) return collect_bite(std::move(step));
  ModelState& model = *step->model;
  std::vector<float> ttft_s, inter_token_s;
  int64_t generated = 0;
  for (Sequence* sequence : step->sequences) --sequence->in_flight;
  if (!step->status) {
    SPDLOG_ERROR("{}: a step failed: {}", model.served->name, step->status.error().message);
    if (step->status.error().code == ErrorCode::kDeviceLost && !lost_) lose_device(*step);
    if (!step->moved && !step->moves.empty()) lose_blocks(*model.store, step->status.error());
    // Other choices of the same requests may stand on KV that this step was to write, and so does the next step.
    for (const Sequence* failed : step->sequences) {
      for (const auto& sequence : model.sequences) {
        if (sequence->submission != failed->submission) continue;
        sequence->sound = false;
        if (!sequence->ended) end(*sequence, FinishReason::kError, step->status.error());
      }
    }
  } else {
    for (size_t row = 0; row < step->owners.size(); ++row) collect_row(*step, row, ttft_s, inter_token_s, generated);
    for (size_t i = 0; i < step->sequences.size(); ++i) publish(model, *step->sequences[i], step->context_len[i]);
    model.store->pool->served(model.kv_model, std::ssize(step->tokens));
    for (Sequence* sequence : step->sequences) {
      const bool only_prompt = sequence->request().max_tokens == 0 && sequence->fed == sequence->prompt_size() - 1;
      if (!sequence->ended && only_prompt && sequence->in_flight == 0) end(*sequence, FinishReason::kLength, {});
      sequence->submission->flush();
    }
    model.cost.observe(step_load(step->features), static_cast<double>(step->measured_ns - step->moving_ns) * 1e-3);
    const double measured_us = static_cast<double>(step->measured_ns) * 1e-3;
    model.device_us += measured_us;
    model.share.charge(measured_us - step->predicted_us, model.terms.weight);  // the rest of what the launch did
  }
  if (observer_ != nullptr)
    observer_->on_step({.model = model.served->name,
                        .step = step_count_,
                        .features = step->features,
                        .predicted_us = static_cast<int64_t>(step->predicted_us),
                        .measured_us = step->measured_ns / 1000,
                        .generated_tokens = generated,
                        .preemptions = std::exchange(model.preemptions, 0),
                        .ttft_s = ttft_s,
                        .inter_token_s = inter_token_s});
  ++step_count_;
  sweep(model);
  step->clear();
  spare_steps_.push_back(std::move(step));
}

}  // namespace hearth
