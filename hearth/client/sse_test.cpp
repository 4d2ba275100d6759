// SPDX-License-Identifier: Apache-2.0
// The SSE parser, cut at every byte; URLs; events of a stream.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "hearth/client/openai.h"
#include "hearth/client/sse.h"
#include "hearth/client/url.h"

namespace hearth {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

using Events = std::vector<std::string>;

// "name|data" of each event, the bytes given `step` at a time.
Events events_of(std::string_view bytes, size_t step) {
  SseParser parser;
  Events events;
  while (!bytes.empty()) {
    const std::string piece(bytes.substr(0, step));
    bytes.remove_prefix(piece.size());
    EXPECT_TRUE(parser.feed(piece, [&](const SseEvent& event) -> Status {
      events.push_back(std::string(event.name) + "|" + std::string(event.data));
      return {};
    }));
  }
  return events;
}

TEST(Sse, LinesEndInThreeWays) {
  for (const char* bytes : {"data: a\n\ndata: b\n\n", "data: a\r\n\r\ndata: b\r\n\r\n", "data: a\r\rdata: b\r\r",
                            "data: a\r\n\ndata: b\n\r\n"})
    EXPECT_THAT(events_of(bytes, 1000), ElementsAre("|a", "|b")) << bytes;
}

TEST(Sse, FieldsCommentsAndUnknowns) {
  EXPECT_THAT(events_of(": a comment\n\nevent: error\ndata: x\n\ndata: y\n\n", 1000), ElementsAre("error|x", "|y"));
  EXPECT_THAT(events_of("data:a\ndata:  b\ndata\nid: 7\nretry: 10\nunknown: z\n\n", 1000), ElementsAre("|a\n b\n"));
  // An event without data is none, and its name is not the next one's.
  EXPECT_THAT(events_of("event: lost\n\ndata: y\n\n", 1000), ElementsAre("|y"));
  EXPECT_THAT(events_of("data:\n\n", 1000), ElementsAre("|"));
  EXPECT_THAT(events_of("\xEF\xBB\xBF"
                        "data: a\n\n\xEF\xBB\xBF"
                        "data: b\n\n",
                        1000),
              ElementsAre("|a"));
}

TEST(Sse, AnEventThatTheEndCutsOffIsNone) {
  EXPECT_THAT(events_of("data: a\n\ndata: b\n", 1000), ElementsAre("|a"));
  EXPECT_THAT(events_of("data: a", 1000), ElementsAre());
}

// I1
TEST(Sse, AnyCutGivesTheSameEvents) {
  const std::string bytes =
      "\xEF\xBB\xBF: hello\r\nevent: e\r\ndata: {\"a\": \"\xC3\xA4\"}\r\ndata: 2\r\n\r\n"
      "data: x\r\rdata\ndata: y\n\n:\n\ndata: [DONE]\n\ndata: cut";
  const Events whole = events_of(bytes, bytes.size());
  EXPECT_THAT(whole, ElementsAre("e|{\"a\": \"\xC3\xA4\"}\n2", "|x", "|\ny", "|[DONE]"));
  for (size_t step = 1; step < bytes.size(); ++step) EXPECT_EQ(events_of(bytes, step), whole) << step;
}

// I2
TEST(Sse, AnEventHasALimit) {
  SseParser parser(100);
  const auto ignore = [](const SseEvent&) -> Status { return {}; };
  EXPECT_TRUE(parser.feed("data: " + std::string(80, 'a') + "\n\n", ignore));
  Status fed;
  for (int i = 0; i < 20 && fed; ++i) fed = parser.feed("data: " + std::string(10, 'a') + "\n", ignore);
  ASSERT_FALSE(fed);
  EXPECT_EQ(fed.error().message, "an event of the stream is larger than 100 bytes");
  SseParser line(100);
  EXPECT_FALSE(line.feed(std::string(101, ':'), ignore));
}

TEST(Sse, TheErrorOfWhoListensEndsTheParse) {
  SseParser parser;
  int seen = 0;
  const Status fed = parser.feed("data: 1\n\ndata: 2\n\n", [&](const SseEvent&) -> Status {
    ++seen;
    return corrupt("no");
  });
  ASSERT_FALSE(fed);
  EXPECT_EQ(fed.error().message, "no");
  EXPECT_EQ(seen, 1);
}

TEST(Url, Parts) {
  const auto url = parse_http_url("http://example.org:8080/api/");
  ASSERT_TRUE(url);
  EXPECT_EQ(url->host, "example.org");
  EXPECT_EQ(url->port, 8080);
  EXPECT_EQ(url->authority(), "example.org:8080");
  EXPECT_EQ(url->target("/v1/models"), "/api/v1/models");
  EXPECT_EQ(parse_http_url("http://h")->port, 80);
  EXPECT_EQ(parse_http_url("http://[::1]:9")->host, "::1");
  EXPECT_EQ(parse_http_url("http://[::1]:9")->authority(), "[::1]:9");
  EXPECT_EQ(parse_http_url("http://h:1/v1")->target("/v1/models"), "/v1/models");
  EXPECT_EQ(parse_http_url("http://h:1/v1/")->target("/v1/models"), "/v1/models");
}

TEST(Url, SaysWhatIsWrong) {
  const auto error = [](const char* text) {
    const auto url = parse_http_url(text);
    return url ? std::string("no error") : url.error().message;
  };
  EXPECT_THAT(error("https://h"), HasSubstr("TLS is not offered"));
  EXPECT_EQ(parse_http_url("https://h").error().code, ErrorCode::kUnsupported);
  for (const char* bad :
       {"h:8000", "", "ftp://h", "http://", "http://:80", "http://h:", "http://h:x", "http://h:0", "http://h:65536",
        "http://h:8 0", "http://u@h", "http://h/?q", "http://[::1", "http://h\r\n", "http://[::1]8"})
    EXPECT_THAT(error(bad), HasSubstr("wanted http://HOST:PORT")) << bad;
}

using Kind = StreamEvent::Kind;

TEST(StreamEvents, CompletionsAndChats) {
  const auto kind = [](const char* data) { return parse_stream_event(data).value().kind; };
  EXPECT_EQ(kind(R"({"choices":[{"text":"a","finish_reason":null}]})"), Kind::kToken);
  EXPECT_EQ(kind(R"({"choices":[{"text":"","finish_reason":null}]})"), Kind::kToken);
  EXPECT_EQ(kind(R"({"choices":[{"text":"a","finish_reason":"length"}]})"), Kind::kToken);
  EXPECT_EQ(kind(R"({"choices":[{"text":"","finish_reason":"length"}]})"), Kind::kMaybeToken);
  EXPECT_EQ(kind(R"({"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}})"), Kind::kNothing);
  EXPECT_EQ(kind(R"({"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]})"), Kind::kNothing);
  EXPECT_EQ(kind(R"({"choices":[{"delta":{"role":"assistant","content":"a"},"finish_reason":null}]})"), Kind::kToken);
  EXPECT_EQ(kind(R"({"choices":[{"delta":{"content":""},"finish_reason":null}]})"), Kind::kToken);
  EXPECT_EQ(kind(R"({"choices":[{"delta":{"content":"a"}}]})"), Kind::kToken);
  EXPECT_EQ(kind(R"({"choices":[{"delta":{"reasoning_content":"a"}}]})"), Kind::kToken);
  EXPECT_EQ(kind(R"({"choices":[{"delta":{},"finish_reason":"stop"}]})"), Kind::kMaybeToken);
  EXPECT_EQ(kind("{}"), Kind::kNothing);
}

