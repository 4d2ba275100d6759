// SPDX-License-Identifier: Apache-2.0
// Answers against texts written by hand after OpenAI's reference and vLLM's extensions: whole and streamed, with the
// demo model's tokenizer and pieces as the engine would send them. Also who may ask, and which route is meant.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "hearth/serve/access.h"
#include "hearth/serve/routes.h"
#include "hearth/serve/stream_reply.h"

namespace hearth {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const Tokenizer& tokenizer() {
  static const Tokenizer loaded = Tokenizer::load("models/fable-13m").value();
  return loaded;
}
int32_t id_of(std::string_view piece) {
  const auto id = tokenizer().token_to_id(piece);
  EXPECT_TRUE(id) << piece;
  return id.value_or(0);
}

ReplyPlan plan_for(std::vector<ReplyPrompt> prompts, bool chat = false) {
  return {.id = chat ? "chatcmpl-1" : "cmpl-1",
          .model = "m",
          .fingerprint = "f",
          .created_s = 7,
          .tokenizer = tokenizer(),
          .chat = chat,
          .prompts = std::move(prompts)};
}

OutputToken token(std::string_view piece, std::string text, float logprob = 0, std::vector<TokenLogprob> top = {}) {
  return {.id = id_of(piece), .logprob = logprob, .top = std::move(top), .text = std::move(text)};
}

Output piece_of(int32_t choice, std::vector<OutputToken> tokens, std::optional<FinishReason> finish = {}) {
  Output output;
  output.choice = choice;
  output.tokens = std::move(tokens);
  output.finish = finish;
  return output;
}

// The answer to choices that came in one piece each.
std::string whole(const ReplyPlan& plan, std::vector<PromptLogprob> prompt, std::vector<Output> outputs) {
  std::vector<PromptState> states(1);
  states[0].logprobs = std::move(prompt);
  for (Output& output : outputs) states[0].choices.emplace_back().take(std::move(output));
  return whole_reply(plan, states);
}

TEST(Reply, IsACompletion) {
  ReplyPlan plan = plan_for({{{5, 6, 7}, ""}});
  plan.n = 2;
  Output first = piece_of(0, {token("Ġthe", " the"), token("Ġdog", "")}, FinishReason::kStop);
  first.rest = " do";
  first.stop_text = "g";
  first.shared_prompt_tokens = 2;
  Output second = piece_of(1, {token("Ġthe", " the")}, FinishReason::kLength);
  second.shared_prompt_tokens = 3;
  EXPECT_EQ(whole(plan, {}, {std::move(first), std::move(second)}),
            R"({"id":"cmpl-1","object":"text_completion","created":7,"model":"m","system_fingerprint":"f","choices":[)"
            R"({"index":0,"text":" the do","logprobs":null,"finish_reason":"stop","stop_reason":"g"},)"
            R"({"index":1,"text":" the","logprobs":null,"finish_reason":"length","stop_reason":null}],)"
            R"("usage":{"prompt_tokens":3,"completion_tokens":3,"total_tokens":6,)"
            R"("prompt_tokens_details":{"cached_tokens":2}}})");
}

TEST(Reply, EchoesThePromptWithItsLogprobs) {
  // What an evaluation harness sums: prompt and written tokens in one array, the first without a value.
  ReplyPlan plan = plan_for({{{id_of("<|begin_of_text|>"), id_of("The"), id_of("Ġdog")}, "The dog"}});
  plan.echo = true;
  plan.logprobs = 1;
  const std::vector<PromptLogprob> prompt = {{-0.5f, {{id_of("The"), -0.5f}}}, {-2.0f, {{id_of("Ġthe"), -0.25f}}}};
  Output written = piece_of(0, {token("Ġthe", " the", -1.5f, {{id_of("Ġdog"), -0.75f}})}, FinishReason::kLength);
  const Json reply = Json::parse(whole(plan, prompt, {std::move(written)}));
  const Json& choice = reply["choices"][0];
  EXPECT_EQ(choice["text"], "The dog the");
  EXPECT_EQ(dump(choice["logprobs"]),
            R"({"tokens":["<|begin_of_text|>","The"," dog"," the"],"token_logprobs":[null,-0.5,-2.0,-1.5],)"
            R"("top_logprobs":[null,{"The":-0.5},{" the":-0.25," dog":-2.0},{" dog":-0.75," the":-1.5}],)"
            R"("text_offset":[0,0,3,7]})");
}

TEST(Reply, IsAChatCompletion) {
  ReplyPlan plan = plan_for({{{5, 6}, ""}}, true);
  plan.logprobs = 1;
  Output output =
      piece_of(0, {token("Ã", "", -0.5f, {{id_of("Ã"), -0.5f}}), token("<|im_end|>", "", -1.0f)}, FinishReason::kStop);
  output.rest = "\xef\xbf\xbd";
  output.stop_token = 3;
  EXPECT_EQ(whole(plan, {}, {std::move(output)}),
            R"({"id":"chatcmpl-1","object":"chat.completion","created":7,"model":"m","system_fingerprint":"f",)"
            R"("choices":[{"index":0,"message":{"role":"assistant","content":")"
            "\xef\xbf\xbd"
            R"(","refusal":null},"logprobs":{"content":[)"
            R"({"token":"\\xc3","logprob":-0.5,"bytes":[195],)"
            R"("top_logprobs":[{"token":"\\xc3","logprob":-0.5,"bytes":[195]}]},)"
            R"({"token":"<|im_end|>","logprob":-1.0,"bytes":[60,124,105,109,95,101,110,100,124,62],)"
            R"("top_logprobs":[]}],"refusal":null},"finish_reason":"stop","stop_reason":null}],)"
            R"("usage":{"prompt_tokens":2,"completion_tokens":2,"total_tokens":4,)"
            R"("prompt_tokens_details":{"cached_tokens":0}}})");
}

