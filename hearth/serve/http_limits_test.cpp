// SPDX-License-Identifier: Apache-2.0
// The HTTP layer's limits, timeouts, drain and descriptors, over real sockets.
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/time.h>

#include <filesystem>

#include "hearth/serve/http_request.h"
#include "hearth/serve/http_testing.h"

namespace hearth {
namespace {

using namespace http_testing;  // NOLINT: the fixture's own namespace

class HttpLimitsTest : public HttpTest {};

int64_t open_descriptors() {
  int64_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
  return count;
}

double cpu_seconds() {
  rusage use{};
  getrusage(RUSAGE_SELF, &use);
  return static_cast<double>(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
         static_cast<double>(use.ru_utime.tv_usec + use.ru_stime.tv_usec) * 1e-6;
}

TEST_F(HttpLimitsTest, Says431OfALongHeader) {
  options_.limits.header_bytes = 1000;
  start();
  const auto request = [](size_t bytes) {
    std::string out = "GET /echo HTTP/1.1\r\nhost: x\r\na: ";
    return out + std::string(bytes - out.size() - 4, 'y') + "\r\n\r\n";
  };
  Client fits(port());
  fits.send(request(1000));
  EXPECT_EQ(fits.answer().status, 200);
  Client long_by_one(port());
  long_by_one.send(request(1001));
  EXPECT_EQ(long_by_one.answer().status, 431);
  EXPECT_TRUE(long_by_one.closed());
  // Many short headers count as one long one.
  Client many(port());
  many.send("GET /echo HTTP/1.1\r\nhost: x\r\n");
  for (int i = 0; i < 200; ++i)
    if (!many.send("a: b\r\n")) break;
  EXPECT_EQ(many.answer().status, 431);
  Client line(port());
  line.send("GET /" + std::string(5000, 'a'));
  EXPECT_EQ(line.answer().status, 431);
}

TEST_F(HttpLimitsTest, Says413OfALongBody) {
  options_.limits.body_bytes = 1000;
  start();
  Client fits(port());
  fits.send("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n" + std::string(1000, 'b'));
  EXPECT_EQ(fits.answer().status, 200);
  // Announced: before a byte of it is there.
  Client announced(port());
  announced.send("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1001\r\n\r\n");
  EXPECT_EQ(announced.answer().status, 413);
  Client chunked(port());
  chunked.send("POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3e8\r\n" + std::string(1000, 'b') +
               "\r\n1\r\nb\r\n0\r\n\r\n");
  EXPECT_EQ(chunked.answer().status, 413);
  Client small(port());
  small.send("POST /small HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\n\r\n");
  EXPECT_EQ(small.answer().status, 413);
  Client trailers(port());
  trailers.send("POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\na: " +
                std::string(40'000, 'b'));
  EXPECT_EQ(trailers.answer().status, 400);
}

std::string post(std::string_view path, size_t announced, size_t sent) {
  return fmt::format("POST {} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", path, announced) +
         std::string(sent, 'b');
}

TEST_F(HttpLimitsTest, Says503WhereAllBodiesTogetherAreTooMuch) {
  options_.limits.bodies_bytes = 1000;
  start();
  int64_t others = 0;
  // What a request held is given back at the latest with its connection.
  const auto alone = [&] { return eventually([&] { return server_->connections() == others; }); };
  const auto status = [&](size_t bytes) {
    Client client(port());
    client.send(post("/echo", bytes, bytes));
    const int code = client.answer().status;
    client.shut();
    EXPECT_TRUE(alone());
    return code;
  };
  EXPECT_EQ(status(1000), 200);
  EXPECT_EQ(status(1001), 503);
  EXPECT_EQ(status(1000), 200);

  // A request that is being answered counts.
  Client holds(port());
  holds.send(post("/wait", 600, 600));
  ASSERT_TRUE(eventually([&] { return waiting() == 1; }));
  others = 1;
  Client refused(port());
  refused.send(post("/echo", 401, 401));
  const Answer a = refused.answer();
  EXPECT_EQ(a.status, 503);
  EXPECT_EQ(a.headers.at("retry-after"), "1");
  EXPECT_EQ(a.headers.at("connection"), "close");
  EXPECT_TRUE(refused.closed());
  refused.shut();
  ASSERT_TRUE(alone());
  EXPECT_EQ(status(400), 200);
  release();
  EXPECT_EQ(holds.answer().body, "released");
  // Kept connections hold nothing: the next request of this one begins after the last has ended.
  holds.send(kGetEcho);
  EXPECT_EQ(holds.answer().status, 200);
  EXPECT_EQ(status(1000), 200);

  // So does one that is being read, also in chunks; and what a client leaves half sent is given back.
  Client half(port());
  others = 2;
  half.send("POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n384\r\n" + std::string(700, 'b'));
  // Before another asks: otherwise this one may be the one that is refused.
  std::this_thread::sleep_for(milliseconds(100));
  EXPECT_EQ(status(301), 503);
  EXPECT_EQ(status(300), 200);
  half.shut();
  others = 1;
  ASSERT_TRUE(alone());
  EXPECT_EQ(status(1000), 200);
}

// I1 of HttpRequestReader
TEST(HttpRequestReader, TakesNoMemoryForABodyThatIsOnlyAnnounced) {
  for (const std::string_view announced :
       {"content-length: 30000000\r\n\r\n12", "transfer-encoding: chunked\r\n\r\n1c9c380\r\n12"}) {
    HttpRequestReader reader(16 << 10);
    std::string bytes = fmt::format("POST / HTTP/1.1\r\nhost: x\r\n{}", announced);
    size_t used = 0;
    ASSERT_EQ(reader.advance(bytes, used), HttpRequestReader::Step::kHead);
    bytes.erase(0, used);
    ASSERT_FALSE(reader.begin_body(32 << 20));
    ASSERT_EQ(reader.advance(bytes, used), HttpRequestReader::Step::kMore);
    EXPECT_EQ(reader.body(), "12");
    EXPECT_LT(reader.body().capacity(), 1000u);
  }
}

TEST_F(HttpLimitsTest, Says408OfASlowHeader) {
  options_.limits.header_timeout_ms = 150;
  start();
  Client client(port());
  client.send("GET /ec");
  const auto begin = Clock::now();
  for (int i = 0; i < 100 && !client.readable(10); ++i) (void)client.send("a");
  EXPECT_EQ(client.answer().status, 408);
  EXPECT_GE(ms_since(begin), 100);
  EXPECT_LT(ms_since(begin), 5000);
}

TEST_F(HttpLimitsTest, Says408OfASlowBody) {
  options_.limits.body_timeout_ms = 150;
  start();
  Client client(port());
  client.send("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n");
  for (int i = 0; i < 100 && !client.readable(10); ++i) (void)client.send("a");
  const Answer a = client.answer();
  EXPECT_EQ(a.status, 408);
  EXPECT_EQ(a.headers.at("connection"), "close");
}

TEST_F(HttpLimitsTest, ClosesIdleConnectionsWithoutAWord) {
  options_.limits.idle_timeout_ms = 100;
  start();
  Client silent(port());
  EXPECT_TRUE(silent.closed());
  Client used(port());
  used.send(kGetEcho);
  EXPECT_EQ(used.answer().status, 200);
  EXPECT_TRUE(used.closed());
  // A handler may take longer than that.
  Client slow(port());
  slow.send("GET /pause HTTP/1.1\r\nhost: x\r\n\r\n");
  EXPECT_EQ(slow.answer().body, "rested");
}

TEST_F(HttpLimitsTest, EndsAStreamThatNobodyReads) {
  options_.limits.write_timeout_ms = 200;
  start();
  Client client(port(), 4096);
  client.send("GET /flood HTTP/1.1\r\nhost: x\r\n\r\n");
  ASSERT_TRUE(eventually([&] {
    const std::lock_guard lock(mutex_);
    return flood_error_.has_value();
  }));
  {
    const std::lock_guard lock(mutex_);
    EXPECT_EQ(flood_error_, ErrorCode::kDeadlineExceeded);
    EXPECT_EQ(flood_again_, ErrorCode::kDeadlineExceeded);
  }
  // What was not taken waited in the coroutine: the socket's buffer is all there was.
  EXPECT_LT(flood_bytes_, 64 << 20);
  EXPECT_TRUE(eventually([&] { return server_->connections() == 0; }));
}

TEST_F(HttpLimitsTest, ASlowReaderIsServedAsLongAsItReads) {
  options_.limits.write_timeout_ms = 250;
  start();
  Client client(port(), 4096);
  client.send("GET /flood HTTP/1.1\r\nhost: x\r\n\r\n");
  const auto begin = Clock::now();
  while (ms_since(begin) < 1500) {
    client.more();
    std::this_thread::sleep_for(milliseconds(20));
  }
  {
    const std::lock_guard lock(mutex_);
    EXPECT_EQ(flood_error_, std::nullopt);
  }
  client.shut();
  EXPECT_TRUE(eventually([&] { return server_->connections() == 0; }));
  const std::lock_guard lock(mutex_);
  EXPECT_EQ(flood_error_, ErrorCode::kCancelled);
}

TEST_F(HttpLimitsTest, TellsTheClientThatThereAreTooManyConnections) {
  options_.limits.connections = 2;
  start();
  Client first(port()), second(port());
  for (Client* client : {&first, &second}) {
    client->send(kGetEcho);
    EXPECT_EQ(client->answer().status, 200);
  }
  {
    Client third(port());
    third.send("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc");
    const Answer a = third.answer();
    EXPECT_EQ(a.status, 503);
    EXPECT_EQ(a.headers.at("retry-after"), "1");
    EXPECT_TRUE(third.closed());
  }
  EXPECT_EQ(server_->connections(), 2);
  first.shut();
  ASSERT_TRUE(eventually([&] { return server_->connections() == 1; }));
  Client fourth(port());
  fourth.send(kGetEcho);
  EXPECT_EQ(fourth.answer().status, 200);
}

// I1 of the listener
TEST_F(HttpLimitsTest, WaitsWhereThereAreNoDescriptors) {
  start();
  Client before(port());
  before.send(kGetEcho);
  EXPECT_EQ(before.answer().status, 200);
  Client client(0);
  // The undefined-behaviour sanitizer opens a pipe when it meets a class for the first time: the logger's, those
  // for arguments too, are to be known to it before there are no descriptors.
  spdlog::warn("http_limits_test: {}", "a warning that is expected");
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
  const rlimit none{3, old.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  client.connect_to(port());
  client.send(kGetEcho);
  const double cpu = cpu_seconds();
  const bool answered = client.readable(500);
  const double used = cpu_seconds() - cpu;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &old), 0);
  EXPECT_FALSE(answered);
  EXPECT_LT(used, 0.25);
  EXPECT_EQ(client.answer().status, 200);
}

TEST_F(HttpLimitsTest, DrainEndsTheIdleAndLetsTheOthersFinish) {
  start();
  Client idle(port()), busy(port()), streaming(port());
  idle.send(kGetEcho);
  EXPECT_EQ(idle.answer().status, 200);
  busy.send("GET /wait HTTP/1.1\r\nhost: x\r\n\r\n");
  streaming.send("GET /wait-stream HTTP/1.1\r\nhost: x\r\n\r\n");
  ASSERT_TRUE(eventually([&] { return waiting() == 2; }));
  server_->drain();
  EXPECT_TRUE(idle.closed());
  EXPECT_FALSE(server_->wait_drained(50));
  EXPECT_EQ(server_->connections(), 2);
  EXPECT_EQ(gone_, 0);
  release();
  const Answer a = busy.answer();
  EXPECT_EQ(a.body, "released");
  EXPECT_EQ(a.headers.at("connection"), "close");
  const Answer b = streaming.answer();
  EXPECT_EQ(b.body, "begun;released");
  EXPECT_TRUE(b.whole);
  busy.shut();
  streaming.shut();
  EXPECT_TRUE(server_->wait_drained(10'000));
}

TEST_F(HttpLimitsTest, DestroyingTheServerTellsTheHandlers) {
  start();
  Client waits(port()), idles(port()), sends(port());
  waits.send("GET /wait HTTP/1.1\r\nhost: x\r\n\r\n");
  sends.send("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n1");
  ASSERT_TRUE(eventually([&] { return waiting() == 1 && server_->connections() == 3; }));
  const auto begin = Clock::now();
  server_.reset();
  EXPECT_LT(ms_since(begin), 4000);
  EXPECT_EQ(gone_, 1);
  EXPECT_EQ(finished_, 1);
}

TEST_F(HttpLimitsTest, AServerThatNeverStartedCanBeDestroyed) {
  auto created = HttpServer::create(options_);
  ASSERT_TRUE(created);
  EXPECT_NE((*created)->port(), 0);
}

TEST_F(HttpLimitsTest, SaysWhyItCannotListen) {
  start();
  HttpServerOptions same = options_;
  same.port = port();
  const auto taken = HttpServer::create(same);
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().code, ErrorCode::kUnavailable);
  same.address = "not an address";
  const auto nowhere = HttpServer::create(same);
  ASSERT_FALSE(nowhere);
  EXPECT_EQ(nowhere.error().code, ErrorCode::kInvalidArgument);
}

TEST_F(HttpLimitsTest, LeaksNoDescriptors) {
  start();
  const auto round = [&] {
    for (int i = 0; i < 50; ++i) {
      Client whole(port()), aborted(port()), half(port()), left(port());
      whole.send(kGetEcho);
      aborted.send("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n1");
      half.send("GET /wait-stream HTTP/1.1\r\nhost: x\r\n\r\n");
      left.send("GET /flood HTTP/1.1\r\nhost: x\r\n\r\n");
      EXPECT_EQ(whole.answer().status, 200);
      left.more();
      if (i % 2 == 0) aborted.reset();
      half.half_close();
    }
    EXPECT_TRUE(eventually([&] { return server_->connections() == 0; }));
  };
  round();
  const int64_t before = open_descriptors();
  round();
  EXPECT_EQ(open_descriptors(), before);
}

TEST_F(HttpLimitsTest, ServesManyClientsAtOnce) {
  options_.threads = 4;
  start();
  std::vector<std::thread> threads;
  std::atomic<int> good = 0;
  for (int t = 0; t < 16; ++t)
    threads.emplace_back([&, t] {
      Client client(port());
      for (int i = 0; i < 100; ++i) {
        client.send(fmt::format("POST /echo?{} HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n{:04}", t, i));
        if (client.answer().body == fmt::format("POST /echo?{} {:04}", t, i)) ++good;
        client.send("GET /stream HTTP/1.1\r\nhost: x\r\n\r\n");
        if (client.answer().whole) ++good;
      }
    });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(good, 16 * 200);
}

}  // namespace
}  // namespace hearth
