// SPDX-License-Identifier: Apache-2.0
// Models that sleep, as operators and clients meet them: deadlines and what calls a change off, requests that wake a
// model, idle models that sleep for others. On the CPU's ops over memory that is none of the host's where that matters.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "hearth/engine/host_copy.h"
#include "hearth/engine/model_needs.h"
#include "hearth/memory/fake_device_for_test.h"
#include "hearth/serve/admin_testing.h"

namespace hearth {
namespace {

using namespace admin_testing;
using http_testing::Client;
using http_testing::eventually;
using http_testing::request_text;
using ::testing::HasSubstr;

class SleepTest : public AdminTest {
 protected:
  // An answer that nobody reads beyond its first bytes: it runs for as long as its client is there.
  static std::string endless(const char* model) {
    return request_text(
        "POST", "/v1/completions",
        fmt::format(R"({{"model":"{}","prompt":"a","max_tokens":1000,"ignore_eos":true,"n":16,"stream":true}})",
                    model));
  }
  static std::string body_of(const char* model) {
    return json({{"model", model}, {"prompt", "It was"}, {"max_tokens", 24}, {"seed", 7}, {"ignore_eos", true}}).dump();
  }
  Answer sleep(const char* model, json more = json::object()) const {
    more.update({{"model", model}, {"wait", true}});
    return admin("sleep", more);
  }
  Answer wake(const char* model, json more = json::object()) const {
    more.update({{"model", model}, {"wait", true}});
    return admin("wake", more);
  }
};

ServeOptions slow_readers() {
  ServeOptions options;
  options.engine.max_unread = 8;
  return options;
}

TEST_F(SleepTest, ASleepHasADeadline) {
  start(slow_readers());
  ASSERT_EQ(load("one").status, 200);
  Client stream(port());
  stream.send(endless("one"));
  ASSERT_TRUE(eventually([&] { return status("one")["running"] > 0; }));
  const Answer late = sleep("one", {{"deadline_ms", 30}});
  EXPECT_EQ(late.status, 504) << late.body;
  EXPECT_EQ(error_of(late)["code"], "deadline_exceeded");
  EXPECT_THAT(error_of(late)["message"].get<std::string>(),
              HasSubstr("not within 30 ms: it waited for 16 requests of one that run or wait"));
  EXPECT_EQ(state("one"), "ready");
  EXPECT_EQ(complete("one").status, 200);
  EXPECT_EQ(admin("sleep", {{"model", "one"}, {"deadline_ms", -1}}).status, 400);
  EXPECT_EQ(admin("sleep", {{"model", "one"}, {"sleep_idle", true}}).status, 400) << "that is of a wake";
}

TEST_F(SleepTest, AWakeCallsASleepOff) {
  start(slow_readers());
  ASSERT_EQ(load("one").status, 200);
  Client stream(port());
  stream.send(endless("one"));
  ASSERT_TRUE(eventually([&] { return status("one")["running"] > 0; }));
  ASSERT_EQ(admin("sleep", {{"model", "one"}}).status, 202);
  EXPECT_EQ(state("one"), "falling asleep");
  EXPECT_EQ(complete("one").status, 503);
  const Answer awake = wake("one");
  EXPECT_EQ(awake.status, 200) << awake.body;
  EXPECT_EQ(json::parse(awake.body)["state"], "ready");
  EXPECT_EQ(complete("one").status, 200);
  // The server goes down while a model waits for its requests.
  ASSERT_EQ(admin("sleep", {{"model", "one"}}).status, 202);
  EXPECT_FALSE(server_->drain(100));
  server_.reset();
}

TEST_F(SleepTest, ListsNameModelsThatSleep) {
  start();
  ASSERT_EQ(load("one").status, 200);
  ASSERT_EQ(load("two").status, 200);
  ASSERT_EQ(sleep("one").status, 200);
  const json cards = json::parse(ask(port(), "GET", "/v1/models").body)["data"];
  ASSERT_EQ(cards.size(), 2u);
  EXPECT_EQ(cards[0]["id"], "one");
  EXPECT_EQ(cards[0]["state"], "asleep");
  EXPECT_EQ(cards[1]["state"], "ready");
  EXPECT_EQ(json::parse(ask(port(), "GET", "/v1/models/one").body)["state"], "asleep");
  // What needs no weights goes on.
  const Answer tokens = ask(port(), "POST", "/tokenize", R"({"model":"one","prompt":"It was"})");
  EXPECT_EQ(tokens.status, 200) << tokens.body;
  EXPECT_EQ(status("one")["wake_on_request"], false);
  const Answer refused = complete("one");
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(error_of(refused)["code"], "asleep");
}

// Its targets, limits and counts are in the status and the metrics while it sleeps.
TEST_F(SleepTest, ASleepersNumbersAreTold) {
  ServeOptions options;
  options.engine.slo = {.ttft_us = 60'000'000, .tpot_us = 60'000'000};
  start(options);
  ASSERT_EQ(load("one").status, 200);
  ASSERT_EQ(admin("limit", {{"model", "one"}, {"kv_cap_bytes", 1 << 24}}).status, 200);
  ASSERT_EQ(complete("one").status, 200);
  ASSERT_TRUE(eventually([&] { return status("one").contains("slo"); }));
  const json before = status("one");
  ASSERT_EQ(sleep("one").status, 200);
  const json asleep = status("one");
  EXPECT_EQ(asleep["slo"], before["slo"]);
  EXPECT_EQ(asleep["kv"]["cap_bytes"], 1 << 24);
  EXPECT_EQ(asleep["pinned"], false);
  EXPECT_EQ(asleep["prefix_cache"], before["prefix_cache"]);
  const std::string metrics = ask(port(), "GET", "/metrics").body;
  EXPECT_NE(metrics.find(R"(hearth_slo_answers_total{engine="0",model_name="one"} 1)"), std::string::npos);
}

// ---- requests that wake

TEST_F(SleepTest, ARequestWakesAModelThatMayBeWoken) {
  ServeOptions options;
  options.wake_on_request = true;
  start(options);
  ASSERT_EQ(load("one").status, 200);
  const std::string before = text("one");
  ASSERT_EQ(sleep("one").status, 200);
  EXPECT_EQ(status("one")["wake_on_request"], true);
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 8; ++i) {
    clients.push_back(std::make_unique<Client>(port()));
    clients.back()->send(request_text("POST", "/v1/completions", body_of("one")));
  }
  for (const auto& client : clients) {
    const Answer a = client->answer();
    ASSERT_EQ(a.status, 200) << a.body;
    EXPECT_EQ(json::parse(a.body)["choices"][0]["text"], before);
  }
  EXPECT_EQ(state("one"), "ready");
  ASSERT_EQ(sleep("one").status, 200);
  EXPECT_EQ(text(""), before) << "the only model needs no name";
  // Who put it to sleep may say otherwise.
  ASSERT_EQ(sleep("one", {{"wake_on_request", false}}).status, 200);
  EXPECT_EQ(complete("one").status, 503);
  EXPECT_EQ(state("one"), "asleep");
}

constexpr int64_t kMiB = int64_t{1} << 20;

hearth::testing::FakeDevice& device() {
  static hearth::testing::FakeDevice device(int64_t{2} << 30);
  return device;
}

const OpTable& device_ops() {
  static const OpTable table = [] {
    OpTable t = cpu_ops();
    t.memory = []() -> const Memory& { return device(); };
    return t;
  }();
  return table;
}

ServeOptions on_device() {
  ServeOptions options;
  options.ops = &device_ops();
  options.engine.decode_graphs = false;
  options.engine.max_sequences = 8;
  options.engine.step_tokens = 64;
  options.engine.kv_bytes = 32 * kMiB;
  return options;
}

// All who wait for one wake are told why it failed, and it was tried once.
TEST_F(SleepTest, AWakeThatFailsAnswersAllWhoWait) {
  ServeOptions options = on_device();
  options.wake_on_request = true;
  start(options);
  ASSERT_EQ(load("one").status, 200);
  const std::string before = text("one");
  const int64_t awake = device().held_bytes();
  ASSERT_EQ(sleep("one").status, 200);
  device().failing_copy_bytes = std::min(awake - device().held_bytes(), HostCopy::kPieceBytes);
  device().failing_copies = 1;
  device().slow_copy_ms = 300;
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 6; ++i) {
    clients.push_back(std::make_unique<Client>(port()));
    clients.back()->send(request_text("POST", "/v1/completions", body_of("one")));
  }
  // One of them leaves, which changes nothing for the others.
  clients.pop_back();
  for (const auto& client : clients) {
    const Answer a = client->answer();
    EXPECT_EQ(a.status, 503) << a.body;
    EXPECT_EQ(error_of(a)["code"], "wake_failed");
    EXPECT_THAT(error_of(a)["message"].get<std::string>(), HasSubstr("the model one does not wake: a copy of"));
  }
  device().slow_copy_ms = 0;
  EXPECT_EQ(state("one"), "asleep");
  EXPECT_EQ(device().failing_copies, 0);
  EXPECT_EQ(text("one"), before);
}