TEST(Reply, TellsIdsAndPromptLogprobsWhereAsked) {
  ReplyPlan plan = plan_for({{{id_of("The"), id_of("Ġdog")}, ""}});
  plan.prompt_logprobs = 1;
  plan.return_token_ids = true;
  const int32_t the = id_of("Ġthe"), dog = id_of("Ġdog");
  Output output = piece_of(0, {token("Ġthe", " the")}, FinishReason::kLength);
  const Json reply = Json::parse(whole(plan, {{-2.0f, {{the, -0.25f}}}}, {std::move(output)}));
  const Json& choice = reply["choices"][0];
  EXPECT_EQ(dump(choice["prompt_logprobs"]),
            fmt::format(R"([null,{{"{}":{{"logprob":-0.25,"rank":1,"decoded_token":" the"}},)"
                        R"("{}":{{"logprob":-2.0,"rank":null,"decoded_token":" dog"}}}}])",
                        the, dog));
  EXPECT_EQ(choice["token_ids"], Json::array({the}));
  EXPECT_EQ(choice["prompt_token_ids"], Json::array({id_of("The"), dog}));
}

TEST(Logprobs, SpellWhatIsNoText) {
  const TokenSpelling spelling{.tokenizer = &tokenizer()};
  EXPECT_EQ(spell_token(spelling, id_of("Ġthe")), " the");
  EXPECT_EQ(spell_token(spelling, id_of("Ã")), "bytes:\\xc3");
  EXPECT_EQ(spell_token({.tokenizer = &tokenizer(), .chat = true}, id_of("Ã")), "\\xc3");
  EXPECT_EQ(spell_token({.tokenizer = &tokenizer(), .as_ids = true}, 5), "token_id:5");
  EXPECT_EQ(spell_token(spelling, 100'000'000), "token_id:100000000");
}

TEST(Logprobs, AreValidJsonAndKeepEveryToken) {
  const TokenSpelling spelling{.tokenizer = &tokenizer()};
  const float none = -std::numeric_limits<float>::infinity();
  // One text twice: the second must not take the place of the first.
  const int32_t the = id_of("Ġthe");
  const std::vector<TokenLogprob> top = {{the, -0.5f}, {the, -1.0f}};
  const std::vector<ScoredToken> tokens = {{.id = id_of("Ġdog"), .logprob = none, .top = top, .text_offset = 0}};
  EXPECT_EQ(dump(completion_logprobs(spelling, tokens, 2)),
            fmt::format(R"({{"tokens":[" dog"],"token_logprobs":[-9999.0],"top_logprobs":[{{" the":-0.5,)"
                        R"("token_id:{}":-1.0," dog":-9999.0}}],"text_offset":[0]}})",
                        the));
  // Fewer alternatives than there are.
  EXPECT_EQ(dump(completion_logprobs(spelling, tokens, 0)["top_logprobs"]), R"([{" dog":-9999.0}])");
}

