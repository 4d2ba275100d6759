// SPDX-License-Identifier: Apache-2.0
// Three threads over one mutex: one that loads, one that puts models to sleep and wakes them, which may wait for their
// requests, and one that waits for the last holders of what was unloaded.
#include "hearth/serve/model_manager.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "hearth/base/cpus.h"
#include "hearth/base/log.h"
#include "hearth/engine/model_needs.h"

namespace hearth {
namespace {

constexpr std::chrono::milliseconds kBuryTick{20};
constexpr int kLoaderNice = 10;

// Steps wait for their slowest thread, so where they are computed on CPUs, loading keeps off theirs.
int make_room_for_team(const OpTable& ops, int threads) {
  if (!ops.memory().is_host()) return std::max(ThreadPool::hardware_threads() / 2, 1);
  keep_thread_on(0, cpus_beside_team(team_threads(threads)));
  setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kLoaderNice);
  return 1;
}

}  // namespace

ModelManager::ModelManager(ManagerParts parts) : parts_(std::move(parts)), undertaker_([this] { bury_all(); }) {}

ModelManager::~ModelManager() {
  stop();
  if (loader_.joinable()) loader_.join();
  if (mover_.joinable()) mover_.join();
  undertaker_.join();
}

void ModelManager::stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  cancel_.store(true);
  wake_.notify_all();
}

Status ModelManager::load_now(const ModelSource& source, ThreadPool& pool) { return bring(source, pool, nullptr); }

void ModelManager::start() {
  const std::lock_guard lock(mutex_);
  loader_ = std::thread([this] { load_all(); });
  mover_ = std::thread([this] { move_all(); });
}

ApiStatus ModelManager::load(ModelSource source) {
  const std::lock_guard lock(mutex_);
  if (stopping_) return not_now("draining", "the server is going down");
  if (ApiStatus added = parts_.models.add(source); !added) return added;
  waiting_.push_back(std::move(source));
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
      std::erase_if(waiting_, [&](const ModelSource& source) { return source.names.front() == name; });
      parts_.models.forget(name);
    }
  } else if (view.model != nullptr) {
    const ServedModel* const served = view.model->served.get();
    dying_.push_back(view.model->served);
    if (const Status removed = parts_.engine.remove_model(name); !removed)
      spdlog::error("unloading {}: {}", name, removed.error().message);
    if (force) parts_.conversations.cancel_all(served);
    wake_.notify_all();
  }
  spdlog::info("unloading {}", name);
  return name;
}

Status ModelManager::bring(const ModelSource& source, ThreadPool& pool, const std::atomic<bool>* stop) {
  const std::string& name = source.names.front();
  LoadOptions options = parts_.load;
  options.stop = stop;
  if (source.max_context) options.max_context = source.max_context;
  if (source.kv_format) options.kv_format = source.kv_format;
  options.progress = [&](int64_t done, int64_t total) {
    parts_.models.progress(name, done, total);
    if (parts_.load.progress) parts_.load.progress(done, total);
  };
  HEARTH_TRY_ASSIGN(const ModelNeeds needs, needs_of(source.dir, name, options, parts_.options));
  HEARTH_TRY_ASSIGN(MemoryRoom room, parts_.engine.make_room(parts_.ops.memory(), needs));
  HEARTH_TRY_ASSIGN(std::shared_ptr<const ServedModel> served,
                    load_served_model(source.dir, name, parts_.ops, options, pool));
  HEARTH_TRY(parts_.engine.add_model(served, source.terms, std::move(room)).with_context(name));
  Status limited;
  if (source.limits.guarantee_bytes > 0 || source.limits.cap_bytes > 0)
    limited = parts_.engine.set_limits(name, source.limits);
  const std::lock_guard lock(mutex_);
  if (limited && stop != nullptr && stop->load()) limited = cancelled("the load was cancelled");
  if (!limited) {
    dying_.push_back(std::move(served));
    wake_.notify_all();
    HEARTH_TRY(parts_.engine.remove_model(name));
    return limited;
  }
  parts_.models.set_ready(name, std::move(served));
  return {};
}

void ModelManager::load_all() {
  ThreadPool pool(make_room_for_team(parts_.ops, parts_.options.threads));
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
    if (stopping_) return;
    const ModelSource source = std::move(waiting_.front());
    waiting_.pop_front();
    const std::string& name = source.names.front();
    loading_ = name;
    cancel_.store(false);
    lock.unlock();
    spdlog::info("loading {} from {}", name, source.dir.string());
    Status status = [&]() -> Status {
      try {
        return bring(source, pool, &cancel_);
      } catch (const std::bad_alloc&) {
        return resource_exhausted("out of memory");
      } catch (const std::exception& e) {
        return internal_error("loading threw: {}", e.what());
      }
    }();
    lock.lock();
    loading_.clear();
    if (status) {
      spdlog::info("{} is ready", name);
    } else if (cancel_.load()) {
      spdlog::info("{} is not loaded: cancelled", name);
      parts_.models.forget(name);
    } else {
      spdlog::error("{} could not be loaded: {}", name, status.error().message);
      parts_.models.set_failed(name, status.error());
    }
  }
}

ApiResult<std::string> ModelManager::move(std::string_view name_or_alias, bool to_sleep) {
  const std::lock_guard lock(mutex_);
  if (stopping_) return not_now("draining", "the server is going down");
  HEARTH_TRY_ASSIGN(const bool begun, parts_.models.begin_move(name_or_alias, to_sleep));
  const auto view = parts_.models.view(name_or_alias);
  HEARTH_CHECK(view.has_value(), "a model that moves is gone");
  if (begun) moves_.push_back({view->name(), to_sleep});
  wake_.notify_all();
  return view->name();
}

void ModelManager::move_all() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stopping_ || !moves_.empty(); });
    if (stopping_) return;
    const Move next = std::move(moves_.front());
    moves_.pop_front();
    lock.unlock();
    const Status status = next.to_sleep ? parts_.engine.sleep_model(next.model) : parts_.engine.wake_model(next.model);
    if (!status)
      spdlog::error("{} does not {}: {}", next.model, next.to_sleep ? "sleep" : "wake", status.error().message);
    parts_.models.end_move(next.model, next.to_sleep, status);
    lock.lock();
  }
}

void ModelManager::bury_all() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stopping_ || !dying_.empty(); });
    if (stopping_) return;
    std::vector<std::shared_ptr<const ServedModel>> dead;
    std::erase_if(dying_, [&](std::shared_ptr<const ServedModel>& model) {
      if (model.use_count() > 1) return false;
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
