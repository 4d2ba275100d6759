// SPDX-License-Identifier: Apache-2.0
// hearth bench serve --load as its users run it, against a real server with two small models.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "hearth/cli/app.h"
#include "hearth/serve/http_testing.h"
#include "hearth/serve/server.h"
#include "hearth/simulate/load_file.h"

namespace hearth {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

// Model a has targets that any machine keeps, b one that none does.
constexpr const char* kLoad = R"(
seed = 11
seconds = 2
warmup_seconds = 0.5
rate = 12
pool_mib = 64
[[model]]
name = "a"
layers = 6
kv_token_bytes = 4096
step_us = 1000
prefill_token_us = 10
ttft_ms = 3600000
tpot_ms = 3600000
cv = 1.5
lengths = "lengths.csv"
[[model]]
name = "b"
layers = 6
kv_token_bytes = 4096
step_us = 1000
prefill_token_us = 10
ttft_ms = 0.001
popularity = 0.4
lengths = "lengths.csv"
max_output_tokens = 3
)";

struct Ran {
  int code = 0;
  std::string out, err;
};

class BenchServeTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    ServeOptions options;
    options.port = 0;
    options.engine.threads = 2;
    options.http.body_bytes = 1500;
    options.models = {{.names = {"a"}, .dir = "models/fable-13m"}, {.names = {"b"}, .dir = "models/fable-13m"}};
    auto server = Server::create(std::move(options));
    HEARTH_CHECK(server.has_value(), "{}", server.error().message);
    HEARTH_CHECK((*server)->start().has_value(), "the server does not start");
    server_ = std::move(*server);
  }
  static void TearDownTestSuite() { server_.reset(); }

  void SetUp() override {
    dir_ = std::filesystem::path(testing::TempDir()) / testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::create_directories(dir_);
    std::ofstream(dir_ / "lengths.csv") << "probability,input_tokens,output_tokens\n0,2,1\n1,16,5\n";
    write_load(kLoad);
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  void write_load(const std::string& text) { std::ofstream(dir_ / "load.toml") << text; }
  std::string path(const char* name) const { return (dir_ / name).string(); }

  Ran run(const std::vector<std::string>& more) {
    const std::string url = fmt::format("http://127.0.0.1:{}", server_->port());
    std::vector<std::string> words = {"hearth", "bench", "serve", "--base-url", url, "-q", "--load", path("load.toml")};
    words.insert(words.end(), more.begin(), more.end());
    std::vector<const char*> args;
    for (const std::string& word : words) args.push_back(word.c_str());
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    Ran ran;
    ran.code = run_command_line(args);
    ran.out = testing::internal::GetCapturedStdout();
    ran.err = testing::internal::GetCapturedStderr();
    return ran;
  }

  // Of both models together.
  static int64_t metric(const std::string& name) {
    const std::string text = http_testing::ask(server_->port(), "GET", "/metrics").body;
    int64_t sum = 0;
    for (size_t at = 0; (at = text.find("\n" + name + "{", at)) != std::string::npos; ++at)
      sum += std::stoll(text.substr(text.find("} ", at) + 2));
    return sum;
  }
  static int64_t requests_served() { return metric("vllm:request_success_total"); }

  std::filesystem::path dir_;
  static std::unique_ptr<Server> server_;
};
std::unique_ptr<Server> BenchServeTest::server_;

