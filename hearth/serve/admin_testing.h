// SPDX-License-Identifier: Apache-2.0
// For tests of the admin API: a server with an admin key, what its operator and its clients say to it, and a load that
// stands still. Tests only.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "hearth/serve/http_testing.h"
#include "hearth/serve/server.h"

namespace hearth::admin_testing {

using http_testing::Answer;
using http_testing::ask;
using nlohmann::json;

inline constexpr const char* kDemo = "models/fable-13m";
inline constexpr const char* kAdmin = "authorization: Bearer boss\r\n";

inline std::unique_ptr<Server> make_server(ServeOptions options) {
  options.port = 0;
  options.engine.threads = 2;
  options.admin_keys = {"boss"};
  auto server = Server::create(std::move(options));
  HEARTH_CHECK(server.has_value(), "{}", server.error().message);
  const Status started = (*server)->start();
  HEARTH_CHECK(started.has_value(), "{}", started.error().message);
  return std::move(*server);
}

// A server and what its operator and its clients say to it.
class AdminTest : public ::testing::Test {
 protected:
  void start(ServeOptions options = {}) { server_ = make_server(std::move(options)); }
  uint16_t port() const { return server_->port(); }

  Answer admin(std::string_view what, const json& body) const {
    return ask(port(), "POST", fmt::format("/admin/{}", what), body.dump(), kAdmin);
  }
  Answer load(const std::string& name, const std::string& dir = kDemo, bool wait = true) const {
    return admin("load", {{"model", dir}, {"name", name}, {"wait", wait}});
  }
  json status(const std::string& model = "") const {
    const Answer a = ask(port(), "GET", "/admin/status" + (model.empty() ? "" : "/" + model), "", kAdmin);
    return a.status == 200 ? json::parse(a.body) : json{{"state", "unloaded"}};
  }
  std::string state(const std::string& model) const { return status(model)["state"]; }
  Answer complete(const std::string& model, int max_tokens = 4) const {
    const json body = {
        {"model", model}, {"prompt", "It was"}, {"max_tokens", max_tokens}, {"seed", 7}, {"ignore_eos", true}};
    return ask(port(), "POST", "/v1/completions", body.dump());
  }
  std::string text(const std::string& model, int max_tokens = 24) const {
    const Answer a = complete(model, max_tokens);
    EXPECT_EQ(a.status, 200) << a.body;
    return a.status == 200 ? json::parse(a.body)["choices"][0]["text"].get<std::string>() : "";
  }

  std::unique_ptr<Server> server_;
};

inline json error_of(const Answer& answer) { return json::parse(answer.body)["error"]; }

// A load stands still at its first tensor for as long as the test wants.
class HeldLoad {
 public:
  LoadProgress progress() {
    return [this](int64_t done, int64_t) {
      if (done == 0 || !hold_.load()) return;
      if (at_first_) at_first_();
      reached_ = true;
      while (hold_.load()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    };
  }
  void arm(std::function<void()> at_first = {}) {
    at_first_ = std::move(at_first);
    reached_ = false;
    hold_ = true;
  }
  bool wait_reached() {
    return http_testing::eventually([this] { return reached_.load(); });
  }
  void release() { hold_ = false; }

 private:
  std::function<void()> at_first_;
  std::atomic<bool> hold_{false}, reached_{false};
};

}  // namespace hearth::admin_testing
