// SPDX-License-Identifier: Apache-2.0
// A small HTTP/1.1 client for one server: connections are kept and used again, an answer's body is handed on as it
// arrives, thousands of calls run side by side on one thread. No TLS, no redirects, no proxies.
//   I1. A call ends: connecting and every wait for a byte have a limit, and cancel() ends all calls.
//   I2. A call that fails on a kept connection before any byte of an answer, as when the server closed it meanwhile,
//       is sent once more on a fresh one. Nothing else is repeated.
//   I3. What it holds of an answer is a header of bounded size and one read.
// The thread that runs the io_context.
#pragma once

#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/client/url.h"

namespace hearth {

struct HttpClientOptions {
  std::vector<std::pair<std::string, std::string>> headers;  // of every request, beside host and content-type
  int64_t connect_timeout_ms = 10'000;
  int64_t idle_timeout_ms = 300'000;  // without a byte from the server, or without it taking one
};

struct HttpCall {
  std::string method = "GET";
  std::string target;  // "/v1/models"
  std::string body;    // JSON; empty: none
};

struct HttpAnswer {
  int status = 0;
  std::string content_type;
};

// Called with each piece of a body, in order; an error ends the call and closes its connection.
using OnBody = std::function<Status(const HttpAnswer& head, std::string_view bytes)>;

class HttpClient {
 public:
  // Looks the host up, which may take a while; connects to nothing yet. Both arguments by reference outlive it.
  // InvalidArgument: a header with a control character; Unavailable: no such host.
  static Result<std::unique_ptr<HttpClient>> create(boost::asio::io_context& context, const HttpUrl& url,
                                                    HttpClientOptions options);
  // REQUIRES: no call is under way.
  virtual ~HttpClient() = default;

  // Any status is an answer. Unavailable: no connection, or it ended before the answer did; DeadlineExceeded;
  // Corrupt: what came is not HTTP; Cancelled.
  virtual boost::asio::awaitable<Result<HttpAnswer>> send(HttpCall call, OnBody on_body) = 0;

  // All calls under way end with Cancelled.
  virtual void cancel() = 0;

  virtual int64_t connections_opened() const = 0;
  virtual const HttpUrl& url() const = 0;
};

// Runs `work` on the calling thread until it ends. Once `stop` is true, client.cancel() is called, again and again
// until the work has ended. What the work throws is thrown.
void run_client(boost::asio::io_context& context, HttpClient& client, boost::asio::awaitable<void> work,
                const std::atomic<bool>& stop);

// One call with its whole body. ResourceExhausted: larger than 32 MiB.
struct Fetched {
  HttpAnswer head;
  std::string body;
};
Result<Fetched> fetch(boost::asio::io_context& context, HttpClient& client, HttpCall call,
                      const std::atomic<bool>& stop);

}  // namespace hearth
