// SPDX-License-Identifier: Apache-2.0
// The HTTP client and what is built on single calls, against a small server of plain sockets.
#include "hearth/client/http_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

#include "hearth/client/chat_stream.h"
#include "hearth/client/openai.h"
#include "hearth/client/test_server.h"

namespace hearth {
namespace {

using namespace client_testing;
using namespace std::chrono_literals;
using testing::HasSubstr;

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

constexpr const char* kDelta = R"({"choices":[{"delta":{"content":"%"},"finish_reason":null}]})";
std::string delta(const std::string& text) {
  std::string event = kDelta;
  return event.replace(event.find('%'), 1, text);
}

struct ChatCase {
  Result<ChatReply> run(const HttpUrl& url) {
    Load load(url);
    return stream_chat(
        load.context, *load.client, "{}",
        [&](std::string_view piece) -> Status {
          heard += piece;
          if (stop_after == heard) load.stop = true;
          if (fail_after == heard) return unavailable("no more");
          return {};
        },
        load.stop);
  }
  std::string heard, stop_after = "-", fail_after = "-";
};

TEST(ChatStream, TextCountsAndSpeed) {
  TestServer server([](Peer& peer, int) {
    EXPECT_THAT(peer.read_request(), HasSubstr("POST /v1/chat/completions HTTP/1.1"));
    peer.begin_stream();
    peer.event(R"({"choices":[{"delta":{"role":"assistant","content":""}}]})");
    std::this_thread::sleep_for(50ms);
    peer.event(delta("a"));
    peer.event(delta("b"));
    peer.event(R"({"choices":[{"delta":{},"finish_reason":"length"}]})");
    peer.end_stream(9, 2);
    (void)peer.read_request();
  });
  ChatCase chat;
  const auto reply = chat.run(server.url());
  ASSERT_TRUE(reply) << reply.error().message;
  EXPECT_FALSE(reply->failure);
  EXPECT_EQ(reply->text, "ab");
  EXPECT_EQ(chat.heard, "ab");
  EXPECT_EQ(reply->finish_reason, "length");
  EXPECT_EQ(reply->usage->prompt, 9);
  EXPECT_EQ(reply->events, 2);
  EXPECT_GE(reply->first_s, 0.05);
  EXPECT_THAT(describe_speed(*reply), HasSubstr("9 prompt tokens"));
}

TEST(ChatStream, StopClosesTheConnection) {
  std::atomic<bool> closed = false;
  TestServer server([&](Peer& peer, int) {
    (void)peer.read_request();
    peer.begin_stream();
    peer.event(delta("a"));
    closed = peer.read_request().empty();
  });
  ChatCase chat;
  chat.stop_after = "a";
  const auto reply = chat.run(server.url());
  ASSERT_TRUE(reply) << reply.error().message;
  EXPECT_TRUE(reply->cancelled);
  EXPECT_FALSE(reply->failure);
  EXPECT_EQ(reply->text, "a");
  for (int i = 0; i < 500 && !closed; ++i) std::this_thread::sleep_for(10ms);
  EXPECT_TRUE(closed);
}

TEST(ChatStream, FailuresAreToldApart) {
  TestServer server([](Peer& peer, int number) {
    (void)peer.read_request();
    if (number == 0) peer.reply(400, "application/json", R"({"error":{"message":"too long"}})");
    if (number > 0) peer.begin_stream();
    if (number > 0) peer.event(delta("a"));
    if (number == 1) peer.event(R"({"error":{"message":"boom"}})");
    if (number < 3) peer.write("0\r\n\r\n");
    (void)(number == 3 && peer.read_request().empty());
  });
  const auto failure = [&] { return ChatCase().run(server.url()).value().failure.value(); };
  EXPECT_EQ(failure().message, "HTTP 400: too long");
  EXPECT_THAT(failure().message, HasSubstr("boom"));
  EXPECT_THAT(failure().message, HasSubstr("without [DONE]"));
  ChatCase full;
  full.fail_after = "a";
  const auto reply = full.run(server.url());
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().message, "no more");
}

}  // namespace
}  // namespace hearth
