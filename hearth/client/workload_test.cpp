// SPDX-License-Identifier: Apache-2.0
// Arrival times, lengths, traces, prompt files, plans.
#include "hearth/client/workload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "hearth/client/load_plan.h"

namespace hearth {
namespace {

using testing::HasSubstr;

struct Gaps {
  double mean = 0, variation = 0;  // standard deviation / mean
  double above_mean = 0;           // share of gaps longer than the mean
};

Gaps gaps_of(double rate, double burstiness, uint64_t seed) {
  constexpr int64_t kCount = 100'000;
  const auto times = draw_arrivals(kCount, rate, burstiness, seed);
  EXPECT_EQ(times.front(), 0);
  EXPECT_TRUE(std::is_sorted(times.begin(), times.end()));
  Gaps gaps;
  gaps.mean = times.back() / static_cast<double>(kCount - 1);
  double squares = 0;
  for (size_t i = 1; i < times.size(); ++i) {
    const double gap = times[i] - times[i - 1];
    squares += (gap - gaps.mean) * (gap - gaps.mean);
    gaps.above_mean += gap > gaps.mean ? 1.0 / (kCount - 1) : 0;
  }
  gaps.variation = std::sqrt(squares / (kCount - 1)) / gaps.mean;
  return gaps;
}

// A Gamma distribution with shape k has the variation 1/sqrt(k); an exponential one exceeds its mean with
// probability 1/e. With 100000 gaps, 2 % is more than five standard errors of each of these.
TEST(Arrivals, GapsHaveTheMeanAndTheShape) {
  for (const uint64_t seed : {0, 1, 2}) {
    SCOPED_TRACE(seed);
    const Gaps poisson = gaps_of(8, 1, seed);
    EXPECT_NEAR(poisson.mean, 1.0 / 8, 0.02 / 8);
    EXPECT_NEAR(poisson.variation, 1, 0.02);
    EXPECT_NEAR(poisson.above_mean, std::exp(-1), 0.01);
    const Gaps even = gaps_of(0.5, 16, seed);
    EXPECT_NEAR(even.mean, 2, 0.04);
    EXPECT_NEAR(even.variation, 0.25, 0.005);
    const Gaps bursty = gaps_of(100, 0.25, seed);
    EXPECT_NEAR(bursty.mean, 0.01, 0.0004);
    EXPECT_NEAR(bursty.variation, 2, 0.06);
  }
}

TEST(Arrivals, TheSeedDecides) {
  EXPECT_EQ(draw_arrivals(100, 3, 1, 7), draw_arrivals(100, 3, 1, 7));
  EXPECT_NE(draw_arrivals(100, 3, 1, 7), draw_arrivals(100, 3, 1, 8));
  // The first ones do not depend on how many follow.
  const auto few = draw_arrivals(10, 3, 0.5, 7), many = draw_arrivals(100, 3, 0.5, 7);
  EXPECT_TRUE(std::equal(few.begin(), few.end(), many.begin()));
  EXPECT_EQ(draw_arrivals(3, std::numeric_limits<double>::infinity(), 1, 7), std::vector<double>(3, 0.0));
}

TEST(Lengths, UniformInTheRange) {
  EXPECT_EQ(draw_lengths(5, 100, 0, 1, 0), std::vector<int64_t>(5, 100));
  const auto lengths = draw_lengths(20'000, 10, 0.3, 1, 0);
  EXPECT_EQ(*std::min_element(lengths.begin(), lengths.end()), 7);
  EXPECT_EQ(*std::max_element(lengths.begin(), lengths.end()), 13);
  double mean = 0;
  for (const int64_t length : lengths) mean += static_cast<double>(length) / 20'000;
  EXPECT_NEAR(mean, 10, 0.1);  // seven standard errors
  EXPECT_NE(draw_lengths(50, 100, 0.5, 1, 0), draw_lengths(50, 100, 0.5, 1, 1));
}

TEST(Timestamps, Forms) {
  // date -u -d '2023-11-16 18:15:46' +%s
  EXPECT_DOUBLE_EQ(*parse_timestamp("2023-11-16 18:15:46"), 1700158546.0);
  EXPECT_NEAR(*parse_timestamp("2023-11-16 18:15:46.6805900"), 1700158546.68059, 1e-6);
  EXPECT_DOUBLE_EQ(*parse_timestamp("2023-11-16T18:15:46Z"), 1700158546.0);
  EXPECT_DOUBLE_EQ(*parse_timestamp("2024-02-29 00:00:00"), 1709164800.0);
  EXPECT_DOUBLE_EQ(*parse_timestamp("12.5"), 12.5);
  for (const char* bad : {"", "x", "2023-11-16", "2023-02-29 00:00:00", "2023-13-01 00:00:00", "2023-11-16 24:00:00",
                          "2023-11-16 18:60:00", "2023-11-16 18:15:xx", "nan", "inf"})
    EXPECT_FALSE(parse_timestamp(bad)) << bad;
}

TEST(Traces, Azure) {
  const auto trace = parse_trace(
      "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 23:59:59.5000000,374,44\r\n"
      "2023-11-17 00:00:01.0000000,396,109\r\n2023-11-17 00:00:00.5000000,1,0\r\n\r\n");
  ASSERT_TRUE(trace) << trace.error().message;
  EXPECT_TRUE(trace->has_times);
  ASSERT_EQ(trace->requests.size(), 3u);
  EXPECT_EQ(trace->requests[0].arrival_s, 0);
  EXPECT_EQ(trace->requests[0].input_tokens, 374);
  EXPECT_EQ(trace->requests[0].output_tokens, 44);
  EXPECT_NEAR(trace->requests[1].arrival_s, 1.5, 1e-6);
  EXPECT_NEAR(trace->requests[2].arrival_s, 1.5, 1e-6);  // half a second back: with the one before
  EXPECT_EQ(trace->requests[2].output_tokens, 1);        // an answer has a token at least
}

TEST(Traces, LengthsAlone) {
  const auto trace =
      parse_trace("num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n74,918,992,0.08\n1,2,3,0.5");
  ASSERT_TRUE(trace) << trace.error().message;
  EXPECT_FALSE(trace->has_times);
  ASSERT_EQ(trace->requests.size(), 2u);
  EXPECT_EQ(trace->requests[1].input_tokens, 1);
  EXPECT_EQ(trace->requests[1].output_tokens, 2);
}

TEST(Traces, BadLinesAreNamed) {
  const std::string head = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
  const auto error = [](const std::string& csv) {
    const auto trace = parse_trace(csv);
    return trace ? std::string("no error") : trace.error().message;
  };
  EXPECT_THAT(error("a,b\n1,2\n"), HasSubstr("line 1: the columns are a,b; wanted TIMESTAMP"));
  EXPECT_THAT(error(""), HasSubstr("line 1"));
  EXPECT_THAT(error(head), HasSubstr("no requests"));
  EXPECT_THAT(error(head + "1,2,3\n2,x,4\n"), HasSubstr("line 3: prompt length 'x'"));
  EXPECT_THAT(error(head + "1,2,-3\n"), HasSubstr("line 2: output length '-3'"));
  EXPECT_THAT(error(head + "1,2\n"), HasSubstr("line 2: 2 columns, wanted 3"));
  EXPECT_THAT(error(head + "\n\nyesterday,2,3\n"), HasSubstr("line 4: time 'yesterday'"));
  EXPECT_THAT(error(head + "10,2,3\n5,2,3\n"), HasSubstr("line 3: time '5' is 5.000 s before"));
}

TEST(Prompts, DrawnFromTheIds) {
  const std::vector<int32_t> ids = {5, 7, 11};
  const auto prompt = draw_prompt(ids, 1000, 1, 2);
  EXPECT_EQ(prompt.size(), 1000u);
  EXPECT_EQ(std::set<int32_t>(prompt.begin(), prompt.end()), std::set<int32_t>(ids.begin(), ids.end()));
  EXPECT_EQ(prompt, draw_prompt(ids, 1000, 1, 2));
  EXPECT_NE(prompt, draw_prompt(ids, 1000, 1, 3));
  const std::string text = draw_text(20, 1, 2);
  EXPECT_EQ(std::count(text.begin(), text.end(), ' '), 19);
}

TEST(PromptLines, KindsAndErrors) {
  const auto lines = parse_prompt_lines(
      "{\"prompt\": \"a\", \"max_tokens\": 3}\n\n{\"prompt\": [1, 2]}\n{\"messages\": [{\"role\": \"user\"}]}");
  ASSERT_TRUE(lines) << lines.error().message;
  ASSERT_EQ(lines->size(), 3u);
  EXPECT_EQ((*lines)[0].prompt_json, "\"a\"");
  EXPECT_EQ((*lines)[0].output_tokens, 3);
  EXPECT_EQ((*lines)[1].input_tokens, 2);
  EXPECT_EQ((*lines)[2].messages_json, "[{\"role\":\"user\"}]");
  const auto error = [](const char* text) {
    const auto bad = parse_prompt_lines(text);
    return bad ? std::string("no error") : bad.error().message;
  };
  EXPECT_THAT(error("{\"prompt\": \"a\"}\n{"), HasSubstr("line 2: not a JSON object"));
  EXPECT_THAT(error("{\"prompt\": 3}"), HasSubstr("line 1: its prompt is neither"));
  EXPECT_THAT(error("{\"text\": \"a\"}"), HasSubstr("line 1: it has neither"));
  EXPECT_THAT(error("{\"prompt\": \"a\", \"max_tokens\": 0}"), HasSubstr("line 1: its max_tokens"));
  EXPECT_THAT(error("\n"), HasSubstr("no prompts"));
}

LoadPlanSettings random_plan() {
  LoadPlanSettings settings;
  settings.num_prompts = 20;
  settings.input_len = 10;
  settings.output_len = 4;
  settings.range_ratio = 0.5;
  settings.token_ids = {5, 7, 11};
  settings.model = "m";
  return settings;
}

TEST(Plan, BodiesOfCompletions) {
  LoadPlanSettings settings = random_plan();
  settings.temperature = 0.5;
  settings.extra_body = R"({"top_k": 3, "ignore_eos": false})";
  const auto plan = make_load_plan(settings);
  ASSERT_TRUE(plan) << plan.error().message;
  ASSERT_EQ(plan->requests.size(), 20u);
  for (size_t i = 0; i < 20; ++i) {
    const auto body = nlohmann::json::parse(plan->make_body(i));
    EXPECT_EQ(body.at("prompt").size(), static_cast<size_t>(plan->requests[i].input_tokens));
    EXPECT_EQ(body.at("max_tokens"), plan->requests[i].output_tokens);
    EXPECT_EQ(body.at("model"), "m");
    EXPECT_EQ(body.at("stream"), true);
    EXPECT_EQ(body.at("stream_options").at("include_usage"), true);
    EXPECT_EQ(body.at("temperature"), 0.5);
    EXPECT_EQ(body.at("top_k"), 3);
    EXPECT_EQ(body.at("ignore_eos"), false);
    EXPECT_EQ(plan->make_body(i), plan->make_body(i));
  }
  EXPECT_NE(plan->make_body(0), plan->make_body(1));
  settings.extra_body = "[]";
  EXPECT_THAT(make_load_plan(settings).error().message, HasSubstr("--extra-body"));
}

TEST(Plan, ChatsAndPromptFiles) {
  LoadPlanSettings settings = random_plan();
  settings.chat = true;
  const auto chat = nlohmann::json::parse(make_load_plan(settings)->make_body(0));
  EXPECT_EQ(chat.at("messages").at(0).at("role"), "user");
  EXPECT_EQ(chat.at("ignore_eos"), true);
  settings.dataset = Dataset::kPrompts;
  settings.file_text = "{\"prompt\": \"say \\\"a\\\"\"}\n{\"messages\": [{\"role\": \"system\", \"content\": \"b\"}]}";
  settings.num_prompts = 3;
  const auto plan = make_load_plan(settings);
  ASSERT_TRUE(plan) << plan.error().message;
  EXPECT_EQ(nlohmann::json::parse(plan->make_body(2)).at("messages").at(0).at("content"), "say \"a\"");
  EXPECT_EQ(nlohmann::json::parse(plan->make_body(1)).at("messages").at(0).at("role"), "system");
  settings.chat = false;
  EXPECT_THAT(make_load_plan(settings).error().message, HasSubstr("prompt 2 has messages"));
}

TEST(Plan, TracesAreScaledAndCapped) {
  LoadPlanSettings settings = random_plan();
  settings.dataset = Dataset::kTrace;
  settings.num_prompts.reset();
  settings.file_text = "TIMESTAMP,ContextTokens,GeneratedTokens\n0,10,5\n10,2000,500\n";
  settings.trace_scale = 0.5;
  settings.max_input_len = 100;
  settings.max_output_len = 50;
  const auto plan = make_load_plan(settings);
  ASSERT_TRUE(plan) << plan.error().message;
  ASSERT_EQ(plan->requests.size(), 2u);
  EXPECT_TRUE(plan->recorded_times);
  EXPECT_DOUBLE_EQ(plan->requests[1].arrival_s, 5);
  EXPECT_EQ(plan->requests[1].input_tokens, 100);
  EXPECT_EQ(plan->requests[1].output_tokens, 50);
  settings.max_context = 120;
  EXPECT_THAT(make_load_plan(settings).error().message,
              HasSubstr("1 of 2 requests are longer than the model's context of 120 tokens (the longest: 100 + 50)"));
  settings.max_context = 0;
  settings.num_prompts = 3;
  EXPECT_THAT(make_load_plan(settings).error().message, HasSubstr("the trace has 2 requests"));
  settings.num_prompts = 1;
  EXPECT_EQ(make_load_plan(settings)->requests.size(), 1u);
  settings.request_rate = 5;
  EXPECT_THAT(make_load_plan(settings).error().message, HasSubstr("not --request-rate"));
}

}  // namespace
}  // namespace hearth
