// SPDX-License-Identifier: Apache-2.0
// What clients may send: every refusal with its status, field and message; what is accepted and what it comes to.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "hearth/serve/chat_request.h"
#include "hearth/serve/completion_request.h"

namespace hearth {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Refusal {
  const char* body;
  const char* param;
  const char* message;
  const char* code = "";
  int status = 400;
};

ApiLimits small_limits() {
  ApiLimits limits;
  limits.json_depth = 8;
  limits.json_values = 200;
  limits.prompts = 3;
  limits.n = 4;
  limits.choices = 6;
  limits.logit_bias = 2;
  limits.stop = 2;
  limits.stop_bytes = 8;
  limits.stop_token_ids = 2;
  limits.messages = 3;
  limits.max_tokens = 1000;
  limits.grammar.max_source_bytes = 64;
  return limits;
}

void expect_refused(const Refusal& want, const ApiError& got) {
  SCOPED_TRACE(want.body);
  EXPECT_EQ(got.status, want.status);
  EXPECT_EQ(got.type, "invalid_request_error");
  EXPECT_EQ(got.param, want.param);
  EXPECT_EQ(got.code, want.code);
  EXPECT_THAT(got.message, HasSubstr(want.message));
}

TEST(CompletionRequest, RefusesWithFieldFoundAndWanted) {
  const Refusal refusals[] = {
      {"", "", "the body is not JSON"},
      {"{", "", "the body is not JSON (byte 2)"},
      {R"({"prompt":"a"} x)", "", "the body is not JSON"},
      {"{\"prompt\":\"\xff\"}", "", "ill-formed UTF-8 byte"},
      {R"({"prompt":"\ud800"})", "", "not JSON"},
      {R"({"prompt":1e999})", "", "not JSON"},
      {"[1]", "", "the body: found an array of 1; wanted a JSON object"},
      {R"("a")", "", R"(the body: "a" is a string; wanted a JSON object)"},
      {"null", "", "the body: null; wanted a JSON object"},
      {R"({"x":[[[[[[[[1]]]]]]]]})", "", "deeper than 8", "limit_exceeded"},
      {"{}", "prompt", "prompt: absent"},
      {R"({"prompt":null})", "prompt", "prompt: absent"},
      {R"({"prompt":5})", "prompt", "prompt: found 5; wanted a string, an array"},
      {R"({"prompt":[]})", "prompt", "the array is empty"},
      {R"({"prompt":["a",1]})", "prompt", "prompt[1]: found 1"},
      {R"({"prompt":[1,"a"]})", "prompt", R"(prompt[1]: "a" is a string; wanted a token id)"},
      {R"({"prompt":[1,-1]})", "prompt", "prompt[1]: found -1; wanted a token id"},
      {R"({"prompt":[1.5]})", "prompt", "prompt[0]: found 1.5; wanted a token id"},
      {R"({"prompt":[4294967296]})", "prompt", "prompt[0]: found 4294967296"},
      {R"({"prompt":[[1],[]]})", "prompt", "prompt[1]: the array is empty"},
      {R"({"prompt":[[1],[2,true]]})", "prompt", "prompt[1][1]: true is a boolean"},
      {R"({"prompt":[true]})", "prompt", "prompt[0]: true is a boolean"},
      {R"({"prompt":["a","b","c","d"]})", "prompt", "4 prompts; at most 3", "limit_exceeded"},
      {R"({"prompt":["a","b"],"n":4})", "n", "2 prompts of 4 choices each; at most 6", "limit_exceeded"},
      {R"({"prompt":"a","model":7})", "model", "model: found 7; wanted a string"},
      {R"({"prompt":"a","temperature":"hot"})", "temperature",
       R"(temperature: "hot" is a string; wanted a number from 0 to 1000)"},
      {R"({"prompt":"a","temperature":-0.1})", "temperature", "found -0.1"},
      {R"({"prompt":"a","temperature":true})", "temperature", "true is a boolean"},
      {R"({"prompt":"a","top_p":0})", "top_p", "wanted a number above 0 to 1"},
      {R"({"prompt":"a","top_p":1.01})", "top_p", "found 1.01"},
      {R"({"prompt":"a","top_k":-2})", "top_k", "found -2; wanted a whole number from -1"},
      {R"({"prompt":"a","min_p":1.5})", "min_p", "found 1.5"},
      {R"({"prompt":"a","repetition_penalty":0})", "repetition_penalty", "found 0"},
      {R"({"prompt":"a","presence_penalty":2.5})", "presence_penalty", "wanted a number from -2 to 2"},
      {R"({"prompt":"a","frequency_penalty":[]})", "frequency_penalty", "found an array of 0"},
      {R"({"prompt":"a","n":0})", "n", "n: found 0; wanted a whole number from 1 to 4"},
      {R"({"prompt":"a","n":5})", "n", "n: found 5"},
      {R"({"prompt":"a","n":1.5})", "n", "n: found 1.5"},
      {R"({"prompt":"a","n":"2"})", "n", R"(n: "2" is a string)"},
      {R"({"prompt":"a","best_of":2})", "best_of", "best_of: found 2; wanted 1 or nothing"},
      {R"({"prompt":"a","seed":1e30})", "seed", "wanted a whole number of 64 bits"},
      {R"({"prompt":"a","seed":18446744073709551615})", "seed", "found 18446744073709551615"},
      {R"({"prompt":"a","max_tokens":0})", "max_tokens", "found 0; wanted a whole number from 1 to 1000"},
      {R"({"prompt":"a","max_tokens":-5})", "max_tokens", "found -5"},
      {R"({"prompt":"a","max_tokens":1001})", "max_tokens", "found 1001"},
      {R"({"prompt":"a","min_tokens":-1})", "min_tokens", "found -1"},
      {R"({"prompt":"a","logprobs":21})", "logprobs", "found 21; wanted a whole number from 0 to 20"},
      {R"({"prompt":"a","logprobs":true})", "logprobs", "true is a boolean"},
      {R"({"prompt":"a","prompt_logprobs":-1})", "prompt_logprobs", "found -1"},
      {R"({"prompt":"a","prompt_logprobs":1,"stream":true})", "prompt_logprobs", "not with stream"},
      {R"({"prompt":"a","logit_bias":[1]})", "logit_bias", "wanted an object"},
      {R"({"prompt":"a","logit_bias":{"x":1}})", "logit_bias", R"(the key "x" is no token id)"},
      {R"({"prompt":"a","logit_bias":{"-1":1}})", "logit_bias", "is no token id"},
      {R"({"prompt":"a","logit_bias":{"01":1}})", "logit_bias", "is no token id"},
      {R"({"prompt":"a","logit_bias":{"5":101}})", "logit_bias",
       "logit_bias[5]: found 101; wanted a number from -100 to 100"},
      {R"({"prompt":"a","logit_bias":{"1":1,"2":1,"3":1}})", "logit_bias", "3 entries; at most 2", "limit_exceeded"},
      {R"({"prompt":"a","stop":1})", "stop", "stop: found 1; wanted a string or an array"},
      {R"({"prompt":"a","stop":""})", "stop", "stop: the string is empty"},
      {R"({"prompt":"a","stop":["x",null]})", "stop", "stop[1]: null; wanted a string"},
      {R"({"prompt":"a","stop":["1","2","3"]})", "stop", "3 strings; at most 2", "limit_exceeded"},
      {R"({"prompt":"a","stop":"123456789"})", "stop", "9 bytes; at most 8", "limit_exceeded"},
      {R"({"prompt":"a","stop_token_ids":7})", "stop_token_ids", "wanted an array of token ids"},
      {R"({"prompt":"a","stop_token_ids":["7"]})", "stop_token_ids[0]", "is a string"},
      {R"({"prompt":"a","stop_token_ids":[1,2,3]})", "stop_token_ids", "at most 2", "limit_exceeded"},
      {R"({"prompt":"a","ignore_eos":1})", "ignore_eos", "found 1; wanted true or false"},
      {R"({"prompt":"a","stream":"yes"})", "stream", "wanted true or false"},
      {R"({"prompt":"a","stream_options":{"include_usage":true}})", "stream_options", "only with stream true"},
      {R"({"prompt":"a","stream":true,"stream_options":[]})", "stream_options", "wanted an object"},
      {R"({"prompt":"a","suffix":"b"})", "suffix", "leave suffix out", "unsupported"},
      {R"({"prompt":"a","use_beam_search":true})", "use_beam_search", "not supported", "unsupported"},
      {R"({"prompt":"a","prompt_embeds":"AAAA"})", "prompt_embeds", "not supported", "unsupported"},
      {R"({"prompt":"a","truncate_prompt_tokens":5})", "truncate_prompt_tokens", "prompt that fits", "unsupported"},
      {R"({"prompt":"a","bad_words":["x"]})", "bad_words", "not supported", "unsupported"},
      {R"({"prompt":"a","response_format":"json"})", "response_format", "wanted an object"},
      {R"({"prompt":"a","response_format":{}})", "response_format", "response_format.type: absent"},
      {R"({"prompt":"a","response_format":{"type":"xml"}})", "response_format", R"("xml" is a string; wanted text)"},
      {R"({"prompt":"a","response_format":{"type":"json_schema"}})", "response_format.json_schema", "absent"},
      {R"({"prompt":"a","response_format":{"type":"json_schema","json_schema":{"name":"x"}}})",
       "response_format.json_schema", "schema: absent"},
      {R"({"prompt":"a","response_format":{"type":"json_object"},"guided_regex":"a+"})", "guided_regex",
       "response_format asks for a form of the text too"},
      {R"({"prompt":"a","guided_choice":[]})", "guided_choice", "wanted an array of strings"},
      {R"({"prompt":"a","structured_outputs":{"regex":7}})", "regex", "wanted a string"},
      {R"({"prompt":"a","guided_json":{"description":"12345678901234567890123456789012345678901234567890"}})",
       "guided_json", "at most 64", "limit_exceeded"},
      {R"({"prompt":"a","priority":1e10})", "priority", "found 10000000000"},
      {R"({"prompt":"a","tpot_slo_ms":-1})", "tpot_slo_ms", "found -1"},
  };
  for (const Refusal& refusal : refusals) {
    const auto call = parse_completion(refusal.body, small_limits());
    if (call) {
      ADD_FAILURE() << "accepted: " << refusal.body;
    } else {
      expect_refused(refusal, call.error());
    }
  }
}

TEST(ChatRequest, RefusesWithFieldFoundAndWanted) {
  const Refusal refusals[] = {
      {"{}", "messages", "messages: absent"},
      {R"({"messages":"hi"})", "messages", "wanted an array"},
      {R"({"messages":[]})", "messages", "the array is empty"},
      {R"({"messages":[1]})", "messages[0]", "found 1; wanted an object"},
      {R"({"messages":[{"content":"a"}]})", "messages[0].role", "messages[0].role: absent; wanted system"},
      {R"({"messages":[{"role":"robot","content":"a"}]})", "messages[0].role", R"("robot" is a string)"},
      {R"({"messages":[{"role":"user"}]})", "messages[0].content", "absent; wanted a string"},
      {R"({"messages":[{"role":"user","content":null}]})", "messages[0].content", "null; wanted a string"},
      {R"({"messages":[{"role":"user","content":5}]})", "messages[0].content", "found 5"},
      {R"({"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]})",
       "messages[0].content[0]", R"("image_url" is a string; wanted "text")"},
      {R"({"messages":[{"role":"user","content":[{"type":"text"}]}]})", "messages[0].content[0]", "text: absent"},
      {R"({"messages":[{"role":"user","content":["a"]}]})", "messages[0].content[0]", "wanted an object"},
      {R"({"messages":[{"role":"user","content":"a"},{"role":"user","content":"a"},{"role":"user","content":"a"},
           {"role":"user","content":"a"}]})",
       "messages", "messages: 4; at most 3", "limit_exceeded"},
      {R"({"messages":[{"role":"user","content":"a"}],"tools":[{"type":"function"}]})", "tools", "tool_choice \"none\"",
       "unsupported"},
      {R"({"messages":[{"role":"user","content":"a"}],"tools":{}})", "tools", "wanted an array"},
      {R"({"messages":[{"role":"user","content":"a"}],"tool_choice":"required"})", "tool_choice", "there are no tools"},
      {R"({"messages":[{"role":"user","content":"a"}],"functions":[{"name":"f"}]})", "functions", "deprecated",
       "unsupported"},
      {R"({"messages":[{"role":"user","content":"a"}],"chat_template":"{{ 1 }}"})", "chat_template", "never run",
       "unsupported"},
      {R"({"messages":[{"role":"user","content":"a"}],"continue_final_message":true})", "continue_final_message",
       "not supported", "unsupported"},
      {R"({"messages":[{"role":"user","content":"a"}],"chat_template_kwargs":1})", "chat_template_kwargs", "object"},
      {R"({"messages":[{"role":"user","content":"a"}],"logprobs":5})", "logprobs", "wanted true or false"},
      {R"({"messages":[{"role":"user","content":"a"}],"top_logprobs":5})", "top_logprobs", "only with logprobs true"},
      {R"({"messages":[{"role":"user","content":"a"}],"logprobs":true,"top_logprobs":21})", "top_logprobs", "found 21"},
      {R"({"messages":[{"role":"user","content":"a"}],"max_completion_tokens":0})", "max_completion_tokens", "found 0"},
      {R"({"messages":[{"role":"user","content":"a"}],"echo":true})", "echo", "not supported", "unsupported"},
  };
  for (const Refusal& refusal : refusals) {
    const auto call = parse_chat(refusal.body, small_limits());
    if (call) {
      ADD_FAILURE() << "accepted: " << refusal.body;
    } else {
      expect_refused(refusal, call.error());
    }
  }
}

