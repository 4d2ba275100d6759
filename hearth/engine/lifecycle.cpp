// SPDX-License-Identifier: Apache-2.0
// The life of a model in the engine: it comes, gets its part of the memory, goes.
#include <algorithm>

#include "hearth/engine/engine_impl.h"

namespace hearth {
namespace {

// Rows of logits that a step may want beyond one for each sequence: prompts' logprobs. Bounds their memory.
constexpr int64_t kPromptRowBytes = int64_t{64} << 20;
// Of the KV pool on a CPU, where nothing else is asked for.
constexpr int64_t kLeastDefaultBytes = int64_t{1} << 30;
constexpr int64_t kMinPromptRows = 16, kMaxPromptRows = 512;

// Bytes of the KV pool that is made with this model.
Result<int64_t> kv_pool_bytes(const EngineOptions& options, const ServedModel& model, const KvLayout& layout) {
  if (options.kv_bytes > 0) return options.kv_bytes;
  const Memory& memory = model.model->ops().memory();
  HEARTH_TRY_ASSIGN(const int64_t available, memory.available_bytes());
  int64_t all = 0;
  const int64_t context_bytes = blocks_for(model.max_context, options.block_tokens) * layout.block_bytes();
  if (__builtin_mul_overflow(context_bytes, options.max_sequences, &all)) all = std::numeric_limits<int64_t>::max();
  const int64_t quarter = std::max(available / 4, context_bytes);
  // A CPU's memory is there for others too.
  return memory.is_host() ? std::min(std::max(all, kLeastDefaultBytes), quarter) : quarter;
}

Result<std::shared_ptr<ModelState>> make_state(std::shared_ptr<const ServedModel> served, const EngineOptions& options,
                                               KvStores& stores, ThreadPool& pool) {
  const ModelConfig& c = served->model->config();
  const int64_t step_tokens = std::max(options.step_tokens, options.max_sequences);
  const int64_t row_bytes = c.vocab_size * static_cast<int64_t>(sizeof(float));
  const int64_t max_rows =
      options.max_sequences + std::clamp(kPromptRowBytes / row_bytes, kMinPromptRows, kMaxPromptRows);
  HEARTH_TRY_ASSIGN(ForwardBuffers buffers,
                    ForwardBuffers::create(*served->model,
                                           {.max_tokens = step_tokens,
                                            .max_logit_rows = max_rows,
                                            .max_context = served->max_context,
                                            .max_block_entries = options.max_sequences *
                                                                 blocks_for(served->max_context, options.block_tokens),
                                            .samples = true,
                                            .sample_slots = options.max_sequences},
                                           pool));
  auto state = std::make_shared<ModelState>(std::move(buffers));
  state->max_sequences = options.max_sequences;
  state->step_tokens = step_tokens;
  state->max_rows = max_rows;
  state->block_tokens = options.block_tokens;
  HEARTH_TRY_ASSIGN(state->kv.layout, KvLayout::make(served->kv_format, c.layers, served->model->local_kv_heads(),
                                                     c.head_dim, options.block_tokens));
  HEARTH_TRY_ASSIGN(state->store, stores.of(options, *served, state->kv.layout));
  state->kv.base = state->store->memory.data();
  state->kv.dummy_block = state->store->dummy_block;
  if (options.decode_graphs)
    HEARTH_TRY(state->buffers.record_decode(*served->model, state->kv, decode_batches(options.max_sequences)));
  state->sampled.resize(static_cast<size_t>(options.max_sequences));
  state->tenants.resize(static_cast<size_t>(options.max_sequences));
  state->newest_row.resize(static_cast<size_t>(options.max_sequences), -1);
  for (int64_t place = options.max_sequences - 1; place >= 0; --place) state->free_places.push_back(place);
  state->served = std::move(served);
  return state;
}

}  // namespace

Result<std::shared_ptr<KvStore>> KvStores::of(const EngineOptions& options, const ServedModel& model,
                                              const KvLayout& layout) {
  const Memory& memory = model.model->ops().memory();
  std::weak_ptr<KvStore>& known = stores_[&memory];
  if (auto store = known.lock()) return store;
  HEARTH_TRY_ASSIGN(const int64_t bytes, kv_pool_bytes(options, model, layout));
  HEARTH_TRY_ASSIGN(std::shared_ptr<KvStore> store,
                    KvStore::create(memory, bytes, layout.block_bytes(), options.prefix_cache));
  store->parts = options.kv_parts;
  known = store;
  return store;
}

Status Engine::add_model(std::shared_ptr<const ServedModel> model, const ServiceTerms& terms) {
  const std::lock_guard adding(impl_->adding);
  {
    const std::lock_guard lock(impl_->mutex);
    if (impl_->find(model->name) != nullptr)
      return invalid_argument("the engine has a model '{}' already", model->name);
  }
  HEARTH_TRY_ASSIGN(std::shared_ptr<ModelState> state,
                    make_state(model, impl_->options, impl_->stores, impl_->steps.pool()).with_context(model->name));
  state->terms = terms;
  state->terms.slo = slo_or(terms.slo, impl_->options.slo);
  Message message{.kind = Message::Kind::kAddModel, .added = state};
  std::future<Result<int64_t>> tokens = message.tokens.get_future();
  if (!impl_->inbox->post(std::move(message))) return unavailable("the engine has ended");
  if (auto added = tokens.get(); !added) return std::move(added).error();
  const std::lock_guard lock(impl_->mutex);
  impl_->entries.push_back({std::move(model), std::move(state)});
  return {};
}

Status Engine::remove_model(const std::string& name) {
  const std::lock_guard lock(impl_->mutex);
  const auto removed = std::erase_if(impl_->entries, [&](const Impl::Entry& e) { return e.served->name == name; });
  if (removed == 0) return not_found("the engine has no model '{}'", name);
  impl_->inbox->post({.kind = Message::Kind::kRemoveModel, .name = name});
  return {};
}

Status Engine::set_limits(const std::string& name, const MemoryLimits& limits) {
  const std::lock_guard adding(impl_->adding);
  HEARTH_TRY_ASSIGN(const std::shared_ptr<ModelState> state, impl_->state_of(name));
  return impl_->ask([&] { return impl_->planner.set_limits(*state, limits, state->pinned); });
}

Status Engine::pin(const std::string& name, bool pinned) {
  const std::lock_guard adding(impl_->adding);
  HEARTH_TRY_ASSIGN(const std::shared_ptr<ModelState> state, impl_->state_of(name));
  return impl_->ask([&] { return impl_->planner.set_limits(*state, state->limits, pinned); });
}

std::string_view phase_name(ModelPhase phase) {
  switch (phase) {
    case ModelPhase::kServing: return "serving";
    case ModelPhase::kFallingAsleep: return "falling asleep";
    case ModelPhase::kAsleep: return "asleep";
    case ModelPhase::kWaking: return "waking";
  }
  return "";
}

}  // namespace hearth