// A host without memory for a sleeper's weights costs the sleep alone, on a thread of the server's.
TEST_F(SleepTest, ASleepThatThrowsIsAnErrorOfItsModel) {
  start(on_device());
  ASSERT_EQ(load("one").status, 200);
  const std::string before = text("one");
  device().throwing_stagings = 1;
  const Answer failed = sleep("one");
  EXPECT_EQ(failed.status, 409) << failed.body;
  EXPECT_THAT(error_of(failed)["message"].get<std::string>(), HasSubstr("out of memory"));
  EXPECT_EQ(state("one"), "ready");
  EXPECT_EQ(text("one"), before);
  EXPECT_EQ(sleep("one").status, 200);
  EXPECT_EQ(wake("one").status, 200);
  EXPECT_EQ(text("one"), before);
}

// ---- models that sleep for others

TEST_F(SleepTest, IdleModelsSleepForOneThatFindsNoRoom) {
  ServeOptions options = on_device();
  const auto needs = needs_of(kDemo, "one", {}, options.engine);
  ASSERT_TRUE(needs) << needs.error().message;
  // Two and their KV, and of a third all but its weights.
  options.engine.memory_bytes =
      2 * needs->weight_bytes + 3 * needs->buffer_bytes + 4 * needs->least_kv_bytes + needs->weight_bytes / 2;
  options.engine.kv_bytes = 0;
  start(options);
  ASSERT_EQ(load("one").status, 200);
  ASSERT_EQ(load("two").status, 200);
  const std::string before = text("two");
  EXPECT_EQ(text("one"), before) << "two was used longer ago";
  const Answer refused = load("three");
  EXPECT_EQ(refused.status, 503) << refused.body;
  EXPECT_THAT(error_of(refused)["message"].get<std::string>(), HasSubstr("Unload one, or put it to sleep"));
  // A pinned model is not asked.
  ASSERT_EQ(admin("pin", {{"model", "two"}}).status, 200);
  const json wanted = {{"model", kDemo}, {"name", "three"}, {"sleep_idle", true}, {"wait", true}};
  const Answer told = admin("load", wanted);
  ASSERT_EQ(told.status, 200) << told.body;
  EXPECT_EQ(json::parse(told.body)["put_to_sleep"], json::array({"one"}));
  EXPECT_EQ(state("one"), "asleep");
  EXPECT_EQ(state("two"), "ready");
  EXPECT_EQ(text("three"), before);
  ASSERT_EQ(admin("pin", {{"model", "two"}, {"pinned", false}}).status, 200);
  // The server put it to sleep, so a request wakes it; and as the server was not told to make room, it finds none.
  const Answer none = complete("one");
  EXPECT_EQ(none.status, 503);
  EXPECT_EQ(error_of(none)["code"], "wake_failed");
  const Answer woken = wake("one", {{"sleep_idle", true}});
  ASSERT_EQ(woken.status, 200) << woken.body;
  EXPECT_EQ(json::parse(woken.body)["put_to_sleep"], json::array({"two"})) << "three was used after it";
  EXPECT_EQ(text("one"), before);
}

