// SPDX-License-Identifier: Apache-2.0
// One connection: a coroutine on the socket's strand that reads a request, has it answered, and reads the next.
//   I1. At most one read is under way, and it may outlast a request: it finds the next one, and while a handler
//       works it is what sees that the client has gone. What it brings waits in in_, which is bounded.
//   I2. Waits are on a timer that is the deadline and, when cancelled, the event; so a timeout cancels no I/O.
//   I3. The client takes bytes or the coroutine waits: nothing is queued.
//   I4. An end of file is a client that is gone, also where it closed only its sending side.
#include "hearth/serve/http_connection.h"

#include <linux/sockios.h>
#include <spdlog/spdlog.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <new>
#include <optional>
#include <string>
#include <utility>

#include "hearth/serve/http_request.h"

namespace hearth {

namespace asio = boost::asio;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

namespace {

constexpr size_t kReadBytes = 16 << 10;
// How long what a client still sends is read and dropped after an answer that did not wait for it: a close with
// unread bytes would be a reset, which can take the answer away from the client.
constexpr milliseconds kLinger{2000};
constexpr int64_t kBytesBetweenPauses = 256 << 10;
constexpr milliseconds kPause{2};
// Up to here a body goes into the same write as its header.
constexpr size_t kJoinedBytes = 64 << 10;
// For the access log: the client left before any answer (as nginx has it).
constexpr int kClientGone = 499;

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);

}  // namespace

class HttpConnection final : public HttpDrainable, public std::enable_shared_from_this<HttpConnection> {
 public:
  HttpConnection(std::shared_ptr<HttpHub> hub, asio::ip::tcp::socket socket, bool refused);
  ~HttpConnection() override;

  // The whole life; the caller keeps the object alive.
  Async<> run();
  void drain(bool abort) override;
  asio::any_io_executor executor() { return socket_.get_executor(); }

 private:
  friend class HttpConnectionExchange;
  enum class Input { kBytes, kEnd, kTimeout, kStopped };
  enum class After { kKeep, kClose, kLinger };
  struct Request;

  Async<After> serve_one();
  Async<After> serve_one_caught();
  Async<std::optional<After>> read_head(Request& request);
  Async<std::optional<After>> read_body(Request& request);
  Async<After> handle(Request& request);
  Async<After> refuse(Request& request, HttpReply reply, bool keep);
  Async<After> fail(Request& request, const HttpFailure& failure);
  After left(Request& request);
  void done(const Request& request, int status);
  Async<> linger();

  Async<Input> more_input(Clock::time_point deadline);
  void start_read();
  void read_done(size_t bytes);
  Async<Status> send(std::string_view bytes);
  Async<Status> wait_writable();
  int64_t unconfirmed();
  void client_gone();
  void forget_input(size_t bytes) { in_.erase(0, bytes); }

  const std::shared_ptr<HttpHub> hub_;
  const bool refused_;
  asio::ip::tcp::socket socket_;
  std::string remote_;

  asio::steady_timer input_event_;
  std::array<char, kReadBytes> scratch_;
  int64_t read_since_pause_ = 0;
  std::string in_;                // read and not parsed yet
  bool reading_ = false;          // a read is under way
  uint64_t reads_ = 0;            // reads that brought bytes
  bool end_ = false;              // end of file, reset, or aborted
  bool stop_ = false;             // drained
  bool busy_ = false;             // a request has begun
  std::function<void()> on_end_;  // the handler's

  asio::steady_timer output_event_;
  bool waiting_writable_ = false;  // a wait is under way
  bool writable_ = false;
  int64_t sent_bytes_ = 0;
  std::optional<Error> send_error_;
};

struct HttpConnection::Request {
  explicit Request(HttpHub& shared) : reader(shared.options.limits.header_bytes), hub(shared) {}
  ~Request() { hub.release_bodies(charged); }
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;

