// SPDX-License-Identifier: Apache-2.0
// Engine::Impl: what the engine's front owns, shared by its two files. Internal to the engine.
#pragma once

#include <algorithm>
#include <future>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <string_view>
#include <thread>
#include <vector>

#include "hearth/base/cpus.h"
#include "hearth/base/worker_pool.h"
#include "hearth/engine/engine.h"
#include "hearth/engine/inbox.h"
#include "hearth/engine/planner.h"
#include "hearth/engine/step_thread.h"
#include "hearth/engine/submission.h"

namespace hearth {

// One for each memory in which models lie, as long as any does. Guarded by Impl::adding.
class KvStores {
 public:
  Result<std::shared_ptr<KvStore>> of(const EngineOptions& options, const ServedModel& model, const KvLayout& layout);

 private:
  std::map<const Memory*, std::weak_ptr<KvStore>> stores_;
};

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
    std::shared_ptr<ModelState> state;
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

  const EngineOptions options;
  const Clock& clock;
  std::shared_ptr<Inbox> inbox = std::make_shared<Inbox>();
  SharedStats shared;
  WorkerPool text_workers;
  WorkerPool grammar_workers;  // for requests with a grammar: a mask may take as long as a hundred other texts
  StepThread steps;
  Planner planner;

  std::mutex adding;  // held while a model comes, goes or changes; ahead of mutex
  KvStores stores;    // guarded by adding

  std::mutex mutex;
  std::vector<Entry> entries;  // guarded by mutex
  bool draining = false;       // guarded by mutex

  std::thread planner_thread;  // last: starts when all else is there
};

}  // namespace hearth
