// SPDX-License-Identifier: Apache-2.0
// The engine's front: checks, models' memory, and the threads' beginning and end.
#include "hearth/engine/engine.h"

#include <algorithm>
#include <future>
#include <map>
#include <mutex>
#include <thread>

#include "hearth/base/cpus.h"
#include "hearth/base/worker_pool.h"
#include "hearth/engine/inbox.h"
#include "hearth/engine/planner.h"
#include "hearth/engine/step_thread.h"
#include "hearth/engine/submission.h"

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

// One for each memory in which models lie, as long as any does. Guarded by Impl::adding.
class KvStores {
 public:
  Result<std::shared_ptr<KvStore>> of(const EngineOptions& options, const ServedModel& model, const KvLayout& layout) {
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

 private:
  std::map<const Memory*, std::weak_ptr<KvStore>> stores_;
};

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

struct Engine::Impl {
  Impl(const EngineOptions& o, std::unique_ptr<LocalPolicy> policy, EngineObserver* observer, const Clock& c)
      : options(o),
        clock(c),
        text_workers(o.text_workers, std::numeric_limits<int64_t>::max()),
        grammar_workers(o.text_workers, std::numeric_limits<int64_t>::max(), WorkerPool::Priority::kGivesWay,
                        cpus_beside_team(team_threads(o.threads))),
        steps(team_threads(o.threads), c, [box = inbox] { box->poke(); }),
        planner(inbox, steps, observer, c, std::move(policy), o.max_unread, o.reject_hopeless, shared),
        planner_thread([this] { planner.run(); }) {}

  ~Impl() {
    {
      const std::lock_guard lock(mutex);
      draining = true;
    }
    planner.stop();
    planner_thread.join();
    inbox->close();
  }

  struct Entry {
    std::shared_ptr<const ServedModel> served;
    int64_t kv_tokens = 0;  // that the pool can hold of it
  };

  const EngineOptions options;
  const Clock& clock;
  std::shared_ptr<Inbox> inbox = std::make_shared<Inbox>();
  SharedStats shared;
  WorkerPool text_workers;
  WorkerPool grammar_workers;  // for requests with a grammar: a mask may take as long as a hundred other texts
  StepThread steps;
  Planner planner;

  std::mutex adding;  // held while a model is added
  KvStores stores;    // guarded by adding

  std::mutex mutex;
  std::vector<Entry> entries;  // guarded by mutex
  bool draining = false;       // guarded by mutex