  // Of what was read of the body; false, and it is dropped, where all bodies together would be too much.
  bool charge_body() {
    const auto more = static_cast<int64_t>(reader.body().size()) - charged;
    if (more <= 0) return true;
    if (hub.charge_bodies(more)) {
      charged += more;
      return true;
    }
    reader.body() = std::string();
    hub.release_bodies(std::exchange(charged, 0));
    return false;
  }

  HttpRequestReader reader;
  Clock::time_point begun = Clock::now();
  std::string request_id;
  HttpHead head;
  int64_t sent_before = 0;
  HttpHub& hub;
  int64_t charged = 0;  // of the hub's bodies
};

// The handler's view of a request.
class HttpConnectionExchange final : public HttpExchange {
 public:
  HttpConnectionExchange(HttpConnection& connection, HttpConnection::Request& request, std::string body)
      : connection_(connection), request_(request), body_(std::move(body)) {}
  ~HttpConnectionExchange() override { connection_.on_end_ = nullptr; }

  const HttpHead& head() const override { return request_.head; }
  std::string& body() override { return body_; }
  asio::any_io_executor executor() const override { return connection_.executor(); }

  void on_disconnect(std::function<void()> gone) override {
    if (complete()) return;
    connection_.on_end_ = std::move(gone);
    if (connection_.end_) connection_.client_gone();
  }

  Async<Status> reply(HttpReply reply) override {
    HEARTH_CHECK(state_ == State::kNothing, "http: a second answer to {}", request_.head.path);
    HttpFraming framing = begin(reply);
    if (status_has_body(reply.status)) framing.content_length = static_cast<int64_t>(reply.body.size());
    std::string out = write_reply_head(reply, request_.head.request_id, framing);
    const bool body = status_has_body(reply.status) && !is_head();
    const bool joined = reply.body.size() <= kJoinedBytes;
    if (body && joined) out += reply.body;
    state_ = State::kEnding;
    Status sent = co_await send(out);
    if (sent && body && !joined) sent = co_await send(reply.body);
    state_ = State::kComplete;
    connection_.on_end_ = nullptr;
    co_return sent;
  }

  Async<Status> start_stream(HttpReply reply) override {
    HEARTH_CHECK(state_ == State::kNothing, "http: a second answer to {}", request_.head.path);
    chunked_ = !request_.reader.is_http_1_0();
    HttpFraming framing = begin(reply);
    framing.chunked = chunked_ && status_has_body(reply.status);
    if (!chunked_) close_ = true;
    if (!chunked_) framing.close = true, framing.keep_alive = false;
    bodiless_ = is_head() || !status_has_body(reply.status);
    std::string out = write_reply_head(reply, request_.head.request_id, framing);
    if (!bodiless_ && !reply.body.empty()) out += chunked_ ? write_chunk(reply.body) : reply.body;
    state_ = State::kStreaming;
    co_return co_await send(out);
  }

  Async<Status> write(std::string bytes) override {
    HEARTH_CHECK(state_ == State::kStreaming, "http: a write outside of a stream");
    if (bytes.empty() || bodiless_) co_return co_await send({});
    if (chunked_) bytes = write_chunk(bytes);
    co_return co_await send(bytes);
  }

  Async<Status> finish_stream() override {
    HEARTH_CHECK(state_ == State::kStreaming, "http: a stream that does not run is finished");
    state_ = State::kEnding;
    const Status sent = co_await send(chunked_ && !bodiless_ ? "0\r\n\r\n" : "");
    state_ = State::kComplete;
    connection_.on_end_ = nullptr;
    co_return sent;
  }

  bool untouched() const { return state_ == State::kNothing; }
  // All of the answer was given to send(), which ended without an exception.
  bool complete() const { return state_ == State::kComplete; }
  int status() const { return status_; }
  // Whether another request may follow on the connection.
  bool keep() const { return complete() && !close_ && !connection_.send_error_; }

 private:
  enum class State { kNothing, kStreaming, kEnding, kComplete };

  bool is_head() const { return request_.head.method == "HEAD"; }

