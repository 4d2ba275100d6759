// SPDX-License-Identifier: Apache-2.0
// Pure functions.
#include "hearth/serve/routes.h"

namespace hearth {
namespace {

struct Row {
  std::string_view method, path;
  Route route;
  bool open, heavy;
};
constexpr Row kRoutes[] = {
    {"POST", "/v1/completions", Route::kCompletions, false, true},
    {"POST", "/v1/chat/completions", Route::kChatCompletions, false, true},
    {"GET", "/v1/models", Route::kModels, false, false},
    {"POST", "/tokenize", Route::kTokenize, false, true},
    {"POST", "/detokenize", Route::kDetokenize, false, true},
    {"GET", "/health", Route::kHealth, true, false},
    {"GET", "/health/live", Route::kHealthLive, true, false},
    {"GET", "/health/ready", Route::kHealthReady, true, false},
    {"GET", "/ping", Route::kHealth, true, false},
    {"GET", "/metrics", Route::kMetrics, false, false},
    {"GET", "/version", Route::kVersion, false, false},
    {"GET", "/admin/status", Route::kAdminStatus, false, false},
    {"POST", "/admin/load", Route::kAdminLoad, false, false},
    {"POST", "/admin/unload", Route::kAdminUnload, false, false},
    {"POST", "/admin/limit", Route::kAdminLimit, false, false},
    {"POST", "/admin/pin", Route::kAdminPin, false, false},
    {"POST", "/admin/sleep", Route::kAdminSleep, false, false},
    {"POST", "/admin/wake", Route::kAdminWake, false, false},
};
// HEAD is answered as GET; the HTTP layer keeps the body back.
bool is_method(std::string_view method, std::string_view of_route) {
  return method == of_route || (method == "HEAD" && of_route == "GET");
}

// Routes whose path ends with a model's name, which may have slashes.
struct NamedRow {
  std::string_view prefix, pattern;
  Route route;
};
constexpr NamedRow kNamedRoutes[] = {
    {"/v1/models/", "/v1/models/{id}", Route::kModel},
    {"/admin/status/", "/admin/status/{id}", Route::kAdminStatus},
};
bool matches(const NamedRow& row, std::string_view path) {
  return path.starts_with(row.prefix) && path.size() > row.prefix.size();
}

}  // namespace

RouteLookup find_route(std::string_view method, std::string_view path) {
  for (const Row& row : kRoutes) {
    if (row.path != path) continue;
    if (!is_method(method, row.method)) return {wrong_method(method, path, row.method), row.method};
    return {RouteMatch{.route = row.route, .open = row.open, .heavy = row.heavy, .rest = {}}, row.method};
  }
  for (const NamedRow& row : kNamedRoutes) {
    if (!matches(row, path)) continue;
    if (!is_method(method, "GET")) return {wrong_method(method, path, "GET"), "GET"};
    return {RouteMatch{.route = row.route, .rest = path.substr(row.prefix.size())}, "GET"};
  }
  return {no_such_route(method, path), {}};
}

std::string_view route_pattern(std::string_view path) {
  for (const Row& row : kRoutes)
    if (row.path == path) return row.path;
  for (const NamedRow& row : kNamedRoutes)
    if (matches(row, path)) return row.pattern;
  return "none";
}

bool is_open_path(std::string_view path) {
  for (const Row& row : kRoutes)
    if (row.path == path) return row.open;
  return false;
}

bool is_admin_path(std::string_view path) { return path == "/admin" || path.starts_with("/admin/"); }

}  // namespace hearth