TEST(Logprobs, TheLikeliestTokenEqualsTheMaximumExactly) {
  const TokenSpelling spelling{.tokenizer = &tokenizer()};
  for (const float logprob : {-1e-9f, -0.1f, -1.0f / 3, -7.0812345f, -123.456789f}) {
    const std::vector<TokenLogprob> top = {{5, logprob}, {6, std::nextafter(logprob, -1e9f)}};
    const std::vector<ScoredToken> tokens = {{.id = 5, .logprob = logprob, .top = top}};
    const Json read = Json::parse(dump(completion_logprobs(spelling, tokens, 2)));
    double most = -1e9;
    for (const auto& [name, value] : read["top_logprobs"][0].items()) most = std::max(most, value.get<double>());
    EXPECT_EQ(read["token_logprobs"][0].get<double>(), most);
    EXPECT_EQ(static_cast<float>(most), logprob);
    EXPECT_EQ(read["top_logprobs"][0].size(), 2u);
  }
}

TEST(Logprobs, OffsetsCountCharacters) {
  const std::string text = "é the é";
  const std::vector<int32_t> ids = tokenizer().encode(text).value();
  const std::vector<int64_t> offsets = prompt_offsets(tokenizer(), text, ids);
  std::vector<std::string> named;
  for (size_t i = 0; i < ids.size(); ++i)
    named.push_back(fmt::format("{}@{}", tokenizer().id_to_piece(ids[i]).value_or(""), offsets[i]));
  EXPECT_THAT(named, ElementsAre("<|begin_of_text|>@0", "Ã@0", "©@1", "Ġthe@1", "Ġ@5", "Ã@6", "©@7"));
}

// The data of each event.
std::vector<std::string> events_of(std::string text) {
  std::vector<std::string> events;
  while (!text.empty()) {
    EXPECT_TRUE(text.starts_with("data: ")) << text;
    const size_t end = text.find("\n\n");
    if (end == std::string::npos) {
      ADD_FAILURE() << "an event without an end: " << text;
      break;
    }
    events.push_back(text.substr(6, end - 6));
    text.erase(0, end + 2);
  }
  return events;
}

constexpr const char* kChunk =
    R"({"id":"cmpl-1","object":"text_completion","created":7,"model":"m","system_fingerprint":"f","choices":[)";
constexpr const char* kChatChunk =
    R"({"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","system_fingerprint":"f","choices":[)";

TEST(StreamReply, StreamsACompletionOneEventPerToken) {
  StreamReply stream(plan_for({{{5, 6}, ""}}));
  std::string text;
  // Two tokens in one piece, the first without a text.
  stream.take(0, piece_of(0, {token("Ġthe", ""), token("Ġdog", " the dog")}), text);
  EXPECT_FALSE(stream.done());
  Output last = piece_of(0, {token("Ġthe", "")}, FinishReason::kStop);
  last.rest = " th";
  last.stop_text = "e";
  stream.take(0, std::move(last), text);
  EXPECT_TRUE(stream.done());
  stream.end(text);
  const std::string chunk = kChunk;
  EXPECT_THAT(
      events_of(text),
      ElementsAre(chunk + R"({"index":0,"text":"","logprobs":null,"finish_reason":null}]})",
                  chunk + R"({"index":0,"text":" the dog","logprobs":null,"finish_reason":null}]})",
                  chunk + R"({"index":0,"text":" th","logprobs":null,"finish_reason":"stop","stop_reason":"e"}]})",
                  "[DONE]"));
}

