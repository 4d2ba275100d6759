// SPDX-License-Identifier: Apache-2.0
// Puts the parts together. Members are declared so that they go in the right order: first the connections, then the
// workers, whose tasks use the API, then the API, then the engine.
#include "hearth/serve/server.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "hearth/base/clock.h"
#include "hearth/base/cpus.h"
#include "hearth/base/log.h"
#include "hearth/base/thread_pool.h"
#include "hearth/base/worker_pool.h"
#include "hearth/kernels/op_table.h"
#include "hearth/serve/api.h"
#include "hearth/serve/metrics.h"
#include "hearth/serve/model_manager.h"
#include "hearth/serve/step_log.h"

namespace hearth {
namespace {

// For the last answers after requests were cancelled.
constexpr int64_t kCancelTimeoutMs = 5000;
constexpr int64_t kUnsentTimeoutMs = 5000;
constexpr int64_t kDrainPollMs = 20;
// Threads that make large answers. Two: one long answer does not hold up the others.
constexpr int kAnswerers = 2;

class ServerImpl final : public Server {
 public:
  explicit ServerImpl(ServeOptions options) : options_(std::move(options)), models_(options_.models) {}

  Status open() {
    if (!options_.step_log.empty()) {
      HEARTH_TRY_ASSIGN(step_log_, StepLog::open(options_.step_log, metrics_));
    }
    EngineObserver* const observer = step_log_ ? static_cast<EngineObserver*>(step_log_.get()) : &metrics_;
    HEARTH_TRY_ASSIGN(engine_, Engine::create(options_.engine, observer, clock_));
    metrics_.set_stats([this] { return engine_->stats(); }, [this] { return engine_->kv_stats(); });
    workers_ = std::make_unique<WorkerPool>(options_.request_workers, options_.waiting_requests,
                                            WorkerPool::Priority::kGivesWay,
                                            cpus_beside_team(team_threads(options_.engine.threads)));
    answerers_ = std::make_unique<WorkerPool>(kAnswerers, 0);
    LoadOptions load = options_.load;
    load.template_limits.max_time_ms = options_.api.template_time_ms;
    manager_ = std::make_unique<ModelManager>(ManagerParts{.models = models_,
                                                           .engine = *engine_,
                                                           .conversations = conversations_,
                                                           .ops = *options_.ops,
                                                           .load = std::move(load),
                                                           .options = options_.engine,
                                                           .first = options_.models,
                                                           .usual = {.deadline_ms = {},
                                                                     .sleep_idle = options_.sleep_idle_for_room,
                                                                     .wakes_on_request = options_.wake_on_request}});
    api_ = std::make_unique<Api>(ApiParts{.limits = options_.api,
                                          .keys = options_.api_keys,
                                          .admin_keys = options_.admin_keys,
                                          .models = models_,
                                          .manager = *manager_,
                                          .conversations = conversations_,
                                          .engine = *engine_,
                                          .workers = *workers_,
                                          .answerers = *answerers_,
                                          .metrics = metrics_,
                                          .dummy_weights = options_.load.dummy_weights});
    HttpServerOptions http;
    http.address = options_.address;
    http.port = options_.port;
    http.threads = options_.http_threads;
    http.limits = options_.http;
    http.guard = [this](const HttpHead& head) { return api_->guard(head); };
    http.handler = [this](HttpExchange& exchange) { return api_->handle(exchange); };
    http.error_body = [](int status, std::string_view message) { return error_json(status, message); };
    http.on_done = [this](const HttpRecord& record) { done(record); };
    HEARTH_TRY_ASSIGN(http_, HttpServer::create(std::move(http)));
    return {};
  }

  uint16_t port() const override { return http_->port(); }

  Status start() override {
    if (!http_->start()) return resource_exhausted("no thread could be started for HTTP");
    ThreadPool pool(options_.engine.threads);
    HEARTH_TRY(manager_->load_first(pool));
    manager_->start();
    return {};
  }

  bool ready() const override { return api_->ready(); }

  Status device() const override { return engine_->device(); }

  bool drain(int64_t timeout_ms) override {
    const int64_t begin_ns = clock_.now_ns();
    const auto left_ms = [&](int64_t limit_ms) { return limit_ms - (clock_.now_ns() - begin_ns) / 1'000'000; };
    // New requests are refused by their heads; the engine still takes those that were let in. While answers are
    // written, probes and new clients are told that the server goes down, so it listens until they are complete.
    api_->drain();
    manager_->stop();
    while (api_->in_flight() > 0 && left_ms(timeout_ms) > 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(kDrainPollMs));
    http_->drain();
    // Requests that are half sent get a while to become whole, and answers' last bytes to be taken.
    const int64_t unsent_ms = std::min(timeout_ms, timeout_ms - left_ms(timeout_ms) + kUnsentTimeoutMs);
    bool closed = false;
    do {
      closed = http_->wait_drained(kDrainPollMs);
    } while (!closed && left_ms(api_->in_flight() > 0 ? timeout_ms : unsent_ms) > 0);
    engine_->drain();
    if (closed || api_->in_flight() == 0) return true;
    api_->cancel_all();
    http_->wait_drained(kCancelTimeoutMs);
    return false;
  }

 private:
  void done(const HttpRecord& record) {
    metrics_.on_http(route_pattern(record.path), record.method, record.status, record.seconds);
    if (!options_.access_log) return;
    spdlog::info("{} {} {} {} {} bytes {:.3f} s {}", record.remote, record.method, record.path, record.status,
                 record.sent_bytes, record.seconds, record.request_id);
  }

  const ServeOptions options_;
  const SteadyClock clock_;
  Metrics metrics_;
  std::unique_ptr<StepLog> step_log_;
  ModelRegistry models_;
  Conversations conversations_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<ModelManager> manager_;
  std::unique_ptr<Api> api_;
  std::unique_ptr<WorkerPool> workers_, answerers_;
  std::unique_ptr<HttpServer> http_;
};

}  // namespace

Result<std::unique_ptr<Server>> Server::create(ServeOptions options) {
  HEARTH_TRY(ModelRegistry::check(options.models));
  if (options.models.empty() && options.admin_keys.empty())
    return invalid_argument("no model to serve, and no admin key with which one could be loaded");
  auto server = std::make_unique<ServerImpl>(std::move(options));
  HEARTH_TRY(server->open());
  return std::unique_ptr<Server>(std::move(server));
}

}  // namespace hearth
