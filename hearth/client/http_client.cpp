// SPDX-License-Identifier: Apache-2.0
// HttpClient over Beast's parser and Asio's coroutines. The thread that runs the io_context.
//   I4. An idle connection is in idle_, one in use in busy_, and nowhere else.
#include "hearth/client/http_client.h"

#include <sys/socket.h>

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <cerrno>
#include <chrono>
#include <optional>
#include <set>

namespace hearth {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;
using std::chrono::milliseconds;

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);
constexpr size_t kReadBytes = 32 << 10;
constexpr uint32_t kHeaderBytes = 64 << 10;
constexpr int64_t kFetchBytes = int64_t{32} << 20;
constexpr milliseconds kStopPoll{20};

struct Connection {
  explicit Connection(asio::io_context& context) : stream(context) {}
  beast::tcp_stream stream;
  bool reused = false;
};

// Whether the server has closed a connection that waits, or says something unasked.
bool stale(Connection& connection) {
  char byte = 0;
  const ssize_t got = ::recv(connection.stream.socket().native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return !(got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK));
}

// One answer out of bytes that arrive in pieces.
class AnswerReader {
 public:
  AnswerReader() { renew(); }

  // Takes `bytes`. True: the answer is complete.
  Result<bool> take(std::string_view bytes, const OnBody& on_body) {
    in_ += bytes;
    while (!in_.empty() && !parser_->is_done()) {
      out_.resize(in_.size());  // a body is never longer than the bytes that carry it
      parser_->get().body() = {out_.data(), out_.size(), true};
      error_code error;
      const size_t used = parser_->put(asio::buffer(in_), error);
      in_.erase(0, used);
      if (error && error != http::error::need_more && error != http::error::need_buffer)
        return corrupt("what the server sent is not HTTP: {}", error.message());
      const size_t written = out_.size() - parser_->get().body().size;
      if (parser_->is_header_done()) note_head();
      if (written > 0) HEARTH_TRY(on_body(head_, std::string_view(out_).substr(0, written)));
      if (parser_->is_done() && head_.status / 100 == 1) renew();  // 100 Continue: the answer itself follows
      if (used == 0 && written == 0) break;
    }
    return parser_->is_done();
  }

  // The server closed the connection. True: that was the end of the answer.
  bool take_end() {
    error_code error;
    if (parser_->got_some()) parser_->put_eof(error);
    return !error && parser_->is_done();
  }

  bool heard() const { return heard_ || !in_.empty() || parser_->got_some(); }
  bool keep_alive() const { return parser_->is_done() && parser_->keep_alive() && in_.empty(); }
  const HttpAnswer& head() const { return head_; }

 private:
  void renew() {
    heard_ = parser_.has_value();
    parser_.emplace();
    parser_->eager(true);
    parser_->header_limit(kHeaderBytes);
    parser_->body_limit(boost::none);
    head_ = {};
  }
  void note_head() {
    if (head_.status != 0) return;
    head_.status = static_cast<int>(parser_->get().result_int());
    head_.content_type = std::string(parser_->get()[http::field::content_type]);
  }

  std::optional<http::response_parser<http::buffer_body>> parser_;
  HttpAnswer head_;
  std::string in_, out_;
  bool heard_ = false;
};

class Client final : public HttpClient {
 public:
  Client(asio::io_context& context, HttpUrl url, HttpClientOptions options, tcp::resolver::results_type endpoints)
      : context_(context), url_(std::move(url)), options_(std::move(options)), endpoints_(std::move(endpoints)) {}

  asio::awaitable<Result<HttpAnswer>> send(HttpCall call, OnBody on_body) override {
    const int64_t era = era_;
    const std::string bytes = request_bytes(call);
    for (bool fresh = false;; fresh = true) {
      std::unique_ptr<Connection> connection = fresh ? nullptr : take_idle();
      if (!connection) {
        connection = std::make_unique<Connection>(context_);
        busy_.insert(connection.get());
        const Status connected = co_await connect(*connection, era);
        busy_.erase(connection.get());
        if (!connected) co_return connected.error();
      }
      AnswerReader reader;
      busy_.insert(connection.get());
      Result<HttpAnswer> answer = co_await exchange(*connection, bytes, reader, on_body, era);
      busy_.erase(connection.get());
      if (answer && reader.keep_alive()) {
        connection->reused = true;
        connection->stream.expires_never();
        idle_.push_back(std::move(connection));
        co_return answer;
      }
      const bool lost = !answer && answer.error().code == ErrorCode::kUnavailable && !reader.heard();
      if (!lost || !connection->reused) co_return answer;
    }
  }

  void cancel() override {
    ++era_;
    for (Connection* connection : busy_) connection->stream.cancel();
  }

  int64_t connections_opened() const override { return opened_; }
  const HttpUrl& url() const override { return url_; }

 private:
  std::string request_bytes(const HttpCall& call) const {
    std::string bytes =
        fmt::format("{} {} HTTP/1.1\r\nhost: {}\r\naccept: */*\r\n", call.method, call.target, url_.authority());
    for (const auto& [name, value] : options_.headers) bytes += fmt::format("{}: {}\r\n", name, value);
    if (!call.body.empty() || call.method == "POST")
      bytes += fmt::format("content-type: application/json\r\ncontent-length: {}\r\n", call.body.size());
    return bytes + "\r\n" + call.body;
  }

