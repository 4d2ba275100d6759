// SPDX-License-Identifier: Apache-2.0
// The admin API as operators meet it: models that come and go under a running server, and what goes wrong then.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <thread>

#include "hearth/serve/admin_testing.h"

namespace hearth {
namespace {

using namespace admin_testing;
using http_testing::Answer;
using http_testing::ask;
using http_testing::Client;
using http_testing::eventually;
using http_testing::request_text;
using nlohmann::json;
using ::testing::HasSubstr;

// A folder with the demo model's small files and weights that the test may spoil.
class CopiedModel {
 public:
  CopiedModel() : dir_(std::filesystem::path(testing::TempDir()) / fmt::format("hearth_admin_{}", getpid())) {
    std::filesystem::remove_all(dir_);
    std::filesystem::copy(kDemo, dir_, std::filesystem::copy_options::recursive);
    for (const auto& file : std::filesystem::directory_iterator(dir_))
      if (file.path().extension() == ".safetensors") weights_ = file.path();
  }
  ~CopiedModel() { std::filesystem::remove_all(dir_); }
  CopiedModel(const CopiedModel&) = delete;
  CopiedModel& operator=(const CopiedModel&) = delete;
  std::string dir() const { return dir_.string(); }
  const std::filesystem::path& weights() const { return weights_; }

