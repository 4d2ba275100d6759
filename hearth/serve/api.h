// SPDX-License-Identifier: Apache-2.0
// Api: the answers of all routes, on top of the models, the engine and two pools of workers. Its handler runs as one
// coroutine per request on the connection's strand and waits for nothing else: JSON, templates, tokenizing and long
// answers are made on the workers. Outlives the pools' tasks and the HTTP server. Any thread.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "hearth/base/worker_pool.h"
#include "hearth/engine/engine.h"
#include "hearth/serve/access.h"
#include "hearth/serve/admin.h"
#include "hearth/serve/conversation.h"
#include "hearth/serve/http.h"
#include "hearth/serve/limits.h"
#include "hearth/serve/metrics.h"
#include "hearth/serve/model_manager.h"
#include "hearth/serve/model_registry.h"
#include "hearth/serve/routes.h"

namespace hearth {

struct ApiParts {
  ApiLimits limits;
  std::vector<std::string> keys;
  std::vector<std::string> admin_keys;  // empty: there is no admin API
  ModelRegistry& models;
  ModelManager& manager;
  Conversations& conversations;
  Engine& engine;
  WorkerPool& workers;    // read requests
  WorkerPool& answerers;  // make large answers
  const Metrics& metrics;
  bool dummy_weights = false;  // as in LoadOptions
};

class Api {
 public:
  explicit Api(ApiParts parts);

  // Refuses by the head alone: a wrong key, no such route, no room.
  HttpVerdict guard(const HttpHead& head) const;
  Async<void> handle(HttpExchange& exchange);

  // From now on not ready; new work is refused with 503.
  void drain() { draining_.store(true); }
  // Ends all that is under way; clients are told so.
  void cancel_all() { parts_.conversations.cancel_all(); }
  // Requests whose body has come and whose answer is not complete.
  int64_t in_flight() const { return access_.in_flight(); }
  bool ready() const { return !draining_.load() && parts_.models.ready() && parts_.engine.device(); }

 private:
  Async<void> generate(HttpExchange& exchange, bool chat, int key, Access::Ticket& ticket);
  Async<void> tokenize(HttpExchange& exchange, bool back, Access::Ticket& ticket);
  Async<void> administer(HttpExchange& exchange, Route route);
  // The key's index, or why not: 401; 403 of the admin API where it is off.
  ApiResult<int> authorize(const HttpHead& head) const;
  AdminParts admin_parts() const;
  HttpReply models(std::string_view name) const;
  HttpReply health(Route route) const;

  ApiParts parts_;
  Access access_, admin_access_;
  const std::string fingerprint_;
  std::atomic<bool> draining_{false};
};

// The answer that an error is, with Retry-After and WWW-Authenticate where they belong.
HttpReply error_reply(const ApiError& error);

}  // namespace hearth