TEST(CompletionRequest, TakesTheFourFormsOfAPrompt) {
  const auto prompts = [](const char* body) { return parse_completion(body, {}).value().prompts; };
  using Ids = std::vector<int32_t>;
  EXPECT_THAT(prompts(R"({"prompt":""})"), ElementsAre(Prompt("")));
  EXPECT_THAT(prompts(R"({"prompt":"a"})"), ElementsAre(Prompt("a")));
  EXPECT_THAT(prompts(R"({"prompt":["a","b"]})"), ElementsAre(Prompt("a"), Prompt("b")));
  EXPECT_THAT(prompts(R"({"prompt":[1,2]})"), ElementsAre(Prompt(Ids{1, 2})));
  EXPECT_THAT(prompts(R"({"prompt":[[1,2],[2147483647]]})"), ElementsAre(Prompt(Ids{1, 2}), Prompt(Ids{2147483647})));
}

TEST(CompletionRequest, NullIsAbsentAndUnknownFieldsAreTolerated) {
  const auto call = parse_completion(
      R"({"prompt":"a","model":null,"temperature":null,"n":null,"stop":null,"logit_bias":null,"seed":null,
          "stream":null,"stream_options":null,"logprobs":null,"max_tokens":null,"suffix":null,"best_of":null,
          "response_format":null,"user":"u","metadata":{"a":1},"store":true,"service_tier":"auto","verbosity":"low",
          "prompt_cache_key":"k","safety_identifier":"s","prediction":{"type":"content"},"never_heard_of":[[]]})",
      {});
  ASSERT_TRUE(call) << call.error().message;
  EXPECT_EQ(call->model, "");
  EXPECT_EQ(call->n, 1);
  EXPECT_FALSE(call->temperature || call->seed || call->logprobs || call->max_tokens || call->grammar);
  EXPECT_FALSE(call->stream || call->echo || call->ignore_eos || call->include_stop);
  EXPECT_TRUE(call->add_special_tokens && call->skip_special);
}

