// SPDX-License-Identifier: Apache-2.0
// `hearth serve` as a process: its first line, its signals, its files, and what it refuses. What it answers is
// tested with real clients.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>
#include <thread>

#include "tests/e2e/process.h"

namespace hearth::e2e {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::MatchesRegex;

constexpr int kWrongInput = 2, kNotFound = 3, kDeadline = 7, kUnavailable = 8;

ProcessResult serve(std::vector<std::string> more, const ProcessOptions& options = {}) {
  more.insert(more.begin(), "serve");
  return run_hearth(std::move(more), options);
}

// A port that is taken while this lives.
class TakenPort {
 public:
  TakenPort() : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    const bool bound = ::bind(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 &&
                       ::listen(socket_, 1) == 0 &&
                       ::getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size) == 0;
    EXPECT_TRUE(bound);
    port_ = ntohs(address.sin_port);
  }
  ~TakenPort() { ::close(socket_); }
  std::string port() const { return std::to_string(port_); }

 private:
  int socket_;
  uint16_t port_ = 0;
};

// A server that runs while this lives, or until it is signalled.
class RunningServer {
 public:
  explicit RunningServer(const std::string& name, std::vector<std::string> more = {})
      : out_(fs::path(testing::TempDir()) / ("hearth_e2e_" + name + ".out")) {
    std::ofstream(out_, std::ios::trunc).close();  // run_process() writes into a file that is there
    more.insert(more.begin(), {"models/fable-13m", "--port", "0"});
    thread_ = std::thread([this, more] { result_ = serve(more, {.stdout_path = out_.string(), .timeout_s = 60}); });
    const std::regex line("http://127\\.0\\.0\\.1:([0-9]+) \\(pid ([0-9]+)\\)");
    for (int i = 0; i < 600 && pid_ == 0; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      std::ifstream file(out_);
      const std::string text(std::istreambuf_iterator<char>(file), {});
      std::smatch match;
      if (!std::regex_search(text, match, line)) continue;
      port_ = static_cast<uint16_t>(std::stoi(match[1]));
      pid_ = std::stoi(match[2]);
    }
    EXPECT_NE(pid_, 0) << "not ready after 30 s";
  }
  ~RunningServer() {
    signal(SIGKILL);
    if (thread_.joinable()) thread_.join();
    fs::remove(out_);
  }

  void signal(int number) const {
    if (pid_ != 0) ::kill(pid_, number);
  }
  ProcessResult wait() {
    thread_.join();
    return result_;
  }

  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }

  // A connection on which a stream of `tokens` tokens has begun.
  int begin_stream(int tokens) const {
    const int connection = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port_);
    EXPECT_EQ(::connect(connection, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    const std::string body =
        "{\"prompt\": \"It was\", \"ignore_eos\": true, \"stream\": true, \"max_tokens\": " + std::to_string(tokens) +
        "}";
    const std::string request =
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" +
        ("Content-Length: " + std::to_string(body.size()) + "\r\n\r\n") + body;
    EXPECT_EQ(::send(connection, request.data(), request.size(), MSG_NOSIGNAL), std::ssize(request));
    char first = 0;
    EXPECT_EQ(::recv(connection, &first, 1, MSG_PEEK), 1);
    return connection;
  }
  // The rest of a stream; closes it.
  static std::string read_all(int connection) {
    std::string text;
    char buffer[4096];
    ssize_t got = 0;
    while ((got = ::recv(connection, buffer, sizeof buffer, 0)) > 0) text.append(buffer, static_cast<size_t>(got));
    ::close(connection);
    return text;
  }

 private:
  const fs::path out_;
  std::thread thread_;
  ProcessResult result_;
  uint16_t port_ = 0;
  int pid_ = 0;
};

TEST(Serve, ASignalLetsAnswersInProgressEnd) {
  RunningServer server("drain");
  const int stream = server.begin_stream(400);
  server.signal(SIGTERM);
  EXPECT_THAT(RunningServer::read_all(stream), HasSubstr("data: [DONE]"));
  const ProcessResult result = server.wait();
  EXPECT_EQ(result.exit_code, 0) << "signal " << result.signal << "\n" << result.err;
}

TEST(Serve, AfterTheDrainTimeoutAnswersEndWithAnError) {
  RunningServer server("timeout", {"--drain-timeout", "0.05"});
  const int stream = server.begin_stream(1000);
  server.signal(SIGINT);
  const std::string text = RunningServer::read_all(stream);
  EXPECT_THAT(text, HasSubstr("data: {\"error\""));
  EXPECT_EQ(text.find("[DONE]"), std::string::npos);
  const ProcessResult result = server.wait();
  EXPECT_EQ(result.exit_code, kDeadline) << result.err;
  EXPECT_THAT(result.err, HasSubstr("--drain-timeout"));
}

