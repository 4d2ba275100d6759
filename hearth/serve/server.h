// SPDX-License-Identifier: Apache-2.0
// Server: models, engine, API and HTTP as one object. Serves /health from start() on, while the models load.
// Any thread may call any method.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/engine/engine.h"
#include "hearth/engine/served_model.h"
#include "hearth/serve/http.h"
#include "hearth/serve/limits.h"
#include "hearth/serve/model_registry.h"

namespace hearth {

struct ServeOptions {
  std::string address = "127.0.0.1";
  uint16_t port = 8000;
  int http_threads = 2;
  HttpLimits http;
  ApiLimits api;
  std::vector<std::string> api_keys;  // empty: none is asked for
  // Who has one may load and unload models. Empty: nobody may, and there is no admin API.
  std::vector<std::string> admin_keys;
  int request_workers = 2;         // threads for JSON, templates, tokenizing
  int64_t waiting_requests = 256;  // that wait for such a thread; more get 503
  EngineOptions engine;
  LoadOptions load;
  const OpTable* ops = &cpu_ops();  // what computes
  std::vector<ModelSource> models;
  bool wake_on_request = false;      // a model that an operator put to sleep is woken by the next request for it
  bool sleep_idle_for_room = false;  // where a load or a wake finds no room, idle models sleep for it
  bool access_log = false;
  std::string step_log;  // StepLog's file; empty: none
};

class Server {
 public:
  // Binds the address. Errors of HttpServer::create; InvalidArgument: no model and no admin API that could load one, or
  // two models of one name.
  static Result<std::unique_ptr<Server>> create(ServeOptions options);
  virtual ~Server() = default;

  virtual uint16_t port() const = 0;
  // Serves from now on and loads the models, one after the other, on the calling thread. On an error the server
  // is of no use; it stays live and not ready until it is destroyed.
  virtual Status start() = 0;
  virtual bool ready() const = 0;
  // Engine::device(): on an error the server answers with it and is of no use any more; who runs it drains it and ends.
  virtual Status device() const = 0;
  // Takes no more requests; waits for those in flight, at most timeout_ms; then cancels them. True where all
  // had finished.
  virtual bool drain(int64_t timeout_ms) = 0;
};

}  // namespace hearth
