// SPDX-License-Identifier: Apache-2.0
// Models fall asleep and wake. What a model is on its way to is its phase, which keeps everybody else off it; a wake
// takes memory and so comes alone, a sleep only gives some back and waits for nobody but the model's own requests.
#include "hearth/base/caught.h"
#include "hearth/base/log.h"
#include "hearth/engine/engine_impl.h"

namespace hearth {

// Its requests are taken from now on.
Status Engine::Impl::serve(const std::shared_ptr<ModelState>& state) {
  Message message{.kind = Message::Kind::kAddModel, .model = state};
  std::future<Result<int64_t>> tokens = message.tokens.get_future();
  if (!inbox->post(std::move(message))) return unavailable("the engine has ended");
  if (auto added = tokens.get(); !added) return std::move(added).error();
  return {};
}

bool Engine::Impl::removed(const Entry& entry) {
  const std::lock_guard lock(mutex);
  const Entry* const found = find(entry.served->name);
  return found == nullptr || found->state != entry.state;
}

// A model may be removed at any time, and what the planner is told of that must not come before it has it.
Status Engine::Impl::serve_again(const Entry& entry) {
  HEARTH_TRY(serve(entry.state));
  if (!removed(entry)) return {};
  inbox->post({.kind = Message::Kind::kRemoveModel, .model = entry.state});
  return not_found("{} was removed", entry.served->name);
}

// The weights of a model that nobody uses go to the host.
Status Engine::Impl::leave_device(Entry& entry) {
  const Memory& memory = entry.served->model->ops().memory();
  if (memory.is_host()) return {};
  Buffer& weights = entry.served->model->weights().memory;
  HEARTH_TRY_ASSIGN(HostCopy copy, HostCopy::take(memory, {weights.data(), static_cast<size_t>(weights.size_bytes())}));
  return leave_device(entry, std::make_shared<HostCopy>(std::move(copy)));
}

// To where a copy of them is.
Status Engine::Impl::leave_device(Entry& entry, std::shared_ptr<HostCopy> copy) {
  HEARTH_TRY(resize_in_steps(entry.served->model->weights().memory, 0));
  *entry.state->weight_bytes = 0;
  entry.asleep = std::move(copy);
  return {};
}

// REQUIRES: the device has room for them.
Status Engine::Impl::come_back(Entry& entry) {
  Buffer& weights = entry.served->model->weights().memory;
  HEARTH_TRY(resize_in_steps(weights, entry.asleep->size_bytes()));
  if (Status brought = entry.asleep->put_back(weights.data()); !brought) {
    (void)resize_in_steps(weights, 0);
    return brought;
  }
  *entry.state->weight_bytes = weights.size_bytes();
  entry.asleep.reset();
  return {};
}

// Of a model that is to come back to the device.
ModelNeeds Engine::Impl::needs_of(const Entry& entry) const {
  const int64_t tokens = std::min(entry.served->max_context, kLeastContext);
  const int64_t block_bytes = entry.state->kv.layout.block_bytes();
  // Nobody else has its limits while it sleeps.
  const int64_t guaranteed = entry.state->limits.guarantee_bytes / block_bytes * block_bytes;
  return {.name = entry.served->name,
          .weight_bytes = entry.asleep ? entry.asleep->size_bytes() : 0,
          .least_kv_bytes = blocks_for(tokens, options.block_tokens) * block_bytes,
          .guaranteed_kv_bytes = guaranteed};
}

Result<std::optional<Engine::Impl::Entry>> Engine::Impl::begin_move(const std::string& name, bool to_sleep) {
  const std::lock_guard lock(mutex);
  Entry* const found = find(name);
  if (found == nullptr) return not_found("the engine has no model '{}'", name);
  if (found->phase == (to_sleep ? ModelPhase::kAsleep : ModelPhase::kServing)) return std::optional<Entry>();
  if (found->phase != (to_sleep ? ModelPhase::kServing : ModelPhase::kAsleep))
    return unavailable("the model '{}' is {}; wanted one that is {}", name, phase_name(found->phase),
                       phase_name(to_sleep ? ModelPhase::kServing : ModelPhase::kAsleep));
  found->phase = to_sleep ? ModelPhase::kFallingAsleep : ModelPhase::kWaking;
  return std::optional<Entry>(*found);
}

// Removed meanwhile, it is nobody's business any more; another one may have its name.
void Engine::Impl::end_move(const Entry& entry, ModelPhase phase) {
  {
    const std::lock_guard lock(mutex);
    Entry* const found = find(entry.served->name);
    if (found != nullptr && found->state == entry.state) {
      found->phase = phase;
      found->asleep = entry.asleep;
    }
  }
  bell->ring();
}

Status Engine::Impl::fall_asleep(Entry& entry, const Waiting& waiting) {
  const std::string& name = entry.served->name;
  std::promise<void> left;
  const std::future<void> gone = left.get_future();
  HEARTH_TRY(ask([&] { return planner.retire(*entry.state, std::move(left)); }));
  const auto requests = [&] {
    const auto left_over = ask([&]() -> Result<int64_t> { return std::ssize(entry.state->sequences); });
    return fmt::format("{} requests of {} that run or wait", left_over ? *left_over : 0, name);
  };
  while (gone.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
    Status goes_on = waiting.again(requests);
    if (goes_on) continue;
    HEARTH_TRY_ASSIGN(const bool stays, ask([&]() -> Result<bool> { return planner.stay(*entry.state); }));
    if (stays) return goes_on;
    gone.wait();  // it left at that moment
  }
  if (removed(entry)) return not_found("{} was removed", name);
  Status slept = caught([&] { return leave_device(entry); });
  if (!slept && !removed(entry)) {
    if (const Status back = serve_again(entry); !back)
      SPDLOG_ERROR("{} sleeps with its weights on the device: {}", name, back.error().message);
  }
  return slept;
}

Status Engine::Impl::wake_up(Entry& entry, const Waiting& waiting) {
  HEARTH_TRY_ASSIGN(const std::unique_lock<std::mutex> alone, begin_adding(waiting));
  const std::shared_ptr<HostCopy> copy = entry.asleep;
  const Status awake = caught([&]() -> Status {
    {
      HEARTH_TRY_ASSIGN(MemoryRoom room, make_room(entry.served->model->ops().memory(), needs_of(entry), waiting));
      if (entry.asleep) HEARTH_TRY(come_back(entry));
    }
    return serve_again(entry);
  });
  if (!awake && copy && !entry.asleep && !removed(entry)) {
    if (const Status back = leave_device(entry, copy); !back)
      SPDLOG_ERROR("{} sleeps with its weights on the device: {}", entry.served->name, back.error().message);
  }
  return awake;
}

Status Engine::sleep_model(const std::string& name, const Patience& patience) {
  const Waiting waiting(impl_->clock, patience);
  HEARTH_TRY_ASSIGN(std::optional<Impl::Entry> entry, impl_->begin_move(name, true));
  if (!entry) return {};
  const Status slept = caught([&] { return impl_->fall_asleep(*entry, waiting); });
  impl_->end_move(*entry, slept ? ModelPhase::kAsleep : ModelPhase::kServing);
  return slept;
}

Status Engine::wake_model(const std::string& name, const Patience& patience) {
  const Waiting waiting(impl_->clock, patience);
  HEARTH_TRY_ASSIGN(std::optional<Impl::Entry> entry, impl_->begin_move(name, false));
  if (!entry) return {};
  // Its memory on the host goes back when the model serves again, for that takes a while.
  const std::shared_ptr<HostCopy> copy = entry->asleep;
  const Status awake = caught([&] { return impl_->wake_up(*entry, waiting); });
  impl_->end_move(*entry, awake ? ModelPhase::kServing : ModelPhase::kAsleep);
  return awake;
}

Result<ModelNeeds> Engine::needs_to_wake(const std::string& name) const {
  const std::lock_guard lock(impl_->mutex);
  const Impl::Entry* const found = impl_->find(name);
  if (found == nullptr || found->phase != ModelPhase::kAsleep)
    return not_found("the engine has no model '{}' that sleeps", name);
  return impl_->needs_of(*found);
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
