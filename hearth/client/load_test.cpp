// SPDX-License-Identifier: Apache-2.0
// The load test and its HTTP client against a small server of plain sockets that answers as each case says, with
// delays that the test knows.
#include "hearth/client/load.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "hearth/client/load_report.h"
#include "hearth/client/openai.h"

namespace hearth {
namespace {

using testing::AllOf;
using testing::Ge;
using testing::HasSubstr;
using testing::Le;
using Outcome = RequestRecord::Outcome;
using namespace std::chrono_literals;

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
    ::shutdown(fd_, SHUT_RDWR);
    acceptor_.join();
    ::close(fd_);
    const std::lock_guard lock(mutex_);
    for (const int fd : open_) ::shutdown(fd, SHUT_RDWR);
    for (std::thread& thread : threads_) thread.join();
    for (const int fd : open_) ::close(fd);
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

void serve_tokens(Peer& peer, int tokens, std::chrono::milliseconds before, std::chrono::milliseconds between) {
  peer.begin_stream();
  std::this_thread::sleep_for(before);
  for (int i = 0; i < tokens; ++i) {
    if (i > 0) std::this_thread::sleep_for(between);
    peer.token("a");
  }
  peer.end_stream(7, tokens);
}

// The upper bounds leave room for a loaded machine; the lower ones hold on any.
TEST(LoadTest, MeasuresTheDelaysThatTheServerMade) {
  TestServer server([](Peer& peer, int) {
    while (!peer.read_request().empty()) serve_tokens(peer, 4, 80ms, 40ms);
  });
  Load load(server.url());
  const RequestRecord r = load.run_one();
  ASSERT_EQ(r.outcome, Outcome::kDone) << r.error;
  EXPECT_EQ(r.events, 4);
  EXPECT_EQ(r.output_tokens, 4);
  EXPECT_EQ(r.prompt_tokens, 7);
  EXPECT_TRUE(r.server_counted);
  EXPECT_THAT(r.first_s - r.sent_s, AllOf(Ge(0.080), Le(0.200)));
  ASSERT_EQ(r.gaps_s.size(), 3u);
  // A token that comes late makes the next gap shorter: their sum is what the server made.
  EXPECT_THAT(r.last_s - r.first_s, AllOf(Ge(0.110), Le(0.240)));
  EXPECT_NEAR(r.gaps_s[0] + r.gaps_s[1] + r.gaps_s[2], r.last_s - r.first_s, 1e-5);
  EXPECT_THAT(r.gaps_s[1], AllOf(Ge(0.005f), Le(0.120f)));
  EXPECT_GE(r.end_s, r.last_s);
}

// I1: with one request at a time, the second one waits for the first; its latency says so.
TEST(LoadTest, LatencyCountsFromWhenARequestWasDue) {
  TestServer server([](Peer& peer, int) {
    while (!peer.read_request().empty()) serve_tokens(peer, 2, 100ms, 0ms);
  });
  Load load(server.url());
  load.settings.max_concurrency = 1;
  const LoadResult result = load.run({{}, {}, {}});
  EXPECT_EQ(result.peak_in_flight, 1);
  EXPECT_EQ(result.connections, 1);  // kept and used again
  for (size_t i = 0; i < 3; ++i) {
    const RequestRecord& r = result.records[i];
    ASSERT_EQ(r.outcome, Outcome::kDone) << r.error;
    EXPECT_EQ(r.due_s, 0);
    EXPECT_GE(r.first_s, 0.1 * static_cast<double>(i + 1));
    EXPECT_LE(r.first_s - r.sent_s, 0.25);
  }
  const LoadSummary s = summarize(result, {50}, {});
  EXPECT_GE(s.metric("ttft").max, 300);
  EXPECT_LE(s.metric("ttft_sent").max, 250);
  EXPECT_GE(s.metric("delay").max, 200);
}

// The server answers the first request after the third has come: only an open loop gets there.
TEST(LoadTest, RequestsLeaveWhenDueWhateverTheServerDoes) {
  std::mutex mutex;
  int seen = 0;
  TestServer server([&](Peer& peer, int) {
    while (!peer.read_request().empty()) {
      {
        const std::lock_guard lock(mutex);
        ++seen;
      }
      for (bool wait = true; wait; std::this_thread::sleep_for(1ms)) {
        const std::lock_guard lock(mutex);
        wait = seen < 3;
      }
      serve_tokens(peer, 1, 0ms, 0ms);
    }
  });
  Load load(server.url());
  const LoadResult result = load.run({{.arrival_s = 0}, {.arrival_s = 0.05}, {.arrival_s = 0.15}});
  EXPECT_EQ(result.peak_in_flight, 3);
  const double due[] = {0, 0.05, 0.15};
  for (size_t i = 0; i < 3; ++i) {
    const RequestRecord& r = result.records[i];
    ASSERT_EQ(r.outcome, Outcome::kDone) << r.error;
    EXPECT_GE(r.sent_s, due[i]);
    EXPECT_LE(r.sent_s, due[i] + 0.1);
  }
  EXPECT_GE(result.records[0].first_s, 0.15);
}

TEST(LoadTest, EveryFailureHasItsKind) {
  TestServer server([](Peer& peer, int) {
    for (std::string request; !(request = peer.read_request()).empty();) {
      const int index = nlohmann::json::parse(request.substr(request.find("\r\n\r\n") + 4)).at("index");
      switch (index) {
        case 0: peer.reply(429, "application/json", R"({"error":{"message":"slow down"}})"); break;
        case 1: peer.reply(200, "application/json", "{}"); break;
        case 2:
          peer.begin_stream();
          peer.token("a");
          peer.event(R"({"error":{"message":"boom"}})");
          peer.event("[DONE]");
          peer.write("0\r\n\r\n");
          break;
        case 3:
          peer.begin_stream();
          peer.token("a");
          peer.write("0\r\n\r\n");
          break;
        case 4:
          peer.begin_stream();
          peer.token("a");
          return;
        case 5: peer.write("SMTP ready\r\n\r\n"); return;
        case 6:
          peer.begin_stream();
          peer.event("{cut");
          peer.write("0\r\n\r\n");
          break;
        default: serve_tokens(peer, 1, 0ms, 0ms);
      }
    }
  });
  Load load(server.url());
  load.settings.max_concurrency = 1;
  const LoadResult result = load.run(std::vector<PlannedRequest>(8));
  const auto expect = [&](size_t index, const char* kind, const char* message) {
    SCOPED_TRACE(index);
    EXPECT_EQ(result.records[index].outcome, Outcome::kFailed);
    EXPECT_EQ(result.records[index].error_kind, kind);
    EXPECT_THAT(result.records[index].error, HasSubstr(message));
  };
  expect(0, "HTTP 429", "slow down");
  expect(1, "no stream", "the answer is application/json");
  expect(2, "error in the stream", "boom");
  expect(3, "cut stream", "without [DONE]");
  expect(4, "Unavailable", "closed the connection before its answer was complete");
  expect(5, "Corrupt", "not HTTP");
  expect(6, "Corrupt", "not a JSON object");
  EXPECT_EQ(result.records[7].outcome, Outcome::kDone) << result.records[7].error;
  const LoadSummary s = summarize(result, {50}, {});
  EXPECT_EQ(s.done, 1);
  EXPECT_EQ(s.failed, 7);
  EXPECT_EQ(s.errors.at("Corrupt").count, 2);
}

TEST(LoadTest, ADeadServerIsAnErrorAndASilentOneADeadline) {
  HttpUrl url;
  {
    TestServer gone([](Peer&, int) {});
    url = gone.url();
  }
  Load dead(url);
  EXPECT_THAT(dead.get("/").error().message, HasSubstr("cannot connect to 127.0.0.1"));
  EXPECT_EQ(dead.run_one().error_kind, "Unavailable");

  TestServer silent([](Peer& peer, int) {
    while (!peer.read_request().empty()) {}
  });
  HttpClientOptions options;
  options.idle_timeout_ms = 100;
  Load load(silent.url(), options);
  const RequestRecord r = load.run_one();
  EXPECT_EQ(r.error_kind, "DeadlineExceeded");
  EXPECT_THAT(r.end_s, AllOf(Ge(0.1), Le(2.0)));
}

TEST(LoadTest, StopEndsEarlyAndKeepsWhatIsThere) {
  TestServer server([](Peer& peer, int number) {
    while (!peer.read_request().empty()) {
      if (number == 0) {
        serve_tokens(peer, 1, 0ms, 0ms);
        continue;
      }
      peer.begin_stream();
      peer.token("a");
      (void)peer.read_request();  // until the client closes
    }
  });
  Load load(server.url());
  load.settings.on_progress = [&](int64_t) { load.stop = true; };
  const LoadResult result = load.run({{}, {}, {.arrival_s = 1000}});
  EXPECT_TRUE(result.interrupted);
  EXPECT_LT(result.seconds, 10);
  std::map<Outcome, int> outcomes;
  for (const RequestRecord& r : result.records) ++outcomes[r.outcome];
  EXPECT_EQ(outcomes[Outcome::kDone], 1);
  EXPECT_EQ(outcomes[Outcome::kCancelled], 1);
  EXPECT_EQ(outcomes[Outcome::kNotSent], 1);
}

// I2 of the client. The first connection is closed after its answer: noticed before the next call where the close
// has arrived, or repeated where it crosses the request.
TEST(Client, AClosedConnectionIsReplaced) {
  for (const auto pause : {0ms, 50ms}) {
    TestServer server([](Peer& peer, int number) {
      do {
        if (peer.read_request().empty()) return;
        peer.reply(200, "text/plain", fmt::format("from {}", number));
      } while (number > 0);
    });
    Load load(server.url());
    EXPECT_EQ(load.get("/")->body, "from 0");
    std::this_thread::sleep_for(pause);
    const auto second = load.get("/");
    ASSERT_TRUE(second) << second.error().message;
    EXPECT_EQ(second->body, "from 1");
    EXPECT_EQ(load.get("/")->body, "from 1");
    EXPECT_EQ(load.client->connections_opened(), 2);
  }
}

TEST(Client, ARequestOnAFreshConnectionIsNotRepeated) {
  TestServer server([](Peer& peer, int) { (void)peer.read_request(); });
  Load load(server.url());
  EXPECT_EQ(load.get("/").error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(server.connections(), 1);
}

TEST(Client, FramingsOfAnswers) {
  TestServer server([](Peer& peer, int) {
    for (std::string request; !(request = peer.read_request()).empty();) {
      EXPECT_THAT(request, HasSubstr("x-test: yes\r\n"));
      if (request.starts_with("GET /continue")) {
        peer.write("HTTP/1.1 100 Continue\r\n\r\n");
        peer.reply(200, "text/plain", "after");
      } else if (request.starts_with("GET /bytes")) {
        for (const char c :
             std::string("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n"
                         "0\r\ntrailer: 1\r\n\r\n"))
          peer.write(std::string(1, c));
      } else if (request.starts_with("GET /none")) {
        peer.write("HTTP/1.1 204 No Content\r\n\r\n");
      } else {
        peer.write("HTTP/1.0 200 OK\r\n\r\nuntil the end");
        return;
      }
    }
  });
  HttpClientOptions options;
  options.headers = {{"x-test", "yes"}};
  Load load(server.url(), options);
  const auto body = [&](const char* target) {
    const auto fetched = load.get(target);
    return fetched ? fetched->body : fetched.error().message;
  };
  EXPECT_EQ(body("/continue"), "after");
  EXPECT_EQ(body("/bytes"), "abcde");
  EXPECT_EQ(body("/none"), "");
  EXPECT_EQ(load.get("/none")->head.status, 204);
  EXPECT_EQ(load.client->connections_opened(), 1);
  EXPECT_EQ(body("/close"), "until the end");
  EXPECT_EQ(body("/bytes"), "abcde");
  EXPECT_EQ(load.client->connections_opened(), 2);
}

TEST(Client, AHeaderOfAnySizeIsRefused) {
  TestServer server([](Peer& peer, int) {
    (void)peer.read_request();
    peer.write("HTTP/1.1 200 OK\r\nx: " + std::string(1 << 20, 'a') + "\r\n\r\n");
  });
  Load load(server.url());
  EXPECT_THAT(load.get("/").error().message, HasSubstr("not HTTP"));
  HttpClientOptions options;
  options.headers = {{"authorization", "Bearer a\r\nx: y"}};
  EXPECT_THAT(HttpClient::create(load.context, server.url(), options).error().message, HasSubstr("control character"));
}

TEST(Client, ModelsAndTokens) {
  TestServer server([](Peer& peer, int) {
    for (std::string request; !(request = peer.read_request()).empty();) {
      if (request.starts_with("GET /v1/models "))
        peer.reply(200, "application/json", R"({"data":[{"id":"m","max_model_len":64},{"id":"n"}]})");
      else if (request.starts_with("POST /tokenize "))
        peer.reply(200, "application/json", R"({"tokens":[3,4]})");
    }
  });
  Load load(server.url());
  const auto models = list_models(load.context, *load.client, load.stop);
  ASSERT_TRUE(models) << models.error().message;
  ASSERT_EQ(models->size(), 2u);
  EXPECT_EQ((*models)[0].max_model_len, 64);
  EXPECT_EQ((*models)[1].id, "n");
  EXPECT_EQ(*tokenize(load.context, *load.client, "m", "x", load.stop), (std::vector<int32_t>{3, 4}));
}

// statistics.quantiles(values, n=1000, method='inclusive') of Python 3.11.
TEST(Report, PercentilesAreThoseOfStatisticsPackages) {
  const std::vector<double> sorted = {0.5, 2.0, 3.25, 5.5, 7.0, 9.75, 12.5, 41.5, 66.0, 100.0};
  EXPECT_DOUBLE_EQ(percentile(sorted, 1), 0.635);
  EXPECT_DOUBLE_EQ(percentile(sorted, 10), 1.85);
  EXPECT_DOUBLE_EQ(percentile(sorted, 25), 3.8125);
  EXPECT_DOUBLE_EQ(percentile(sorted, 50), 8.375);
  EXPECT_DOUBLE_EQ(percentile(sorted, 90), 69.4);
  EXPECT_DOUBLE_EQ(percentile(sorted, 99), 96.94);
  EXPECT_NEAR(percentile(sorted, 99.9), 99.694, 1e-9);
  EXPECT_EQ(percentile(std::vector<double>{3}, 99), 3);
  EXPECT_EQ(percentile({}, 50), 0);
}

RequestRecord record(double due, double sent, std::vector<double> tokens, double end) {
  RequestRecord r;
  r.outcome = Outcome::kDone;
  r.due_s = due;
  r.sent_s = sent;
  r.events = r.output_tokens = std::ssize(tokens);
  r.first_s = tokens.front();
  r.last_s = tokens.back();
  for (size_t i = 1; i < tokens.size(); ++i) r.gaps_s.push_back(static_cast<float>(tokens[i] - tokens[i - 1]));
  r.end_s = end;
  r.prompt_tokens = 10;
  r.server_counted = true;
  return r;
}

TEST(Report, SumsUp) {
  LoadResult result;
  result.records = {record(0, 0, {0.25, 0.5, 1.0}, 1.0), record(1, 1.5, {2.0}, 2.0), RequestRecord()};
  result.seconds = 2;
  RequestRecord failed;
  failed.outcome = Outcome::kFailed;
  failed.error_kind = "HTTP 500";
  failed.error = "HTTP 500: why";
  result.records.push_back(failed);
  const Slo slo = parse_slo({"ttft:300", "tpot:400"}).value();
  const LoadSummary s = summarize(result, {50, 99}, slo);
  EXPECT_EQ(s.done, 2);
  EXPECT_EQ(s.failed, 1);
  EXPECT_EQ(s.not_sent, 1);
  EXPECT_DOUBLE_EQ(s.requests_per_s, 1);
  EXPECT_DOUBLE_EQ(s.output_tokens_per_s, 2);
  EXPECT_DOUBLE_EQ(s.total_tokens_per_s, 12);
  EXPECT_DOUBLE_EQ(s.metric("ttft").mean, 625);
  EXPECT_DOUBLE_EQ(s.metric("ttft_sent").mean, 375);
  EXPECT_DOUBLE_EQ(s.metric("tpot").mean, 375);
  EXPECT_EQ(s.metric("tpot").count, 1);
  EXPECT_DOUBLE_EQ(s.metric("itl").max, 500);
  EXPECT_DOUBLE_EQ(s.metric("e2el").median, 1000);
  EXPECT_EQ(s.good, 1);
  EXPECT_DOUBLE_EQ(*s.goodput_per_s, 0.5);
  const nlohmann::json json = report_json(s);
  EXPECT_DOUBLE_EQ(json.at("mean_ttft_ms"), 625);
  EXPECT_DOUBLE_EQ(json.at("p50_e2el_ms"), 1000);
  EXPECT_EQ(json.at("errors").at("HTTP 500").at("count"), 1);
  const std::string table = report_table(s, {"ttft", "itl"});
  EXPECT_THAT(table, HasSubstr("2 of 4"));
  EXPECT_THAT(table, HasSubstr("625.00"));
  EXPECT_THAT(table, HasSubstr("1 x HTTP 500: HTTP 500: why"));
}

TEST(Report, FlagsSayWhatIsWrong) {
  EXPECT_THAT(parse_slo({"ttft"}).error().message, HasSubstr("'ttft' is no goal"));
  EXPECT_THAT(parse_slo({"ttft:-1"}).error().message, HasSubstr("wanted ttft:MS"));
  EXPECT_THAT(parse_slo({"itl:5"}).error().message, HasSubstr("'itl:5'"));
  EXPECT_EQ(*parse_percentiles("99.9,50"), (std::vector<double>{50, 99.9}));
  for (const char* bad : {"", "100", "0", "50,", "x"}) EXPECT_FALSE(parse_percentiles(bad)) << bad;
  EXPECT_EQ(*parse_metrics("ttft,itl"), (std::vector<std::string>{"ttft", "itl"}));
  EXPECT_THAT(parse_metrics("ttft,latency").error().message, HasSubstr("'latency' is no metric"));
}

}  // namespace
}  // namespace hearth
