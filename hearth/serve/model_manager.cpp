// SPDX-License-Identifier: Apache-2.0
// Threads over one mutex: one that loads, one that waits for the last holders of what was unloaded, and one for each
// model that falls asleep or wakes, which may have to wait for its requests.
#include "hearth/serve/model_manager.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "hearth/base/caught.h"
#include "hearth/base/cpus.h"
#include "hearth/base/log.h"
#include "hearth/engine/model_needs.h"

namespace hearth {
namespace {

constexpr std::chrono::milliseconds kBuryTick{20};
constexpr int kLoaderNice = 10;
constexpr int64_t kRoomWaitUs = 30'000'000;  // for memory that requests hold
constexpr int64_t kIdleWaitUs = 1'000'000;   // for a request that comes to an idle model as it falls asleep

// Steps wait for their slowest thread, so where they are computed on CPUs, loading keeps off theirs.
int make_room_for_team(const OpTable& ops, int threads) {
  if (!ops.memory().is_host()) return std::max(ThreadPool::hardware_threads() / 2, 1);
  keep_thread_on(0, cpus_beside_team(team_threads(threads)));
  setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kLoaderNice);
  return 1;
}

}  // namespace

ModelManager::ModelManager(ManagerParts parts) : parts_(std::move(parts)) {
  for (const ModelSource& source : parts_.first) first_.push_back({.source = source, .terms = {}});
  undertaker_ = std::thread([this] { bury_all(); });
}

ModelManager::~ModelManager() {
  stop();
  if (loader_.joinable()) loader_.join();
  for (Mover& mover : movers_)
    if (mover.thread.joinable()) mover.thread.join();
  undertaker_.join();
}

void ModelManager::stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  cancel_.store(true);
  for (Mover& mover : movers_) mover.off.store(true);
  wake_.notify_all();
}

// ---- loads

Status ModelManager::load_first(ThreadPool& pool) {
  std::unique_lock lock(mutex_);
  while (!first_.empty()) {
    if (stopping_) return cancelled("the server is going down");
    HEARTH_TRY(load_next(first_, pool, lock));
  }
  return {};
}

void ModelManager::start() {
  const std::lock_guard lock(mutex_);
  loader_ = std::thread([this] { load_all(); });
}

ApiStatus ModelManager::load(ModelSource source, const ChangeTerms& terms) {
  const std::lock_guard lock(mutex_);
  if (stopping_) return not_now("draining", "the server is going down");
  if (ApiStatus added = parts_.models.add(source); !added) return added;
  waiting_.push_back({.source = std::move(source), .terms = terms, .asked_ns = clock_.now_ns()});
  wake_.notify_all();
  return {};
}

ApiResult<std::string> ModelManager::unload(std::string_view name_or_alias, bool force) {
  // With the loader's mutex: what is loading now is either cancelled here or ready before.
  const std::lock_guard lock(mutex_);
  HEARTH_TRY_ASSIGN(ModelView view, parts_.models.retire(name_or_alias));
  const std::string name = view.name();
  if (view.stage == ModelStage::kLoading) {
    if (loading_ == name) {
      cancel_.store(true);
    } else {
      for (std::deque<Load>* const loads : {&first_, &waiting_})
        std::erase_if(*loads, [&](const Load& load) { return load.source.names.front() == name; });
      parts_.models.forget(name);
    }
  } else if (view.model != nullptr) {
    const ServedModel* const served = view.model->served.get();
    dying_.push_back(view.model->served);
    if (const Status removed = parts_.engine.remove_model(name); !removed)
      spdlog::error("unloading {}: {}", name, removed.error().message);
    for (Mover& mover : movers_)
      if (mover.model == name) mover.off.store(true);
    if (force) parts_.conversations.cancel_all(served);
    wake_.notify_all();
  }
  spdlog::info("unloading {}", name);
  return name;
}

Patience ModelManager::patience(const ChangeTerms& terms, int64_t asked_ns, int64_t usual_us,
                                const std::atomic<bool>* stop) const {
  if (!terms.deadline_ms) return {.wait_us = usual_us, .stop = stop};
  return {.wait_us = *terms.deadline_ms * 1000, .waited_us = (clock_.now_ns() - asked_ns) / 1000, .stop = stop};
}