TEST(CompletionRequest, ReadsEveryField) {
  const auto call = parse_completion(
      R"({"model":"m","prompt":[5],"temperature":0,"top_p":0.5,"top_k":-1,"min_p":0.1,"repetition_penalty":1.1,
          "presence_penalty":-1,"frequency_penalty":2,"seed":-1,"n":2.0,"best_of":1,"max_tokens":1.6e1,"min_tokens":3,
          "logit_bias":{"7":-100,"0":2.5},"stop":["a","b"],"stop_token_ids":[4],"include_stop_str_in_output":true,
          "ignore_eos":true,"logprobs":0,"prompt_logprobs":2,"echo":true,"priority":-3,"ttft_slo_ms":500,"cache_salt":"salt",
          "add_special_tokens":false,"skip_special_tokens":false,"return_token_ids":true,
          "return_tokens_as_token_ids":true})",
      {});
  ASSERT_TRUE(call) << call.error().message;
  EXPECT_EQ(call->model, "m");
  EXPECT_EQ(call->temperature, 0.0);
  EXPECT_EQ(call->top_p, 0.5);
  EXPECT_EQ(call->top_k, -1);
  EXPECT_EQ(call->min_p, 0.1);
  EXPECT_EQ(call->repetition_penalty, 1.1);
  EXPECT_EQ(call->presence_penalty, -1.0);
  EXPECT_EQ(call->frequency_penalty, 2.0);
  EXPECT_EQ(call->seed, 0xffff'ffff'ffff'ffffu);
  EXPECT_EQ(call->n, 2);
  EXPECT_EQ(call->max_tokens, 16);
  EXPECT_EQ(call->min_tokens, 3);
  ASSERT_EQ(call->logit_bias.size(), 2u);
  EXPECT_EQ(call->logit_bias[0].token, 7);
  EXPECT_EQ(call->logit_bias[0].bias, -100.0f);
  EXPECT_EQ(call->logit_bias[1].token, 0);
  EXPECT_EQ(call->logit_bias[1].bias, 2.5f);
  EXPECT_THAT(call->stop, ElementsAre("a", "b"));
  EXPECT_THAT(call->stop_token_ids, ElementsAre(4));
  EXPECT_TRUE(call->include_stop && call->ignore_eos && call->echo);
  EXPECT_EQ(call->logprobs, 0);
  EXPECT_EQ(call->prompt_logprobs, 2);
  EXPECT_EQ(call->priority, -3);
  EXPECT_EQ(call->ttft_slo_ms, 500);
  EXPECT_EQ(call->tpot_slo_ms, 0);
  EXPECT_EQ(call->cache_salt, "salt");
  EXPECT_FALSE(call->add_special_tokens || call->skip_special);
  EXPECT_TRUE(call->return_token_ids && call->tokens_as_ids);
}

