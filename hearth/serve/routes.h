// SPDX-License-Identifier: Apache-2.0
// The routes of the server as one table, and the reading of a request's method and path. Pure; any thread.
#pragma once

#include <string>
#include <string_view>

#include "hearth/serve/api_error.h"

namespace hearth {

enum class Route {
  kCompletions,
  kChatCompletions,
  kModels,
  kModel,
  kTokenize,
  kDetokenize,
  kHealth,
  kHealthLive,
  kHealthReady,
  kMetrics,
  kVersion,
  kAdminStatus,
  kAdminLoad,
  kAdminUnload,
  kAdminLimit,
  kAdminPin,
  kAdminSleep,
  kAdminWake,
};

struct RouteMatch {
  Route route = Route::kHealth;
  bool open = false;      // no API key is asked for
  bool heavy = false;     // counts as a request in flight, and has a body
  std::string_view rest;  // of the path of kModel and kAdminStatus: the model's name
};

// What a request is for, or why not: 404; 405, whose Allow is `allowed`.
struct RouteLookup {
  ApiResult<RouteMatch> match;
  std::string_view allowed;
};
RouteLookup find_route(std::string_view method, std::string_view path);

// The row of the table that a path belongs to, for metrics: "/v1/models/{id}"; "none" where there is none.
std::string_view route_pattern(std::string_view path);

// Whether a path needs no key; paths that are no routes need one.
bool is_open_path(std::string_view path);
// Whether a path belongs to the admin API, which has keys of its own.
bool is_admin_path(std::string_view path);

}  // namespace hearth
