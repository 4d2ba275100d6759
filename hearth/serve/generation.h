// SPDX-License-Identifier: Apache-2.0
// The way of one completion or chat request: read and submitted on a worker, then its pieces taken from the engine and
// written to the client as fast as the client reads. Where its model sleeps and may be woken it is woken first. A client that goes away ends its choices, at whatever point.
// On the connection's strand.
#pragma once

#include <atomic>
#include <string>

#include "hearth/base/worker_pool.h"
#include "hearth/engine/engine.h"
#include "hearth/serve/access.h"
#include "hearth/serve/async.h"
#include "hearth/serve/conversation.h"
#include "hearth/serve/http.h"
#include "hearth/serve/limits.h"
#include "hearth/serve/model_manager.h"
#include "hearth/serve/model_registry.h"

namespace hearth {

// All outlive the workers' tasks.
struct GenerationParts {
  const ApiLimits& limits;
  const ModelRegistry& models;
  ModelManager& manager;
  Engine& engine;
  WorkerPool& workers;    // read requests
  WorkerPool& answerers;  // make large answers: of their own, so that those do not wait behind new requests
  Conversations& conversations;
  const std::string& fingerprint;
  const std::atomic<bool>& draining;
};

// `key`: the index of the client's API key, or -1. `ticket` is released when all but the last bytes are written.
Async<void> answer_generation(HttpExchange& exchange, GenerationParts parts, bool chat, int key,
                              Access::Ticket& ticket);

}  // namespace hearth