Status ModelManager::bring(const Load& load, ThreadPool& pool) {
  const ModelSource& source = load.source;
  const std::string& name = source.names.front();
  LoadOptions options = parts_.load;
  options.stop = &cancel_;
  if (source.max_context) options.max_context = source.max_context;
  if (source.kv_format) options.kv_format = source.kv_format;
  options.progress = [&](int64_t done, int64_t total) {
    parts_.models.progress(name, done, total);
    if (parts_.load.progress) parts_.load.progress(done, total);
  };
  HEARTH_TRY_ASSIGN(ModelNeeds needs, needs_of(source.dir, name, options, parts_.options));
  needs.guaranteed_kv_bytes = source.limits.guarantee_bytes;
  if (load.terms.sleep_idle) HEARTH_TRY(sleep_for_room(name, needs));
  const Patience waits = patience(load.terms, load.asked_ns, kRoomWaitUs, &cancel_);
  HEARTH_TRY_ASSIGN(MemoryRoom room, parts_.engine.make_room(parts_.ops.memory(), needs, waits));
  HEARTH_TRY_ASSIGN(std::shared_ptr<const ServedModel> served,
                    load_served_model(source.dir, name, parts_.ops, options, pool));
  HEARTH_TRY(parts_.engine.add_model(served, source.terms, std::move(room)).with_context(name));
  Status limited;
  if (source.limits.guarantee_bytes > 0 || source.limits.cap_bytes > 0)
    limited = parts_.engine.set_limits(name, source.limits);
  const std::lock_guard lock(mutex_);
  if (limited && cancel_.load()) limited = cancelled("the load was cancelled");
  if (!limited) {
    dying_.push_back(std::move(served));
    wake_.notify_all();
    HEARTH_TRY(parts_.engine.remove_model(name));
    return limited;
  }
  parts_.models.set_ready(name, std::move(served));
  return {};
}

Status ModelManager::load_next(std::deque<Load>& loads, ThreadPool& pool, std::unique_lock<std::mutex>& lock) {
  const Load load = std::move(loads.front());
  loads.pop_front();
  const std::string& name = load.source.names.front();
  loading_ = name;
  cancel_.store(false);
  lock.unlock();
  spdlog::info("loading {} from {}", name, load.source.dir.string());
  Status status = caught([&] { return bring(load, pool); });
  lock.lock();
  loading_.clear();
  if (status) {
    spdlog::info("{} is ready", name);
  } else if (cancel_.load() && !stopping_) {
    spdlog::info("{} is not loaded: cancelled", name);
    parts_.models.forget(name);
    return {};
  }
  return status;
}

void ModelManager::load_all() {
  ThreadPool pool(make_room_for_team(parts_.ops, parts_.options.threads));
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
    if (stopping_) return;
    const std::string name = waiting_.front().source.names.front();
    const Status loaded = load_next(waiting_, pool, lock);
    if (loaded || stopping_) continue;
    spdlog::error("{} could not be loaded: {}", name, loaded.error().message);
    parts_.models.set_failed(name, loaded.error());
  }
}

// ---- sleep

Status ModelManager::sleep_for_room(const std::string& name, const ModelNeeds& needs) {
  const Memory& memory = parts_.ops.memory();
  HEARTH_TRY_ASSIGN(int64_t lacking, parts_.engine.lacking_bytes(memory, needs));
  if (lacking == 0) return {};
  std::vector<ModelStats> idle = parts_.engine.stats();
  std::erase_if(idle, [&](const ModelStats& m) {
    return m.model == name || m.phase != ModelPhase::kServing || m.pinned || m.running + m.waiting > 0;
  });
  std::ranges::sort(idle, {}, &ModelStats::used_us);
  // Where weights lie in the host's memory they stay there.
  int64_t could_give = 0;
  for (const ModelStats& m : idle) could_give += m.limits.guarantee_bytes + (memory.is_host() ? 0 : m.weight_bytes);
  if (could_give < lacking)
    return resource_exhausted("{}: {} bytes are lacking, and {} idle models that could sleep for it would give {}",
                              name, lacking, idle.size(), could_give);
  for (const ModelStats& m : idle) {
    const auto begun = parts_.models.begin_move(m.model, true, true);
    if (!begun || !*begun) continue;  // it moves, or goes
    Status slept = caught([&] { return parts_.engine.sleep_model(m.model, {.wait_us = kIdleWaitUs}); });
    if (slept) {
      spdlog::info("{} sleeps for {}", m.model, name);
      parts_.models.add_slept(name, m.model);
    }
    parts_.models.end_move(m.model, true, std::move(slept));
    HEARTH_TRY_ASSIGN(lacking, parts_.engine.lacking_bytes(memory, needs));
    if (lacking == 0) break;
  }
  return {};
}

