// SPDX-License-Identifier: Apache-2.0
// The listener: binds, accepts, drains, and joins its threads.
//   I1. No failure to accept ends it or makes it spin: it waits a moment and tries again.
//   I2. Above the limit of connections a client is told so (503, Retry-After) and closed; beyond kRefusing that are
//       being told, it is closed without a word.
//   I3. Nor does a want of memory: accepting is a chain of callbacks, in which the one that fails to begin the next
//       still has control. (A coroutine that cannot begin to wait is destroyed by Asio.)
// Any thread may call a method; of the chain, one callback runs at a time.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <chrono>
#include <exception>
#include <mutex>
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
        acceptor_(context_) {}

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

  bool start() override {
    HEARTH_CHECK(threads_.empty(), "http: started twice");
    const int wanted = std::max(1, hub_->options.threads);
    try {
      for (int i = 0; i < wanted; ++i) threads_.emplace_back([this] { work(); });
    } catch (const std::exception& e) {
      spdlog::error("http: {} of {} threads could be started: {}", threads_.size(), wanted, e.what());
    }
    if (threads_.empty()) return false;
    accept();
    return true;
  }

  void drain() override {
    {
      const std::lock_guard lock(accepting_);
      boost::system::error_code ignored;
      acceptor_.close(ignored);
      pause_.cancel();
    }
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

  // Begins the next link of the chain, unless it is drained.
  void accept() {
    begin([this] { acceptor_.async_accept(asio::make_strand(context_), Accepted{this}); });
  }

  struct Accepted {
    Listener* self;
    template <class Socket>
    void operator()(boost::system::error_code error, Socket socket) const {
      self->accepted(error, std::move(socket));
    }
  };

  template <class Socket>
  void accepted(boost::system::error_code error, Socket socket) {
    if (error && error != asio::error::connection_aborted && error != asio::error::operation_aborted) {
      // Out of descriptors or memory: what waits in the backlog is served when there are some again.
      char text[128];
      failed(error.message(text, sizeof text));
      begin([this] {
        pause_.expires_after(kAcceptPause);
        pause_.async_wait([this](boost::system::error_code) { accept(); });
      });
      return;
    }
    if (!error) {
      failing_ = false;
      try {
        take(std::move(socket));
      } catch (const std::exception& e) {
        spdlog::error("http: a connection was dropped: {}", e.what());
      }
    }
    accept();
  }

  // Tries until `what` could be begun; between two tries the thread sleeps, which needs no memory.
  template <class F>
  void begin(F what) {
    for (;; std::this_thread::sleep_for(kAcceptPause)) try {
        const std::lock_guard lock(accepting_);
        if (acceptor_.is_open()) what();
        return;
      } catch (const std::exception& e) {
        failed(e.what());
      }
  }

  void failed(const char* why) {
    if (!failing_) spdlog::warn("http: cannot accept, will try again: {}", why);
    failing_ = true;
  }

  void take(tcp::socket socket) {
    const bool full = hub_->served() >= hub_->options.limits.connections;
    if (full && hub_->refused() >= kRefusing) return;
    serve_http_connection(hub_, std::move(socket), full);
  }

  const std::shared_ptr<HttpHub> hub_;
  asio::io_context context_;
  // Not on a strand: what is called on the context itself is called without allocating.
  std::mutex accepting_;
  tcp::acceptor acceptor_;              // guarded by accepting_
  asio::steady_timer pause_{context_};  // guarded by accepting_
  asio::executor_work_guard<asio::io_context::executor_type> work_{context_.get_executor()};
  bool failing_ = false;  // the last accept failed; the chain's
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
