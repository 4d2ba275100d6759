// SPDX-License-Identifier: Apache-2.0
// The guard, the dispatch and the answers that need no other thread. On the connections' strands.
#include "hearth/serve/api.h"

#include <chrono>

#include "hearth/base/version.h"
#include "hearth/serve/generation.h"
#include "hearth/serve/reply.h"
#include "hearth/serve/tokenize.h"

namespace hearth {
namespace {

constexpr int kLoadingRetryS = 5;
// Of requests that need no body, and of those to the admin API.
constexpr int64_t kSmallBody = 4 << 10, kAdminBody = 16 << 10;
// How often a request that waits for the end of a load or an unload looks.
constexpr std::chrono::milliseconds kAdminTick{10};

Json model_card(const ApiModel& model, const std::string& name, ModelStage stage) {
  Json card = Json::object();
  card["id"] = name;
  card["object"] = "model";
  card["created"] = model.served->created_s;
  card["owned_by"] = "hearth";
  card["root"] = model.names.front();
  card["parent"] = nullptr;
  card["max_model_len"] = model.served->max_context;
  card["state"] = name_of(stage);
  return card;
}

}  // namespace

HttpReply error_reply(const ApiError& error) {
  HttpReply reply;
  reply.status = error.status;
  reply.body = error_json(error);
  if (error.retry_after_s > 0) reply.headers.emplace_back("retry-after", std::to_string(error.retry_after_s));
  if (error.status == 401) reply.headers.emplace_back("www-authenticate", "Bearer");
  return reply;
}

Api::Api(ApiParts parts)
    : parts_(std::move(parts)),
      access_(parts_.keys, parts_.limits),
      admin_access_(parts_.admin_keys, parts_.limits),
      fingerprint_(fmt::format("hearth-{}-{}", build_info().version, build_info().commit)) {}

ApiResult<int> Api::authorize(const HttpHead& head) const {
  const std::string_view given = head.header("authorization");
  if (!is_admin_path(head.path)) return access_.authorize(given);
  // Not even for who asks from this machine: a web page in its browser does, and a proxy's clients seem to.
  if (parts_.admin_keys.empty()) {
    return ApiError{.status = 403,
                    .type = "invalid_request_error",
                    .message = "this server has no admin API: it was started without an admin key (--admin-key-file)",
                    .code = "admin_off"};
  }
  return admin_access_.authorize(given);
}

HttpVerdict Api::guard(const HttpHead& head) const {
  const auto refuse = [](const ApiError& error) {
    return HttpVerdict{.refusal = error_reply(error), .body_bytes = {}};
  };
  int key = -1;
  // Before the route: who has no key does not learn which routes there are.
  if (!is_open_path(head.path)) {
    const auto allowed = authorize(head);
    if (!allowed) return refuse(allowed.error());
    key = *allowed;
  }
  const RouteLookup lookup = find_route(head.method, head.path);
  if (!lookup.match) {
    HttpVerdict verdict = refuse(lookup.match.error());
    if (!lookup.allowed.empty()) verdict.refusal->headers.emplace_back("allow", lookup.allowed);
    return verdict;
  }
  if (is_admin_path(head.path)) return {.refusal = {}, .body_bytes = kAdminBody};
  if (!lookup.match->heavy) return {.refusal = {}, .body_bytes = kSmallBody};
  if (draining_.load()) return refuse(not_now("draining", "the server is going down", kLoadingRetryS));
  if (const ApiStatus room = access_.room(key); !room) return refuse(room.error());
  return {};
}

Async<void> Api::handle(HttpExchange& exchange) {
  const HttpHead& head = exchange.head();
  const RouteLookup lookup = find_route(head.method, head.path);
  HttpReply reply;
  if (!lookup.match) {
    reply = error_reply(lookup.match.error());
  } else if (lookup.match->heavy) {
    const auto allowed = access_.authorize(head.header("authorization"));
    const int key = allowed ? *allowed : -1;
    auto ticket = access_.enter(key);
    if (!ticket) {
      reply = error_reply(ticket.error());
    } else {
      switch (lookup.match->route) {
        case Route::kCompletions: co_await generate(exchange, false, key, *ticket); break;
        case Route::kChatCompletions: co_await generate(exchange, true, key, *ticket); break;
        case Route::kTokenize: co_await tokenize(exchange, false, *ticket); break;
        default: co_await tokenize(exchange, true, *ticket); break;
      }
      co_return;
    }
  } else {
    switch (lookup.match->route) {
      case Route::kModels: reply = models({}); break;
      case Route::kModel: reply = models(lookup.match->rest); break;
      case Route::kMetrics:
        reply.body = parts_.metrics.text();
        reply.content_type = kMetricsContentType;
        break;
      case Route::kAdminLoad:
      case Route::kAdminUnload:
      case Route::kAdminLimit:
      case Route::kAdminPin:
      case Route::kAdminSleep:
      case Route::kAdminWake: co_await administer(exchange, lookup.match->route); co_return;
      case Route::kAdminStatus: {
        auto status = admin_status(lookup.match->rest, admin_parts());
        if (status) {
          reply.body = *std::move(status);
        } else {
          reply = error_reply(status.error());
        }
        break;
      }
      case Route::kVersion: reply.body = dump({{"version", build_info().version}}); break;
      default: reply = health(lookup.match->route); break;
    }
  }
  (void)co_await exchange.reply(std::move(reply));
}

HttpReply Api::models(std::string_view name) const {
  HttpReply reply;
  if (!name.empty()) {
    const auto model = parts_.models.find_asleep_too(name);
    if (!model) return error_reply(model.error());
    const auto sleeps = parts_.models.sleep_of(name);
    reply.body = dump(model_card(**model, std::string(name), sleeps ? sleeps->stage : ModelStage::kReady));
    return reply;
  }
  Json cards = Json::array();
  for (const auto& [model, stage] : parts_.models.loaded())
    for (const std::string& known : model->names) cards.push_back(model_card(*model, known, stage));
  Json list = Json::object();
  list["object"] = "list";
  list["data"] = std::move(cards);
  reply.body = dump(list);
  return reply;
}

HttpReply Api::health(Route route) const {
  HttpReply reply;
  // Lost for good: a supervisor that asks whether the process lives is told that it does not.
  if (const Status device = parts_.engine.device(); !device) return error_reply(to_api_error(device.error()));
  if (route == Route::kHealthLive || ready()) {
    reply.body = R"({"status":"ok"})";
    return reply;
  }
  if (draining_.load()) return error_reply(not_now("draining", "the server is going down", kLoadingRetryS));
  return error_reply(not_now("loading", "models are loading", kLoadingRetryS));
}

Async<void> Api::generate(HttpExchange& exchange, bool chat, int key, Access::Ticket& ticket) {
  const GenerationParts parts{.limits = parts_.limits,
                              .models = parts_.models,
                              .manager = parts_.manager,
                              .engine = parts_.engine,
                              .workers = parts_.workers,
                              .answerers = parts_.answerers,
                              .conversations = parts_.conversations,
                              .fingerprint = fingerprint_,
                              .draining = draining_};
  co_await answer_generation(exchange, parts, chat, key, ticket);
}

Async<void> Api::tokenize(HttpExchange& exchange, bool back, Access::Ticket& ticket) {
  auto task = [this, body = std::move(exchange.body()), back] {
    return back ? detokenize_reply(body, parts_.models, parts_.limits)
                : tokenize_reply(body, parts_.models, parts_.limits);
  };
  auto reply = co_await run_on(parts_.workers, std::move(task));
  HttpReply answer;
  if (!reply) {
    answer = error_reply(to_api_error(reply.error()));
  } else if (!*reply) {
    answer = error_reply(reply->error());
  } else {
    answer.body = std::move(**reply);
  }
  ticket.release();
  (void)co_await exchange.reply(std::move(answer));
}

AdminParts Api::admin_parts() const {
  return {.limits = parts_.limits,
          .models = parts_.models,
          .manager = parts_.manager,
          .engine = parts_.engine,
          .metrics = parts_.metrics,
          .dummy_weights = parts_.dummy_weights};
}

Async<void> Api::administer(HttpExchange& exchange, Route route) {
  const auto gone = std::make_shared<std::atomic<bool>>(false);
  exchange.on_disconnect([gone] { gone->store(true); });
  // Looks at the disk, which may be a slow one.
  auto task = [this, route, body = std::move(exchange.body()), query = exchange.head().query] {
    return begin_admin(route, body, query, admin_parts());
  };
  const auto begun = co_await run_on(parts_.workers, std::move(task));
  if (!begun || !*begun) {
    const ApiError error = begun ? begun->error() : to_api_error(begun.error());
    (void)co_await exchange.reply(error_reply(error));
    co_return;
  }
  const AdminBegun what = **begun;
  boost::asio::steady_timer timer(exchange.executor());
  while (what.wait && !gone->load() && !draining_.load() && !admin_done(what.model, parts_.models)) {
    timer.expires_after(kAdminTick);
    co_await timer.async_wait(boost::asio::as_tuple(boost::asio::use_awaitable));
  }
  auto said = admin_reply(what, admin_parts());
  HttpReply reply;
  if (said) {
    reply.body = *std::move(said);
    if (!admin_done(what.model, parts_.models)) {
      reply.status = 202;
      reply.headers.emplace_back("location", "/admin/status/" + what.model);
    }
  } else {
    reply = error_reply(said.error());
  }
  (void)co_await exchange.reply(std::move(reply));
}

}  // namespace hearth
