// SPDX-License-Identifier: Apache-2.0
// The HTTP layer over real sockets: what is read, what is answered, and what follows from who leaves when.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "hearth/base/random.h"
#include "hearth/serve/http_testing.h"

namespace hearth {
namespace {

using namespace http_testing;  // NOLINT: the fixture's own namespace
using ::testing::HasSubstr;
using ::testing::Not;

TEST_F(HttpTest, AnswersOneRequestAfterTheOther) {
  start();
  Client client(port());
  for (int i = 0; i < 3; ++i) {
    client.send(kGetEcho);
    const Answer a = client.answer();
    EXPECT_EQ(a.status, 200);
    EXPECT_EQ(a.body, "GET /echo?a=1 ");
    EXPECT_EQ(a.headers.at("content-type"), "text/plain");
    EXPECT_FALSE(a.headers.contains("connection"));
    EXPECT_TRUE(a.headers.contains("date"));
  }
  client.send("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello");
  const Answer last = client.answer();
  EXPECT_EQ(last.body, "POST /echo? hello");
  EXPECT_EQ(last.headers.at("connection"), "close");
  EXPECT_TRUE(client.closed());
}

TEST_F(HttpTest, AnswersPipelinedRequestsInOrder) {
  start();
  Client client(port());
  std::string all;
  for (int i = 0; i < 50; ++i)
    all += fmt::format("POST /echo?{} HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n{:03}", i, i);
  client.send(all);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(client.answer().body, fmt::format("POST /echo?{} {:03}", i, i));
}

TEST_F(HttpTest, APipelinedRequestIsNoDisconnect) {
  start();
  Client client(port());
  client.send("GET /wait HTTP/1.1\r\nhost: x\r\n\r\n");
  ASSERT_TRUE(eventually([&] { return waiting() == 1; }));
  client.send(kGetEcho);
  std::this_thread::sleep_for(milliseconds(50));
  EXPECT_EQ(gone_, 0);
  release();
  EXPECT_EQ(client.answer().body, "released");
  EXPECT_EQ(client.answer().body, "GET /echo?a=1 ");
}

TEST_F(HttpTest, StreamsInChunks) {
  start();
  Client client(port());
  client.send("GET /stream HTTP/1.1\r\nhost: x\r\n\r\n");
  const Answer a = client.answer();
  EXPECT_EQ(a.headers.at("transfer-encoding"), "chunked");
  EXPECT_EQ(a.body, "first;0;1;2;3;4;");
  EXPECT_TRUE(a.whole);
  client.send(kGetEcho);
  EXPECT_EQ(client.answer().status, 200);
}

TEST_F(HttpTest, KnowsHttp10) {
  start();
  Client once(port());
  once.send("GET /echo HTTP/1.0\r\n\r\n");
  const Answer closed = once.answer();
  EXPECT_EQ(closed.status, 200);
  EXPECT_EQ(closed.headers.at("connection"), "close");
  EXPECT_TRUE(once.closed());

  Client kept(port());
  for (int i = 0; i < 2; ++i) {
    kept.send("GET /echo HTTP/1.0\r\nconnection: keep-alive\r\n\r\n");
    EXPECT_EQ(kept.answer().headers.at("connection"), "keep-alive");
  }
  kept.send("GET /stream HTTP/1.0\r\nconnection: keep-alive\r\n\r\n");
  const Answer stream = kept.answer();
  EXPECT_EQ(stream.body, "first;0;1;2;3;4;");
  EXPECT_FALSE(stream.headers.contains("transfer-encoding"));
  EXPECT_TRUE(stream.whole);
}

TEST_F(HttpTest, SendsNoBodyToHeadAndWith204) {
  start();
  Client client(port());
  client.send("HEAD /echo HTTP/1.1\r\nhost: x\r\n\r\n");
  const Answer head = client.answer(true);
  EXPECT_EQ(head.headers.at("content-length"), std::to_string(std::string("HEAD /echo? ").size()));
  client.send("HEAD /stream HTTP/1.1\r\nhost: x\r\n\r\n");
  EXPECT_EQ(client.answer(true).status, 200);
  client.send("HEAD /refused HTTP/1.1\r\nhost: x\r\n\r\n");
  EXPECT_EQ(client.answer(true).status, 401);
  client.send("GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n");
  const Answer nothing = client.answer(true);
  EXPECT_EQ(nothing.status, 204);
  EXPECT_FALSE(nothing.headers.contains("content-length"));
  client.send(kGetEcho);
  EXPECT_EQ(client.answer().body, "GET /echo?a=1 ");
}

TEST_F(HttpTest, ReadsChunkedBodies) {
  start();
  Client client(port());
  client.send(
      "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n1\r\n!\r\n0\r\n"
      "x-request-id: trailer\r\n\r\n");
  const Answer a = client.answer();
  EXPECT_EQ(a.body, "POST /echo? hello!");
  EXPECT_NE(a.headers.at("x-request-id"), "trailer");
}

// Reading a large body pauses; what arrives in a pause must not be forgotten.
TEST_F(HttpTest, ReadsLargeBodiesToTheirEnd) {
  options_.limits.body_timeout_ms = 5000;
  start();
  Client client(port());
  for (int i = 0; i < 20; ++i) {
    // The end comes just behind a pause's beginning.
    const std::string body((256 << 10) + i * 1000, 'b');
    client.send(fmt::format("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.size() + 1) + body);
    std::this_thread::sleep_for(milliseconds(i % 4));
    client.send("e");
    const Answer a = client.answer();
    ASSERT_EQ(a.status, 200) << i;
    EXPECT_EQ(a.body, "POST /echo? " + body + "e");
  }
}

TEST_F(HttpTest, SaysContinueOnlyAfterTheGuard) {
  start();
  Client accepted(port());
  accepted.send("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n");
  EXPECT_EQ(accepted.answer().status, 100);
  accepted.send("ok");
  EXPECT_EQ(accepted.answer().body, "POST /echo? ok");

  Client refused(port());
  refused.send("POST /refused HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n");
  EXPECT_EQ(refused.answer().status, 401);
  EXPECT_TRUE(refused.closed());

  Client large(port());
  large.send("POST /small HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\nexpect: 100-continue\r\n\r\n");
  EXPECT_EQ(large.answer().status, 413);

  Client unknown(port());
  unknown.send("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nexpect: tea\r\n\r\n");
  EXPECT_EQ(unknown.answer().status, 417);
}

// The client has to see the answer, also when it goes on to send what nobody reads.
TEST_F(HttpTest, ARefusalIsSeenWhileTheBodyIsStillSent) {
  start();
  for (int i = 0; i < 10; ++i) {
    Client client(port());
    client.send("POST /refused HTTP/1.1\r\nhost: x\r\ncontent-length: 8000000\r\n\r\n");
    client.send(std::string(4'000'000, 'x'));
    const Answer a = client.answer();
    EXPECT_EQ(a.status, 401);
    EXPECT_EQ(a.body, "no key");
    EXPECT_EQ(a.headers.at("connection"), "close");
  }
}

TEST_F(HttpTest, ARefusalWithoutABodyKeepsTheConnection) {
  start();
  Client client(port());
  client.send("GET /refused HTTP/1.1\r\nhost: x\r\n\r\n");
  EXPECT_EQ(client.answer().status, 401);
  client.send(kGetEcho);
  EXPECT_EQ(client.answer().status, 200);
}

TEST_F(HttpTest, EchoesGoodRequestIdsAndMakesOthers) {
  start();
  Client client(port());
  const auto id_for = [&](std::string_view id) {
    client.send(fmt::format("GET /echo HTTP/1.1\r\nhost: x\r\nX-Request-ID: {}\r\n\r\n", id));
    return client.answer().headers.at("x-request-id");
  };
  EXPECT_EQ(id_for("mine-1"), "mine-1");
  EXPECT_EQ(id_for(std::string(128, 'a')), std::string(128, 'a'));
  const std::string made = id_for(std::string(129, 'a'));
  EXPECT_THAT(made, testing::MatchesRegex("req-[0-9a-f]{32}"));
  EXPECT_THAT(id_for("a b"), testing::MatchesRegex("req-[0-9a-f]{32}"));
  EXPECT_THAT(id_for("\xc3\xa9"), testing::MatchesRegex("req-[0-9a-f]{32}"));
  EXPECT_NE(id_for(""), made);
  // Answers of the layer have one too.
  client.send("GET /throw HTTP/1.1\r\nhost: x\r\nx-request-id: t\r\n\r\n");
  EXPECT_EQ(client.answer().headers.at("x-request-id"), "t");
  client.send("nonsense\r\n\r\n");
  EXPECT_THAT(client.answer().headers.at("x-request-id"), testing::MatchesRegex("req-[0-9a-f]{32}"));
}

TEST_F(HttpTest, AValueCannotAddAHeader) {
  start();
  Client client(port());
  client.send("GET /inject HTTP/1.1\r\nhost: x\r\n\r\n");
  const Answer a = client.answer();
  EXPECT_EQ(a.headers.at("x-value"), "a  x-evil: 1");
  EXPECT_FALSE(a.headers.contains("x-evil"));
}

TEST_F(HttpTest, ReadsTargets) {
  start();
  Client client(port());
  client.send("GET http://other/%65cho?q=%20 HTTP/1.1\r\nhost: x\r\n\r\n");
  EXPECT_EQ(client.answer().body, "GET /echo?q=%20 ");
  client.send("OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n");
  EXPECT_EQ(client.answer().status, 404);
  // An empty line before a request is to be ignored.
  client.send("\r\nGET /echo HTTP/1.1\r\nhost: x\r\n\r\n");
  EXPECT_EQ(client.answer().status, 200);
}

TEST_F(HttpTest, RefusesWhatIsMalformedOrHasTwoReadings) {
  start();
  const std::vector<std::pair<int, std::string>> cases = {
      {400, "GET\r\n\r\n"},
      {400, "GET /echo HTTP/2.0\r\nhost: x\r\n\r\n"},
      {400, "GET /echo HTTP/1.1\r\n\r\n"},
      {400, "GET /echo HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n"},
      {400, "GET echo HTTP/1.1\r\nhost: x\r\n\r\n"},
      {400, "GET /%zz HTTP/1.1\r\nhost: x\r\n\r\n"},
      {400, "GET /%2 HTTP/1.1\r\nhost: x\r\n\r\n"},
      {400, "GET /%00 HTTP/1.1\r\nhost: x\r\n\r\n"},
      {400, "GET /%0d%0ax HTTP/1.1\r\nhost: x\r\n\r\n"},
      {400, "GET /echo HTTP/1.1\r\nhost : x\r\n\r\n"},
      {400, "GET /echo HTTP/1.1\r\nhost: x\r\nna me: x\r\n\r\n"},
      {400, "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n"},
      {400, "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999999\r\n\r\n"},
      {400, "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n12"},
      {400, "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"},
      {400, "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n0\r\n\r\n"},
      {400, "POST /echo HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"},
      {501, "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"},
      {501, "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n"},
      {400, "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n\r\n"},
      {400, "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n"},
      {400, "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n11111111111111111\r\n"},
      {400, std::string("GET /echo HTTP/1.1\r\nhost: x\r\na: \0b\r\n\r\n", 38)},
  };
  for (const auto& [status, bytes] : cases) {
    Client client(port());
    client.send(bytes);
    const Answer a = client.answer();
    EXPECT_EQ(a.status, status) << bytes;
    EXPECT_THAT(a.body, HasSubstr(fmt::format("\"status\":{}", status))) << bytes;
    EXPECT_TRUE(client.closed()) << bytes;
  }
}

TEST_F(HttpTest, AHandlerThatFailsCostsItsRequestAlone) {
  start();
  Client client(port());
  const auto status = [&](std::string_view path) {
    client.send(fmt::format("GET {} HTTP/1.1\r\nhost: x\r\n\r\n", path));
    return client.answer();
  };
  const Answer thrown = status("/throw");
  EXPECT_EQ(thrown.status, 500);
  EXPECT_THAT(thrown.body, Not(HasSubstr("thrown by a handler")));
  const Answer memory = status("/memory");
  EXPECT_EQ(memory.status, 503);
  EXPECT_EQ(memory.headers.at("retry-after"), "1");
  EXPECT_EQ(status("/silent").status, 500);
  // One answer, and the connection is not kept.
  Client late(port());
  late.send("GET /answer-then-memory HTTP/1.1\r\nhost: x\r\n\r\n");
  EXPECT_EQ(late.answer().status, 200);
  EXPECT_TRUE(late.closed());
  const Answer broken = status("/broken-stream");
  EXPECT_EQ(broken.status, 200);
  EXPECT_EQ(broken.body, "first;");
  EXPECT_FALSE(broken.whole);
  client.shut();
  Client next(port());
  next.send(kGetEcho);
  EXPECT_EQ(next.answer().status, 200);
}

TEST_F(HttpTest, AGuardThatThrowsCostsItsRequestAlone) {
  options_.guard = [](const HttpHead&) -> HttpVerdict { throw std::bad_alloc(); };
  start();
  Client client(port());
  client.send(kGetEcho);
  EXPECT_EQ(client.answer().status, 503);
}

TEST_F(HttpTest, TellsTheHandlerThatTheClientHasGone) {
  start();
  enum class Way { kClose, kReset, kHalfClose };
  int expected = 0;
  for (const std::string path : {"/wait", "/wait-stream"}) {
    for (const Way way : {Way::kClose, Way::kReset, Way::kHalfClose}) {
      Client client(port());
      client.send(fmt::format("POST {} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi", path));
      ++expected;
      ASSERT_TRUE(eventually([&] { return waiting() == static_cast<size_t>(expected); }));
      EXPECT_EQ(gone_, expected - 1);
      if (way == Way::kClose) client.shut();
      if (way == Way::kReset) client.reset();
      if (way == Way::kHalfClose) client.half_close();
      EXPECT_TRUE(eventually([&] { return finished_ == expected; })) << path << static_cast<int>(way);
      EXPECT_EQ(gone_, expected);
      EXPECT_EQ(cancelled_, expected);
    }
  }
  EXPECT_TRUE(eventually([&] { return server_->connections() == 0; }));
}

TEST_F(HttpTest, RecordsEveryExchange) {
  start();
  Client client(port());
  client.send("GET /echo HTTP/1.1\r\nhost: x\r\nx-request-id: one\r\n\r\n");
  client.answer();
  client.send("GET /refused HTTP/1.1\r\nhost: x\r\nx-request-id: two\r\n\r\n");
  client.answer();
  client.send("GET /wait HTTP/1.1\r\nhost: x\r\nx-request-id: three\r\n\r\n");
  ASSERT_TRUE(eventually([&] { return waiting() == 1; }));
  client.shut();
  Client bad(port());
  bad.send("POST /echo HTTP/1.1\r\nhost: x\r\nx-request-id: four\r\ncontent-length: 5\r\n\r\n1");
  std::this_thread::sleep_for(milliseconds(20));
  bad.shut();
  ASSERT_TRUE(eventually([&] { return done().size() == 4; }));
  std::map<std::string, Done> by_id;
  for (const Done& d : done()) by_id[d.request_id] = d;
  EXPECT_EQ(by_id.at("one").status, 200);
  EXPECT_EQ(by_id.at("one").method, "GET");
  EXPECT_EQ(by_id.at("one").path, "/echo");
  EXPECT_GT(by_id.at("one").sent_bytes, 100);
  EXPECT_EQ(by_id.at("two").status, 401);
  EXPECT_EQ(by_id.at("four").status, 499);
  EXPECT_EQ(by_id.at("four").sent_bytes, 0);
}

// I2 of HttpRequestReader, over a connection: whatever is done to a request, the server answers or closes, and
// serves the next client.
TEST_F(HttpTest, SurvivesMutatedRequests) {
  options_.limits.header_bytes = 2000;
  options_.limits.body_bytes = 1000;
  options_.limits.header_timeout_ms = options_.limits.body_timeout_ms = options_.limits.idle_timeout_ms = 50;
  start();
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  Random random(seed);
  const std::vector<std::string> requests = {
      std::string(kGetEcho),
      "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello",
      "POST /stream HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
      "POST /small HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nok",
      "GET /refused HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
  };
  const std::string_view pieces[] = {"\r\n", "\r\n\r\n", ":", "%", "0", "chunked", "\t", "HTTP/1.1", "-1", "\n"};
  for (int i = 0; i < 400; ++i) {
    std::string bytes;
    for (int64_t n = 1 + random.below(3); n > 0; --n)
      bytes += requests[static_cast<size_t>(random.below(static_cast<int64_t>(requests.size())))];
    for (int64_t n = random.below(4); n > 0; --n) {
      const auto at = static_cast<size_t>(random.below(static_cast<int64_t>(bytes.size())));
      const int64_t kind = random.below(4);
      if (kind == 0) bytes[at] = static_cast<char>(random.below(256));
      if (kind == 1) bytes.erase(at, static_cast<size_t>(random.below(8)));
      if (kind == 2) bytes.insert(at, pieces[random.below(std::ssize(pieces))]);
      if (kind == 3) bytes.insert(at, std::string(static_cast<size_t>(random.below(3000)), 'y'));
      if (bytes.empty()) bytes = "x";
    }
    Client client(port());
    const auto cut = static_cast<size_t>(random.below(static_cast<int64_t>(bytes.size())));
    if (client.send(std::string_view(bytes).substr(0, cut))) (void)client.send(std::string_view(bytes).substr(cut));
    if (random.below(4) == 0)
      client.reset();
    else if (random.below(20) == 0)
      (void)client.rest();
  }
  Client last(port());
  last.send(kGetEcho);
  EXPECT_EQ(last.answer().body, "GET /echo?a=1 ");
  EXPECT_TRUE(eventually([&] { return server_->connections() <= 1; }));
}

}  // namespace
}  // namespace hearth
