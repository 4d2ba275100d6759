// SPDX-License-Identifier: Apache-2.0
// The admin API (docs/guides/admin.md): what operators tell a running server, and what it tells them. All functions read
// a request or write an answer; who changes anything is the ModelManager. Any thread.
#pragma once

#include <string>
#include <string_view>

#include "hearth/serve/api_error.h"
#include "hearth/serve/json_request.h"
#include "hearth/serve/metrics.h"
#include "hearth/serve/model_manager.h"
#include "hearth/serve/routes.h"

namespace hearth {

struct AdminParts {
  const ApiLimits& limits;
  ModelRegistry& models;
  ModelManager& manager;
  Engine& engine;
  const Metrics& metrics;
  bool dummy_weights = false;  // as in LoadOptions: a configuration's file is a model too
};

// What was begun: the model to look at, and whether the client wants to wait until it is done.
struct AdminBegun {
  std::string model;  // its first name
  bool wait = false;
  std::optional<ModelStage> moves_to = {};  // kAsleep or kReady
};
// Reads the body of one of the POST routes and begins what it asks for. May look at the disk. 400, 404, 409, 503.
ApiResult<AdminBegun> begin_admin(Route route, std::string_view body, std::string_view query, const AdminParts& parts);

// Whether what was begun is over: the model is ready, asleep, failed or gone.
bool admin_done(const std::string& model, const ModelRegistry& models);
// The answer to it: the model's status; 422 of a failed load, with its error; the error of a sleep or wake that failed
// (504: its deadline passed).
ApiResult<std::string> admin_reply(const AdminBegun& begun, const AdminParts& parts);

// The whole status, or one model's. 404.
ApiResult<std::string> admin_status(std::string_view model, const AdminParts& parts);

}  // namespace hearth