TEST_F(BenchServeTest, PlaysTheLoadThatTheSimulatorPlays) {
  const Load load = read_load(path("load.toml")).value();
  ASSERT_EQ(load.models[1].max_output_tokens, 3);
  const std::vector<LoadRequest> played = draw_requests(load);
  std::array<int64_t, 2> requests{}, prompt_tokens{}, output_tokens{}, judged{};
  for (const LoadRequest& r : played) {
    const auto m = static_cast<size_t>(r.model);
    ++requests[m];
    prompt_tokens[m] += r.input_tokens;
    output_tokens[m] += r.output_tokens;
    judged[m] += static_cast<double>(r.arrival_us) >= load.warmup_seconds * 1e6;
  }
  ASSERT_GT(std::min(judged[0], judged[1]), 3);
  ASSERT_GT(requests[0] + requests[1], judged[0] + judged[1]);
  const int64_t answers = metric("hearth_slo_answers_total"), attained = metric("hearth_slo_attained_total");

  const Ran ran = run({"--json", "--save-requests", path("requests.jsonl"), "--plot", path("run.svg"), "--strict"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const json told = json::parse(ran.out);
  EXPECT_EQ(told.at("seed"), 11);
  EXPECT_EQ(told.at("load").at("file"), "load.toml");
  EXPECT_EQ(told.at("completed"), requests[0] + requests[1]);
  const std::array<const char*, 2> names = {"a", "b"};
  for (size_t m = 0; m < 2; ++m) {
    const json& model = told.at("models").at(names[m]);
    EXPECT_EQ(model.at("planned"), requests[m]);
    EXPECT_EQ(model.at("completed"), requests[m]);
    EXPECT_EQ(model.at("failed"), 0);
    EXPECT_EQ(model.at("total_input_tokens"), prompt_tokens[m]);
    EXPECT_EQ(model.at("total_output_tokens"), output_tokens[m]);
    EXPECT_EQ(model.at("slo").at("answers"), judged[m]);
    EXPECT_EQ(model.at("slo").at("attained"), m == 0 ? judged[m] : 0);
    EXPECT_EQ(model.at("slo").at("first_late"), m == 0 ? 0 : judged[m]);
  }
  // The targets went with the requests: the server has judged by them, the warm-up too. Its least one is 1 ms. It counts
  // an answer a moment after its client has all of it.
  const int64_t wanted = answers + requests[0] + requests[1];
  for (int i = 0; i < 500 && metric("hearth_slo_answers_total") < wanted; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(metric("hearth_slo_answers_total"), wanted);
  EXPECT_GE(metric("hearth_slo_attained_total") - attained, requests[0]);

  std::ifstream lines(path("requests.jsonl"));
  std::set<size_t> seen;
  for (std::string text; std::getline(lines, text);) {
    const json line = json::parse(text);
    const size_t i = line.at("index");
    ASSERT_TRUE(seen.insert(i).second);
    EXPECT_EQ(line.at("model"), names[static_cast<size_t>(played[i].model)]);
    EXPECT_NEAR(line.at("arrival_s"), static_cast<double>(played[i].arrival_us) * 1e-6, 1e-6);
    EXPECT_EQ(line.at("input_tokens"), played[i].input_tokens);
    EXPECT_EQ(line.at("prompt_tokens"), played[i].input_tokens);
    EXPECT_EQ(line.at("completion_tokens"), played[i].output_tokens);
    EXPECT_EQ(line.at("seed"), 11);
    EXPECT_LE(line.at("arrival_s"), line.at("sent_s").get<double>() + 1e-6);
    EXPECT_LE(line.at("sent_s"), line.at("first_s"));
    EXPECT_LE(line.at("first_s"), line.at("end_s"));
  }
  EXPECT_EQ(seen.size(), played.size());
  std::ifstream svg(path("run.svg"));
  const std::string picture{std::istreambuf_iterator<char>(svg), {}};
  EXPECT_THAT(picture, AllOf(HasSubstr("requests in flight"), HasSubstr("attained"), HasSubstr("</svg>")));
}

TEST_F(BenchServeTest, TheCommandLineChangesTheLoad) {
  Load load = read_load(path("load.toml")).value();
  load.rate = 8;
  load.rate_scale = 2;
  load.seed = 12;
  load.seconds = 1;
  const Ran ran = run({"--request-rate", "8", "--rate-scale", "2", "--seed", "12", "--seconds", "1"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  const size_t count = draw_requests(load).size();
  EXPECT_THAT(ran.out,
              HasSubstr(fmt::format("== all models\nRequests done{:>43}\n", fmt::format("{0} of {0}", count))));
  EXPECT_THAT(ran.out, AllOf(HasSubstr("== a\n"), HasSubstr("== b\n"), HasSubstr("Kept their targets (%)"),
                             HasSubstr("Sent later than due")));
}

TEST_F(BenchServeTest, WhatCannotBePlayedIsToldBeforeAnythingIsSent) {
  const int64_t before = requests_served();
  const auto refused = [&](const std::vector<std::string>& more, int code, const std::string& message) {
    const Ran ran = run(more);
    EXPECT_EQ(ran.code, code) << message;
    EXPECT_THAT(ran.err, HasSubstr(message));
    EXPECT_EQ(ran.out, "");
  };
  refused({"--model", "a"}, 2, "--model excludes --load");
  refused({"--endpoint", "/v1/chat/completions"}, 2, "--load takes /v1/completions alone");
  refused({"--request-rate", "inf"}, 2, "wanted a number");
  refused({"--seconds", "0.2"}, 2, "--seconds");
  refused({"--save-requests", "/nowhere/x"}, 8, "--save-requests: cannot open /nowhere/x");
  refused({"--plot", "/nowhere/x"}, 8, "--plot: cannot open /nowhere/x");

  const std::string text = kLoad;
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string changed = text;
    changed.replace(changed.find(from), from.size(), to);
    write_load(changed);
  };
  with("name = \"b\"", "name = \"c\"");
  refused({}, 3, "the server lacks models of");
  refused({}, 3, "load.toml: c; it has: a, b");
  with("name = \"b\"", "name = \"a\"");
  refused({}, 2, "a second model 'a'");
  with("max_output_tokens = 3", "max_output_token = 3");
  refused({}, 2, "unknown key 'max_output_token'");
  with("seconds = 2", "seconds = ");
  refused({}, 4, "load.toml:3");
  std::ofstream(dir_ / "lengths.csv") << "probability,input_tokens,output_tokens\n0,2,1\n1,4000,9\n";
  write_load(text);
  refused({}, 2, "longer than the context of 1024 tokens of 'a'");
  std::filesystem::remove(dir_ / "lengths.csv");
  refused({}, 3, "lengths.csv: cannot be read");
  EXPECT_EQ(requests_served(), before);
}

TEST_F(BenchServeTest, FailuresAreToldAndStrictMakesThemAnError) {
  const Ran all_bad = run({"--extra-body", R"({"priority": "high"})", "--seconds", "1"});
  EXPECT_EQ(all_bad.code, 8);
  EXPECT_THAT(all_bad.err, AllOf(HasSubstr("requests failed"), HasSubstr("succeeded")));
  EXPECT_THAT(all_bad.out, HasSubstr("HTTP 400"));

  // The server takes no bodies as long as b's prompts; a goes on.
  std::string text = kLoad;
  text.replace(text.rfind("lengths.csv"), 11, "long.csv");
  write_load(text);
  std::ofstream(dir_ / "long.csv") << "probability,input_tokens,output_tokens\n0,600,1\n1,700,9\n";
  const Ran some = run({"--seconds", "1"});
  EXPECT_EQ(some.code, 0) << some.err;
  EXPECT_THAT(some.err, AllOf(HasSubstr("requests failed"), HasSubstr("for 'b' succeeded")));
  EXPECT_THAT(some.out, HasSubstr("HTTP 413"));
  EXPECT_EQ(run({"--strict", "--seconds", "1"}).code, 8);
}

}  // namespace
}  // namespace hearth
