// SPDX-License-Identifier: Apache-2.0
// For the tests of the HTTP layer: a client that writes bytes by hand, and a server on a free port whose handler
// knows a few paths.
#pragma once

#include <arpa/inet.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "hearth/serve/http.h"

namespace hearth::http_testing {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

// How long a test waits for what must come; only a failure waits so long. A sanitizer on a busy machine is slow.
inline constexpr int64_t kPatienceMs = 60'000;

inline int64_t ms_since(Clock::time_point begin) {
  return std::chrono::duration_cast<milliseconds>(Clock::now() - begin).count();
}

// Waits until `what` holds, at most ten seconds.
template <class F>
bool eventually(F what) {
  for (const auto begin = Clock::now(); ms_since(begin) < kPatienceMs; std::this_thread::sleep_for(milliseconds(2)))
    if (what()) return true;
  return what();
}

struct Answer {
  int status = 0;  // 0: the connection ended before an answer
  std::map<std::string, std::string> headers;
  std::string body;
  bool whole = false;  // ended as its header says
};

// A blocking socket that gives up after ten seconds.
class Client {
 public:
  explicit Client(uint16_t port, int receive_buffer = 0) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    if (receive_buffer > 0) setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    const timeval limit{kPatienceMs / 1000, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    const int on = 1;
    setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (port != 0) connect_to(port);
  }
  ~Client() { shut(); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  void connect_to(uint16_t port) {
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(connect(fd_, reinterpret_cast<const sockaddr*>(&to), sizeof to), 0);
  }
  void shut() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }
  // Closes with a reset.
  void reset() {
    const linger hard{1, 0};
    setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    shut();
  }
  void half_close() const { shutdown(fd_, SHUT_WR); }

  // False where the server closed meanwhile.
  bool send(std::string_view bytes) const {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(n));
    }
    return true;
  }
  // False at the end, after a reset, and after ten seconds.
  bool more() {
    char piece[65536];
    const ssize_t n = recv(fd_, piece, sizeof piece, 0);
    if (n > 0) in_.append(piece, static_cast<size_t>(n));
    ended_ = n == 0;
    reset_ = n < 0 && errno == ECONNRESET;
    return n > 0;
  }
  // Reads to the end of file and returns all.
  std::string rest() {
    while (more()) {}
    return std::exchange(in_, {});
  }
  bool readable(int wait_ms) const {
    pollfd poll_fd{fd_, POLLIN, 0};
    return poll(&poll_fd, 1, wait_ms) == 1;
  }
  // Whether the server closed without a reset and without another byte.
  bool closed() {
    if (!in_.empty()) return false;
    return !more() && ended_;
  }
  bool was_reset() const { return reset_; }

  Answer answer(bool of_head = false) {
    Answer out;
    size_t end;
    while ((end = in_.find("\r\n\r\n")) == std::string::npos)
      if (!more()) return out;
    const std::string head = in_.substr(0, end + 2);
    in_.erase(0, end + 4);
    EXPECT_TRUE(head.starts_with("HTTP/1.1 ")) << head;
    out.status = std::atoi(head.c_str() + 9);
    for (size_t at = head.find("\r\n") + 2; at < head.size();) {
      const size_t line_end = head.find("\r\n", at), colon = head.find(": ", at);
      out.headers[head.substr(at, colon - at)] = head.substr(colon + 2, line_end - colon - 2);
      at = line_end + 2;
    }
    if (of_head || out.status < 200) {
      out.whole = true;
    } else if (out.headers.contains("content-length")) {
      const auto size = static_cast<size_t>(std::stoll(out.headers["content-length"]));
      while (in_.size() < size && more()) {}
      out.whole = in_.size() >= size;
      out.body = in_.substr(0, size);
      in_.erase(0, size);
    } else if (out.headers.contains("transfer-encoding")) {
      read_chunks(out);
    } else {
      out.body = rest();
      out.whole = ended_;
    }
    return out;
  }

  std::string& bytes() { return in_; }

 private:
  void read_chunks(Answer& out) {
    for (;;) {
      size_t line;
      while ((line = in_.find("\r\n")) == std::string::npos)
        if (!more()) return;
      size_t size = 0;
      std::from_chars(in_.data(), in_.data() + line, size, 16);
      while (in_.size() < line + 2 + size + 2)
        if (!more()) return;
      out.body += in_.substr(line + 2, size);
      EXPECT_EQ(in_.substr(line + 2 + size, 2), "\r\n");
      in_.erase(0, line + 2 + size + 2);
      if (size == 0) {
        out.whole = true;
        return;
      }
    }
  }

  int fd_;
  std::string in_;
  bool ended_ = false, reset_ = false;
};

struct Done {
  std::string method, path, request_id;
  int status;
  int64_t sent_bytes;
};

// A server whose handler knows a few paths.
class HttpTest : public ::testing::Test {
 protected:
  HttpTest() {
    options_.port = 0;
    options_.handler = [this](HttpExchange& exchange) -> Async<> { co_await route(exchange); };
    options_.guard = [this](const HttpHead& head) { return guard(head); };
    options_.error_body = [](int status, std::string_view message) {
      return fmt::format("{{\"status\":{},\"message\":\"{}\"}}", status, message);
    };
    options_.on_done = [this](const HttpRecord& r) {
      const std::lock_guard lock(mutex_);
      done_.push_back({std::string(r.method), std::string(r.path), std::string(r.request_id), r.status, r.sent_bytes});
    };
  }

