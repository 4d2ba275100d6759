// SPDX-License-Identifier: Apache-2.0
// The engine's front: checks, requests, and the threads' beginning and end. lifecycle.cpp has the lives of models.
#include "hearth/engine/engine_impl.h"

#include <algorithm>

namespace hearth {

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

int64_t Engine::kv_tokens(const ServedModel& model) const {
  const std::lock_guard lock(impl_->mutex);
  for (const Impl::Entry& entry : impl_->entries)
    if (entry.served.get() == &model) return entry.state->kv_tokens;
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
  if (entry->phase != ModelPhase::kServing)
    return unavailable("the model '{}' is {}", r.model->name, phase_name(entry->phase));
  if (const int64_t tokens = std::ssize(r.prompt) + r.max_tokens; tokens > entry->state->kv_tokens)
    return invalid_argument("{} prompt tokens and {} more need a KV cache of {} tokens; it holds {}", r.prompt.size(),
                            r.max_tokens, tokens, entry->state->kv_tokens.load());
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
  // Both at once: a model is the planner's, or what it told when it left.
  const std::lock_guard lock(impl_->mutex);
  const std::lock_guard shared(impl_->shared.mutex);
  std::vector<ModelStats> stats = impl_->shared.models;
  for (const Impl::Entry& entry : impl_->entries) {
    auto found = std::ranges::find(stats, entry.served->name, &ModelStats::model);
    if (found == stats.end() && !entry.state->told.model.empty()) found = stats.insert(found, entry.state->told);
    if (found == stats.end()) continue;
    found->phase = entry.phase;
    found->weight_bytes = *entry.state->weight_bytes;
  }
  return stats;
}

std::vector<KvPoolStats> Engine::kv_stats() const {
  const std::lock_guard lock(impl_->shared.mutex);
  return impl_->shared.kv_pools;
}

}  // namespace hearth