TEST(StreamReply, StreamsChatWithUsage) {
  ReplyPlan plan = plan_for({{{5, 6}, ""}}, true);
  plan.include_usage = true;
  plan.stop_token_ids = {3};  // asked for; without that it is the model's own end
  StreamReply stream(std::move(plan));
  std::string text;
  stream.take(0, piece_of(0, {token("Ġthe", " the")}), text);
  Output last = piece_of(0, {token("<|im_end|>", "")}, FinishReason::kStop);
  last.stop_token = 3;
  last.shared_prompt_tokens = 1;
  stream.take(0, std::move(last), text);
  stream.end(text);
  const std::string chunk = kChatChunk, none = R"(],"usage":null})";
  EXPECT_THAT(
      events_of(text),
      ElementsAre(chunk +
                      R"({"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null})" +
                      none,
                  chunk + R"({"index":0,"delta":{"content":" the"},"logprobs":null,"finish_reason":null})" + none,
                  chunk + R"({"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":null})" + none,
                  chunk + R"({"index":0,"delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":3})" + none,
                  chunk + R"(],"usage":{"prompt_tokens":2,"completion_tokens":2,"total_tokens":4,)" +
                      R"("prompt_tokens_details":{"cached_tokens":1}}})",
                  "[DONE]"));
}

TEST(StreamReply, NumbersChoicesOverPromptsAndTellsUsageOnTheWay) {
  ReplyPlan plan = plan_for({{{5}, ""}, {{5, 6, 7}, ""}});
  plan.n = 2;
  plan.include_usage = plan.continuous_usage = true;
  StreamReply stream(std::move(plan));
  std::string text;
  stream.take(1, piece_of(1, {token("Ġthe", " the"), token("Ġthe", " the")}), text);
  stream.take(1, piece_of(1, {}, FinishReason::kLength), text);
  stream.take(0, piece_of(1, {}, FinishReason::kLength), text);
  stream.take(0, piece_of(0, {}, FinishReason::kLength), text);
  EXPECT_FALSE(stream.done());
  stream.take(1, piece_of(0, {}, FinishReason::kLength), text);
  EXPECT_TRUE(stream.done());
  stream.end(text);
  std::vector<std::string> seen;
  for (const std::string& event : events_of(text)) {
    if (event == "[DONE]") continue;
    const Json chunk = Json::parse(event);
    const Json index = chunk["choices"].empty() ? Json("all") : chunk["choices"][0]["index"];
    seen.push_back(fmt::format("{}: {} + {}", dump(index), dump(chunk["usage"]["prompt_tokens"]),
                               dump(chunk["usage"]["completion_tokens"])));
  }
  EXPECT_THAT(seen,
              ElementsAre("3: 3 + 1", "3: 3 + 2", "3: 3 + 2", "1: 1 + 0", "0: 1 + 0", "2: 3 + 0", "\"all\": 4 + 2"));
}

TEST(StreamReply, EveryChoiceBeginsWithTheEchoAndWaitsForItsLogprobs) {
  ReplyPlan plan = plan_for({{{id_of("The"), id_of("Ġdog"), id_of("Ġthe")}, "The dog the"}});
  plan.n = 2;
  plan.echo = true;
  plan.logprobs = 0;
  StreamReply stream(std::move(plan));
  std::string text;
  EXPECT_GT(stream.about_begin_bytes(), 0);
  // The other choice is faster than the prompt's logprobs, which come in two pieces with choice 0.
  stream.take(0, piece_of(1, {token("Ġdog", " dog", -3.0f)}, FinishReason::kLength), text);
  Output first = piece_of(0, {});
  first.prompt = {{-0.5f, {}}};
  stream.take(0, std::move(first), text);
  EXPECT_EQ(text, "");
  EXPECT_FALSE(stream.done());
  Output second = piece_of(0, {token("Ġthe", " the", -4.0f)}, FinishReason::kLength);
  second.prompt = {{-1.5f, {}}};
  stream.take(0, std::move(second), text);
  EXPECT_TRUE(stream.done());
  EXPECT_EQ(stream.about_begin_bytes(), 0);
  std::vector<std::string> seen;
  for (const std::string& event : events_of(text)) {
    const Json choice = Json::parse(event)["choices"][0];
    seen.push_back(fmt::format("{} '{}' {} {}", choice["index"].get<int>(), choice["text"].get<std::string>(),
                               dump(choice["logprobs"]["token_logprobs"]), dump(choice["logprobs"]["text_offset"])));
  }
  EXPECT_THAT(seen, ElementsAre("1 'The dog the' [null,-0.5,-1.5] [0,3,7]", "1 ' dog' [-3.0] [11]",
                                "0 'The dog the' [null,-0.5,-1.5] [0,3,7]", "0 ' the' [-4.0] [11]"));
}