  HttpFraming begin(const HttpReply& reply) {
    status_ = reply.status;
    close_ = !request_.reader.keep_alive() || connection_.hub_->draining();
    HttpFraming framing;
    framing.close = close_;
    framing.keep_alive = !close_ && request_.reader.is_http_1_0();
    return framing;
  }

  Async<Status> send(std::string_view bytes) {
    if (connection_.end_ && !connection_.send_error_) connection_.send_error_ = cancelled("the client has gone");
    co_return co_await connection_.send(bytes);
  }

  HttpConnection& connection_;
  HttpConnection::Request& request_;
  std::string body_;
  State state_ = State::kNothing;
  int status_ = 0;
  bool chunked_ = false, close_ = false, bodiless_ = false;
};

HttpConnection::HttpConnection(std::shared_ptr<HttpHub> hub, asio::ip::tcp::socket socket, bool refused)
    : hub_(std::move(hub)),
      refused_(refused),
      socket_(std::move(socket)),
      input_event_(socket_.get_executor()),
      output_event_(socket_.get_executor()) {
  boost::system::error_code ignored;
  socket_.non_blocking(true, ignored);
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  const auto peer = socket_.remote_endpoint(ignored);
  if (ignored) return;
  const std::string address = peer.address().to_string();
  remote_ = peer.address().is_v6() ? fmt::format("[{}]:{}", address, peer.port())
                                   : fmt::format("{}:{}", address, peer.port());
}

HttpConnection::~HttpConnection() { hub_->remove(this, refused_); }

void HttpConnection::drain(bool abort) {
  asio::post(socket_.get_executor(), [self = shared_from_this(), abort] {
    self->stop_ = true;
    if (abort) self->client_gone();
    self->input_event_.cancel();
  });
}

// The client is gone, or is to be treated so.
void HttpConnection::client_gone() {
  end_ = true;
  input_event_.cancel();
  output_event_.cancel();
  const auto gone = std::exchange(on_end_, nullptr);
  if (!gone) return;
  try {
    gone();
  } catch (const std::exception& e) {
    spdlog::error("http: on_disconnect threw: {}", e.what());
  }
}

void HttpConnection::start_read() {
  // The parser leaves less than header_bytes, so that it can always have more.
  if (reading_ || end_ || static_cast<int64_t>(in_.size()) >= hub_->options.limits.header_bytes) return;
  socket_.async_read_some(asio::buffer(scratch_),
                          [self = shared_from_this()](boost::system::error_code error, size_t bytes) {
                            self->read_done(error || bytes == 0 ? 0 : bytes);
                          });
  reading_ = true;  // only now: the above may throw, and never calls read_done() by itself
}

// 0 bytes: the end.
void HttpConnection::read_done(size_t bytes) {
  reading_ = false;
  try {
    in_.append(scratch_.data(), bytes);
  } catch (const std::bad_alloc&) {
    spdlog::error("http: no memory for what {} sends", remote_);
    bytes = 0;
  }
  if (bytes == 0) return client_gone();
  ++reads_;
  read_since_pause_ += static_cast<int64_t>(bytes);
  input_event_.cancel();
  // While a handler works, the next read is what sees the end.
  if (busy_) start_read();
}

// Waits until in_ has grown. A large body is read in pieces with pauses between them, 128 MB/s: at the speed of the
// loopback, reading it would keep this thread busy and other answers waiting.
Async<HttpConnection::Input> HttpConnection::more_input(Clock::time_point deadline) {
  const uint64_t before = reads_;  // a read may end in the pause
  if (read_since_pause_ >= kBytesBetweenPauses) {
    read_since_pause_ = 0;
    asio::steady_timer pause(socket_.get_executor(), kPause);
    co_await pause.async_wait(kAwait);
  }
  for (;;) {
    if (reads_ != before) co_return Input::kBytes;
    if (end_) co_return Input::kEnd;
    if (stop_ && !busy_) co_return Input::kStopped;
    if (Clock::now() >= deadline) co_return Input::kTimeout;
    start_read();
    input_event_.expires_at(deadline);
    co_await input_event_.async_wait(kAwait);
  }
}

