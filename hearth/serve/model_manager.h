// SPDX-License-Identifier: Apache-2.0
// ModelManager: brings models and takes them away while others serve.
//   I1. One load at a time, in the order of asking, on a thread of its own that keeps out of the engine's way: on a CPU
//       backend it is alone on the CPU beside the team.
//   I2. A load that fails, for whatever reason, is a failed model with its error in the registry; nothing else changes.
//   I3. An unloaded model's weights are freed by a thread of this object, never by one that computes.
// Any thread may call any method.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "hearth/base/thread_pool.h"
#include "hearth/engine/engine.h"
#include "hearth/serve/conversation.h"
#include "hearth/serve/model_registry.h"

namespace hearth {

struct ManagerParts {
  ModelRegistry& models;
  Engine& engine;
  Conversations& conversations;
  const OpTable& ops;
  LoadOptions load;       // of models that say nothing else
  EngineOptions options;  // the engine's
};

class ModelManager {
 public:
  explicit ModelManager(ManagerParts parts);
  // Ends the load under way and joins.
  ~ModelManager();
  ModelManager(const ModelManager&) = delete;
  ModelManager& operator=(const ModelManager&) = delete;

  // A model that the registry has as loading, on the calling thread and `pool`. On an error it has failed.
  // REQUIRES: before start().
  Status load_now(const ModelSource& source, ThreadPool& pool);
  // From now on what load() was given is loaded.
  void start();

  // Returns at once: the registry says what becomes of it. 409: a name is taken; 503 after stop().
  ApiStatus load(ModelSource source);
  // No request finds the model from now on. Those that run finish, or end with an error where `force`; then its memory
  // is given back and the registry forgets it. A load is cancelled. Returns its first name. 404; 409: it drains already.
  ApiResult<std::string> unload(std::string_view name_or_alias, bool force);

  // Returns at once: the registry says what becomes of it. Requests that run finish first. Returns its first name. 404;
  // 409: it is neither ready nor asleep.
  ApiResult<std::string> sleep(std::string_view name_or_alias) { return move(name_or_alias, true); }
  ApiResult<std::string> wake(std::string_view name_or_alias) { return move(name_or_alias, false); }

  // Ends the load under way and refuses new ones: the server goes down.
  void stop();

 private:
  Status bring(const ModelSource& source, ThreadPool& pool, const std::atomic<bool>* stop);
  ApiResult<std::string> move(std::string_view name_or_alias, bool to_sleep);
  void load_all();
  void move_all();
  void bury_all();

  ManagerParts parts_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<ModelSource> waiting_;                        // guarded by mutex_, as the rest
  std::string loading_;                                    // the first name of the one under way
  std::atomic<bool> cancel_{false};                        // of the one under way; written under mutex_
  std::vector<std::shared_ptr<const ServedModel>> dying_;  // until nobody else holds them
  bool stopping_ = false;
  struct Move {
    std::string model;
    bool to_sleep = false;
  };
  std::deque<Move> moves_;
  std::thread loader_, mover_, undertaker_;
};

}  // namespace hearth
