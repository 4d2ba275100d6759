// SPDX-License-Identifier: Apache-2.0
// The planner and the KV pool that models share: what a model may have, what its sequences find there, and who gives
// way.
#include <algorithm>
#include <utility>

#include "hearth/base/log.h"
#include "hearth/engine/planner.h"

namespace hearth {
namespace {

// Waiting sequences that are looked up in a plan: those behind them are hardly admitted in the same step.
constexpr int64_t kLookups = 8;
constexpr int64_t kWindowNs = 1'000'000'000, kTellNs = 100'000'000;

}  // namespace

// ---- the prefix cache

// How much of what a waiting sequence is to be fed is there. Its last token is fed in any case: its logits are wanted.
// The one before too: on a GPU a token that is alone of its sequence in a step may have other bits (decision 0004).
void Planner::look_up(const ModelState& model, Sequence& sequence) {
  sequence.asked_blocks = sequence.hit_blocks = sequence.revived_blocks = 0;
  const Request& request = sequence.request();
  const bool scores_prompt =
      request.prompt_logprobs != kNoLogprobs && sequence.choice == 0 && sequence.prompt_scored < sequence.prompt_size();
  const int64_t blocks = (sequence.feed_end() - 2) / model.block_tokens;
  if (scores_prompt || blocks < 1 || model.free_places.empty() || lookups_++ >= kLookups) return;
  know_keys(model, sequence, blocks);
  const std::span keys = std::span(sequence.keys).first(static_cast<size_t>(blocks));
  const KvHit hit = model.store->pool->hit(model.kv_model, keys);
  sequence.asked_blocks = blocks;
  sequence.hit_blocks = hit.blocks;
  sequence.revived_blocks = hit.revived;
}

// As look_up() found it.
void Planner::match(ModelState& model, Sequence& sequence) {
  const std::span keys = std::span(sequence.keys).first(static_cast<size_t>(sequence.asked_blocks));
  const int64_t blocks = model.store->pool->match(model.kv_model, keys, sequence.hit_blocks, sequence.blocks);
  sequence.published = blocks;
  sequence.fed = blocks * model.block_tokens;
}

// The keys of its first `blocks` blocks. REQUIRES: their tokens are known.
void Planner::know_keys(const ModelState& model, Sequence& sequence, int64_t blocks) {
  const Request& request = sequence.request();
  if (!sequence.chain) {
    const std::string salt = fmt::format("{}:{}{}", request.tenant.size(), request.tenant, request.cache_salt);
    sequence.chain = model.store->pool->root(model.kv_model, salt);
  }
  std::vector<int32_t> tokens(static_cast<size_t>(model.block_tokens));
  while (std::ssize(sequence.keys) < blocks) {
    const int64_t begin = std::ssize(sequence.keys) * model.block_tokens;
    for (int64_t i = 0; i < model.block_tokens; ++i) {
      const int64_t at = begin + i;
      tokens[static_cast<size_t>(i)] = at < sequence.prompt_size()
                                           ? request.prompt[static_cast<size_t>(at)]
                                           : sequence.outputs[static_cast<size_t>(at - sequence.prompt_size())];
    }
    sequence.keys.push_back(sequence.chain->next(tokens));
  }
}

// After a step: what of the sequence is computed up to there is known to the cache, as far as its tokens are known.
void Planner::publish(ModelState& model, Sequence& sequence, int64_t computed) {
  if (!sequence.sound) return;
  const int64_t known = std::min(computed, sequence.prompt_size() + std::ssize(sequence.outputs));
  const int64_t blocks = known / model.block_tokens;
  if (sequence.published >= blocks) return;
  know_keys(model, sequence, blocks);
  for (; sequence.published < blocks; ++sequence.published) {
    const auto b = static_cast<size_t>(sequence.published);
    model.store->pool->publish(sequence.blocks[b], sequence.keys[b]);
  }
}

// ---- who gives way

// Of all tokens that are known, and one more.
int64_t Planner::needed_blocks(const ModelState& model, const Sequence& sequence) const {
  return blocks_for(sequence.known(), model.block_tokens) + 1;
}

// Who runs with more than the model's part; null: nobody any more. A reader that does not read keeps nothing from others.
Sequence* Planner::lifted_for(const ModelState& model) const {
  if (model.store->lifted != model.kv_model) return nullptr;
  const auto found = std::ranges::find_if(
      model.sequences, [&](const auto& s) { return s->lifts && s->running() && !s->ended && reader_keeps_up(*s); });
  return found == model.sequences.end() ? nullptr : found->get();
}

// Of a model that is short of blocks: who runs and needs more than the model's part, else the first that waits and may
// still be on time, else the first that waits. Null: there is none.
Sequence* Planner::first_in_need(const ModelState& model) const {
  if (Sequence* const lifted = lifted_for(model)) return lifted;
  const int64_t part = model.store->pool->limits(model.kv_model).guarantee;
  const auto find = [&](auto is_it) {
    const auto found = std::ranges::find_if(model.sequences, [&](const auto& s) { return !s->ended && is_it(*s); });
    return found == model.sequences.end() ? nullptr : found->get();
  };
  const auto outgrows = [&](Sequence& s) {
    return s.running() && needed_blocks(model, s) > part && reader_keeps_up(s);
  };
  if (Sequence* const sequence = find(outgrows)) return sequence;
  if (Sequence* const sequence = find([](const Sequence& s) { return !s.running() && !s.late; })) return sequence;
  return find([](const Sequence& s) { return !s.running(); });
}

// The model is guaranteed what this sequence needs, until it ends. One model at a time, and in turns. False: another
// one is, or what others were promised leaves too little.
bool Planner::lift(ModelState& model, Sequence& sequence, bool goes_on) {
  KvStore& store = *model.store;
  const auto awaits = [&](const ModelState* m) { return m != &model && m->awaits_lift; };
  const bool others_turn =
      !goes_on && store.lifted_before == model.kv_model && std::ranges::any_of(store.members, awaits);
  model.awaits_lift = others_turn || (store.lifted >= 0 && store.lifted != model.kv_model);
  if (model.awaits_lift) return false;
  const int64_t needed = needed_blocks(model, sequence);
  share_store(store, Lifted{.model = model.kv_model, .blocks = needed});
  if (store.pool->limits(model.kv_model).guarantee < needed) {
    share_store(store, {});
    return false;
  }
  for (const auto& s : model.sequences) s->lifts = s.get() == &sequence;
  store.lifted_before = model.kv_model;
  return true;
}

// Of what the model is guaranteed, while it is short of blocks. None where that would not be enough for who needs them
// first: others can use them then.
int64_t Planner::blocks_to_keep(ModelState& model) {
  KvStore& store = *model.store;
  const bool was_lifted = store.lifted == model.kv_model;
  if (was_lifted && lifted_for(model) == nullptr) share_store(store, {});  // another one may be first by now
  Sequence* const first = first_in_need(model);
  const int64_t needed = first == nullptr ? 0 : needed_blocks(model, *first);
  const bool outgrows = needed > store.pool->limits(model.kv_model).guarantee;
  const bool lifted = outgrows && lift(model, *first, was_lifted);
  if (!outgrows && std::exchange(model.awaits_lift, false)) inbox_->poke();  // who left it its turn may have it
  if (was_lifted && store.lifted < 0) inbox_->poke();                        // it may be another one's turn
  const int64_t live = store.pool->live(model.kv_model), part = store.pool->limits(model.kv_model).guarantee;
  if (outgrows && !lifted) {
    // Two that have all they are promised and need more would wait for each other.
    const bool alone = std::ranges::count_if(model.sequences, [](const auto& s) { return s->running(); }) == 1;
    if (first->running() && alone && !model.awaits_lift) first->gives_way = true, inbox_->poke();
    return 0;
  }
  return std::min(part, live + (first == nullptr ? 1 : std::max<int64_t>(1, needed - std::ssize(first->blocks))));
}

// A model that is short of blocks and has less than its part, or than its first sequence needs, gets them: they are
// kept for it from now on, nearly empty slabs are put together, and a sequence of a model that borrows gives way. Once
// it is short no more nothing is kept but for a sequence for which it is lifted.
void Planner::make_room(ModelState& model, const StepChoice& choice) {
  KvStore& store = *model.store;
  SlabPool& pool = *store.pool;
  if (store.parts > 0 || std::ranges::count(models_, model.store, &ModelState::store) < 2) return;
  int64_t kept = 0;
  if (choice.short_of_blocks) {
    kept = blocks_to_keep(model);
  } else if (const Sequence* const lifted = lifted_for(model)) {
    kept = std::min(pool.limits(model.kv_model).guarantee, needed_blocks(model, *lifted));
  } else if (store.lifted == model.kv_model) {
    share_store(store, {});
    inbox_->poke();  // it may be another one's turn
  }
  if (!choice.short_of_blocks && std::exchange(model.awaits_lift, false)) inbox_->poke();
  KvLimits limits = pool.limits(model.kv_model);
  kept = std::max(kept, least_kept(model));
  if (const int64_t before = std::exchange(limits.kept, kept); kept != before) {
    if (kept < before) inbox_->poke();  // others may go on
    const Status set = pool.set_limits(model.kv_model, limits);
    HEARTH_CHECK(set.has_value(), "what is kept of a guarantee: {}", set.error().message);
  }
  if (!choice.short_of_blocks) return;
  // Free columns of its own format it can use as they lie; those of others only as whole slabs.
  const bool others = std::ranges::any_of(models_, [&](const auto& m) {
    return m->store == model.store && m->kv.layout.block_bytes() != model.kv.layout.block_bytes() &&
           pool.live(m->kv_model) > 0;
  });
  if (others) {
    const std::vector<KvMove> moves = pool.compact(store.max_move_bytes);
    for (const KvMove& move : moves) store.moves.push_back({.move = move});
    if (!moves.empty()) inbox_->poke();
  }
  const auto victim = pool.victim_for(model.kv_model);
  if (!victim || *victim == model.kv_model || pool.live(model.kv_model) >= kept) return;
  const auto lender =
      std::ranges::find_if(models_, [&](const auto& m) { return m->store == model.store && m->kv_model == *victim; });
  const auto leaves = [](const auto& s) { return s->running() && s->gives_way; };
  if (lender == models_.end() || std::ranges::any_of((*lender)->sequences, leaves)) return;
  const auto last = std::find_if((*lender)->sequences.rbegin(), (*lender)->sequences.rend(), [&](const auto& s) {
    return s->running() && !s->ended && own_blocks(**lender, *s) > 0;
  });
  if (last == (*lender)->sequences.rend()) return;
  (*last)->gives_way = true;
  inbox_->poke();
}

// Those that were asked to, as soon as no step uses their blocks.
void Planner::give_way(ModelState& model) {
  for (const auto& sequence : model.sequences) {
    if (!sequence->gives_way || sequence->in_flight > 0) continue;
    sequence->gives_way = false;
    if (!sequence->running() || sequence->ended) continue;
    preempt(model, *sequence);
    inbox_->poke();
  }
}

// ---- from time to time

std::vector<KvStore*> Planner::stores() const {
  std::vector<KvStore*> stores;
  for (const auto& model : models_)
    if (std::ranges::find(stores, model->store.get()) == stores.end()) stores.push_back(model->store.get());
  return stores;
}

// The pool ranks models by what they made of their memory, second by second; others read how it stands.
void Planner::look_at_clock() {
  const int64_t now_ns = clock_.now_ns();
  if (now_ns - window_begin_ns_ >= kWindowNs) {
    window_begin_ns_ = now_ns;
    for (KvStore* const store : stores()) store->pool->end_window();
  }
  // Who is idle may stay so: what it tells last is how it stands.
  if (now_ns - kv_told_ns_ < kTellNs && in_flight_ > 0) return;
  kv_told_ns_ = now_ns;
  std::vector<KvPoolStats> pools;
  for (const KvStore* const store : stores()) pools.push_back(store->pool->stats());
  const std::lock_guard lock(stats_.mutex);
  stats_.kv_pools = std::move(pools);
}

}  // namespace hearth