// Bytes in the socket that the client's side has not confirmed.
int64_t HttpConnection::unconfirmed() {
  int bytes = 0;
  return ioctl(socket_.native_handle(), SIOCOUTQ, &bytes) == 0 ? bytes : 0;
}

// Waits until the socket takes bytes; DeadlineExceeded after write_timeout_ms, Cancelled where the client is gone.
Async<Status> HttpConnection::wait_writable() {
  const milliseconds limit(hub_->options.limits.write_timeout_ms);
  auto deadline = Clock::now() + limit;
  int64_t left = unconfirmed();
  const bool had_ended = end_;
  writable_ = false;
  for (;;) {
    if (writable_) co_return Status();
    if (end_ && !had_ended) co_return cancelled("the client has gone");
    if (Clock::now() >= deadline) {
      // The socket is not writable before a third of its buffer is free; a client may take bytes long before.
      const int64_t now_left = unconfirmed();
      if (now_left >= left) co_return deadline_exceeded("the client took no byte for {} ms", limit.count());
      left = now_left;
      deadline = Clock::now() + limit;
    }
    if (!waiting_writable_) {
      socket_.async_wait(asio::ip::tcp::socket::wait_write, [self = shared_from_this()](boost::system::error_code) {
        self->waiting_writable_ = false;
        self->writable_ = true;
        self->output_event_.cancel();
      });
      waiting_writable_ = true;  // as reading_
    }
    output_event_.expires_at(deadline);
    co_await output_event_.async_wait(kAwait);
  }
}

Async<Status> HttpConnection::send(std::string_view bytes) {
  while (!send_error_ && !bytes.empty()) {
    boost::system::error_code error;
    const size_t taken = socket_.write_some(asio::buffer(bytes.data(), bytes.size()), error);
    bytes.remove_prefix(taken);
    sent_bytes_ += static_cast<int64_t>(taken);
    if (!error || error == asio::error::interrupted) continue;
    if (error == asio::error::would_block || error == asio::error::try_again) {
      Status waited = co_await wait_writable();
      if (!waited) send_error_ = std::move(waited).error();
      continue;
    }
    send_error_ = cancelled("the client has gone: {}", error.message());
  }
  if (send_error_) co_return *send_error_;
  co_return Status();
}

void HttpConnection::done(const Request& request, int status) {
  if (!hub_->options.on_done) return;
  HttpRecord record;
  record.method = request.head.method;
  record.path = request.head.path;
  record.request_id = request.request_id;
  record.remote = remote_;
  record.status = status;
  record.sent_bytes = sent_bytes_ - request.sent_before;
  record.seconds = std::chrono::duration<double>(Clock::now() - request.begun).count();
  hub_->options.on_done(record);
}

HttpConnection::After HttpConnection::left(Request& request) {
  done(request, kClientGone);
  return After::kClose;
}

// An answer of the layer or the guard, before the body was read.
Async<HttpConnection::After> HttpConnection::refuse(Request& request, HttpReply reply, bool keep) {
  if (request.request_id.empty()) request.request_id = new_request_id();
  keep = keep && !hub_->draining();
  HttpFraming framing;
  framing.close = !keep;
  framing.keep_alive = keep && request.reader.is_http_1_0();
  const bool body = status_has_body(reply.status);
  if (body) framing.content_length = static_cast<int64_t>(reply.body.size());
  std::string out = write_reply_head(reply, request.request_id, framing);
  if (body && request.head.method != "HEAD") out += reply.body;
  const Status sent = co_await send(out);
  done(request, reply.status);
  if (!sent) co_return After::kClose;
  co_return keep ? After::kKeep : After::kLinger;
}

