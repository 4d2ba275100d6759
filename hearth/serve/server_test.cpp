// SPDX-License-Identifier: Apache-2.0
// The server as clients meet it: sockets, the real engine, the demo model. Whole answers and streams must agree, every
// limit must answer, and who leaves must leave nothing behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "hearth/serve/http_testing.h"
#include "hearth/serve/server.h"

namespace hearth {
namespace {

using http_testing::Answer;
using http_testing::ask;
using http_testing::Client;
using http_testing::eventually;
using http_testing::request_text;
using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::unique_ptr<Server> make_server(ServeOptions options) {
  options.port = 0;
  options.engine.threads = 2;
  if (options.models.empty()) options.models = {{.names = {"fable", "org/alias"}, .dir = "models/fable-13m"}};
  auto server = Server::create(std::move(options));
  HEARTH_CHECK(server.has_value(), "{}", server.error().message);
  const Status started = (*server)->start();
  HEARTH_CHECK(started.has_value(), "{}", started.error().message);
  return std::move(*server);
}

// A number of /metrics, of the demo model.
std::string metric(uint16_t port, const std::string& name) {
  const std::string text = ask(port, "GET", "/metrics").body;
  const size_t at = text.find("\n" + name + "{");
  if (at == std::string::npos) return "none";
  const size_t space = text.find("} ", at) + 2;
  return text.substr(space, text.find('\n', space) - space);
}

class ServerTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { server_ = make_server({}); }
  static void TearDownTestSuite() { server_.reset(); }
  static Answer get(std::string_view path) { return ask(server_->port(), "GET", path); }
  static Answer post(std::string_view path, const json& body) {
    return ask(server_->port(), "POST", path, body.dump());
  }
  static json completion(const json& body) {
    const Answer a = post("/v1/completions", body);
    EXPECT_EQ(a.status, 200) << a.body;
    return json::parse(a.body);
  }
  // Every data of a stream but [DONE], which must be there.
  static std::vector<json> stream(std::string_view path, json body) {
    body["stream"] = true;
    const Answer a = post(path, body);
    EXPECT_EQ(a.status, 200) << a.body;
    EXPECT_TRUE(a.whole);
    EXPECT_EQ(a.headers.at("content-type"), "text/event-stream; charset=utf-8");
    std::vector<json> events;
    std::string_view rest = a.body;
    EXPECT_TRUE(rest.ends_with("data: [DONE]\n\n"));
    while (rest.starts_with("data: {")) {
      const size_t end = rest.find("\n\n");
      events.push_back(json::parse(rest.substr(6, end - 6)));
      rest.remove_prefix(end + 2);
    }
    EXPECT_EQ(rest, "data: [DONE]\n\n");
    return events;
  }