TEST(Serve, ASecondSignalEndsItAtOnce) {
  const fs::path pid_file = fs::path(testing::TempDir()) / "hearth_e2e_second.pid";
  RunningServer server("second", {"--pid-file", pid_file.string(), "--drain-timeout", "50"});
  const int stream = server.begin_stream(1000);
  EXPECT_TRUE(fs::exists(pid_file));
  const ProcessResult other = serve({"models/fable-13m", "--port", "0", "--pid-file", pid_file.string()});
  EXPECT_EQ(other.exit_code, kUnavailable) << other.err;
  EXPECT_THAT(other.err, HasSubstr("belongs to a server that runs"));
  EXPECT_TRUE(fs::exists(pid_file)) << "the file of the one that runs";
  server.signal(SIGTERM);
  std::this_thread::sleep_for(std::chrono::milliseconds(200));  // two of one kind at once are one
  server.signal(SIGTERM);
  const ProcessResult result = server.wait();
  EXPECT_EQ(result.exit_code, 128 + SIGTERM) << result.err;
  EXPECT_FALSE(fs::exists(pid_file));
  RunningServer::read_all(stream);
}

TEST(Serve, SaysWhereItIsAndEndsCleanlyAtASignal) {
  const fs::path pid_file = fs::path(testing::TempDir()) / "hearth_e2e_serve.pid";
  std::ofstream(pid_file) << "1\n";  // left behind: process 1 is another program
  const ProcessResult result = serve({"models/fable-13m", "--port", "0", "--pid-file", pid_file.string()},
                                     {.interrupt_after_bytes = 1, .timeout_s = 60});
  EXPECT_EQ(result.exit_code, 0) << "signal " << result.signal << "\n" << result.err;
  EXPECT_THAT(result.out,
              MatchesRegex("hearth: serving fable-13m on http://127\\.0\\.0\\.1:[0-9]+ \\(pid [0-9]+\\)\n"));
  EXPECT_EQ(result.out.find(":0 "), std::string::npos) << result.out;
  EXPECT_FALSE(fs::exists(pid_file));
  EXPECT_EQ(result.err.find("API key"), std::string::npos) << result.err;
}

TEST(Serve, SeveralModelsAndAnOpenAddressWithAWarning) {
  const ProcessResult result =
      serve({"--model", "a,b=models/fable-13m", "--model", "c=models/fable-13m", "--host", "0.0.0.0", "--port", "0"},
            {.interrupt_after_bytes = 1, .timeout_s = 60});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("serving a, c on http://0.0.0.0:"));
  EXPECT_THAT(result.err, HasSubstr("no API key"));
  const ProcessResult with_key =
      serve({"models/fable-13m", "--host", "0.0.0.0", "--port", "0"},
            {.environment = {{"HEARTH_API_KEY", "k"}}, .interrupt_after_bytes = 1, .timeout_s = 60});
  EXPECT_EQ(with_key.exit_code, 0) << with_key.err;
  EXPECT_EQ(with_key.err.find("no API key"), std::string::npos) << with_key.err;
}

TEST(Clients, ADialogueWithAServerIsTheDialogueWithTheModel) {
  RunningServer server("chat");
  const ProcessOptions dialogue = {.stdin_text = "Tell me of the sea.\nAnd of the captain?\n", .timeout_s = 60};
  const std::vector<std::string> sampling = {"--temperature", "0", "--max-tokens", "24"};
  std::vector<std::string> remote = {"chat", "--base-url", server.url()}, local = {"chat", "models/fable-13m"};
  remote.insert(remote.end(), sampling.begin(), sampling.end());
  local.insert(local.end(), sampling.begin(), sampling.end());
  const ProcessResult answered = run_hearth(remote, dialogue);
  EXPECT_EQ(answered.exit_code, 0) << answered.err;
  EXPECT_GT(answered.out.size(), 40u);
  EXPECT_EQ(answered.out, run_hearth(local, dialogue).out);
  EXPECT_THAT(answered.err, HasSubstr("tokens/s"));
}

TEST(Clients, ABenchmarkCountsWhatTheServerDid) {
  RunningServer server("bench");
  const fs::path file = fs::path(testing::TempDir()) / "hearth_e2e_bench.jsonl";
  fs::remove(file);
  const std::vector<std::string> load = {
      "bench",          "serve",      "--base-url",         server.url(), "--num-prompts",       "6",
      "--request-rate", "50",         "--random-input-len", "20",         "--random-output-len", "10",
      "--save-result",  file.string()};
  const ProcessResult result = run_hearth(load, {.timeout_s = 60});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("Time to first token"));
  std::ifstream in(file);
  const nlohmann::json line = nlohmann::json::parse(in);
  EXPECT_NE(line.dump().find("\"completed\":6"), std::string::npos) << line.dump(1);
  server.signal(SIGKILL);
  server.wait();
  EXPECT_EQ(run_hearth(load, {.timeout_s = 60}).exit_code, kUnavailable);
  fs::remove(file);
}