TEST(CompletionRequest, TheLastOfEqualKeysCounts) {
  const auto call = parse_completion(R"({"prompt":"a","n":3,"prompt":"b","n":2,"logit_bias":{"5":1,"5":2}})", {});
  ASSERT_TRUE(call) << call.error().message;
  EXPECT_THAT(call->prompts, ElementsAre(Prompt("b")));
  EXPECT_EQ(call->n, 2);
  ASSERT_EQ(call->logit_bias.size(), 1u);
  EXPECT_EQ(call->logit_bias[0].bias, 2.0f);
}

TEST(CompletionRequest, MaxTokensMayBeZeroWhereThePromptIsScored) {
  EXPECT_EQ(parse_completion(R"({"prompt":"a","echo":true,"max_tokens":0})", {})->max_tokens, 0);
  EXPECT_EQ(parse_completion(R"({"prompt":"a","prompt_logprobs":0,"max_tokens":0})", {})->max_tokens, 0);
}

TEST(CompletionRequest, UsageComesWithStreamsThatAskForIt) {
  const auto call = parse_completion(
      R"({"prompt":"a","stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true,"x":1}})",
      {});
  ASSERT_TRUE(call);
  EXPECT_TRUE(call->stream && call->include_usage && call->continuous_usage);
  EXPECT_FALSE(parse_completion(R"({"prompt":"a","stream":true,"stream_options":{"continuous_usage_stats":true}})", {})
                   ->continuous_usage);
}

