// SPDX-License-Identifier: Apache-2.0
// HTTP/1.1 for a few routes and many connections: Boost.Beast, one coroutine for each connection. Knows nothing
// of models: a guard looks at the head of each request, a handler answers it.
//   I1. No client can make the server hold more than its limits allow, or wait for longer than its timeouts.
//   I2. A handler runs on its connection's strand and must not block; long work goes to a WorkerPool.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/serve/async.h"
#include "hearth/serve/http_message.h"

namespace hearth {

// One request and the way to answer it. Lives as long as the handler's coroutine.
class HttpExchange {
 public:
  virtual ~HttpExchange() = default;
  virtual const HttpHead& head() const = 0;
  // The whole body; the handler may move it away.
  virtual std::string& body() = 0;
  // The connection's strand.
  virtual boost::asio::any_io_executor executor() const = 0;

  // `gone` is called once, on the strand, if the client closes the connection before the answer is complete;
  // at once if it already has. Works for answers that are not streamed too: the socket is watched. A client that
  // closes its sending side alone counts as gone, as most servers have it. One that pipelines more than
  // header_bytes behind its request is not watched any more; then a write finds out. `gone` must not end the
  // exchange itself: it wakes up who does.
  virtual void on_disconnect(std::function<void()> gone) = 0;

  // A whole answer. Once per exchange, unless start_stream() was called.
  virtual Async<Status> reply(HttpReply reply) = 0;

  // An answer in pieces (chunked; for HTTP/1.0 until the connection closes). `reply.body` is the first piece.
  virtual Async<Status> start_stream(HttpReply reply) = 0;
  // Returns when the bytes are with the socket: Cancelled where the client is gone, DeadlineExceeded after
  // write_timeout_ms without progress. After an error every further write returns it again.
  virtual Async<Status> write(std::string bytes) = 0;
  virtual Async<Status> finish_stream() = 0;
};

// Looks at a request's head before its body is read (and before 100 Continue): an answer here ends the exchange
// (the key is wrong, the route unknown, the server full), and the body is not read; where one was announced, the
// connection is closed behind the answer. May set a smaller body limit.
struct HttpVerdict {
  std::optional<HttpReply> refusal;
  std::optional<int64_t> body_bytes;
};
using HttpGuard = std::function<HttpVerdict(const HttpHead& head)>;
// Answers. Of HEAD it answers as of GET; the body is not sent. What it throws is logged and answered with 500
// where nothing was sent, bad_alloc with 503; else the connection is closed.
using HttpHandler = std::function<Async<void>(HttpExchange& exchange)>;
// The body of an answer that the HTTP layer gives by itself (400, 408, 413, 417, 431, 500, 501
// for a transfer coding other than chunked, 503).
using HttpErrorBody = std::function<std::string(int status, std::string_view message)>;

// A finished exchange, for metrics and the access log; also of what the layer answered by itself, where the path
// is empty if the head could not be read. Status 499: the client left before any answer. Called on the
// connection's strand.
struct HttpRecord {
  std::string_view method, path, request_id, remote;
  int status = 0;
  int64_t sent_bytes = 0;
  double seconds = 0;
};

struct HttpServerOptions {
  std::string address = "127.0.0.1";
  uint16_t port = 8000;  // 0: any free one
  int threads = 2;
  HttpLimits limits;
  HttpGuard guard;
  HttpHandler handler;
  HttpErrorBody error_body;
  std::function<void(const HttpRecord&)> on_done;
};

class HttpServer {
 public:
  // Binds and listens, so that the port is known; nothing is accepted before start(). InvalidArgument: no such
  // address; Unavailable: the port is taken.
  static Result<std::unique_ptr<HttpServer>> create(HttpServerOptions options);
  // Calls on_disconnect of what is left, waits a few seconds for the handlers to end, destroys those that did
  // not, and joins.
  virtual ~HttpServer() = default;

  virtual uint16_t port() const = 0;
  // Goes on with fewer threads where not all can be had; false where there is none, and so nothing is served.
  virtual bool start() = 0;
  // No new connections; those without a request in progress are closed; others after their answer.
  virtual void drain() = 0;
  // Waits until no connection is left, at most timeout_ms; true where none is.
  virtual bool wait_drained(int64_t timeout_ms) = 0;
  // Those that are served. Above HttpLimits::connections a client gets 503 with Retry-After: 1 and is closed.
  virtual int64_t connections() const = 0;
};

}  // namespace hearth