ApiResult<std::string> ModelManager::move(std::string_view name_or_alias, bool to_sleep, const ChangeTerms& terms) {
  const std::lock_guard lock(mutex_);
  if (stopping_) return not_now("draining", "the server is going down");
  std::erase_if(movers_, [](Mover& mover) {
    if (mover.over) mover.thread.join();
    return mover.over;
  });
  const auto before = parts_.models.view(name_or_alias);
  const auto on_its_way = [&](const Mover& m) { return before && m.model == before->name() && !m.off.load(); };
  if (const auto mover = std::ranges::find_if(movers_, on_its_way); mover != movers_.end()) {
    // The other way: called off, or back again where that comes too late. The same way: it is under way.
    mover->back = mover->to_sleep != to_sleep;
    if (mover->back) mover->off.store(true);
    return before->name();
  }
  HEARTH_TRY_ASSIGN(const bool begun, parts_.models.begin_move(name_or_alias, to_sleep, terms.wakes_on_request));
  HEARTH_CHECK(before.has_value(), "a model that moves is gone");
  if (!begun) return before->name();
  Mover& mover = movers_.emplace_back();
  mover.model = before->name();
  mover.to_sleep = to_sleep;
  mover.terms = terms;
  mover.asked_ns = clock_.now_ns();
  begin(mover);
  return before->name();
}

// REQUIRES: mutex_ is held.
void ModelManager::begin(Mover& mover) {
  try {
    mover.thread = std::thread([this, &mover] { run(mover); });
  } catch (const std::exception& error) {
    parts_.models.end_move(mover.model, mover.to_sleep,
                           resource_exhausted("no thread could be started for it: {}", error.what()));
    movers_.pop_back();
  }
}

void ModelManager::run(Mover& mover) {
  for (;;) {
    Status status = caught([&] { return carry_out(mover); });
    const std::lock_guard lock(mutex_);
    if (!status)
      spdlog::error("{} does not {}: {}", mover.model, mover.to_sleep ? "sleep" : "wake", status.error().message);
    const bool back = status && mover.back && !stopping_;
    parts_.models.end_move(mover.model, mover.to_sleep, std::move(status));
    mover.to_sleep = !mover.to_sleep;
    if (back) {
      const auto begun = parts_.models.begin_move(mover.model, mover.to_sleep, false);
      if (begun && *begun) {
        mover.back = false;
        mover.off.store(false);
        continue;
      }
    }
    mover.over = true;
    return;
  }
}

Status ModelManager::carry_out(const Mover& mover) {
  if (mover.to_sleep)
    return parts_.engine.sleep_model(mover.model,
                                     patience(mover.terms, mover.asked_ns, Patience::kForeverUs, &mover.off));
  if (mover.terms.sleep_idle) {
    HEARTH_TRY_ASSIGN(const ModelNeeds needs, parts_.engine.needs_to_wake(mover.model));
    HEARTH_TRY(sleep_for_room(mover.model, needs));
  }
  return parts_.engine.wake_model(mover.model, patience(mover.terms, mover.asked_ns, kRoomWaitUs, &mover.off));
}

// ---- what was unloaded

void ModelManager::bury_all() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stopping_ || !dying_.empty(); });
    if (stopping_) return;
    std::vector<std::shared_ptr<const ServedModel>> dead;
    // Without memory for the list they wait for the next look.
    (void)caught([&]() -> Status { return dead.reserve(dying_.size()), Status(); });
    std::erase_if(dying_, [&](std::shared_ptr<const ServedModel>& model) {
      if (model.use_count() > 1 || dead.size() == dead.capacity()) return false;
      dead.push_back(std::move(model));
      return true;
    });
    lock.unlock();
    // Giving gigabytes back takes a while.
    dead.clear();
    std::this_thread::sleep_for(kBuryTick);
    lock.lock();
  }
}

}  // namespace hearth
