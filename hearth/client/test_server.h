// SPDX-License-Identifier: Apache-2.0
// For the tests of the client: a small server of plain sockets, whose answers each case writes by hand, and a client
// with what it runs on. The server has a thread for each connection.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "hearth/client/load.h"

namespace hearth::client_testing {

// A connection of the server, for the case's code.
class Peer {
 public:
  explicit Peer(int fd) : fd_(fd) {}
  // The next request, header and body; empty when the client has closed.
  std::string read_request() {
    for (;;) {
      const size_t head = in_.find("\r\n\r\n");
      if (head != std::string::npos) {
        const size_t field = in_.find("content-length: ");
        const size_t body = field < head ? std::stoul(in_.substr(field + 16)) : 0;
        if (in_.size() >= head + 4 + body) {
          std::string request = in_.substr(0, head + 4 + body);
          in_.erase(0, request.size());
          return request;
        }
      }
      char bytes[4096];
      const ssize_t got = ::recv(fd_, bytes, sizeof bytes, 0);
      if (got <= 0) return "";
      in_.append(bytes, static_cast<size_t>(got));
    }
  }
  void write(const std::string& bytes) { (void)::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL); }
  void reply(int status, const std::string& type, const std::string& body) {
    write(fmt::format("HTTP/1.1 {} X\r\ncontent-type: {}\r\ncontent-length: {}\r\n\r\n{}", status, type, body.size(),
                      body));
  }
  void begin_stream() {
    write("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n");
  }
  void chunk(const std::string& bytes) { write(fmt::format("{:x}\r\n{}\r\n", bytes.size(), bytes)); }
  void event(const std::string& data) { chunk("data: " + data + "\n\n"); }
  void token(const std::string& text, const char* finish = "null") {
    event(fmt::format("{{\"choices\":[{{\"index\":0,\"text\":\"{}\",\"finish_reason\":{}}}]}}", text, finish));
  }
  void end_stream(int64_t prompt, int64_t completion) {
    event(fmt::format("{{\"choices\":[],\"usage\":{{\"prompt_tokens\":{},\"completion_tokens\":{}}}}}", prompt,
                      completion));
    event("[DONE]");
    write("0\r\n\r\n");
  }

 private:
  const int fd_;
  std::string in_;
};

class TestServer {
 public:
  // `serve` runs on a thread for each connection, until it returns; `number` counts the connections.
  using Serve = std::function<void(Peer& peer, int number)>;
  explicit TestServer(Serve serve) : serve_(std::move(serve)), fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(::bind(fd_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(::listen(fd_, 1024), 0);
    EXPECT_EQ(::getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
    acceptor_ = std::thread([this] { accept(); });
  }
  ~TestServer() {
    finish();
    for (const int fd : open_) ::close(fd);
  }
  // Ends all connections and waits for their threads. Also by the destructor.
  void finish() {
    if (!acceptor_.joinable()) return;
    ::shutdown(fd_, SHUT_RDWR);
    acceptor_.join();
    ::close(fd_);
    const std::lock_guard lock(mutex_);
    for (const int fd : open_) ::shutdown(fd, SHUT_RDWR);
    for (std::thread& thread : threads_) thread.join();
  }
  HttpUrl url() const { return {.host = "127.0.0.1", .port = port_, .path = {}}; }
  int connections() const {
    const std::lock_guard lock(mutex_);
    return static_cast<int>(open_.size());
  }

 private:
  void accept() {
    for (int number = 0;; ++number) {
      const int fd = ::accept(fd_, nullptr, nullptr);
      if (fd < 0) return;
      const int on = 1;
      ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      const std::lock_guard lock(mutex_);
      open_.push_back(fd);
      threads_.emplace_back([this, fd, number] {
        Peer peer(fd);
        serve_(peer, number);
        ::shutdown(fd, SHUT_RDWR);
      });
    }
  }

  const Serve serve_;
  const int fd_;
  uint16_t port_ = 0;
  mutable std::mutex mutex_;
  std::vector<int> open_;             // guarded by mutex_
  std::vector<std::thread> threads_;  // guarded by mutex_
  std::thread acceptor_;
};

// A client and what it runs on.
struct Load {
  explicit Load(const HttpUrl& url, HttpClientOptions options = {})
      : client(HttpClient::create(context, url, std::move(options)).value()) {
    settings.make_body = [](size_t index) { return fmt::format("{{\"index\":{}}}", index); };
  }
  LoadResult run(const std::vector<PlannedRequest>& plan) { return run_load(context, *client, plan, settings, stop); }
  RequestRecord run_one() { return run({{.arrival_s = 0, .input_tokens = 3, .output_tokens = 4}}).records.front(); }
  Result<Fetched> get(const char* target) {
    return fetch(context, *client, {.method = "GET", .target = target, .body = {}}, stop);
  }

  boost::asio::io_context context{1};
  std::atomic<bool> stop = false;
  std::unique_ptr<HttpClient> client;
  LoadSettings settings;
};

}  // namespace hearth::client_testing
