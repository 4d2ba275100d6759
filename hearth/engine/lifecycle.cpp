// SPDX-License-Identifier: Apache-2.0
// The life of a model in the engine: it comes, gets its part of the memory, goes.
#include <algorithm>

#include "hearth/base/caught.h"
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

}  // namespace

// The pool of the memory in which the model lies, which takes `own_bytes` itself and is not counted yet.
Result<std::shared_ptr<KvStore>> Engine::Impl::store_for(const ServedModel& served, int64_t own_bytes,
                                                         const KvLayout& layout) {
  const Memory& memory = served.model->ops().memory();
  MemoryAccount& of = account(memory);
  if (auto store = of.pool()) return store;
  HEARTH_TRY_ASSIGN(int64_t bytes, options.memory_bytes > 0 && options.kv_bytes == 0
                                       ? Result<int64_t>(options.memory_bytes)
                                       : kv_pool_bytes(options, served, layout));
  const int64_t limit_bytes = bytes;
  if (options.memory_bytes > 0) {
    HEARTH_TRY_ASSIGN(const int64_t free_bytes, of.free_bytes());
    // A slab more than the pool has is for padded steps; the pool has 16 at least.
    const int64_t left = (free_bytes - own_bytes) / 17 * 16;
    const int64_t least = blocks_for(std::min(served.max_context, kLeastContext), options.block_tokens);
    if (left < least * layout.block_bytes())
      return resource_exhausted(
          "{}: {} bytes of weights and step buffers, and {} of KV for {} tokens, are more than the {} bytes that are "
          "free of {}",
          served.name, own_bytes, least * layout.block_bytes(), std::min(served.max_context, kLeastContext), free_bytes,
          options.memory_bytes);
    bytes = std::min(bytes, left);
  }
  HEARTH_TRY_ASSIGN(std::shared_ptr<KvStore> store,
                    KvStore::create(memory, bytes, limit_bytes, layout.block_bytes(), options.prefix_cache));
  store->parts = options.kv_parts;
  if (options.kv_swap_bytes > 0) {
    HEARTH_TRY_ASSIGN(store->swap,
                      SwapSpace::create(memory, *store->copies, store->memory, options.kv_swap_bytes, SteadyClock()));
  }
  of.set_pool(store);
  return store;
}

Result<std::shared_ptr<ModelState>> Engine::Impl::make_state(std::shared_ptr<const ServedModel> served) {
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
                                           steps.pool()));
  auto state = std::make_shared<ModelState>(std::move(buffers));
  state->max_sequences = options.max_sequences;
  state->step_tokens = step_tokens;
  state->max_rows = max_rows;
  state->block_tokens = options.block_tokens;
  HEARTH_TRY_ASSIGN(state->kv.layout, KvLayout::make(served->kv_format, c.layers, served->model->local_kv_heads(),
                                                     c.head_dim, options.block_tokens));
  HEARTH_TRY_ASSIGN(
      state->store,
      store_for(*served, served->model->weights().memory.size_bytes() + state->buffers.size_bytes(), state->kv.layout));
  state->kv.base = state->store->memory.data();
  state->kv.dummy_block = 0;  // KvStore I1
  if (options.decode_graphs)
    HEARTH_TRY(state->buffers.record_decode(*served->model, state->kv, decode_batches(options.max_sequences)));
  state->sampled.resize(static_cast<size_t>(options.max_sequences));
  state->tenants.resize(static_cast<size_t>(options.max_sequences));
  state->newest_row.resize(static_cast<size_t>(options.max_sequences), -1);
  for (int64_t place = options.max_sequences - 1; place >= 0; --place) state->free_places.push_back(place);
  *state->weight_bytes = served->model->weights().memory.size_bytes();
  state->served = std::move(served);
  return state;
}

Status Engine::add_model(std::shared_ptr<const ServedModel> model, const ServiceTerms& terms, MemoryRoom room) {
  const std::lock_guard adding(impl_->adding);
  {
    const std::lock_guard lock(impl_->mutex);
    if (impl_->find(model->name) != nullptr)
      return invalid_argument("the engine has a model '{}' already", model->name);
  }
  room = {};  // it is taken now, and nobody else can come between
  const auto add = [&]() -> Status {
    HEARTH_TRY_ASSIGN(const std::shared_ptr<ModelState> state, impl_->make_state(model).with_context(model->name));
    state->terms = terms;
    state->terms.slo = slo_or(terms.slo, impl_->options.slo);
    MemoryAccount& account = impl_->account(model->model->ops().memory());
    account.add_model(state);
    if (impl_->options.memory_bytes > 0) HEARTH_TRY(impl_->make_free(account, 0, {}, Waiting(impl_->clock, {})));
    HEARTH_TRY(impl_->serve(state));
    const std::lock_guard lock(impl_->mutex);
    impl_->entries.push_back({.served = model, .state = state, .asleep = {}});
    return {};
  };
  Status added = caught(add);
  impl_->bell->ring();
  return added;
}

Status Engine::remove_model(const std::string& name) {
  Impl::Entry removed;  // goes behind the lock: giving back what sleeps on the host takes a while
  const std::lock_guard lock(impl_->mutex);
  Impl::Entry* const found = impl_->find(name);
  if (found == nullptr) return not_found("the engine has no model '{}'", name);
  std::swap(removed, *found);
  std::erase_if(impl_->entries, [](const Impl::Entry& e) { return e.served == nullptr; });
  impl_->inbox->post({.kind = Message::Kind::kRemoveModel, .model = removed.state});
  impl_->bell->ring();
  return {};
}

// ---- limits

Status Engine::set_limits(const std::string& name, const MemoryLimits& limits) {
  HEARTH_TRY_ASSIGN(const std::shared_ptr<ModelState> state, impl_->state_of(name));
  return impl_->ask([&] { return impl_->planner.set_limits(*state, limits, state->pinned); });
}

Status Engine::pin(const std::string& name, bool pinned) {
  HEARTH_TRY_ASSIGN(const std::shared_ptr<ModelState> state, impl_->state_of(name));
  return impl_->ask([&] { return impl_->planner.set_limits(*state, state->limits, pinned); });
}

}  // namespace hearth