TEST(CompletionRequest, ReadsGrammars) {
  const auto grammar = [](const std::string& fields) {
    const auto call = parse_completion(R"({"prompt":"a",)" + fields + "}", {});
    EXPECT_TRUE(call) << fields << ": " << call.error().message;
    return call->grammar.value_or(GrammarSpec{.kind = GrammarKind::kLark, .source = "none"});
  };
  const auto expect = [](const GrammarSpec& spec, GrammarKind kind, std::string_view source) {
    EXPECT_EQ(spec.kind, kind);
    EXPECT_EQ(spec.source, source);
  };
  expect(grammar(R"("response_format":{"type":"text"})"), GrammarKind::kLark, "none");
  expect(grammar(R"("response_format":{"type":"json_object"})"), GrammarKind::kJsonObject, "");
  expect(grammar(R"("response_format":{"type":"json_schema","json_schema":{"name":"n","strict":true,
                     "schema":{"type":"object","properties":{"z":{},"a":{}}}}})"),
         GrammarKind::kJsonSchema, R"({"type":"object","properties":{"z":{},"a":{}}})");
  expect(grammar(R"("guided_json":"{\"type\": \"integer\"}")"), GrammarKind::kJsonSchema, R"({"type":"integer"})");
  expect(grammar(R"("guided_regex":"a+")"), GrammarKind::kRegex, "a+");
  expect(grammar(R"("guided_grammar":"start: \"x\"")"), GrammarKind::kLark, "start: \"x\"");
  expect(grammar(R"("structured_outputs":{"choice":["a\"b","c"]})"), GrammarKind::kLark, R"(start: "a\"b" | "c")");
  expect(grammar(R"("structured_outputs":{"json_object":true})"), GrammarKind::kJsonObject, "");
}

