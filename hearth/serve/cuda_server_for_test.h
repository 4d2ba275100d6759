// SPDX-License-Identifier: Apache-2.0
// Test support: a server of fable-13m over a GPU, requests to it, and the golden texts. Tests only; any thread.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "hearth/serve/http_testing.h"
#include "hearth/serve/server.h"

namespace hearth {

using http_testing::Answer;
using nlohmann::json;

inline Answer post(uint16_t port, const json& body) {
  http_testing::Client client(port);
  const std::string text = body.dump();
  client.send(
      fmt::format("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{}", text.size(), text));
  return client.answer();
}

struct Golden {
  std::vector<int32_t> prompt;
  std::string text;
};

inline std::vector<Golden> golden() {
  std::ifstream file("models/fable-13m/golden.json");
  const json document = json::parse(file);
  std::vector<Golden> all;
  for (const json& prompt : document["prompts"])
    all.push_back({prompt["ids"].get<std::vector<int32_t>>(), prompt["greedy48_text"].get<std::string>()});
  return all;
}

inline std::unique_ptr<Server> make_server(DType activation, bool graphs) {
  ServeOptions options;
  options.port = 0;
  options.ops = cuda_ops();
  options.load.activation = activation;
  options.engine.threads = 4;
  options.engine.max_sequences = 16;
  options.engine.decode_graphs = graphs;
  options.models = {{.names = {"fable"}, .dir = "models/fable-13m"}};
  auto server = Server::create(std::move(options));
  HEARTH_CHECK(server.has_value(), "{}", server.error().message);
  const Status started = (*server)->start();
  HEARTH_CHECK(started.has_value(), "{}", started.error().message);
  return std::move(*server);
}

inline json request_of(const Golden& g) {
  return {{"model", "fable"}, {"prompt", g.prompt}, {"max_tokens", 48}, {"temperature", 0}, {"ignore_eos", true}};
}

inline std::string text_of(const Answer& answer) {
  EXPECT_EQ(answer.status, 200) << answer.body;
  return answer.status == 200 ? json::parse(answer.body)["choices"][0]["text"].get<std::string>() : "";
}

// Every prompt's text, `copies` times and all at once.
inline std::vector<std::vector<std::string>> all_at_once(uint16_t port, const std::vector<Golden>& prompts,
                                                         size_t copies) {
  std::vector<std::vector<std::string>> texts(prompts.size(), std::vector<std::string>(copies));
  std::vector<std::thread> clients;
  for (size_t p = 0; p < prompts.size(); ++p)
    for (size_t c = 0; c < copies; ++c)
      clients.emplace_back([&, p, c] { texts[p][c] = text_of(post(port, request_of(prompts[p]))); });
  for (std::thread& client : clients) client.join();
  return texts;
}

}  // namespace hearth
