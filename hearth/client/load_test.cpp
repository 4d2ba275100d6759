// SPDX-License-Identifier: Apache-2.0
// The load test and its HTTP client against a small server of plain sockets that answers as each case says, with
// delays that the test knows.
#include "hearth/client/load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "hearth/client/load_report.h"
#include "hearth/client/request_log.h"
#include "hearth/client/test_server.h"

namespace hearth {
namespace {

using namespace client_testing;

using testing::AllOf;
using testing::Ge;
using testing::HasSubstr;
using testing::Le;
using Outcome = RequestRecord::Outcome;
using namespace std::chrono_literals;

void serve_tokens(Peer& peer, int tokens, std::chrono::milliseconds before, std::chrono::milliseconds between) {
  peer.begin_stream();
  std::this_thread::sleep_for(before);
  for (int i = 0; i < tokens; ++i) {
    if (i > 0) std::this_thread::sleep_for(between);
    peer.token("a");
  }
  peer.end_stream(7, tokens);
}

// Against the clock of the server itself. What comes late by the load of the machine is within the tolerance; a time
// taken from the wrong event or in the wrong unit is not.
TEST(LoadTest, MeasuresTheDelaysThatTheServerMade) {
  constexpr double kTolerance = 0.25;
  constexpr auto kDelay = 300ms;
  std::vector<double> server_s;  // of the request and of each token
  TestServer server([&](Peer& peer, int) {
    (void)peer.read_request();
    const auto note = [&] {
      server_s.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count());
    };
    note();
    peer.begin_stream();
    for (int i = 0; i < 3; ++i) {
      std::this_thread::sleep_for(kDelay);
      note();
      peer.token("a");
    }
    peer.end_stream(7, 3);
    (void)peer.read_request();  // until the client closes, which orders server_s before what follows
  });
  RequestRecord r;
  {
    Load load(server.url());
    r = load.run_one();
  }
  server.finish();
  ASSERT_EQ(r.outcome, Outcome::kDone) << r.error;
  EXPECT_EQ(r.events, 3);
  EXPECT_EQ(r.output_tokens, 3);
  EXPECT_EQ(r.prompt_tokens, 7);
  EXPECT_TRUE(r.server_counted);
  ASSERT_EQ(server_s.size(), 4u);
  ASSERT_EQ(r.gaps_s.size(), 2u);
  EXPECT_THAT(r.first_s - r.sent_s, AllOf(Ge(server_s[1] - server_s[0]), Le(server_s[1] - server_s[0] + kTolerance)));
  EXPECT_NEAR(r.gaps_s[0], server_s[2] - server_s[1], kTolerance);
  EXPECT_NEAR(r.gaps_s[1], server_s[3] - server_s[2], kTolerance);
  EXPECT_NEAR(r.gaps_s[0] + r.gaps_s[1], r.last_s - r.first_s, 1e-5);
  EXPECT_GE(r.end_s, r.last_s);
}

// I1: with one request at a time, the second one waits for the first; its latency says so.
TEST(LoadTest, LatencyCountsFromWhenARequestWasDue) {
  TestServer server([](Peer& peer, int) {
    while (!peer.read_request().empty()) serve_tokens(peer, 2, 200ms, 0ms);
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
    EXPECT_GE(r.first_s, 0.2 * static_cast<double>(i + 1));
    EXPECT_LE(r.first_s - r.sent_s, 0.5);
  }
  const LoadSummary s = summarize(result, {50}, {});
  EXPECT_GE(s.metric("ttft").max, 600);
  EXPECT_LE(s.metric("ttft_sent").max, 500);
  EXPECT_GE(s.metric("delay").max, 400);
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
    EXPECT_LE(r.sent_s, due[i] + 0.3);
  }
  EXPECT_GE(result.records[0].first_s, 0.15);
}

// The server answers none before all have come, then all at once. One thread sends and reads all of it.
TEST(LoadTest, HundredsAreInFlightAtOnce) {
  constexpr int kRequests = 200, kTokens = 10;
  std::atomic<int> seen = 0;
  TestServer server([&](Peer& peer, int) {
    (void)peer.read_request();
    for (++seen; seen < kRequests;) std::this_thread::sleep_for(1ms);
    serve_tokens(peer, kTokens, 0ms, 1ms);
    (void)peer.read_request();
  });
  Load load(server.url());
  std::vector<PlannedRequest> plan;
  for (int i = 0; i < kRequests; ++i) plan.push_back({.arrival_s = 0.002 * i, .input_tokens = 3, .output_tokens = 10});
  const LoadResult result = load.run(plan);
  EXPECT_EQ(result.peak_in_flight, kRequests);
  EXPECT_EQ(result.connections, kRequests);
  const LoadSummary s = summarize(result, {99}, {});
  EXPECT_EQ(s.done, kRequests);
  EXPECT_EQ(s.output_tokens, kRequests * kTokens);
  EXPECT_EQ(s.metric("itl").count, kRequests * (kTokens - 1));
  EXPECT_LE(s.metric("delay").max, 1000) << "a thread that reads 200 answers still sends on time";
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
    EXPECT_THAT(result.records[index].error_kind, HasSubstr(kind));
    EXPECT_THAT(result.records[index].error, HasSubstr(message));
  };
  expect(0, "HTTP 429", "slow down");
  expect(1, "no stream", "the answer is application/json");
  expect(2, "error in the stream", "boom");
  expect(3, "cut stream", "without [DONE]");
  expect(4, "closed the connection", "closed the connection before its answer was complete");
  expect(5, "broken answer", "not HTTP");
  expect(6, "broken answer", "not a JSON object");
  EXPECT_EQ(result.records[7].outcome, Outcome::kDone) << result.records[7].error;
  const LoadSummary s = summarize(result, {50}, {});
  EXPECT_EQ(s.done, 1);
  EXPECT_EQ(s.failed, 7);
  EXPECT_EQ(s.errors.at("broken answer").count, 2);
}

