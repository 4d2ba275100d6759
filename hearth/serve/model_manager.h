// SPDX-License-Identifier: Apache-2.0
// ModelManager: brings models and takes them away while others serve.
//   I1. One load at a time, in the order of asking, on a thread of its own that keeps out of the engine's way: on a CPU
//       backend it is alone on the CPU beside the team. Those that the server starts with come first.
//   I2. A load that fails, for whatever reason, is a failed model with its error in the registry; nothing else changes.
//   I3. An unloaded model's weights are freed by a thread of this object, never by one that computes.
//   I4. A model that falls asleep or wakes has a thread for that; who asks for the contrary meanwhile calls it off.
// Any thread may call any method.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "hearth/base/clock.h"
#include "hearth/base/thread_pool.h"
#include "hearth/engine/engine.h"
#include "hearth/serve/conversation.h"
#include "hearth/serve/model_registry.h"

namespace hearth {

// What an operator says of a load, a sleep or a wake.
struct ChangeTerms {
  std::optional<int64_t> deadline_ms;  // from now on; then nothing has changed. Unset: the engine's patience
  bool sleep_idle = false;             // a load, a wake: idle models sleep for it where there is no room
  bool wakes_on_request = false;       // a sleep: the next request wakes it
};

struct ManagerParts {
  ModelRegistry& models;
  Engine& engine;
  Conversations& conversations;
  const OpTable& ops;
  LoadOptions load;                  // of models that say nothing else
  EngineOptions options;             // the engine's
  std::vector<ModelSource> first{};  // that the registry has as loading from the start
  ChangeTerms usual{};               // of a wake that a request asks for, and of whoever says nothing else
};

class ModelManager {
 public:
  explicit ModelManager(ManagerParts parts);
  // Ends the load under way and joins.
  ~ModelManager();
  ModelManager(const ModelManager&) = delete;
  ModelManager& operator=(const ModelManager&) = delete;

  // Loads the first models one after the other, on the calling thread and `pool`; those that were unloaded meanwhile are
  // left out. The error of the first that fails. REQUIRES: before start().
  Status load_first(ThreadPool& pool);
  // From now on what load() was given is loaded.
  void start();

  // Returns at once: the registry says what becomes of it. 409: a name is taken; 503 after stop().
  ApiStatus load(ModelSource source, const ChangeTerms& terms);
  // No request finds the model from now on. Those that run finish, or end with an error where `force`; then its memory
  // is given back and the registry forgets it. A load is cancelled. Returns its first name. 404; 409: it drains already.
  ApiResult<std::string> unload(std::string_view name_or_alias, bool force);

  // To sleep, or from it. Returns at once: the registry says what becomes of it. Requests that run finish first. Returns
  // its first name. 404; 409: it is neither ready nor asleep, nor on its way.
  ApiResult<std::string> move(std::string_view name_or_alias, bool to_sleep, const ChangeTerms& terms);
  const ChangeTerms& usual() const { return parts_.usual; }

  // Ends the load under way and refuses new ones: the server goes down.
  void stop();

 private:
  struct Load {
    ModelSource source;
    ChangeTerms terms;
    int64_t asked_ns = 0;
  };
  // A model on its way, and the thread that takes it there.
  struct Mover {
    std::string model;
    bool to_sleep = false;
    ChangeTerms terms;
    int64_t asked_ns = 0;
    std::atomic<bool> off = false;  // called off; written under mutex_
    bool back = false;              // where it did get there: back again
    bool over = false;
    std::thread thread;
  };

  Patience patience(const ChangeTerms& terms, int64_t asked_ns, int64_t usual_us, const std::atomic<bool>* stop) const;
  // The next of `loads`. REQUIRES: `lock` holds mutex_, which is let go meanwhile.
  Status load_next(std::deque<Load>& loads, ThreadPool& pool, std::unique_lock<std::mutex>& lock);
  Status bring(const Load& load, ThreadPool& pool);
  // Puts idle models to sleep until there is room, who was used longest ago first; none where all would not do.
  Status sleep_for_room(const std::string& name, const ModelNeeds& needs);
  void load_all();
  void begin(Mover& mover);
  void run(Mover& mover);
  Status carry_out(const Mover& mover);
  void bury_all();

  ManagerParts parts_;
  const SteadyClock clock_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Load> first_, waiting_;                       // guarded by mutex_, as the rest
  std::string loading_;                                    // the first name of the one under way
  std::atomic<bool> cancel_{false};                        // of the one under way; written under mutex_
  std::vector<std::shared_ptr<const ServedModel>> dying_;  // until nobody else holds them
  std::list<Mover> movers_;
  bool stopping_ = false;
  std::thread loader_, undertaker_;
};

}  // namespace hearth