  void start() {
    auto created = HttpServer::create(options_);
    ASSERT_TRUE(created) << created.error().message;
    server_ = std::move(created).value();
    ASSERT_TRUE(server_->start());
  }
  uint16_t port() const { return server_->port(); }
  std::vector<Done> done() {
    const std::lock_guard lock(mutex_);
    return done_;
  }

  HttpVerdict guard(const HttpHead& head) {
    HttpVerdict verdict;
    if (head.path == "/refused") {
      HttpReply reply;
      reply.status = 401;
      reply.body = "no key";
      verdict.refusal = std::move(reply);
    }
    if (head.path == "/small") verdict.body_bytes = 10;
    return verdict;
  }

  Async<> route(HttpExchange& exchange) {
    const std::string path = exchange.head().path;
    HttpReply reply;
    if (path == "/echo") {
      reply.content_type = "text/plain";
      reply.body = fmt::format("{} {}?{} {}", exchange.head().method, path, exchange.head().query, exchange.body());
      (void)co_await exchange.reply(std::move(reply));
    } else if (path == "/throw") {
      throw std::runtime_error("thrown by a handler");
    } else if (path == "/memory") {
      throw std::bad_alloc();
    } else if (path == "/answer-then-memory") {
      (void)co_await exchange.reply(std::move(reply));
      throw std::bad_alloc();
    } else if (path == "/silent") {
    } else if (path == "/inject") {
      reply.headers.emplace_back("x-value", "a\r\nx-evil: 1");
      (void)co_await exchange.reply(std::move(reply));
    } else if (path == "/nothing") {
      reply.status = 204;
      (void)co_await exchange.reply(std::move(reply));
    } else if (path == "/stream") {
      reply.body = "first;";
      (void)co_await exchange.start_stream(std::move(reply));
      for (int i = 0; i < 5; ++i) (void)co_await exchange.write(fmt::format("{};", i));
      (void)co_await exchange.finish_stream();
    } else if (path == "/broken-stream") {
      reply.body = "first;";
      (void)co_await exchange.start_stream(std::move(reply));
      throw std::runtime_error("thrown in a stream");
    } else if (path == "/flood") {
      co_await flood(exchange);
    } else if (path == "/wait" || path == "/wait-stream") {
      co_await wait(exchange, path == "/wait-stream");
    } else if (path == "/pause") {
      boost::asio::steady_timer timer(exchange.executor(), milliseconds(300));
      co_await timer.async_wait(boost::asio::use_awaitable);
      reply.body = "rested";
      (void)co_await exchange.reply(std::move(reply));
    } else {
      reply.status = 404;
      (void)co_await exchange.reply(std::move(reply));
    }
  }

  // Writes until an error, and keeps it.
  Async<> flood(HttpExchange& exchange) {
    HttpReply reply;
    Status sent = co_await exchange.start_stream(std::move(reply));
    while (sent) {
      sent = co_await exchange.write(std::string(64 << 10, 'x'));
      if (sent) flood_bytes_ += 64 << 10;
    }
    const Status again = co_await exchange.write("more");
    const std::lock_guard lock(mutex_);
    flood_error_ = sent.error().code;
    flood_again_ = again ? std::optional<ErrorCode>() : again.error().code;
  }

  // Waits until the client is gone or the test releases it.
  Async<> wait(HttpExchange& exchange, bool stream) {
    const auto box = std::make_shared<Mailbox<std::string>>();
    exchange.on_disconnect([box, this] {
      ++gone_;
      box->push("gone");
    });
    if (stream) {
      HttpReply reply;
      reply.body = "begun;";
      (void)co_await exchange.start_stream(std::move(reply));
    }
    {
      const std::lock_guard lock(mutex_);
      waiting_.push_back(box);
    }
    const auto events = co_await box->take();
    if (stream) {
      const Status sent = co_await exchange.write(events.at(0));
      if (!sent) ++cancelled_;
      (void)co_await exchange.finish_stream();
    } else {
      HttpReply reply;
      reply.body = events.at(0);
      const Status sent = co_await exchange.reply(std::move(reply));
      if (!sent && sent.error().code == ErrorCode::kCancelled) ++cancelled_;
    }
    ++finished_;
  }
  // Number of requests that wait.
  size_t waiting() {
    const std::lock_guard lock(mutex_);
    return waiting_.size();
  }
  void release() {
    const std::lock_guard lock(mutex_);
    for (const auto& box : waiting_) box->push("released");
    waiting_.clear();
  }

  HttpServerOptions options_;
  std::mutex mutex_;
  std::vector<Done> done_;                                      // guarded by mutex_
  std::vector<std::shared_ptr<Mailbox<std::string>>> waiting_;  // guarded by mutex_
  std::optional<ErrorCode> flood_error_, flood_again_;          // guarded by mutex_
  std::atomic<int64_t> flood_bytes_ = 0;
  std::atomic<int> gone_ = 0, cancelled_ = 0, finished_ = 0;
  std::unique_ptr<HttpServer> server_;  // last: its end comes first
};

constexpr std::string_view kGetEcho = "GET /echo?a=1 HTTP/1.1\r\nhost: x\r\n\r\n";

// A request with a body; `headers` each with its line end.
inline std::string request_text(std::string_view method, std::string_view path, std::string_view body,
                                std::string_view headers = "") {
  return fmt::format("{} {} HTTP/1.1\r\nhost: x\r\n{}content-length: {}\r\n\r\n{}", method, path, headers, body.size(),
                     body);
}

// Its answer, over a connection of its own.
inline Answer ask(uint16_t port, std::string_view method, std::string_view path, std::string_view body = "",
                  std::string_view headers = "") {
  Client client(port);
  client.send(request_text(method, path, body, headers));
  return client.answer();
}

}  // namespace hearth::http_testing
