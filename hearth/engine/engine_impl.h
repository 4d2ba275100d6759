// SPDX-License-Identifier: Apache-2.0
// Engine::Impl: what the engine's front owns, shared by its two files. Internal to the engine.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <future>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "hearth/base/cpus.h"
#include "hearth/base/worker_pool.h"
#include "hearth/engine/engine.h"
#include "hearth/engine/host_copy.h"
#include "hearth/engine/inbox.h"
#include "hearth/engine/memory_account.h"
#include "hearth/engine/planner.h"
#include "hearth/engine/step_thread.h"
#include "hearth/engine/submission.h"
#include "hearth/engine/waiting.h"

namespace hearth {

// What the keeper waits for: somebody may have given memory back. Outlives the engine in the rooms that callers hold.
class Bell {
 public:
  void ring(bool ends = false) {
    {
      const std::lock_guard lock(mutex_);
      rung_ = true;
      ended_ |= ends;
    }
    rings_.notify_all();
  }
  // Returns when it rings, or after `patience`. False: for the last time.
  bool wait(std::chrono::milliseconds patience, const Waits& waits) {
    std::unique_lock lock(mutex_);
    waits.wait_for(rings_, lock, patience, [this] { return rung_; });
    rung_ = false;
    return !ended_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable rings_;
  bool rung_ = false, ended_ = false;  // guarded by mutex_
};

struct Engine::Impl {
  Impl(const EngineOptions& o, std::unique_ptr<LocalPolicy> policy, EngineObserver* observer, const Clock& c)
      : options(o),
        clock(c),
        text_workers(o.text_workers, std::numeric_limits<int64_t>::max(), WorkerPool::Priority::kNormal, {}, c),
        grammar_workers(o.text_workers, std::numeric_limits<int64_t>::max(), WorkerPool::Priority::kGivesWay,
                        cpus_beside_team(team_threads(o.threads))),
        steps(team_threads(o.threads), c, [box = inbox] { box->poke(); }),
        planner(inbox, steps, observer, c, std::move(policy), o.max_unread, o.reject_hopeless, shared),
        planner_thread([this] { planner.run(); }),
        keeper([this] { keep(); }) {}

  ~Impl() {
    {
      const std::lock_guard lock(mutex);
      draining = true;
    }
    bell->ring(true);
    keeper.join();
    planner.stop();
    planner_thread.join();
    inbox->close();
  }

  struct Entry {
    std::shared_ptr<const ServedModel> served;
    std::shared_ptr<ModelState> state;
    ModelPhase phase = ModelPhase::kServing;
    std::shared_ptr<HostCopy> asleep;  // its weights, where they are not on the device
  };
  // REQUIRES: mutex is held.
  Entry* find(std::string_view name) {
    const auto it = std::ranges::find_if(entries, [&](const Entry& e) { return e.served->name == name; });
    return it == entries.end() ? nullptr : &*it;
  }
  Result<std::shared_ptr<ModelState>> state_of(std::string_view name) {
    const std::lock_guard lock(mutex);
    if (const Entry* const entry = find(name)) return entry->state;
    return not_found("the engine has no model '{}'", name);
  }
  // What `call` returns, called by the planner's thread. Unavailable: the engine has ended.
  template <class Call>
  auto ask(Call call) -> decltype(call()) {
    std::promise<decltype(call())> answer;
    auto future = answer.get_future();
    if (!inbox->post({.kind = Message::Kind::kAsk, .ask = [&] { answer.set_value(call()); }}))
      return unavailable("the engine has ended");
    return future.get();
  }

  // Waits until nobody else's model comes or wakes.
  Result<std::unique_lock<std::mutex>> begin_adding(const Waiting& waiting);

  // ---- lifecycle.cpp; REQUIRES: adding is held
  Result<std::shared_ptr<ModelState>> make_state(std::shared_ptr<const ServedModel> served);
  Result<std::shared_ptr<KvStore>> store_for(const ServedModel& served, int64_t own_bytes, const KvLayout& layout);

  // ---- sleep.cpp
  Status serve(const std::shared_ptr<ModelState>& state);
  // NotFound: it was removed meanwhile, and is not served.
  Status serve_again(const Entry& entry);
  bool removed(const Entry& entry);
  Status fall_asleep(Entry& entry, const Waiting& waiting);
  Status wake_up(Entry& entry, const Waiting& waiting);
  Status leave_device(Entry& entry);
  Status leave_device(Entry& entry, std::shared_ptr<HostCopy> copy);
  Status come_back(Entry& entry);
  ModelNeeds needs_of(const Entry& entry) const;
  // From kServing to sleep, or the other way. Nullopt: it is where this leads to. NotFound; Unavailable: it is elsewhere.
  Result<std::optional<Entry>> begin_move(const std::string& name, bool to_sleep);
  void end_move(const Entry& entry, ModelPhase phase);

  // ---- room.cpp; REQUIRES: adding is held, but for all_accounts() and keep()
  MemoryAccount& account(const Memory& memory);
  std::vector<std::shared_ptr<MemoryAccount>> all_accounts();
  Status keep_pool_size(const std::shared_ptr<KvStore>& store, const Waiting& waiting);
  // What of a device's memory there is, and what the KV pool could give.
  struct Plan {
    int64_t free_bytes = 0;
    int64_t slabs = 0, slab_bytes = 1;  // of the pool, as it is
    int64_t most_slabs = 0;             // that the pool may have
    Planner::KvFloor floor;             // beneath which it cannot go
    // Slabs that the pool has once so many bytes were taken.
    int64_t slabs_without(int64_t bytes) const {
      if (bytes > free_bytes) return slabs - blocks_for(bytes - free_bytes, slab_bytes);
      return std::max(slabs, std::min(most_slabs, slabs + (free_bytes - bytes) / slab_bytes));
    }
  };
  Result<Plan> plan_room(const MemoryAccount& account, const ModelNeeds& needs);
  // Waits until the device has so many bytes free.
  Status make_free(MemoryAccount& account, int64_t bytes, const ModelNeeds& needs, const Waiting& waiting);
  Result<MemoryRoom> make_room(const Memory& memory, const ModelNeeds& needs, const Waiting& waiting);
  // What nobody wants goes to the pools. False: to be asked again soon.
  bool give_to_pools();
  // The keeper's: does that whenever somebody may have given memory back.
  void keep();

  const EngineOptions options;
  const Clock& clock;
  std::shared_ptr<Inbox> inbox = std::make_shared<Inbox>();
  SharedStats shared;
  WorkerPool text_workers;
  WorkerPool grammar_workers;  // for requests with a grammar: a mask may take as long as a hundred other texts
  StepThread steps;
  Planner planner;

  std::mutex adding;  // held while a model comes, goes or changes; ahead of mutex
  const std::shared_ptr<Bell> bell = std::make_shared<Bell>();

  std::mutex mutex;
  std::vector<Entry> entries;                            // guarded by mutex
  std::vector<std::shared_ptr<MemoryAccount>> accounts;  // guarded by mutex; one for each memory
  bool draining = false;                                 // guarded by mutex

  std::thread planner_thread;  // last: start when all else is there
  std::thread keeper;
};

}  // namespace hearth