Async<HttpConnection::After> HttpConnection::fail(Request& request, const HttpFailure& failure) {
  HttpReply reply = hub_->error_reply(failure.status, failure.message);
  co_return co_await refuse(request, std::move(reply), false);
}

Async<std::optional<HttpConnection::After>> HttpConnection::read_head(Request& request) {
  using Step = HttpRequestReader::Step;
  const HttpLimits& limits = hub_->options.limits;
  auto deadline = Clock::now() + milliseconds(limits.idle_timeout_ms);
  for (;;) {
    size_t used = 0;
    const Step step = request.reader.advance(in_, used);
    forget_input(used);
    if (request.reader.started() && !busy_) {
      busy_ = true;
      request.begun = Clock::now();
      deadline = request.begun + milliseconds(limits.header_timeout_ms);
    }
    if (step == Step::kFailed) co_return co_await fail(request, request.reader.failure());
    if (step == Step::kHead) break;
    const Input input = co_await more_input(deadline);
    if (input == Input::kBytes) continue;
    if (!busy_) co_return After::kClose;
    if (input == Input::kEnd) co_return left(request);
    const HttpFailure late{408, fmt::format("the header was not there after {} ms", limits.header_timeout_ms)};
    co_return co_await fail(request, late);
  }
  request.head = std::move(request.reader.head());
  request.head.remote = remote_;
  request.request_id = request.head.request_id;
  co_return std::nullopt;
}

Async<std::optional<HttpConnection::After>> HttpConnection::read_body(Request& request) {
  using Step = HttpRequestReader::Step;
  const HttpLimits& limits = hub_->options.limits;
  const auto deadline = Clock::now() + milliseconds(limits.body_timeout_ms);
  for (;;) {
    size_t used = 0;
    const Step step = request.reader.advance(in_, used);
    forget_input(used);
    if (step != Step::kFailed && !request.charge_body()) {
      const HttpFailure full{503, "the requests that are read and answered hold as much memory as they may"};
      co_return co_await fail(request, full);
    }
    if (step == Step::kDone) co_return std::nullopt;
    if (step == Step::kFailed) co_return co_await fail(request, request.reader.failure());
    const Input input = co_await more_input(deadline);
    if (input == Input::kBytes) continue;
    if (input == Input::kEnd) co_return left(request);
    const HttpFailure late{408, fmt::format("the body was not there after {} ms", limits.body_timeout_ms)};
    co_return co_await fail(request, late);
  }
}

Async<HttpConnection::After> HttpConnection::handle(Request& request) {
  HttpConnectionExchange exchange(*this, request, std::move(request.reader.body()));
  start_read();
  const int64_t sent_before = sent_bytes_;  // after a 100 Continue
  std::optional<HttpFailure> failure;
  try {
    co_await hub_->options.handler(exchange);
  } catch (const std::bad_alloc&) {
    spdlog::error("http: {} {} ({}): out of memory", request.head.method, request.head.path, request.request_id);
    failure = {503, "out of memory while the request was answered"};
  } catch (const std::exception& e) {
    spdlog::error("http: {} {} ({}) threw: {}", request.head.method, request.head.path, request.request_id, e.what());
    failure = {500, "internal error"};
  } catch (...) {
    spdlog::error("http: {} {} ({}) threw", request.head.method, request.head.path, request.request_id);
    failure = {500, "internal error"};
  }
  on_end_ = nullptr;
  // Also of an answer that was begun, where memory failed before its first byte left.
  if (!exchange.complete() && sent_bytes_ == sent_before && !end_ && !send_error_) {
    if (!failure) {
      spdlog::error("http: {} {} ({}) was not answered", request.head.method, request.head.path, request.request_id);
      failure = {500, "the request was not answered"};
    }
    HttpReply reply = hub_->error_reply(failure->status, failure->message);
    co_return co_await refuse(request, std::move(reply), request.reader.keep_alive());
  }
  if (!exchange.untouched() && !exchange.complete() && !end_ && !send_error_)
    spdlog::error("http: the answer to {} {} ({}) was not finished", request.head.method, request.head.path,
                  request.request_id);
  done(request, exchange.status() != 0 ? exchange.status() : kClientGone);
  if (exchange.keep() && !failure) co_return After::kKeep;
  co_return exchange.complete() && !send_error_ ? After::kLinger : After::kClose;
}