  static std::unique_ptr<Server> server_;
};
std::unique_ptr<Server> ServerTest::server_;

TEST_F(ServerTest, AnswersTheSmallRoutes) {
  for (const char* path : {"/health", "/health/live", "/health/ready", "/ping"}) {
    const Answer a = get(path);
    EXPECT_EQ(a.status, 200) << path;
    EXPECT_EQ(a.body, R"({"status":"ok"})");
    EXPECT_TRUE(a.headers.contains("x-request-id"));
  }
  EXPECT_TRUE(json::parse(get("/version").body)["version"].is_string());
  const json list = json::parse(get("/v1/models").body);
  EXPECT_EQ(list["object"], "list");
  ASSERT_EQ(list["data"].size(), 2u);
  const json& card = list["data"][1];
  EXPECT_EQ(card["id"], "org/alias");
  EXPECT_EQ(card["root"], "fable");
  EXPECT_EQ(card["max_model_len"], 1024);
  EXPECT_EQ(json::parse(get("/v1/models/org/alias").body), card);
  EXPECT_EQ(json::parse(get("/v1/models/org%2Falias").body), card);
  EXPECT_EQ(get("/v1/models/other").status, 404);
  EXPECT_EQ(get("/nowhere").status, 404);
  const Answer wrong = get("/v1/completions");
  EXPECT_EQ(wrong.status, 405);
  EXPECT_EQ(wrong.headers.at("allow"), "POST");
  EXPECT_THAT(get("/metrics").headers.at("content-type"), HasSubstr("text/plain; version=0.0.4"));
}

TEST_F(ServerTest, StreamsSayWhatWholeAnswersSay) {
  const json body = {{"prompt", "It was a bright morning"},
                     {"max_tokens", 24},
                     {"seed", 5},
                     {"n", 2},
                     {"logprobs", 2},
                     {"echo", true}};
  const json whole = completion(body);
  std::vector<std::string> texts(2), reasons(2);
  std::vector<json> logprobs(2, json::array()), tokens(2, json::array()), offsets(2, json::array());
  for (const json& event : stream("/v1/completions", body)) {
    const json& choice = event["choices"][0];
    const size_t index = choice["index"];
    texts[index] += choice["text"].get<std::string>();
    if (!choice["finish_reason"].is_null()) reasons[index] = choice["finish_reason"];
    for (const json& one : choice["logprobs"]["token_logprobs"]) logprobs[index].push_back(one);
    for (const json& one : choice["logprobs"]["tokens"]) tokens[index].push_back(one);
    for (const json& one : choice["logprobs"]["text_offset"]) offsets[index].push_back(one);
  }
  for (size_t i = 0; i < 2; ++i) {
    const json& choice = whole["choices"][i];
    EXPECT_EQ(texts[i], choice["text"]);
    EXPECT_EQ(reasons[i], choice["finish_reason"]);
    EXPECT_EQ(logprobs[i], choice["logprobs"]["token_logprobs"]);
    EXPECT_EQ(tokens[i], choice["logprobs"]["tokens"]);
    EXPECT_EQ(offsets[i], choice["logprobs"]["text_offset"]);
    EXPECT_EQ(tokens[i].size(), whole["usage"]["prompt_tokens"].get<size_t>() + 24);
  }
  EXPECT_NE(texts[0], texts[1]);
  EXPECT_EQ(whole["usage"]["completion_tokens"], 48);
}

TEST_F(ServerTest, ChatStreamsSayWhatWholeAnswersSay) {
  json body = {{"model", "fable"},
               {"messages", {{{"role", "user"}, {"content", "Tell me of the sea."}}}},
               {"max_completion_tokens", 16},
               {"temperature", 0},
               {"stream_options", nullptr}};
  const Answer a = post("/v1/chat/completions", body);
  ASSERT_EQ(a.status, 200) << a.body;
  const json whole = json::parse(a.body);
  body["stream_options"] = {{"include_usage", true}};
  const std::vector<json> events = stream("/v1/chat/completions", body);
  std::string text;
  for (const json& event : events)
    for (const json& choice : event["choices"]) text += choice["delta"].value("content", "");
  EXPECT_EQ(text, whole["choices"][0]["message"]["content"]);
  EXPECT_EQ(events.front()["choices"][0]["delta"], json({{"role", "assistant"}, {"content", ""}}));
  EXPECT_EQ(events.back()["choices"], json::array());
  json usage = whole["usage"];
  usage["prompt_tokens_details"]["cached_tokens"] = 16;  // a block of 18 tokens: the whole answer's are there
  EXPECT_EQ(events.back()["usage"], usage);
  // Role, tokens, end, usage.
  EXPECT_EQ(events.size(), whole["usage"]["completion_tokens"].get<size_t>() + 3);
}

TEST_F(ServerTest, ScoresGivenIdsAsAnEvaluationHarnessAsks) {
  const json body = {{"prompt", {{0, 100, 200, 300}, {0, 5, 6}}},
                     {"temperature", 0},
                     {"max_tokens", 1},
                     {"logprobs", 1},
                     {"seed", 1234},
                     {"echo", true}};
  const json reply = completion(body);
  ASSERT_EQ(reply["choices"].size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    const json& choice = reply["choices"][i];
    EXPECT_EQ(choice["index"], i);
    const json& logprobs = choice["logprobs"];
    const size_t length = body["prompt"][i].size() + 1;
    ASSERT_EQ(logprobs["token_logprobs"].size(), length);
    ASSERT_EQ(logprobs["top_logprobs"].size(), length);
    EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
    // The token that was drawn greedily is the likeliest one, exactly.
    double most = -1e9;
    for (const auto& [name, value] : logprobs["top_logprobs"][length - 1].items())
      most = std::max(most, value.get<double>());
    EXPECT_EQ(logprobs["token_logprobs"][length - 1].get<double>(), most);
  }
  // The prompt alone: the same numbers, and nothing written.
  json alone = body;
  alone["max_tokens"] = 0;
  const json scored = completion(alone);
  for (size_t i = 0; i < 2; ++i) {
    json want = reply["choices"][i]["logprobs"]["token_logprobs"];
    want.erase(want.size() - 1);
    EXPECT_EQ(scored["choices"][i]["logprobs"]["token_logprobs"], want);
    EXPECT_EQ(scored["choices"][i]["finish_reason"], "length");
  }
  EXPECT_EQ(scored["usage"]["completion_tokens"], 0);
  // Not even that: the text comes back.
  const json echoed = completion({{"prompt", "As it was"}, {"echo", true}, {"max_tokens", 0}});
  EXPECT_EQ(echoed["choices"][0]["text"], "As it was");
}

TEST_F(ServerTest, StopsWhereItIsTold) {
  const json base = {{"prompt", "It was a bright morning"}, {"max_tokens", 12}, {"temperature", 0}};
  const std::string text = completion(base)["choices"][0]["text"];
  const std::string stop = text.substr(text.size() / 2, 3);
  json body = base;
  body["stop"] = {stop};
  json choice = completion(body)["choices"][0];
  EXPECT_EQ(choice["text"], text.substr(0, text.find(stop)));
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_EQ(choice["stop_reason"], stop);
  body["include_stop_str_in_output"] = true;
  EXPECT_EQ(completion(body)["choices"][0]["text"], text.substr(0, text.find(stop) + stop.size()));
  json ids = base;
  ids["return_token_ids"] = true;
  const json all = completion(ids)["choices"][0]["token_ids"];
  ids["stop_token_ids"] = {all[2]};
  choice = completion(ids)["choices"][0];
  EXPECT_EQ(choice["stop_reason"], all[2]);
  EXPECT_EQ(choice["finish_reason"], "stop");
  ids["min_tokens"] = 12;
  EXPECT_EQ(completion(ids)["choices"][0]["token_ids"].size(), 12u);
}

TEST_F(ServerTest, KeepsToASchema) {
  const json schema = {{"type", "object"},
                       {"properties", {{"sea", {{"type", "boolean"}}}, {"ships", {{"enum", {1, 2, 3}}}}}},
                       {"required", {"sea", "ships"}},
                       {"additionalProperties", false}};
  // The grammar allows white space, and the model likes it.
  const Tokenizer tokenizer = Tokenizer::load("models/fable-13m").value();
  json no_space = json::object();
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const std::string_view bytes = tokenizer.token_bytes(id);
    if (!bytes.empty() && bytes.find_first_not_of(" \n\t\r") == std::string_view::npos)
      no_space[std::to_string(id)] = -100;
  }
  ASSERT_FALSE(no_space.empty());
  for (int seed = 0; seed < 4; ++seed) {
    const json reply = completion(
        {{"prompt", "A record: "},
         {"max_tokens", 100},
         {"logit_bias", no_space},
         {"seed", seed},
         {"response_format", {{"type", "json_schema"}, {"json_schema", {{"name", "n"}, {"schema", schema}}}}}});
    EXPECT_EQ(reply["choices"][0]["finish_reason"], "stop") << reply;
    const json value = json::parse(reply["choices"][0]["text"].get<std::string>(), nullptr, false);
    ASSERT_TRUE(value.is_object()) << reply;
    EXPECT_TRUE(value["sea"].is_boolean());
    EXPECT_TRUE(value["ships"] == 1 || value["ships"] == 2 || value["ships"] == 3);
  }
  const json choice = completion({{"prompt", "It is "}, {"guided_choice", {"warm \"and\" dry", "cold"}}, {"seed", 1}});
  const std::string text = choice["choices"][0]["text"];
  EXPECT_TRUE(text == "warm \"and\" dry" || text == "cold") << text;
}