// Requests leave when the trace says, with its lengths; the second trace has lengths alone, and Poisson's times.
TEST(Clients, ABenchmarkReplaysATrace) {
  RunningServer server("trace");
  const fs::path dir = fs::path(testing::TempDir()) / "hearth_e2e_trace";
  fs::create_directories(dir);
  std::ofstream(dir / "azure.csv") << "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.0000000,20,5\n"
                                      "2023-11-16 18:15:48.0000000,30,7\n2023-11-16 18:15:50.0000000,10,9\n";
  std::ofstream(dir / "lengths.csv") << "num_prefill_tokens,num_decode_tokens\n12,3\n14,4\n";
  const auto replay = [&](const char* trace, std::vector<std::string> more) {
    std::vector<std::string> load = {"bench", "serve",          "--base-url",           server.url(), "--dataset",
                                     "trace", "--dataset-path", (dir / trace).string(), "--json",     "-q"};
    load.insert(load.end(), more.begin(), more.end());
    const ProcessResult result = run_hearth(load, {.timeout_s = 60});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return nlohmann::json::parse(result.out, nullptr, false);
  };
  const nlohmann::json azure = replay("azure.csv", {"--trace-scale", "0.25"});
  EXPECT_EQ(azure.value("completed", 0), 3) << azure.dump(1);
  EXPECT_EQ(azure.value("total_input_tokens", 0), 60);
  EXPECT_EQ(azure.value("total_output_tokens", 0), 21);
  EXPECT_EQ(azure.value("request_rate", ""), "trace");
  // A quarter of the four seconds to the last request.
  EXPECT_GE(azure.value("duration_s", 0.0), 1.0);
  for (const char* metric : {"p99_ttft_ms", "p50_tpot_ms", "p90_itl_ms"}) EXPECT_TRUE(azure.contains(metric)) << metric;
  const nlohmann::json lengths = replay("lengths.csv", {"--request-rate", "20"});
  EXPECT_EQ(lengths.value("completed", 0), 2) << lengths.dump(1);
  EXPECT_EQ(lengths.value("total_output_tokens", 0), 7);
  fs::remove_all(dir);
}

TEST(Serve, RefusesWhatCannotBe) {
  const auto expect_error = [](const ProcessResult& result, int exit_code, std::initializer_list<std::string> parts) {
    EXPECT_EQ(result.exit_code, exit_code) << result.err;
    EXPECT_EQ(result.out, "");
    EXPECT_THAT(result.err, HasSubstr("hearth: error: "));
    for (const std::string& part : parts) EXPECT_THAT(result.err, HasSubstr(part));
  };
  const TakenPort taken;
  const fs::path pid_file = fs::path(testing::TempDir()) / "hearth_e2e_refused.pid";
  expect_error(serve({"models/fable-13m", "--port", taken.port(), "--pid-file", pid_file.string()}), kUnavailable,
               {taken.port()});
  EXPECT_FALSE(fs::exists(pid_file));
  expect_error(serve({}), kWrongInput, {"no model", "hearth serve MODEL"});
  expect_error(serve({"/nowhere/model"}), kNotFound, {"/nowhere/model"});
  expect_error(serve({"a=models/fable-13m", "a=models/fable-13m", "--port", "0"}), kWrongInput,
               {"two models are called a"});
  expect_error(serve({"models/fable-13m", "--prot", "1"}), kWrongInput, {"--prot", "did you mean --port?"});
  expect_error(serve({"models/fable-13m", "--max-model-len", "99999", "--port", "0"}), kWrongInput, {"99999", "1024"});
  expect_error(serve({"models/fable-13m", "--config", "/nowhere.toml"}), kNotFound, {"--config", "/nowhere.toml"});
}

TEST(Serve, ShowsItsSettingsWithoutKeys) {
  const ProcessResult result = serve({"--show-config", "--port", "9000"},
                                     {.environment = {{"HEARTH_API_KEY", "hidden"}, {"HEARTH_HTTP_THREADS", "3"}}});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("port = 9000"));
  EXPECT_THAT(result.out, HasSubstr("# --port"));
  EXPECT_THAT(result.out, HasSubstr("# HEARTH_HTTP_THREADS"));
  EXPECT_EQ(result.out.find("hidden"), std::string::npos) << result.out;
}

}  // namespace
}  // namespace hearth::e2e