// Where an answer is made is decided by these: whatever makes one long must count, and what is short must stay short.
TEST(Reply, SizesAreAboutTheBytesOfTheAnswer) {
  const int32_t dog = id_of("Ġdog");
  const std::vector<int32_t> ids(1000, dog);
  std::string text;
  for (int i = 0; i < 1000; ++i) text += " dog";
  const auto sizes = [&](const ReplyPlan& plan, const std::vector<TokenLogprob>& top) {
    std::vector<PromptState> states(1);
    states[0].logprobs.assign(ids.size() - 1, {.logprob = -1.5F, .top = top});
    for (int32_t i = 0; i < plan.n; ++i) {
      std::vector<OutputToken> tokens(200, token("Ġdog", " dog", -1.25F, top));
      states[0].choices.emplace_back().take(piece_of(i, std::move(tokens), FinishReason::kLength));
    }
    const auto about = static_cast<double>(about_bytes(plan, states));
    return about / static_cast<double>(whole_reply(plan, states).size());
  };
  for (int ask = 0; ask < 8; ++ask) {
    SCOPED_TRACE(ask);
    ReplyPlan plan = plan_for({{ids, text}});
    plan.n = 4;
    plan.echo = (ask & 1) != 0;
    plan.return_token_ids = (ask & 2) != 0;
    std::vector<TokenLogprob> top;
    if ((ask & 4) != 0) {
      plan.logprobs = 5;
      for (const char* piece : {"Ġdog", "Ġthe", "The", "Ġa", "Ġsea"}) top.push_back({id_of(piece), -1.5F});
    }
    const double ratio = sizes(plan, top);
    EXPECT_GT(ratio, 0.4);
    EXPECT_LT(ratio, 4);
  }
}