TEST_F(ServerTest, SeedsDecideAndBatchesDoNot) {
  const json body = {{"prompt", "Once upon a time"}, {"max_tokens", 16}, {"seed", 77}};
  const std::string alone = completion(body)["choices"][0]["text"];
  std::vector<std::string> texts(6);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < texts.size(); ++i)
    threads.emplace_back([&, i] {
      json mine = body;
      if (i % 2 == 1) mine["seed"] = i;
      texts[i] = completion(mine)["choices"][0]["text"];
    });
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < texts.size(); i += 2) EXPECT_EQ(texts[i], alone);
  EXPECT_NE(texts[1], alone);
  // Without a seed, equal prompts are drawn apart.
  const json two = completion({{"prompt", {"Once", "Once"}}, {"max_tokens", 16}, {"temperature", 1}});
  EXPECT_NE(two["choices"][0]["text"], two["choices"][1]["text"]);
}

TEST_F(ServerTest, RefusesWhatTheModelCannotDo) {
  const auto refused = [](std::string_view path, const json& body, int status, const char* param, const char* code,
                          const char* message) {
    SCOPED_TRACE(body.dump().substr(0, 200));
    const Answer a = post(path, body);
    EXPECT_EQ(a.status, status);
    const json error = json::parse(a.body)["error"];
    EXPECT_EQ(error["param"], param);
    EXPECT_EQ(error["code"].is_null() ? "" : error["code"].get<std::string>(), code);
    EXPECT_THAT(error["message"].get<std::string>(), HasSubstr(message));
  };
  const char* const path = "/v1/completions";
  refused(path, {{"prompt", "a"}, {"model", "gpt"}}, 404, "model", "model_not_found", "there is fable, org/alias");
  // By its bytes: never tokenized.
  refused(path, {{"prompt", std::string(1'000'000, 'a')}}, 400, "prompt", "context_length_exceeded",
          "maximum context length is 1024");
  refused(path, {{"prompt", std::vector<int>(1025, 7)}}, 400, "prompt", "context_length_exceeded", "1025 tokens");
  refused(path, {{"prompt", std::vector<int>(1024, 7)}}, 400, "prompt", "context_length_exceeded", "1024 tokens");
  refused(path, {{"prompt", std::vector<int>(1000, 7)}, {"max_tokens", 25}}, 400, "max_tokens",
          "context_length_exceeded", "max_tokens asks for 25 more");
  refused(path, {{"prompt", {8192}}}, 400, "prompt", "", "token 8192 at position 0 is not in the model's vocabulary");
  refused(path, {{"prompt", ""}, {"add_special_tokens", false}}, 400, "prompt", "", "no tokens");
  refused(path, {{"prompt", "a"}, {"logit_bias", {{"8192", 1}}}}, 400, "logit_bias", "", "token 8192");
  refused(path, {{"prompt", "a"}, {"stop_token_ids", {9000}}}, 400, "stop_token_ids", "", "token 9000");
  refused(path, {{"prompt", "a"}, {"min_tokens", 17}}, 400, "min_tokens", "", "at most max_tokens, which is 16");
  refused(path, {{"prompt", "a"}, {"guided_regex", "("}}, 400, "guided_regex", "", "guided_regex: ");
  refused(path, {{"prompt", "a"}, {"guided_regex", "a"}, {"ignore_eos", true}}, 400, "ignore_eos", "", "ends");
  refused("/v1/chat/completions", {{"messages", {{{"role", "user"}, {"content", std::string(1'000'000, 'a')}}}}}, 400,
          "messages", "context_length_exceeded", "messages has ");
  refused("/tokenize", {{"prompt", 7}}, 400, "prompt", "", "found 7; wanted a string");
  refused("/detokenize", {{"tokens", {8192}}}, 400, "tokens", "", "8192 at position 0");
  refused("/detokenize", {{"text", "a"}}, 400, "tokens", "", "absent");
}