TEST(ChatRequest, BringsMessagesIntoTheTemplatesForm) {
  const auto call = parse_chat(
      R"({"messages":[
            {"role":"developer","content":"be brief","name":"d"},
            {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
            {"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function",
                "function":{"name":"f","arguments":"{\"z\": 1, \"a\": 2}"}}]},
            {"role":"tool","tool_call_id":"1","content":"3"}],
          "tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"none",
          "chat_template_kwargs":{"enable_thinking":false},"max_tokens":5,"max_completion_tokens":7,
          "logprobs":true,"top_logprobs":3})",
      {});
  ASSERT_TRUE(call) << call.error().message;
  EXPECT_EQ(to_text(call->chat.messages),
            R"([{"role":"developer","content":"be brief","name":"d"},)"
            R"({"role":"user","content":"a\nb"},)"
            R"({"role":"assistant","content":"","tool_calls":[{"id":"1","type":"function",)"
            R"("function":{"name":"f","arguments":{"z":1,"a":2}}}]},)"
            R"({"role":"tool","tool_call_id":"1","content":"3"}])");
  EXPECT_EQ(call->chat.tools, R"([{"type":"function","function":{"name":"f"}}])");
  EXPECT_EQ(call->chat.extra, R"({"enable_thinking":false})");
  EXPECT_TRUE(call->chat.add_generation_prompt);
  EXPECT_EQ(call->max_tokens, 7);
  EXPECT_EQ(call->logprobs, 3);
  EXPECT_FALSE(call->add_special_tokens);
  // Asking for no rivals is not asking for no logprobs.
  EXPECT_EQ(parse_chat(R"({"messages":[{"role":"user","content":"a"}],"logprobs":true})", {})->logprobs, 0);
  EXPECT_FALSE(parse_chat(R"({"messages":[{"role":"user","content":"a"}],"top_logprobs":0})", {})->logprobs);
}

TEST(JsonRequest, CountsValuesAndDepth) {
  ApiLimits limits;
  limits.json_values = 5;
  EXPECT_TRUE(parse_json_object(R"({"a":[1,2,3]})", limits));
  const auto more = parse_json_object(R"({"a":[1,2,3,4]})", limits);
  ASSERT_FALSE(more);
  EXPECT_THAT(more.error().message, HasSubstr("more than 5 JSON values"));
  limits.json_depth = 2;
  EXPECT_TRUE(parse_json_object(R"({"a":[1]})", limits));
  EXPECT_FALSE(parse_json_object(R"({"a":[[]]})", limits));
  // Far deeper than any stack.
  EXPECT_FALSE(parse_json_object(std::string(10'000'000, '['), {}));
}