TEST(LoadTest, ADeadServerIsAnErrorAndASilentOneADeadline) {
  HttpUrl url;
  {
    TestServer gone([](Peer&, int) {});
    url = gone.url();
  }
  Load dead(url);
  EXPECT_THAT(dead.get("/").error().message, HasSubstr("cannot connect to 127.0.0.1"));
  EXPECT_THAT(dead.run_one().error_kind, HasSubstr("cannot connect to 127.0.0.1"));

  TestServer silent([](Peer& peer, int) {
    while (!peer.read_request().empty()) {}
  });
  HttpClientOptions options;
  options.idle_timeout_ms = 100;
  Load load(silent.url(), options);
  const RequestRecord r = load.run_one();
  EXPECT_THAT(r.error_kind, HasSubstr("nothing happened for too long"));
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

// A request that never ends, and one that waits for its turn behind it.
TEST(LoadTest, WhatHasNotEndedInTimeIsLost) {
  TestServer server([](Peer& peer, int) {
    (void)peer.read_request();
    peer.begin_stream();
    peer.token("a");
    (void)peer.read_request();  // until the client closes
  });
  Load load(server.url());
  load.settings.max_concurrency = 1;
  load.settings.drain_s = 0.3;
  std::vector<size_t> ended;
  load.settings.on_ended = [&](size_t index, const RequestRecord& r) {
    EXPECT_EQ(r.outcome, Outcome::kFailed);
    ended.push_back(index);
  };
  const LoadResult result = load.run({{}, {.arrival_s = 0.1}});
  EXPECT_FALSE(result.interrupted);
  EXPECT_THAT(ended, testing::ElementsAre(0, 1));
  EXPECT_EQ(result.records[0].error_kind, "not ended in time");
  EXPECT_EQ(result.records[0].events, 1);
  EXPECT_THAT(result.records[0].error, HasSubstr("within 0.3 s"));
  EXPECT_EQ(result.records[1].error_kind, "not sent in time");
  EXPECT_THAT(result.seconds, AllOf(Ge(0.4), Le(5.0)));
}

// Ctrl-C while answers come: each request that ended has its whole line, and is in it once.
TEST(LoadTest, AnInterruptedRunHasItsLines) {
  const std::string path = testing::TempDir() + "/interrupted.jsonl";
  TestServer server([](Peer& peer, int) {
    while (!peer.read_request().empty()) serve_tokens(peer, 3, 1ms, 1ms);
  });
  Load load(server.url());
  const auto log = RequestLog::create(path);
  ASSERT_TRUE(log) << log.error().message;
  std::vector<PlannedRequest> plan;
  for (int i = 0; i < 40; ++i) plan.push_back({.arrival_s = 0.01 * i, .input_tokens = 3, .output_tokens = 3});
  load.settings.on_ended = [&](size_t index, const RequestRecord& r) {
    (*log)->write(request_line({.load = {}, .seed = 1, .models = {"a"}, .slos = {}}, index, plan[index], r));
    load.stop = load.stop || index == 10;
  };
  const LoadResult result = load.run(plan);
  EXPECT_TRUE(result.interrupted);
  std::ifstream file(path);
  std::set<size_t> seen;
  for (std::string line; std::getline(file, line);) {
    const auto told = nlohmann::json::parse(line, nullptr, false);
    ASSERT_TRUE(told.is_object()) << line;
    EXPECT_TRUE(seen.insert(told.at("index").get<size_t>()).second);
  }
  for (size_t i = 0; i < plan.size(); ++i)
    EXPECT_EQ(seen.contains(i), result.records[i].outcome != Outcome::kNotSent) << i;
  EXPECT_TRUE(seen.contains(10));
}

}  // namespace
}  // namespace hearth