TEST(StreamReply, KnowsWhatItsFirstEventsTake) {
  const std::vector<int32_t> ids(10'000, 5);
  ReplyPlan plan = plan_for({{ids, ""}});
  EXPECT_EQ(StreamReply(plan).about_begin_bytes(), 0);
  plan.return_token_ids = true;
  plan.n = 2;
  for (const bool chat : {false, true}) {
    plan.chat = chat;
    StreamReply stream(plan);
    EXPECT_GT(stream.about_begin_bytes(), kSmallReplyBytes);
    std::string events;
    stream.take(0, piece_of(0, {token("Ġthe", " the")}), events);
    EXPECT_GT(stream.about_begin_bytes(), kSmallReplyBytes);
    stream.take(0, piece_of(1, {token("Ġthe", " the")}), events);
    EXPECT_EQ(stream.about_begin_bytes(), 0);
    EXPECT_GT(std::ssize(events), 2 * std::ssize(ids));
  }
  plan = plan_for({{{5}, std::string(100'000, 'a')}});
  plan.echo = true;
  EXPECT_GT(StreamReply(plan).about_begin_bytes(), kSmallReplyBytes);
  EXPECT_GT(StreamReply(plan).about_bytes(piece_of(0, std::vector<OutputToken>(256))), kSmallReplyBytes);
  EXPECT_LT(StreamReply(plan).about_bytes(piece_of(0, std::vector<OutputToken>(1))), kSmallReplyBytes / 16);
}

TEST(StreamReply, AFailureIsTheLastEvent) {
  StreamReply stream(plan_for({{{5}, ""}}));
  std::string text;
  stream.take(0, piece_of(0, {token("Ġthe", " the")}), text);
  Output failed = piece_of(0, {}, FinishReason::kError);
  failed.error = internal_error("the model is broken");
  stream.take(0, std::move(failed), text);
  EXPECT_TRUE(stream.done());
  ASSERT_TRUE(stream.error());
  EXPECT_EQ(stream.error()->status, 500);
  stream.take(0, piece_of(0, {token("Ġthe", " the")}), text);
  stream.end(text);
  const auto events = events_of(text);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[1],
            R"({"error":{"message":"the model is broken","type":"server_error","param":null,"code":"internal"}})");
}

TEST(StreamReply, ACancelledChoiceIsAnError) {
  StreamReply stream(plan_for({{{5}, ""}}, true));
  std::string text;
  stream.take(0, piece_of(0, {}, FinishReason::kCancelled), text);
  ASSERT_TRUE(stream.error());
  EXPECT_EQ(stream.error()->status, 503);
}

TEST(Access, ComparesWholeKeys) {
  const Access access({"alpha-key", "beta"}, {});
  EXPECT_EQ(*access.authorize("Bearer alpha-key"), 0);
  EXPECT_EQ(*access.authorize("bearer  beta "), 1);
  for (const char* wrong : {"", "alpha-key", "Bearer", "Bearer ", "Bearer alpha-ke", "Bearer alpha-keyy",
                            "Bearer betabeta", "Bearer Beta", "Basic beta", "Bearer alpha-key,beta"}) {
    const auto refused = access.authorize(wrong);
    ASSERT_FALSE(refused) << wrong;
    EXPECT_EQ(refused.error().status, 401);
    EXPECT_EQ(refused.error().code, "invalid_api_key");
  }
  EXPECT_EQ(*Access({}, {}).authorize(""), -1);
}

TEST(Access, CountsWhatIsInFlight) {
  ApiLimits limits;
  limits.requests = 2;
  limits.requests_per_key = 1;
  Access access({"a", "b", "c"}, limits);
  {
    auto first = access.enter(0);
    ASSERT_TRUE(first);
    EXPECT_EQ(access.enter(0).error().status, 429);
    EXPECT_EQ(access.room(0).error().code, "rate_limit_exceeded");
    EXPECT_TRUE(access.room(1));
    const auto second = access.enter(1);
    ASSERT_TRUE(second);
    const auto third = access.enter(2);
    ASSERT_FALSE(third);
    EXPECT_EQ(third.error().status, 503);
    EXPECT_GT(third.error().retry_after_s, 0);
    EXPECT_EQ(access.in_flight(), 2);
  }
  EXPECT_EQ(access.in_flight(), 0);
  EXPECT_TRUE(access.enter(0));
}

TEST(Routes, AreFoundByMethodAndPath) {
  EXPECT_EQ(find_route("POST", "/v1/completions").match->route, Route::kCompletions);
  EXPECT_EQ(find_route("GET", "/v1/models").match->route, Route::kModels);
  const RouteLookup model = find_route("GET", "/v1/models/org/name");
  EXPECT_EQ(model.match->route, Route::kModel);
  EXPECT_EQ(model.match->rest, "org/name");
  for (const std::string_view path : {"/health", "/v1/models", "/v1/models/x", "/metrics"})
    EXPECT_TRUE(find_route("HEAD", path).match) << path;
  EXPECT_EQ(find_route("HEAD", "/v1/completions").match.error().status, 405);
  const RouteLookup wrong = find_route("GET", "/v1/completions");
  EXPECT_EQ(wrong.match.error().status, 405);
  EXPECT_EQ(wrong.allowed, "POST");
  EXPECT_EQ(find_route("DELETE", "/v1/models/x").allowed, "GET");
  for (const char* path : {"", "/", "/v1", "/v1/models/", "/v1/completions/", "/HEALTH", "//health"})
    EXPECT_EQ(find_route("GET", path).match.error().status, 404) << path;
  for (const char* path : {"/health", "/health/live", "/health/ready", "/ping"}) EXPECT_TRUE(is_open_path(path));
  for (const char* path : {"/metrics", "/version", "/v1/models", "/v1/models/x", "/tokenize", "/", "/healthy"})
    EXPECT_FALSE(is_open_path(path)) << path;
  EXPECT_EQ(route_pattern("/v1/models/a/b"), "/v1/models/{id}");
  EXPECT_EQ(route_pattern("/v1/models/"), "none");
  EXPECT_EQ(route_pattern("/metrics"), "/metrics");
}

}  // namespace
}  // namespace hearth
