// SPDX-License-Identifier: Apache-2.0
// `hearth serve` as a process: its first line, its signals, its files, and what it refuses. What it answers is
// tested with real clients.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/e2e/process.h"

namespace hearth::e2e {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::MatchesRegex;

constexpr int kWrongInput = 2, kNotFound = 3, kUnavailable = 8;

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

TEST(Serve, SaysWhereItIsAndEndsCleanlyAtASignal) {
  const fs::path pid_file = fs::path(testing::TempDir()) / "hearth_e2e_serve.pid";
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