TEST_F(ServerTest, TokenizesAndBack) {
  const json there = json::parse(post("/tokenize", {{"prompt", "Hello you"}, {"return_token_strs", true}}).body);
  EXPECT_EQ(there["count"], there["tokens"].size());
  EXPECT_EQ(there["tokens"][0], 0);
  EXPECT_EQ(there["token_strs"][0], "<|begin_of_text|>");
  EXPECT_EQ(there["max_model_len"], 1024);
  const json back = json::parse(post("/detokenize", {{"tokens", there["tokens"]}}).body);
  EXPECT_EQ(back["prompt"], "<|begin_of_text|>Hello you");
  const json chat = json::parse(post("/tokenize", {{"messages", {{{"role", "user"}, {"content", "Hi"}}}}}).body);
  EXPECT_EQ(json::parse(post("/detokenize", {{"tokens", chat["tokens"]}}).body)["prompt"],
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

TEST_F(ServerTest, ForgetsWhoLeaves) {
  const json body = {{"prompt", "Once"}, {"max_tokens", 1000}, {"ignore_eos", true}, {"n", 4}};
  for (const bool streamed : {true, false}) {
    json mine = body;
    mine["stream"] = streamed;
    Client client(server_->port());
    client.send(request_text("POST", "/v1/completions", mine.dump()));
    ASSERT_TRUE(eventually([] { return metric(server_->port(), "vllm:num_requests_running") == "4"; }));
    client.shut();
    EXPECT_TRUE(eventually([] { return metric(server_->port(), "vllm:num_requests_running") == "0"; }));
    EXPECT_TRUE(eventually([] { return metric(server_->port(), "vllm:kv_cache_usage_perc") == "0"; }));
  }
}

TEST(ServerLimits, KeysGuardAllButHealth) {
  ServeOptions options;
  options.api_keys = {"one", "two"};
  options.api.requests_per_key = 1;
  const auto server = make_server(std::move(options));
  const uint16_t port = server->port();
  EXPECT_EQ(ask(port, "GET", "/health").status, 200);
  EXPECT_EQ(ask(port, "GET", "/health/ready").status, 200);
  for (const char* path : {"/metrics", "/v1/models", "/version", "/nowhere"}) {
    const Answer a = ask(port, "GET", path);
    EXPECT_EQ(a.status, 401) << path;
    EXPECT_EQ(a.headers.at("www-authenticate"), "Bearer");
    EXPECT_EQ(json::parse(a.body)["error"]["code"], "invalid_api_key");
  }
  EXPECT_EQ(ask(port, "POST", "/v1/completions", R"({"prompt":"a"})", "authorization: Bearer no\r\n").status, 401);
  const char* const one = "authorization: Bearer one\r\n";
  EXPECT_EQ(ask(port, "GET", "/metrics", "", one).status, 200);
  // One request of a key at a time; whoever has an answer may ask again at once.
  for (int i = 0; i < 200; ++i)
    ASSERT_EQ(ask(port, "POST", "/tokenize", R"({"prompt":"a"})", one).status, 200) << "request " << i;
  for (int i = 0; i < 20; ++i)
    ASSERT_EQ(ask(port, "POST", "/v1/completions", R"({"prompt":"a","max_tokens":1,"stream":true})", one).status, 200);
  Client client(port);
  client.send(request_text("POST", "/v1/completions",
                           R"({"prompt":"a","max_tokens":1000,"ignore_eos":true,"stream":true,"n":8})", one));
  ASSERT_TRUE(client.more());
  const Answer second = ask(port, "POST", "/v1/completions", R"({"prompt":"a","max_tokens":1})", one);
  EXPECT_EQ(second.status, 429);
  EXPECT_EQ(second.headers.at("retry-after"), "1");
  EXPECT_EQ(json::parse(second.body)["error"]["code"], "rate_limit_exceeded");
  EXPECT_EQ(
      ask(port, "POST", "/v1/completions", R"({"prompt":"a","max_tokens":1})", "authorization: Bearer two\r\n").status,
      200);
}

TEST(ServerLimits, RequestsQueueAndBody) {
  ServeOptions options;
  options.api.requests = 2;
  options.engine.max_sequences = 1;
  options.engine.max_waiting = 20;
  options.http.body_bytes = 100'000;
  const auto server = make_server(std::move(options));
  const uint16_t port = server->port();
  EXPECT_EQ(ask(port, "POST", "/v1/completions", std::string(100'001, ' ')).status, 413);
  // One choice runs and fifteen wait, for longer than the rest of the test takes.
  Client first(port);
  first.send(request_text("POST", "/v1/completions",
                          R"({"prompt":"a","max_tokens":1000,"ignore_eos":true,"stream":true,"n":16})"));
  ASSERT_TRUE(first.more());
  const Answer queue = ask(port, "POST", "/v1/completions", R"({"prompt":"a","n":8,"max_tokens":1})");
  EXPECT_EQ(queue.status, 429) << queue.body;
  EXPECT_TRUE(queue.headers.contains("retry-after"));
  Client second(port);
  second.send(request_text("POST", "/v1/completions", R"({"prompt":"a","max_tokens":1})"));
  ASSERT_TRUE(eventually([&] { return metric(port, "vllm:num_requests_waiting") == "16"; }));
  const Answer third = ask(port, "POST", "/tokenize", R"({"prompt":"a"})");
  EXPECT_EQ(third.status, 503);
  EXPECT_EQ(json::parse(third.body)["error"]["code"], "overloaded");
  EXPECT_EQ(third.headers.at("retry-after"), "1");
}

TEST(ServerLimits, ASmallPoolIsTheContext) {
  ServeOptions options;
  // KV of one sequence in f32 takes some KiB a token.
  options.engine.kv_bytes = 256 << 10;
  const auto server = make_server(std::move(options));
  const uint16_t port = server->port();
  // Without max_tokens: what fits.
  const Answer chat =
      ask(port, "POST", "/v1/chat/completions", R"({"messages":[{"role":"user","content":"a"}],"ignore_eos":true})");
  ASSERT_EQ(chat.status, 200) << chat.body;
  const int64_t total = json::parse(chat.body)["usage"]["total_tokens"];
  EXPECT_LT(total, 1024);
  const Answer more = ask(port, "POST", "/v1/completions", fmt::format(R"({{"prompt":"a","max_tokens":{}}})", total));
  EXPECT_EQ(more.status, 400);
  EXPECT_EQ(json::parse(more.body)["error"]["code"], "context_length_exceeded");
}

TEST(ServerLimits, DrainEndsWhatTakesTooLong) {
  const auto server = make_server({});
  const uint16_t port = server->port();
  Client client(port);
  client.send(request_text("POST", "/v1/completions",
                           R"({"prompt":"a","max_tokens":1000,"ignore_eos":true,"n":8,"stream":true})"));
  ASSERT_TRUE(client.more());
  EXPECT_FALSE(server->drain(1));
  EXPECT_FALSE(server->ready());
  const Answer a = client.answer();
  EXPECT_EQ(a.status, 200);
  EXPECT_THAT(a.body, HasSubstr(R"(data: {"error":{"message":"the server ended the request")"));
  EXPECT_THAT(a.body, ::testing::Not(HasSubstr("[DONE]")));
}

// Whoever was let in before the drain gets an answer, also where the engine has not heard of it yet.
TEST(ServerLimits, DrainWaitsForWhatIsBeingRead) {
  const auto server = make_server({});
  const uint16_t port = server->port();
  const std::string_view body = R"({"prompt":"a","max_tokens":2})";
  Client client(port);
  client.send(fmt::format(
      "POST /v1/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n", body.size()));
  ASSERT_EQ(client.answer().status, 100);
  bool drained = false;
  std::thread drain([&] { drained = server->drain(http_testing::kPatienceMs); });
  EXPECT_TRUE(eventually([&] { return !server->ready(); }));
  // Longer than drain() takes to come to its wait.
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  client.send(body);
  const Answer a = client.answer();
  EXPECT_EQ(a.status, 200) << a.body;
  drain.join();
  EXPECT_TRUE(drained);
}

// While answers are written, everybody else is told that the server goes down; a body that does not come holds up
// nothing for long.
TEST(ServerLimits, DrainSaysSoAndDoesNotWaitForHalfARequest) {
  const auto server = make_server({});
  const uint16_t port = server->port();
  Client half(port);
  half.send("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{");
  Client stream(port);
  stream.send(request_text("POST", "/v1/completions",
                           R"({"prompt":"a","max_tokens":300,"ignore_eos":true,"n":2,"stream":true})"));
  ASSERT_TRUE(stream.more());
  bool drained = false;
  std::thread drain([&] { drained = server->drain(600'000); });
  EXPECT_TRUE(eventually([&] { return !server->ready(); }));
  const Answer refused = ask(port, "POST", "/v1/completions", R"({"prompt":"a","max_tokens":1})");
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(json::parse(refused.body)["error"]["code"], "draining");
  EXPECT_TRUE(refused.headers.contains("retry-after"));
  EXPECT_EQ(ask(port, "GET", "/health/live", "").status, 200);
  EXPECT_EQ(ask(port, "GET", "/health/ready", "").status, 503);
  EXPECT_THAT(stream.answer().body, HasSubstr("[DONE]"));
  const auto written = std::chrono::steady_clock::now();
  drain.join();
  EXPECT_TRUE(drained);
  EXPECT_LT(std::chrono::steady_clock::now() - written, std::chrono::seconds(20)) << "waited for half a request";
}

// What the workers make of an answer must be what the connection's thread makes: small and large, of one request.
TEST_F(ServerTest, LargeAnswersAreAsSmallOnes) {
  std::string prompt;
  for (int i = 0; i < 900; ++i) prompt += " dog";
  json body = {{"prompt", prompt}, {"max_tokens", 3}, {"seed", 3}, {"echo", true}, {"return_token_ids", true}};
  const json small = completion(body);
  body["n"] = 6;
  const json large = completion(body);
  ASSERT_EQ(large["choices"].size(), 6u);
  for (const char* key : {"text", "token_ids", "prompt_token_ids"})
    EXPECT_EQ(large["choices"][0][key], small["choices"][0][key]) << key;
  EXPECT_TRUE(large["choices"][5]["text"].get<std::string>().starts_with(prompt));
  std::vector<std::string> texts(6);
  std::vector<json> ids(6);
  for (const json& event : stream("/v1/completions", body)) {
    const json& choice = event["choices"][0];
    texts[choice["index"]] += choice["text"].get<std::string>();
    if (choice.contains("prompt_token_ids")) ids[choice["index"]] = choice["prompt_token_ids"];
  }
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(texts[i], large["choices"][i]["text"]);
    EXPECT_EQ(ids[i], large["choices"][i]["prompt_token_ids"]);
  }
}

// A device that is lost: 503 with its code for what runs and what comes, no health, and the owner is told to end.
TEST(ServerFailures, ALostDeviceIsAnsweredAndReported) {
  static std::atomic<bool> lost = false;
  static const OpTable ops = [] {
    OpTable table = cpu_ops();
    table.attention = [](const AttentionArgs& args, ExecContext& exec) -> Status {
      if (lost.load()) return device_lost("cudaStreamSynchronize: unspecified launch failure (cudaErrorLaunchFailure)");
      return attention_cpu(args, exec);
    };
    return table;
  }();
  ServeOptions options;
  options.ops = &ops;
  const auto server = make_server(std::move(options));
  const json body = {{"model", "fable"}, {"prompt", "It was"}, {"max_tokens", 4}};
  EXPECT_EQ(ask(server->port(), "POST", "/v1/completions", body.dump()).status, 200);
  EXPECT_EQ(ask(server->port(), "GET", "/health").status, 200);
  EXPECT_TRUE(server->device());
  lost = true;
  for (int i = 0; i < 3; ++i) {
    const Answer answer = ask(server->port(), "POST", "/v1/completions", body.dump());
    EXPECT_EQ(answer.status, 503) << answer.body;
    EXPECT_TRUE(answer.headers.contains("retry-after"));
    const json error = json::parse(answer.body)["error"];
    EXPECT_EQ(error["code"], "device_lost");
    EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("cudaErrorLaunchFailure"));
  }
  for (const char* path : {"/health", "/health/live", "/health/ready", "/ping"}) {
    const Answer answer = ask(server->port(), "GET", path);
    EXPECT_EQ(answer.status, 503) << path;
    EXPECT_EQ(json::parse(answer.body)["error"]["code"], "device_lost");
  }
  EXPECT_EQ(server->device().error().code, ErrorCode::kDeviceLost);
  EXPECT_FALSE(server->ready());
  EXPECT_TRUE(server->drain(2000));
}

// Before any token, whole or as a stream; who asks for less is served.
TEST(HopelessRequests, AreRefusedWithAStatusThatSaysTryLater) {
  ServeOptions options;
  options.engine.reject_hopeless = true;
  options.models = {{.names = {"fable"}, .dir = "models/fable-13m", .terms = {.slo = {.ttft_us = 1}}}};
  const auto server = make_server(std::move(options));
  json body = {{"model", "fable"}, {"prompt", "It was"}, {"max_tokens", 4}};
  for (const bool stream : {false, true}) {
    body["stream"] = stream;
    const Answer answer = ask(server->port(), "POST", "/v1/completions", body.dump());
    EXPECT_EQ(answer.status, 503) << answer.body;
    EXPECT_EQ(answer.headers.at("retry-after"), "1");
    const json error = json::parse(answer.body)["error"];
    EXPECT_EQ(error["code"], "overloaded");
    EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("first token would come later than its target"));
  }
  body["stream"] = false;
  body["ttft_slo_ms"] = 3'600'000;
  EXPECT_EQ(ask(server->port(), "POST", "/v1/completions", body.dump()).status, 200);
  EXPECT_EQ(metric(server->port(), "hearth_slo_refused_total"), "2");
}

TEST(ModelRegistry, SaysWhatIsMissing) {
  EXPECT_FALSE(ModelRegistry::check({{.names = {}, .dir = "d"}}));
  EXPECT_FALSE(ModelRegistry::check({{.names = {"a"}, .dir = "d"}, {.names = {"b", "a"}, .dir = "e"}}));
  const ModelRegistry registry({{.names = {"a"}, .dir = "d"}, {.names = {"b"}, .dir = "e"}});
  EXPECT_FALSE(registry.ready());
  EXPECT_EQ(registry.find("a").error().status, 503);
  EXPECT_EQ(registry.find("a").error().code, "loading");
  EXPECT_EQ(registry.find("c").error().status, 404);
  EXPECT_EQ(registry.find("").error().status, 400);
  EXPECT_TRUE(registry.loaded().empty());
}

}  // namespace
}  // namespace hearth