Async<HttpConnection::After> HttpConnection::serve_one() {
  Request request(*hub_);
  request.sent_before = sent_bytes_;
  if (refused_) {
    HttpReply reply = hub_->error_reply(503, "the server has as many connections as it takes");
    co_return co_await refuse(request, std::move(reply), false);
  }
  if (auto after = co_await read_head(request)) co_return *after;

  const bool body = request.reader.has_body();
  HttpVerdict verdict;
  if (hub_->options.guard) verdict = hub_->options.guard(request.head);
  if (verdict.refusal) {
    HttpReply refusal = std::move(*verdict.refusal);
    co_return co_await refuse(request, std::move(refusal), !body && request.reader.keep_alive());
  }
  const int64_t most = hub_->options.limits.body_bytes;
  const auto failure = request.reader.begin_body(std::min(most, verdict.body_bytes.value_or(most)));
  if (failure) co_return co_await fail(request, *failure);
  if (request.reader.expects_continue()) {
    const Status sent = co_await send("HTTP/1.1 100 Continue\r\n\r\n");
    if (!sent) co_return left(request);
  }
  if (auto after = co_await read_body(request)) co_return *after;
  co_return co_await handle(request);
}

Async<> HttpConnection::linger() {
  boost::system::error_code ignored;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
  busy_ = true;  // a drain does not end it: it is short
  const auto deadline = Clock::now() + kLinger;
  for (;;) {
    in_.clear();
    if (co_await more_input(deadline) != Input::kBytes) break;
  }
}

// serve_one(), and an answer where it ends with an exception (of the guard, or for want of memory).
Async<HttpConnection::After> HttpConnection::serve_one_caught() {
  const int64_t sent_before = sent_bytes_;
  HttpFailure failure{500, "internal error"};
  try {
    co_return co_await serve_one();
  } catch (const std::bad_alloc&) {
    failure = {503, "out of memory"};
    spdlog::error("http: out of memory for a request of {}", remote_);
  } catch (const std::exception& e) {
    spdlog::error("http: a request of {} threw: {}", remote_, e.what());
  }
  if (sent_bytes_ != sent_before) co_return After::kClose;
  Request request(*hub_);
  request.sent_before = sent_before;
  co_return co_await fail(request, failure);
}

Async<> HttpConnection::run() {
  // However it ends: a read that is under way would keep the connection open.
  struct CloseAtEnd {
    asio::ip::tcp::socket& socket;
    ~CloseAtEnd() {
      boost::system::error_code ignored;
      socket.close(ignored);
    }
  } const close_at_end{socket_};
  for (;;) {
    busy_ = false;
    read_since_pause_ = 0;
    const After after = co_await serve_one_caught();
    if (after == After::kKeep && !end_) continue;
    if (after != After::kClose && !end_) co_await linger();
    break;
  }
}

void serve_http_connection(std::shared_ptr<HttpHub> hub, asio::ip::tcp::socket socket, bool refuse) {
  const auto connection = std::make_shared<HttpConnection>(hub, std::move(socket), refuse);
  if (!hub->add(connection, refuse)) return;
  const auto executor = connection->executor();
  // The coroutine keeps the object alive: a captured pointer would end with the lambda.
  const auto life = [](std::shared_ptr<HttpConnection> self) -> Async<> { co_await self->run(); };
  asio::co_spawn(executor, life(connection), [](const std::exception_ptr& error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const std::exception& e) {
      spdlog::error("http: a connection ended: {}", e.what());
    } catch (...) {
      spdlog::error("http: a connection ended");
    }
  });
}

}  // namespace hearth
