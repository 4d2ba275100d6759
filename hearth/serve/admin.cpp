// SPDX-License-Identifier: Apache-2.0
// Requests of the admin API. Their status is admin_status.cpp.
#include "hearth/serve/admin.h"

#include <algorithm>
#include <array>

#include "hearth/checkpoint/hub.h"
#include "hearth/serve/reply.h"

namespace hearth {
namespace {

constexpr int64_t kMaxNameBytes = 512, kMaxPathBytes = 4096;
constexpr int64_t kMaxAliases = 16;
constexpr size_t kShownBytes = 40;  // of a wrong name
constexpr int kFailedStatus = 422;
constexpr int64_t kMaxDeadlineMs = int64_t{7} * 24 * 3600 * 1000;

// A field that nobody knows is a mistake that would pass unseen: unlike OpenAI's requests, ours come from operators.
ApiStatus check_fields(const Json& json, std::initializer_list<std::string_view> known) {
  for (const auto& [key, value] : json.items())
    if (std::ranges::find(known, key) == known.end())
      return bad_request(key, "{}: unknown; wanted {}", key, fmt::join(known, ", "));
  return {};
}

ApiResult<std::string> read_name(const Json& json, std::string_view field, int64_t max_bytes) {
  std::optional<std::string> name;
  HEARTH_TRY(read_string(json, field, max_bytes, name));
  if (!name || name->empty()) return bad_request(std::string(field), "{}: absent; wanted a string", field);
  return *std::move(name);
}

// Names go into paths of URLs, labels of metrics and lines of logs.
ApiStatus check_name(const std::string& name, const std::string& param) {
  const bool clean = std::ranges::all_of(name, [](unsigned char c) { return c > 0x20 && c != 0x7F; });
  if (name.empty() || !clean || name.size() > kMaxNameBytes)
    return bad_request(param, "{}: found {} of {} bytes; wanted 1 to {} bytes without spaces and control characters",
                       param, to_text(Json(name.substr(0, kShownBytes))), name.size(), kMaxNameBytes);
  return {};
}

ApiResult<MemoryLimits> read_limits(const Json& json) {
  MemoryLimits limits;
  std::optional<int64_t> guarantee, cap;
  HEARTH_TRY(read_integer(json, "kv_guarantee_bytes", {.min = 0}, guarantee));
  HEARTH_TRY(read_integer(json, "kv_cap_bytes", {.min = 0}, cap));
  limits.guarantee_bytes = guarantee.value_or(limits.guarantee_bytes);
  limits.cap_bytes = cap.value_or(limits.cap_bytes);
  return limits;
}

// What a body says of the change that it asks for; the server's own terms where it says nothing.
ApiResult<ChangeTerms> read_terms(const Json& json, const AdminParts& parts) {
  ChangeTerms terms = parts.manager.usual();
  HEARTH_TRY(read_integer(json, "deadline_ms", {.min = 0, .max = kMaxDeadlineMs}, terms.deadline_ms));
  HEARTH_TRY(read_bool(json, "sleep_idle", terms.sleep_idle));
  HEARTH_TRY(read_bool(json, "wake_on_request", terms.wakes_on_request));
  return terms;
}

ApiResult<ModelSource> read_source(const Json& json, const AdminParts& parts) {
  HEARTH_TRY(check_fields(json, {"model", "name", "aliases", "max_model_len", "kv_cache_dtype", "kv_guarantee_bytes",
                                 "kv_cap_bytes", "sleep_idle", "deadline_ms", "wait"}));
  HEARTH_TRY_ASSIGN(const std::string typed, read_name(json, "model", kMaxPathBytes));
  const auto found = find_model(typed, Environment::process(), parts.dummy_weights);
  if (!found) {
    ApiError error = to_api_error(found.error());
    error.param = "model";
    return error;
  }
  ModelSource source{.names = {found->name}, .dir = found->dir};
  std::optional<std::string> name, format;
  HEARTH_TRY(read_string(json, "name", kMaxNameBytes, name));
  if (name) source.names = {*name};
  HEARTH_TRY(check_name(source.names.front(), "name"));
  if (const Json* const aliases = find_field(json, "aliases")) {
    if (!aliases->is_array() || std::ssize(*aliases) > kMaxAliases)
      return bad_request("aliases", "aliases: {}; wanted an array of at most {} names", describe(*aliases),
                         kMaxAliases);
    for (const Json& alias : *aliases) {
      if (!alias.is_string()) return bad_request("aliases", "aliases: {}; wanted a string", describe(alias));
      HEARTH_TRY(check_name(alias.get_ref<const std::string&>(), "aliases"));
      source.names.push_back(alias.get<std::string>());
    }
  }
  HEARTH_TRY(read_integer(json, "max_model_len", {.min = 1, .max = int64_t{1} << 31}, source.max_context));
  HEARTH_TRY(read_string(json, "kv_cache_dtype", kMaxNameBytes, format));
  if (format) {
    source.kv_format = kv_format_from_name(*format);
    if (!source.kv_format)
      return bad_request("kv_cache_dtype",
                         "kv_cache_dtype: \"{}\" is unknown; wanted f32, bf16, fp8, int4, "
                         "int4-fireq or int4-saw",
                         *format);
  }
  HEARTH_TRY_ASSIGN(source.limits, read_limits(json));
  // As add() would say it, but as a mistake of the request.
  if (const Status checked = ModelRegistry::check({source}); !checked)
    return bad_request("aliases", "{}", checked.error().message);
  return source;
}

// "wait", "wait=true", "wait=1" among the parts of the query.
bool waits(std::string_view query) {
  while (!query.empty()) {
    const size_t end = query.find('&');
    const std::string_view part = query.substr(0, end);
    if (part == "wait" || part == "wait=true" || part == "wait=1") return true;
    query.remove_prefix(end == std::string_view::npos ? query.size() : end + 1);
  }
  return false;
}

// A loaded model's first name.
ApiResult<std::string> read_loaded(const Json& json, const ModelRegistry& models) {
  HEARTH_TRY_ASSIGN(const std::string name, read_name(json, "model", kMaxNameBytes));
  const auto view = models.view(name);
  if (!view) return models.no_such(name);
  if (view->model == nullptr)
    return ApiError{.status = 409,
                    .type = "invalid_request_error",
                    .message = fmt::format("the model {} is {}; wanted a loaded one", name, name_of(view->stage)),
                    .param = "model"};
  return view->name();
}

// What the engine refuses for want of memory is refused until somebody changes something.
ApiStatus told(const Status& status) {
  if (status) return {};
  ApiError error = to_api_error(status.error());
  if (status.error().code == ErrorCode::kResourceExhausted)
    error = {.status = 409, .type = "invalid_request_error", .message = status.error().message, .code = "no_room"};
  return error;
}

ApiResult<std::string> set_limits(const Json& json, const AdminParts& parts) {
  HEARTH_TRY(check_fields(json, {"model", "kv_guarantee_bytes", "kv_cap_bytes", "wait"}));
  HEARTH_TRY_ASSIGN(std::string name, read_loaded(json, parts.models));
  HEARTH_TRY_ASSIGN(const MemoryLimits limits, read_limits(json));
  HEARTH_TRY(told(parts.engine.set_limits(name, limits)));
  return name;
}

ApiResult<std::string> set_pin(const Json& json, const AdminParts& parts) {
  HEARTH_TRY(check_fields(json, {"model", "pinned", "wait"}));
  HEARTH_TRY_ASSIGN(std::string name, read_loaded(json, parts.models));
  bool pinned = true;
  HEARTH_TRY(read_bool(json, "pinned", pinned));
  HEARTH_TRY(told(parts.engine.pin(name, pinned)));
  return name;
}

ApiResult<std::string> move(const Json& json, const AdminParts& parts, bool to_sleep) {
  HEARTH_TRY(check_fields(json, {"model", to_sleep ? "wake_on_request" : "sleep_idle", "deadline_ms", "wait"}));
  HEARTH_TRY_ASSIGN(const std::string name, read_name(json, "model", kMaxNameBytes));
  HEARTH_TRY_ASSIGN(const ChangeTerms terms, read_terms(json, parts));
  return parts.manager.move(name, to_sleep, terms);
}

ApiResult<std::string> unload(const Json& json, const AdminParts& parts) {
  HEARTH_TRY(check_fields(json, {"model", "force", "wait"}));
  HEARTH_TRY_ASSIGN(const std::string name, read_name(json, "model", kMaxNameBytes));
  bool force = false;
  HEARTH_TRY(read_bool(json, "force", force));
  return parts.manager.unload(name, force);
}

ApiResult<std::string> load(const Json& json, const AdminParts& parts) {
  HEARTH_TRY_ASSIGN(ModelSource source, read_source(json, parts));
  HEARTH_TRY_ASSIGN(const ChangeTerms terms, read_terms(json, parts));
  std::string name = source.names.front();
  HEARTH_TRY(parts.manager.load(std::move(source), terms));
  return name;
}

}  // namespace

ApiResult<AdminBegun> begin_admin(Route route, std::string_view body, std::string_view query, const AdminParts& parts) {
  HEARTH_TRY_ASSIGN(const Json json, parse_json_object(body, parts.limits));
  AdminBegun begun{.wait = waits(query)};
  if (route == Route::kAdminSleep) begun.moves_to = ModelStage::kAsleep;
  if (route == Route::kAdminWake) begun.moves_to = ModelStage::kReady;
  HEARTH_TRY(read_bool(json, "wait", begun.wait));
  ApiResult<std::string> name = [&] {
    switch (route) {
      case Route::kAdminLoad: return load(json, parts);
      case Route::kAdminLimit: return set_limits(json, parts);
      case Route::kAdminPin: return set_pin(json, parts);
      case Route::kAdminSleep: return move(json, parts, true);
      case Route::kAdminWake: return move(json, parts, false);
      default: return unload(json, parts);
    }
  }();
  HEARTH_TRY_ASSIGN(begun.model, std::move(name));
  return begun;
}

bool admin_done(const std::string& model, const ModelRegistry& models) {
  const auto view = models.view(model);
  if (!view) return true;
  switch (view->stage) {
    case ModelStage::kReady:
    case ModelStage::kAsleep:
    case ModelStage::kFailed: return true;
    default: return false;
  }
}

ApiResult<std::string> admin_reply(const AdminBegun& begun, const AdminParts& parts) {
  const std::string& model = begun.model;
  const auto view = parts.models.view(model);
  if (!view) return dump({{"model", model}, {"state", "unloaded"}});
  if (view->stage == ModelStage::kFailed) {
    ApiError error = to_api_error(*view->error);
    // What the files or the request are to blame for; another try would not help.
    if (error.status < 503) error.status = kFailedStatus;
    error.type = "invalid_request_error";
    error.code = "load_failed";
    error.param = "model";
    error.message = fmt::format("the model {} could not be loaded: {}", model, error.message);
    return error;
  }
  // A sleep or a wake that did not come about; the model is what it was.
  if (begun.moves_to && view->error && view->stage != *begun.moves_to) return told(*view->error).error();
  return admin_status(model, parts);
}

}  // namespace hearth