TEST(StreamEvents, UsageDoneAndErrors) {
  EXPECT_TRUE(parse_stream_event("[DONE]")->done);
  const auto usage = parse_stream_event(R"({"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}})")->usage;
  ASSERT_TRUE(usage);
  EXPECT_EQ(usage->prompt, 3);
  EXPECT_EQ(usage->completion, 5);
  EXPECT_FALSE(parse_stream_event(R"({"choices":[],"usage":null})")->usage);
  EXPECT_EQ(parse_stream_event(R"({"error":{"message":"boom","code":500}})")->error, "boom");
  EXPECT_EQ(parse_stream_event(R"({"error":"boom"})")->error, "boom");
  EXPECT_FALSE(parse_stream_event("{\"cut"));
  EXPECT_FALSE(parse_stream_event("[1]"));
}

TEST(Errors, SayTheServersMessage) {
  EXPECT_EQ(status_error(404, R"({"error":{"message":"no such model"}})").message, "HTTP 404: no such model");
  EXPECT_EQ(status_error(404, "").code, ErrorCode::kNotFound);
  EXPECT_EQ(status_error(503, "Bad Gateway\n").message, "HTTP 503: Bad Gateway");
  EXPECT_EQ(status_error(503, "").code, ErrorCode::kUnavailable);
}

TEST(Models, TheOnlyOneOrTheNamedOne) {
  const std::vector<ModelCard> one = {{.id = "a", .max_model_len = 8}}, two = {{.id = "a"}, {.id = "b"}};
  EXPECT_EQ(choose_model(one, "")->id, "a");
  EXPECT_EQ(choose_model(two, "b")->id, "b");
  EXPECT_THAT(choose_model(two, "").error().message, HasSubstr("--model is needed"));
  EXPECT_THAT(choose_model(two, "").error().message, HasSubstr("a, b"));
  EXPECT_THAT(choose_model(two, "c").error().message, HasSubstr("no model 'c'; it has: a, b"));
}

}  // namespace
}  // namespace hearth