 private:
  std::filesystem::path dir_, weights_;
};

TEST_F(AdminTest, ModelsComeAndGo) {
  start();
  EXPECT_TRUE(server_->ready()) << "a server without models is ready for its operator";
  const Answer none = complete("one");
  EXPECT_EQ(none.status, 404);
  EXPECT_EQ(error_of(none)["message"], "no model is loaded");

  const Answer asked = admin("load", {{"model", kDemo}, {"name", "one"}, {"aliases", {"org/uno"}}});
  EXPECT_EQ(asked.status, 202) << asked.body;
  EXPECT_EQ(asked.headers.at("location"), "/admin/status/one");
  ASSERT_TRUE(eventually([&] { return state("one") == "ready"; }));
  const std::string alone = text("one");
  EXPECT_EQ(text("org/uno"), alone);
  EXPECT_EQ(text(""), alone) << "the only model needs no name";

  EXPECT_EQ(load("two").status, 200);
  EXPECT_EQ(complete("").status, 400);
  EXPECT_EQ(text("two"), alone);
  const json cards = json::parse(ask(port(), "GET", "/v1/models").body)["data"];
  ASSERT_EQ(cards.size(), 3u);

  const Answer gone = admin("unload", {{"model", "org/uno"}, {"wait", true}});
  EXPECT_EQ(gone.status, 200);
  EXPECT_EQ(json::parse(gone.body), (json{{"model", "one"}, {"state", "unloaded"}}));
  EXPECT_EQ(complete("one").status, 404);
  EXPECT_EQ(text("two"), alone);
  // The name is free again.
  EXPECT_EQ(load("one").status, 200);
  EXPECT_EQ(text("one"), alone);
}

TEST_F(AdminTest, OnlyAnAdminKeyOpensIt) {
  ServeOptions options;
  options.api_keys = {"user"};
  options.models = {{.names = {"fable"}, .dir = kDemo}};
  start(options);
  EXPECT_EQ(ask(port(), "GET", "/admin/status").status, 401);
  EXPECT_EQ(ask(port(), "GET", "/admin/nowhere").status, 401);
  EXPECT_EQ(ask(port(), "GET", "/admin/status", "", "authorization: Bearer user\r\n").status, 401);
  EXPECT_EQ(ask(port(), "POST", "/admin/unload", R"({"model":"fable"})", "authorization: Bearer user\r\n").status, 401);
  EXPECT_EQ(ask(port(), "GET", "/v1/models", "", kAdmin).status, 401) << "an admin key is no API key";
  EXPECT_EQ(ask(port(), "GET", "/admin/status", "", kAdmin).status, 200);
  EXPECT_EQ(ask(port(), "GET", "/admin/nowhere", "", kAdmin).status, 404);
  EXPECT_EQ(ask(port(), "GET", "/admin/load", "", kAdmin).status, 405);
}

TEST(AdminOff, WithoutAnAdminKey) {
  ServeOptions options;
  options.port = 0;
  EXPECT_THAT(Server::create(options).error().message, HasSubstr("no model to serve, and no admin key"));
  options.engine.threads = 1;
  options.models = {{.names = {"fable"}, .dir = kDemo}};
  auto server = Server::create(options);
  ASSERT_TRUE(server && (*server)->start());
  const Answer a = ask((*server)->port(), "POST", "/admin/unload", R"({"model":"fable"})");
  EXPECT_EQ(a.status, 403);
  EXPECT_EQ(error_of(a)["code"], "admin_off");
}

TEST_F(AdminTest, BadRequestsSayWhatIsWrong) {
  start();
  ASSERT_EQ(load("one").status, 200);
  const auto refused = [&](std::string_view what, const json& body, int status, const char* message) {
    SCOPED_TRACE(body.dump());
    const Answer a = admin(what, body);
    EXPECT_EQ(a.status, status);
    EXPECT_THAT(error_of(a)["message"].get<std::string>(), HasSubstr(message));
  };
  refused("load", json::object(), 400, "model: absent; wanted a string");
  refused("load", {{"model", 7}}, 400, "model: found 7; wanted a string");
  refused("load", {{"model", "/nowhere/at/all"}}, 404, "/nowhere/at/all");
  refused("load", {{"model", kDemo}, {"name", "a b"}}, 400,
          "name: found \"a b\" of 3 bytes; wanted 1 to 512 bytes without spaces");
  refused("load", {{"model", kDemo}, {"name", "one"}}, 409, "there is a model called one; it is ready");
  refused("load", {{"model", kDemo}, {"name", "x"}, {"aliases", {"one"}}}, 409, "there is a model called one");
  refused("load", {{"model", kDemo}, {"name", "x"}, {"aliases", {"x"}}}, 400, "two models are called x");
  refused("load", {{"model", kDemo}, {"nam", "x"}}, 400, "nam: unknown; wanted model, name");
  refused("load", {{"model", kDemo}, {"kv_cache_dtype", "fp7"}}, 400, "\"fp7\" is unknown; wanted f32");
  refused("load", {{"model", kDemo}, {"name", "x"}, {"max_model_len", 4096}, {"wait", true}}, 422, "4096 tokens");
  refused("unload", {{"model", "nobody"}}, 404, "there is no model nobody; there is one");
  EXPECT_EQ(admin("load", json::array()).status, 400);
  EXPECT_EQ(state("one"), "ready");
}

TEST_F(AdminTest, StatusTellsWhatRunsAndWhatItHolds) {
  start();
  ASSERT_EQ(
      admin("load",
            {{"model", kDemo}, {"name", "small"}, {"kv_cache_dtype", "int4"}, {"max_model_len", 512}, {"wait", true}})
          .status,
      200);
  ASSERT_EQ(load("large").status, 200);
  Client stream(port());
  stream.send(request_text("POST", "/v1/completions",
                           R"({"model":"large","prompt":"a","max_tokens":900,"ignore_eos":true,"n":4,"stream":true})"));
  ASSERT_TRUE(stream.more());
  ASSERT_TRUE(eventually([&] { return status("large")["kv"]["held_bytes"] > 0; }));
  // The pool's numbers are a tenth of a second old.
  ASSERT_TRUE(eventually([&] { return status()["kv_pools"][0]["live_bytes"] > 0; }));
  const json all = status();
  ASSERT_EQ(all["models"].size(), 2u);
  const json& small = all["models"][0];
  EXPECT_EQ(small["model"], "small");
  EXPECT_EQ(small["kv"]["format"], "int4");
  EXPECT_EQ(small["kv"]["held_bytes"], 0);
  EXPECT_EQ(small["max_model_len"], 512);
  EXPECT_EQ(small["running"], 0);
  const json& large = all["models"][1];
  EXPECT_EQ(large["running"], 4);
  EXPECT_EQ(large["weight_bytes"], small["weight_bytes"]);
  EXPECT_GT(large["kv"]["block_bytes"], small["kv"]["block_bytes"]);
  EXPECT_EQ(large["kv"]["held_bytes"].get<int64_t>() % large["kv"]["block_bytes"].get<int64_t>(), 0);
  const json& pool = all["kv_pools"][0];
  EXPECT_GE(pool["live_bytes"], large["kv"]["block_bytes"]);
  const auto bytes = [&](const char* key) { return pool[key].get<int64_t>(); };
  EXPECT_LE(bytes("waste_bytes") + bytes("live_bytes") + bytes("cached_bytes"), bytes("bytes"));
  int64_t slabs = pool["slabs"]["empty"];
  for (const json& format : pool["slabs"]["formats"]) slabs += format["slabs"].get<int64_t>();
  EXPECT_EQ(slabs, pool["slabs"]["all"].get<int64_t>());
  EXPECT_TRUE(eventually([&] { return status("large")["predicted_steps"]["count"] > 0; }));
}

TEST_F(AdminTest, LimitsAndPinsAreSetWhileItServes) {
  ServeOptions options;
  options.engine.kv_bytes = 64 << 20;
  start(options);
  constexpr int64_t kMi = 1 << 20;
  ASSERT_EQ(admin("load", {{"model", kDemo}, {"name", "one"}, {"kv_cap_bytes", 20 * kMi}, {"wait", true}}).status, 200);
  ASSERT_EQ(load("two").status, 200);
  EXPECT_EQ(status("one")["kv"]["cap_bytes"], 20 * kMi);
  const Answer a = admin("limit", {{"model", "two"}, {"kv_guarantee_bytes", 16 * kMi}, {"kv_cap_bytes", 32 * kMi}});
  EXPECT_EQ(a.status, 200) << a.body;
  EXPECT_TRUE(eventually([&] { return status("two")["kv"]["guarantee_bytes"] == 16 * kMi; }));
  EXPECT_EQ(admin("pin", {{"model", "two"}}).status, 200);
  EXPECT_TRUE(eventually([&] { return status("two")["pinned"] == true; }));
  EXPECT_EQ(admin("pin", {{"model", "two"}, {"pinned", false}}).status, 200);
  EXPECT_TRUE(eventually([&] { return status("two")["pinned"] == false; }));
  const Answer much = admin("limit", {{"model", "one"}, {"kv_guarantee_bytes", 4096 * kMi}});
  EXPECT_EQ(much.status, 409) << much.body;
  EXPECT_EQ(error_of(much)["code"], "no_room");
  EXPECT_EQ(admin("limit", {{"model", "one"}, {"kv_cap_bytes", 1}}).status, 400);
  EXPECT_EQ(admin("limit", {{"model", "nobody"}}).status, 404);
  EXPECT_EQ(admin("load", {{"model", kDemo}, {"name", "x"}, {"kv_cap_bytes", 1}, {"wait", true}}).status, 422);
  EXPECT_EQ(complete("x").status, 404);
  EXPECT_EQ(text("one"), text("two"));
}

TEST_F(AdminTest, ASleepingModelAnswersLaterAndWakesAsItWas) {
  start();
  ASSERT_EQ(load("one").status, 200);
  const std::string before = text("one");
  EXPECT_EQ(admin("wake", {{"model", "one"}}).status, 200) << "it is awake";
  const Answer asleep = admin("sleep", {{"model", "one"}, {"wait", true}});
  EXPECT_EQ(asleep.status, 200) << asleep.body;
  EXPECT_EQ(state("one"), "asleep");
  const Answer refused = complete("one");
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(error_of(refused)["code"], "asleep");
  EXPECT_TRUE(refused.headers.contains("retry-after"));
  EXPECT_EQ(admin("wake", {{"model", "one"}, {"wait", true}}).status, 200);
  EXPECT_EQ(text("one"), before);
  // A pinned model stays, and the answer says why.
  EXPECT_EQ(admin("pin", {{"model", "one"}}).status, 200);
  const Answer pinned = admin("sleep", {{"model", "one"}, {"wait", true}});
  EXPECT_EQ(pinned.status, 400) << pinned.body;
  EXPECT_EQ(text("one"), before);
  EXPECT_EQ(admin("pin", {{"model", "one"}, {"pinned", false}}).status, 200);
  // A sleeping one can be unloaded.
  EXPECT_EQ(admin("sleep", {{"model", "one"}, {"wait", true}}).status, 200);
  EXPECT_EQ(admin("unload", {{"model", "one"}, {"wait", true}}).status, 200);
  EXPECT_EQ(complete("one").status, 404);
  EXPECT_EQ(admin("sleep", {{"model", "one"}}).status, 404);
}

// A slow reader's answer goes on to its last byte; nobody new comes in; then the memory is back.
TEST_F(AdminTest, UnloadLetsRunningRequestsFinish) {
  start();
  ASSERT_EQ(load("one").status, 200);
  const std::string whole = text("one", 200);
  Client stream(port());
  const json body = {{"model", "one"},     {"prompt", "It was"}, {"max_tokens", 200},
                     {"ignore_eos", true}, {"seed", 7},          {"stream", true}};
  stream.send(request_text("POST", "/v1/completions", body.dump()));
  ASSERT_TRUE(stream.more());
  const Answer asked = admin("unload", {{"model", "one"}});
  EXPECT_THAT((std::vector{200, 202}), testing::Contains(asked.status)) << asked.body;
  EXPECT_EQ(complete("one").status, 404);
  std::string streamed;
  const Answer a = stream.answer();
  EXPECT_TRUE(a.whole);
  for (size_t at = 0; (at = a.body.find("data: {", at)) != std::string::npos; ++at) {
    const json event = json::parse(a.body.substr(at + 6, a.body.find("\n\n", at) - at - 6));
    if (!event["choices"].empty()) streamed += event["choices"][0]["text"].get<std::string>();
  }
  EXPECT_EQ(streamed, whole);
  EXPECT_TRUE(eventually([&] { return state("one") == "unloaded"; }));
}

TEST_F(AdminTest, ForceEndsWhatRunsAndNothingElse) {
  start();
  ASSERT_EQ(load("one").status, 200);
  ASSERT_EQ(load("two").status, 200);
  const auto long_one = [](const char* model) {
    return request_text(
        "POST", "/v1/completions",
        fmt::format(R"({{"model":"{}","prompt":"a","max_tokens":1000,"ignore_eos":true,"n":8,"stream":true}})", model));
  };
  Client first(port()), second(port());
  first.send(long_one("one"));
  second.send(long_one("two"));
  ASSERT_TRUE(first.more());
  ASSERT_TRUE(second.more());
  const Answer gone = admin("unload", {{"model", "one"}, {"force", true}, {"wait", true}});
  EXPECT_EQ(gone.status, 200) << gone.body;
  EXPECT_EQ(json::parse(gone.body)["state"], "unloaded");
  const Answer ended = first.answer();
  EXPECT_THAT(ended.body, HasSubstr(R"(data: {"error":{"message":)"));
  EXPECT_THAT(ended.body, testing::Not(HasSubstr("[DONE]")));
  EXPECT_THAT(second.answer().body, HasSubstr("[DONE]"));
}

TEST_F(AdminTest, ALoadingModelSaysSoAndCanBeCancelled) {
  HeldLoad held;
  ServeOptions options;
  options.load.progress = held.progress();
  start(options);
  held.arm();
  ASSERT_EQ(load("one", kDemo, false).status, 202);
  ASSERT_TRUE(held.wait_reached());
  EXPECT_TRUE(server_->ready()) << "what loads later is not waited for";
  const Answer early = complete("one");
  EXPECT_EQ(early.status, 503);
  EXPECT_EQ(error_of(early)["code"], "loading");
  EXPECT_EQ(early.headers.at("retry-after"), "5");
  const json loading = status("one");
  EXPECT_GT(loading["progress"]["loaded_bytes"], 0);
  EXPECT_LT(loading["progress"]["loaded_bytes"], loading["progress"]["total_bytes"]);
  // One at a time: the next one waits for its turn, and can be called off before it.
  ASSERT_EQ(load("two", kDemo, false).status, 202);
  ASSERT_EQ(load("three", kDemo, false).status, 202);
  EXPECT_EQ(status("two")["progress"]["total_bytes"], 0);
  EXPECT_EQ(admin("unload", {{"model", "two"}, {"wait", true}}).status, 200);
  EXPECT_EQ(admin("unload", {{"model", "one"}}).status, 202);
  EXPECT_EQ(admin("unload", {{"model", "one"}}).status, 409);
  EXPECT_EQ(complete("one").status, 404);
  held.release();
  EXPECT_TRUE(eventually([&] { return state("one") == "unloaded"; }));
  EXPECT_TRUE(eventually([&] { return state("three") == "ready"; }));
  EXPECT_EQ(state("two"), "unloaded");
}

// Models that the server starts with are called off as others are: one that loads, and one that waits for its turn.
TEST(AdminStart, AnInitialModelCanBeCalledOffWhileItLoads) {
  HeldLoad held;
  ServeOptions options;
  options.port = 0;
  options.engine.threads = 2;
  options.admin_keys = {"boss"};
  options.load.progress = held.progress();
  for (const char* const name : {"one", "two", "three"}) options.models.push_back({.names = {name}, .dir = kDemo});
  auto server = Server::create(std::move(options));
  ASSERT_TRUE(server) << server.error().message;
  const uint16_t port = (*server)->port();
  held.arm();
  Status started;
  std::thread starter([&] { started = (*server)->start(); });
  EXPECT_TRUE(held.wait_reached());
  const auto admin = [&](const char* what, const json& body) {
    return ask(port, "POST", fmt::format("/admin/{}", what), body.dump(), kAdmin);
  };
  EXPECT_EQ(admin("unload", {{"model", "two"}, {"wait", true}}).status, 200) << "it waits for its turn";
  EXPECT_EQ(admin("unload", {{"model", "one"}}).status, 202);
  held.release();
  starter.join();
  EXPECT_TRUE(started) << started.error().message;
  EXPECT_TRUE((*server)->ready());
  const json status = json::parse(ask(port, "GET", "/admin/status", "", kAdmin).body);
  ASSERT_EQ(status["models"].size(), 1u) << status.dump();
  EXPECT_EQ(status["models"][0]["model"], "three");
  // The engine has none of them: their names are free.
  for (const char* const name : {"one", "two"}) {
    const Answer again = admin("load", {{"model", kDemo}, {"name", name}, {"wait", true}});
    EXPECT_EQ(again.status, 200) << again.body;
  }
}

// The fault plan's files: each ends as a failed load with its error, and who is served notices nothing.
TEST_F(AdminTest, FilesThatVanishOrSpoilFailTheLoadAlone) {
  HeldLoad held;
  ServeOptions options;
  options.load.progress = held.progress();
  start(options);
  ASSERT_EQ(load("served").status, 200);
  const std::string before = text("served");
  const auto spoiled = [&](const char* name, const std::function<void(const CopiedModel&)>& spoil, bool while_loading,
                           const char* message) {
    SCOPED_TRACE(name);
    const CopiedModel model;
    if (while_loading) {
      held.arm([&] { spoil(model); });
    } else {
      spoil(model);
    }
    std::thread releaser([&] {
      if (while_loading) held.wait_reached();
      held.release();
    });
    const Answer a = load(name, model.dir());
    releaser.join();
    EXPECT_EQ(a.status, 422) << a.body;
    EXPECT_EQ(error_of(a)["code"], "load_failed");
    EXPECT_THAT(error_of(a)["message"].get<std::string>(), HasSubstr(message));
    EXPECT_EQ(state(name), "failed");
    EXPECT_THAT(status(name)["error"]["message"].get<std::string>(), HasSubstr(message));
    EXPECT_EQ(complete(name).status, 404);
    EXPECT_EQ(text("served"), before);
  };
  const auto cut = [](const CopiedModel& m) {
    std::filesystem::resize_file(m.weights(), std::filesystem::file_size(m.weights()) / 2);
  };
  spoiled("cut-before", cut, false, ".safetensors");
  spoiled("cut-while-loading", cut, true, ".safetensors");
  spoiled(
      "no-weights", [](const CopiedModel& m) { std::filesystem::remove(m.weights()); }, false, "safetensors");
  spoiled(
      "no-config", [](const CopiedModel& m) { std::filesystem::remove(m.dir() + "/config.json"); }, false,
      "config.json");
  spoiled(
      "no-json", [](const CopiedModel& m) { std::ofstream(m.dir() + "/config.json") << "{"; }, false, "config.json");
  // A failed model gives its name up, to a load or to an unload.
  EXPECT_EQ(load("cut-before").status, 200);
  EXPECT_EQ(text("cut-before"), before);
  EXPECT_EQ(admin("unload", {{"model", "no-json"}, {"wait", true}}).status, 200);
  EXPECT_EQ(state("no-json"), "unloaded");
}

TEST_F(AdminTest, AnAllocationThatFailsFailsTheLoadAlone) {
  std::atomic<bool> fail{false};
  ServeOptions options;
  options.load.progress = [&](int64_t done, int64_t) {
    if (done > 0 && fail.exchange(false)) throw std::bad_alloc();
  };
  start(options);
  ASSERT_EQ(load("served").status, 200);
  fail = true;
  const Answer a = load("one");
  EXPECT_EQ(a.status, 503) << a.body;
  EXPECT_EQ(error_of(a)["code"], "load_failed");
  EXPECT_THAT(error_of(a)["message"].get<std::string>(), HasSubstr("out of memory"));
  EXPECT_EQ(state("one"), "failed");
  // With memory again, the next try brings it.
  EXPECT_EQ(load("one").status, 200);
  EXPECT_EQ(text("one"), text("served"));
}

// Removed while it loads: the server has it open, so nothing is missing.
TEST_F(AdminTest, AFolderThatIsDeletedWhileItLoadsIsReadToItsEnd) {
  HeldLoad held;
  ServeOptions options;
  options.load.progress = held.progress();
  start(options);
  const CopiedModel model;
  held.arm([&] { std::filesystem::remove_all(model.dir()); });
  ASSERT_EQ(load("gone", model.dir(), false).status, 202);
  ASSERT_TRUE(held.wait_reached());
  held.release();
  ASSERT_TRUE(eventually([&] { return state("gone") != "loading"; }));
  EXPECT_EQ(state("gone"), "ready");
  ASSERT_EQ(load("same").status, 200);
  EXPECT_EQ(text("gone"), text("same"));
}

TEST_F(AdminTest, TheServerGoesDownWhileAModelLoads) {
  HeldLoad held;
  ServeOptions options;
  options.load.progress = held.progress();
  start(options);
  held.arm();
  ASSERT_EQ(load("one", kDemo, false).status, 202);
  ASSERT_TRUE(held.wait_reached());
  Client waiting(port());
  waiting.send(request_text("POST", "/admin/unload?wait", R"({"model":"one"})", kAdmin));
  EXPECT_TRUE(eventually([&] { return state("one") == "draining"; }));
  EXPECT_TRUE(server_->drain(http_testing::kPatienceMs));
  EXPECT_EQ(waiting.answer().status, 202);
  held.release();
  server_.reset();
}

TEST(ModelRegistry, AModelIsHeldByWhoFoundIt) {
  ThreadPool pool(1);
  auto loaded = load_served_model(kDemo, "a", cpu_ops(), {}, pool);
  ASSERT_TRUE(loaded) << loaded.error().message;
  ModelRegistry registry({});
  ASSERT_TRUE(registry.add({.names = {"a", "b"}, .dir = kDemo}));
  EXPECT_EQ(registry.add({.names = {"b"}, .dir = kDemo}).error().status, 409);
  registry.set_ready("a", std::move(*loaded));
  auto found = registry.find("b");
  ASSERT_TRUE(found);
  ASSERT_TRUE(registry.retire("b"));
  EXPECT_EQ(registry.find("a").error().status, 404);
  // I3: while somebody holds it, its names are taken.
  EXPECT_EQ(registry.view("a")->stage, ModelStage::kDraining);
  EXPECT_EQ(registry.add({.names = {"a"}, .dir = kDemo}).error().status, 409);
  EXPECT_EQ((*found)->served->name, "a");
  found = no_such_model("");
  EXPECT_FALSE(registry.view("a"));
  EXPECT_TRUE(registry.add({.names = {"a"}, .dir = kDemo}));
}

}  // namespace
}  // namespace hearth