TEST(JsonRequest, ManyMembersTakeNoQuadraticTime) {
  std::string body = "{";
  for (int i = 0; i < 300'000; ++i) body += fmt::format("\"k{}\":0,", i % 200'000);
  body += R"("prompt":"a"})";
  const auto json = parse_json_object(body, {});
  ASSERT_TRUE(json);
  EXPECT_EQ(json->size(), 200'001u);
}

TEST(JsonRequest, OfEqualKeysTheLastCountsInItsPlace) {
  const auto json = parse_json_object(R"({"b":1,"a":2,"b":3,"c":{"x":1,"x":2},"a":4,"d":5,"a":6})", {});
  ASSERT_TRUE(json);
  EXPECT_EQ(to_text(*json), R"({"b":3,"c":{"x":2},"d":5,"a":6})");
}

// Texts of JSON inside a body and the body itself have one budget of values, and one depth.
TEST(JsonRequest, TextsInsideShareTheBudgetOfTheBody) {
  const auto chat = [](int calls, std::string_view arguments) {
    Json list = Json::array();
    for (int i = 0; i < calls; ++i) list.push_back({{"function", {{"name", "f"}, {"arguments", arguments}}}});
    return to_text({{"messages", {{{"role", "assistant"}, {"tool_calls", list}}}}});
  };
  std::string many = R"({"a":[1)";
  for (int i = 0; i < 30; ++i) many += ",1";
  many += "]}";
  ApiLimits limits = small_limits();  // 200 values, 8 deep
  EXPECT_TRUE(parse_chat(chat(4, many), limits));
  const auto more = parse_chat(chat(8, many), limits);
  ASSERT_FALSE(more);
  EXPECT_EQ(more.error().code, "limit_exceeded");
  EXPECT_EQ(more.error().param, "messages");
  EXPECT_THAT(more.error().message, HasSubstr("more than 200 JSON values"));
  // The arguments are the seventh level of the body.
  EXPECT_TRUE(parse_chat(chat(1, R"({"a":[1]})"), limits));
  const auto deep = parse_chat(chat(1, R"({"a":[[1]]})"), limits);
  ASSERT_FALSE(deep);
  EXPECT_THAT(deep.error().message, HasSubstr("deeper than 8"));
  // What is no JSON stays a text, and its values count all the same.
  EXPECT_TRUE(parse_chat(chat(1, "{\"a\":"), limits));
  EXPECT_FALSE(parse_chat(chat(8, many.substr(0, many.size() - 1)), limits));
  const std::string schema = to_text({{"prompt", "a"}, {"guided_json", R"({"enum":[1,2,3]})"}});
  limits.json_values = 8;  // three of the body, five of the schema
  EXPECT_TRUE(parse_completion(schema, limits));
  limits.json_values = 7;
  EXPECT_FALSE(parse_completion(schema, limits));
}

TEST(JsonRequest, QuotesLongValuesWithoutCuttingCharacters) {
  std::string text;
  for (int i = 0; i < 30; ++i) text += "é";
  EXPECT_EQ(describe(Json("x" + text)), "\"x" + text.substr(0, 38) + "...\" is a string");
}

TEST(ApiError, HasAllFourKeys) {
  EXPECT_EQ(error_json(bad_request("n", "n: {}", 5)),
            R"({"error":{"message":"n: 5","type":"invalid_request_error","param":"n","code":null}})");
  EXPECT_EQ(error_json(not_now("loading", "wait")),
            R"({"error":{"message":"wait","type":"server_error","param":null,"code":"loading"}})");
  EXPECT_EQ(
      error_json(413, "too large"),
      R"({"error":{"message":"too large","type":"invalid_request_error","param":null,"code":"request_too_large"}})");
  // A message may quote bytes that are no UTF-8.
  EXPECT_THAT(error_json(400, "\xff"), HasSubstr("\xef\xbf\xbd"));
}

TEST(ApiError, MapsEveryErrorCode) {
  const std::pair<Error, int> rows[] = {
      {invalid_argument("x"), 400},   {not_found("x"), 404},     {corrupt("x"), 500},           {unsupported("x"), 400},
      {resource_exhausted("x"), 503}, {cancelled("x"), 503},     {deadline_exceeded("x"), 504}, {unavailable("x"), 503},
      {device_lost("x"), 503},        {internal_error("x"), 500}};
  for (const auto& [error, status] : rows) {
    const ApiError mapped = to_api_error(error);
    EXPECT_EQ(mapped.status, status) << error_code_name(error.code);
    EXPECT_EQ(mapped.type, status < 500 ? "invalid_request_error" : "server_error");
    EXPECT_EQ(mapped.retry_after_s > 0, status == 503) << error_code_name(error.code);
  }
}

}  // namespace
}  // namespace hearth