  std::thread planner_thread;  // last: starts when all else is there
};

RequestHandle::RequestHandle(std::shared_ptr<Submission> submission) : submission_(std::move(submission)) {}

RequestHandle& RequestHandle::operator=(RequestHandle&& other) noexcept {
  std::swap(submission_, other.submission_);
  return *this;
}

RequestHandle::~RequestHandle() { cancel(); }

void RequestHandle::cancel() noexcept {
  if (submission_) submission_->cancel();
}

void RequestHandle::consumed(int32_t choice, int64_t tokens) {
  if (submission_) submission_->consumed(choice, tokens);
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

Result<std::unique_ptr<Engine>> Engine::create(const EngineOptions& options, EngineObserver* observer,
                                               const Clock& clock) {
  const auto at_least_one = [](std::string_view name, int64_t value) -> Status {
    if (value < 1) return invalid_argument("engine: {} is {}; wanted at least 1", name, value);
    return {};
  };
  HEARTH_TRY(at_least_one("max_sequences", options.max_sequences));
  HEARTH_TRY(at_least_one("step_tokens", options.step_tokens));
  HEARTH_TRY(at_least_one("block_tokens", options.block_tokens));
  HEARTH_TRY(at_least_one("max_waiting", options.max_waiting));
  HEARTH_TRY(at_least_one("max_unread", options.max_unread));
  HEARTH_TRY_ASSIGN(auto policy, make_local_policy(options.schedule));
  return std::unique_ptr<Engine>(new Engine(std::make_unique<Impl>(options, std::move(policy), observer, clock)));
}

Status Engine::add_model(std::shared_ptr<const ServedModel> model, const ServiceTerms& terms) {
  const std::lock_guard adding(impl_->adding);
  {
    const std::lock_guard lock(impl_->mutex);
    if (std::ranges::any_of(impl_->entries, [&](const Impl::Entry& e) { return e.served->name == model->name; }))
      return invalid_argument("the engine has a model '{}' already", model->name);
  }
  HEARTH_TRY_ASSIGN(std::shared_ptr<ModelState> state,
                    make_state(model, impl_->options, impl_->stores, impl_->steps.pool()).with_context(model->name));
  state->terms = terms;
  state->terms.slo = slo_or(terms.slo, impl_->options.slo);
  Message message{.kind = Message::Kind::kAddModel, .added = std::move(state)};
  std::future<Result<int64_t>> tokens = message.tokens.get_future();
  if (!impl_->inbox->post(std::move(message))) return unavailable("the engine has ended");
  HEARTH_TRY_ASSIGN(const int64_t kv_tokens, tokens.get());
  const std::lock_guard lock(impl_->mutex);
  impl_->entries.push_back({std::move(model), kv_tokens});
  return {};
}

Status Engine::remove_model(const std::string& name) {
  const std::lock_guard lock(impl_->mutex);
  const auto removed = std::erase_if(impl_->entries, [&](const Impl::Entry& e) { return e.served->name == name; });
  if (removed == 0) return not_found("the engine has no model '{}'", name);
  impl_->inbox->post({.kind = Message::Kind::kRemoveModel, .name = name});
  return {};
}

int64_t Engine::kv_tokens(const ServedModel& model) const {
  const std::lock_guard lock(impl_->mutex);
  for (const Impl::Entry& entry : impl_->entries)
    if (entry.served.get() == &model) return entry.kv_tokens;
  return 0;
}

Result<RequestHandle> Engine::submit(Request request, OnOutput on_output) {
  HEARTH_TRY(validate(request));
  const int64_t n = request.n;
  if (n > impl_->options.max_waiting)
    return invalid_argument("n is {}; at most {} choices can wait", n, impl_->options.max_waiting);
  WorkerPool& workers = request.grammar ? impl_->grammar_workers : impl_->text_workers;
  HEARTH_TRY_ASSIGN(
      std::shared_ptr<Submission> submission,
      Submission::create(std::move(request), std::move(on_output), workers, impl_->inbox, impl_->clock.now_ns()));
  const Request& r = submission->request();
  const std::lock_guard lock(impl_->mutex);
  if (impl_->draining) return unavailable("the server takes no more requests: it is shutting down");
  HEARTH_TRY(device());
  const auto entry = std::ranges::find(impl_->entries, r.model, &Impl::Entry::served);
  if (entry == impl_->entries.end()) return not_found("the model '{}' is not served", r.model->name);
  if (const int64_t tokens = std::ssize(r.prompt) + r.max_tokens; tokens > entry->kv_tokens)
    return invalid_argument("{} prompt tokens and {} more need a KV cache of {} tokens; it holds {}", r.prompt.size(),
                            r.max_tokens, tokens, entry->kv_tokens);
  if (impl_->shared.waiting.load() + n > impl_->options.max_waiting)
    return resource_exhausted("{} choices wait, {} more would be more than {}", impl_->shared.waiting.load(), n,
                              impl_->options.max_waiting);
  impl_->shared.waiting.fetch_add(n);
  impl_->shared.unfinished.fetch_add(n);
  try {
    impl_->inbox->post({.kind = Message::Kind::kSubmit, .submission = submission});
  } catch (const std::bad_alloc&) {
    impl_->shared.waiting.fetch_sub(n);
    impl_->shared.unfinished.fetch_sub(n);
    return resource_exhausted("out of memory for a request");
  }
  return RequestHandle(std::move(submission));
}

bool Engine::drain() {
  const std::lock_guard lock(impl_->mutex);
  impl_->draining = true;
  return impl_->shared.unfinished.load() == 0;
}

Status Engine::device() const {
  const std::lock_guard lock(impl_->shared.mutex);
  if (impl_->shared.lost) return *impl_->shared.lost;
  return {};
}

std::vector<ModelStats> Engine::stats() const {
  const std::lock_guard lock(impl_->shared.mutex);
  return impl_->shared.models;
}

std::vector<KvPoolStats> Engine::kv_stats() const {
  const std::lock_guard lock(impl_->shared.mutex);
  return impl_->shared.kv_pools;
}

}  // namespace hearth