TEST_F(SleepTest, ModelsTakeTurnsWhereTheServerMakesRoom) {
  ServeOptions options = on_device();
  const auto needs = needs_of(kDemo, "one", {}, options.engine);
  ASSERT_TRUE(needs) << needs.error().message;
  options.engine.memory_bytes =
      2 * needs->weight_bytes + 3 * needs->buffer_bytes + 4 * needs->least_kv_bytes + needs->weight_bytes / 2;
  options.engine.kv_bytes = 0;
  options.sleep_idle_for_room = true;
  start(options);
  for (const char* const name : {"one", "two", "three"}) ASSERT_EQ(load(name).status, 200) << name;
  EXPECT_EQ(state("one"), "asleep");
  const std::string before = text("three");
  for (int round = 0; round < 2; ++round)
    for (const char* const name : {"one", "two", "three"}) EXPECT_EQ(text(name), before) << name;
}

// Nobody sleeps where that would not do.
TEST_F(SleepTest, NobodySleepsInVain) {
  ServeOptions options = on_device();
  const auto needs = needs_of(kDemo, "one", {}, options.engine);
  ASSERT_TRUE(needs) << needs.error().message;
  options.engine.memory_bytes = needs->weight_bytes + needs->buffer_bytes + 4 * needs->least_kv_bytes;
  options.engine.kv_bytes = 0;
  start(options);
  ASSERT_EQ(load("one").status, 200);
  const Answer refused =
      admin("load",
            {{"model", kDemo}, {"name", "two"}, {"sleep_idle", true}, {"kv_guarantee_bytes", 1 << 30}, {"wait", true}});
  EXPECT_EQ(refused.status, 503) << refused.body;
  EXPECT_THAT(error_of(refused)["message"].get<std::string>(),
              HasSubstr("bytes are lacking, and 1 idle models that could sleep for it would give"));
  EXPECT_EQ(state("one"), "ready");
}

}  // namespace
}  // namespace hearth
