// SPDX-License-Identifier: Apache-2.0
// The listener: binds, accepts, drains, and joins its threads.
//   I1. No failure to accept ends it or makes it spin: it waits a moment and tries again.
//   I2. Above the limit of connections a client is told so (503, Retry-After) and closed; beyond kRefusing that are
//       being told, it is closed without a word.
// Any thread may call a method; accepting runs on a strand of its own.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/strand.hpp>
#include <chrono>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "hearth/serve/http_connection.h"

namespace hearth {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;

constexpr int64_t kRefusing = 64;
constexpr int64_t kMinHeaderBytes = 64;
constexpr std::chrono::milliseconds kAcceptPause{50};
// How long the destructor lets handlers see that their client is gone.
constexpr int64_t kCloseMs = 5000;

Result<tcp::endpoint> resolve(const std::string& address, uint16_t port, asio::io_context& context) {
  boost::system::error_code error;
  const auto ip = asio::ip::make_address(address, error);
  if (!error) return tcp::endpoint(ip, port);
  tcp::resolver resolver(context);
  const auto found = resolver.resolve(address, std::to_string(port), tcp::resolver::passive, error);
  if (error || found.empty()) return invalid_argument("no address to listen on: {} ({})", address, error.message());
  return found.begin()->endpoint();
}

class Listener final : public HttpServer {
 public:
  explicit Listener(HttpServerOptions options)
      : hub_(std::make_shared<HttpHub>(std::move(options))),
        context_(std::max(1, hub_->options.threads)),
        strand_(asio::make_strand(context_)),
        acceptor_(strand_) {}

  ~Listener() override {
    drain();
    hub_->drain(true);
    if (!threads_.empty() && !hub_->wait_empty(kCloseMs))
      spdlog::warn("http: {} connections did not end by themselves", hub_->served());
    work_.reset();
    context_.stop();
    for (auto& thread : threads_) thread.join();
  }

  Status open() {
    HEARTH_TRY_ASSIGN(const tcp::endpoint endpoint, resolve(hub_->options.address, hub_->options.port, context_));
    boost::system::error_code error;
    const auto failed = [&]() -> Error {
      const std::string what =
          fmt::format("cannot listen on {}:{}: {}", hub_->options.address, hub_->options.port, error.message());
      if (error == asio::error::address_in_use || error == asio::error::access_denied) return unavailable("{}", what);
      return invalid_argument("{}", what);
    };
    acceptor_.open(endpoint.protocol(), error);
    if (error) return failed();
    acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (error) return failed();
    acceptor_.bind(endpoint, error);
    if (error) return failed();
    acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (error) return failed();
    port_ = acceptor_.local_endpoint(error).port();
    if (error) return failed();
    return {};
  }

  uint16_t port() const override { return port_; }

  void start() override {
    HEARTH_CHECK(threads_.empty(), "http: started twice");
    asio::co_spawn(strand_, accept(), asio::detached);
    for (int i = 0; i < std::max(1, hub_->options.threads); ++i) threads_.emplace_back([this] { work(); });
  }

  void drain() override {
    asio::post(strand_, [this] {
      boost::system::error_code ignored;
      acceptor_.close(ignored);
      pause_.cancel();
    });
    hub_->drain(false);
  }

  bool wait_drained(int64_t timeout_ms) override { return hub_->wait_empty(timeout_ms); }
  int64_t connections() const override { return hub_->served(); }

 private:
  void work() {
    for (;;) {
      try {
        context_.run();
        return;
      } catch (const std::exception& e) {
        spdlog::error("http: {}", e.what());
      }
    }
  }

  Async<> accept() {
    while (acceptor_.is_open()) {
      auto [error, socket] =
          co_await acceptor_.async_accept(asio::make_strand(context_), asio::as_tuple(asio::use_awaitable));
      if (!acceptor_.is_open()) break;
      if (error == asio::error::connection_aborted) continue;
      if (error) {
        // Out of descriptors or memory: what waits in the backlog is served when there are some again.
        if (!failing_) spdlog::warn("http: cannot accept, will try again: {}", error.message());
        failing_ = true;
        pause_.expires_after(kAcceptPause);
        co_await pause_.async_wait(asio::as_tuple(asio::use_awaitable));
        continue;
      }
      failing_ = false;
      take(std::move(socket));
    }
  }

  void take(tcp::socket socket) {
    const bool full = hub_->served() >= hub_->options.limits.connections;
    if (full && hub_->refused() >= kRefusing) return;
    try {
      serve_http_connection(hub_, std::move(socket), full);
    } catch (const std::exception& e) {
      spdlog::error("http: a connection was dropped: {}", e.what());
    }
  }

  const std::shared_ptr<HttpHub> hub_;
  asio::io_context context_;
  asio::strand<asio::io_context::executor_type> strand_;
  tcp::acceptor acceptor_;
  asio::steady_timer pause_{strand_};
  asio::executor_work_guard<asio::io_context::executor_type> work_{context_.get_executor()};
  bool failing_ = false;  // the last accept failed; its strand's
  uint16_t port_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace

Result<std::unique_ptr<HttpServer>> HttpServer::create(HttpServerOptions options) {
  HEARTH_CHECK(options.handler != nullptr, "http: a server without a handler");
  options.limits.header_bytes = std::max<int64_t>(options.limits.header_bytes, kMinHeaderBytes);
  auto listener = std::make_unique<Listener>(std::move(options));
  HEARTH_TRY(listener->open());
  return std::unique_ptr<HttpServer>(std::move(listener));
}

}  // namespace hearth