  std::unique_ptr<Connection> take_idle() {
    while (!idle_.empty()) {
      std::unique_ptr<Connection> connection = std::move(idle_.back());
      idle_.pop_back();
      if (!stale(*connection)) return connection;
    }
    return nullptr;
  }

  Error failed(const char* what, const error_code& error, int64_t era) const {
    if (era != era_) return cancelled("the call was cancelled");
    if (error == beast::error::timeout)
      return deadline_exceeded("{} {}: nothing happened for too long", what, url_.authority());
    return unavailable("{} {}: {}", what, url_.authority(), error.message());
  }

  asio::awaitable<Status> connect(Connection& connection, int64_t era) {
    connection.stream.expires_after(milliseconds(options_.connect_timeout_ms));
    const auto [error, endpoint] = co_await connection.stream.async_connect(endpoints_, kAwait);
    if (error || era != era_) co_return failed("cannot connect to", error, era);
    ++opened_;
    error_code ignored;
    connection.stream.socket().set_option(tcp::no_delay(true), ignored);
    co_return Status();
  }

  asio::awaitable<Result<HttpAnswer>> exchange(Connection& connection, const std::string& bytes, AnswerReader& reader,
                                               const OnBody& on_body, int64_t era) {
    beast::tcp_stream& stream = connection.stream;
    const milliseconds idle(options_.idle_timeout_ms);
    stream.expires_after(idle);
    // A server that refuses a request may answer and close before it has read all of it: then the write fails, and
    // the answer is there to be read.
    const auto [write_error, written] = co_await asio::async_write(stream, asio::buffer(bytes), kAwait);
    (void)written;
    if (write_error == beast::error::timeout || era != era_) co_return failed("sending to", write_error, era);
    std::array<char, kReadBytes> scratch;
    for (;;) {
      stream.expires_after(idle);
      const auto [error, got] = co_await stream.async_read_some(asio::buffer(scratch), kAwait);
      if (era != era_) co_return failed("", error, era);
      if (error == asio::error::eof) {
        if (reader.take_end()) co_return reader.head();
        co_return unavailable("{} closed the connection before its answer was complete", url_.authority());
      }
      if (error) co_return failed("reading from", write_error ? write_error : error, era);
      const Result<bool> complete = reader.take({scratch.data(), got}, on_body);
      if (!complete) co_return complete.error();
      if (*complete) co_return reader.head();
    }
  }

  asio::io_context& context_;
  const HttpUrl url_;
  const HttpClientOptions options_;
  const tcp::resolver::results_type endpoints_;
  std::vector<std::unique_ptr<Connection>> idle_;  // the last one used first, so that the others may time out
  std::set<Connection*> busy_;
  int64_t era_ = 0;  // counts cancel()
  int64_t opened_ = 0;
};

}  // namespace

Result<std::unique_ptr<HttpClient>> HttpClient::create(asio::io_context& context, const HttpUrl& url,
                                                       HttpClientOptions options) {
  for (const auto& [name, value] : options.headers)
    for (const char c : name + value)
      if ((c >= 0 && c < ' ' && c != '\t') || c == 0x7f)
        return invalid_argument("the header {} has a control character", name);
  tcp::resolver resolver(context);
  error_code error;
  auto endpoints = resolver.resolve(url.host, std::to_string(url.port), error);
  if (error || endpoints.empty()) return unavailable("no address of the host {}: {}", url.host, error.message());
  return std::unique_ptr<HttpClient>(std::make_unique<Client>(context, url, std::move(options), std::move(endpoints)));
}

void run_client(asio::io_context& context, HttpClient& client, asio::awaitable<void> work,
                const std::atomic<bool>& stop) {
  asio::steady_timer poll(context);
  bool done = false;
  std::exception_ptr thrown;
  asio::co_spawn(context, std::move(work), [&](std::exception_ptr e) {
    thrown = e;
    done = true;
    poll.cancel();
  });
  std::function<void()> watch = [&] {
    poll.expires_after(kStopPoll);
    poll.async_wait([&](error_code) {
      if (done) return;
      if (stop.load(std::memory_order_relaxed)) client.cancel();
      watch();
    });
  };
  watch();
  context.restart();
  context.run();
  if (thrown) std::rethrow_exception(thrown);
}

Result<Fetched> fetch(asio::io_context& context, HttpClient& client, HttpCall call, const std::atomic<bool>& stop) {
  Fetched fetched;
  Result<HttpAnswer> answer = internal_error("the call did not run");
  OnBody on_body = [&](const HttpAnswer&, std::string_view bytes) -> Status {
    if (std::ssize(fetched.body) + std::ssize(bytes) > kFetchBytes)
      return resource_exhausted("the answer is larger than {} bytes", kFetchBytes);
    fetched.body += bytes;
    return {};
  };
  const auto work = [&]() -> asio::awaitable<void> {
    answer = co_await client.send(std::move(call), std::move(on_body));
  };
  run_client(context, client, work(), stop);
  if (!answer) return std::move(answer).error();
  fetched.head = *answer;
  return fetched;
}

}  // namespace hearth
