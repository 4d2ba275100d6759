// SPDX-License-Identifier: Apache-2.0
// What is told of a run of several models, by records whose outcome can be read off: verdicts, sums, lines, picture.
#include "hearth/client/mixed_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "hearth/client/judge.h"
#include "hearth/client/request_log.h"
#include "hearth/client/run_picture.h"

namespace hearth {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using Outcome = RequestRecord::Outcome;

// Due at `due_s`, sent 0.1 s later, tokens at the times, ended with the last one.
RequestRecord record(int64_t model, double due_s, const std::vector<double>& tokens) {
  RequestRecord r;
  r.outcome = Outcome::kDone;
  r.model = model;
  r.due_s = due_s;
  r.sent_s = due_s + 0.1;
  r.events = r.output_tokens = std::ssize(tokens);
  r.first_s = tokens.front();
  r.last_s = r.end_s = tokens.back();
  for (size_t i = 1; i < tokens.size(); ++i) r.gaps_s.push_back(static_cast<float>(tokens[i] - tokens[i - 1]));
  r.prompt_tokens = 10;
  r.server_counted = true;
  return r;
}

RequestRecord failed(int64_t model, double due_s, double end_s) {
  RequestRecord r;
  r.outcome = Outcome::kFailed;
  r.model = model;
  r.due_s = due_s;
  r.sent_s = due_s;
  r.end_s = end_s;
  r.error_kind = "HTTP 503";
  r.error = "HTTP 503: no time \xff";
  return r;
}

std::vector<int64_t> numbers(const SloCounts& c) { return {c.answers, c.attained, c.first_late, c.pace_missed}; }

TEST(Judge, CountsAsTheServerDoes) {
  const Slo slo{.ttft_us = 500'000, .tpot_us = 250'000};
  EXPECT_THAT(numbers(judge(record(0, 1, {1.5, 1.75, 2.0}), slo)), ElementsAre(1, 1, 0, 0));
  // From when it was due, not from when it was sent.
  EXPECT_THAT(numbers(judge(record(0, 1, {1.55, 1.75}), slo)), ElementsAre(1, 0, 1, 0));
  EXPECT_THAT(numbers(judge(record(0, 1, {1.5, 2.0, 2.1}), slo)), ElementsAre(1, 0, 0, 1));
  EXPECT_THAT(numbers(judge(record(0, 1, {1.6, 2.0, 2.5}), slo)), ElementsAre(1, 0, 1, 1));
  EXPECT_THAT(numbers(judge(failed(0, 1, 1.1), slo)), ElementsAre(1, 0, 1, 0));
  RequestRecord cut = record(0, 1, {1.2});
  cut.outcome = Outcome::kFailed;
  EXPECT_THAT(numbers(judge(cut, slo)), ElementsAre(1, 0, 0, 0));
  cut.outcome = Outcome::kCancelled;
  EXPECT_THAT(numbers(judge(cut, slo)), ElementsAre(0, 0, 0, 0));
  cut.events = 0;
  cut.end_s = 2;
  EXPECT_THAT(numbers(judge(cut, slo)), ElementsAre(1, 0, 1, 0));
  EXPECT_THAT(numbers(judge(RequestRecord(), slo)), ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(numbers(judge(record(0, 1, {9}), {})), ElementsAre(0, 0, 0, 0));
}

LoadResult two_models() {
  LoadResult result;
  result.records = {record(0, 0.0, {0.2, 0.3}),       // warm-up
                    record(0, 1.0, {1.2, 1.3, 1.4}),  // kept
                    record(1, 1.5, {2.5, 3.5, 4.5}),  // late; two of its tokens within 4 s
                    record(0, 2.0, {2.2, 3.0}),       // slow
                    failed(1, 2.5, 2.6)};
  result.records[2].output_tokens = 6;  // two an event
  result.seconds = 5;
  result.peak_in_flight = 3;
  result.connections = 3;
  return result;
}

constexpr Slo kSlos[] = {{.ttft_us = 300'000, .tpot_us = 200'000}, {.ttft_us = 300'000, .tpot_us = 0}};

TEST(MixedReport, SumsUpEachModelAndAll) {
  const LoadResult result = two_models();
  const std::vector<std::string> names = {"a", "b"};
  const MixedReport report =
      summarize_models(result, names, {50, 99}, {}, {.from_s = 0.5, .arrivals_s = 4, .slos = kSlos});
  const LoadSummary &a = report.models[0], &b = report.models[1], &all = report.all;
  EXPECT_THAT((std::vector{a.planned, a.done, a.failed, a.warmup, a.output_tokens}), ElementsAre(3, 3, 0, 1, 7));
  EXPECT_THAT((std::vector{b.planned, b.done, b.failed, b.warmup, b.output_tokens}), ElementsAre(2, 1, 1, 0, 6));
  EXPECT_THAT((std::vector{all.planned, all.done, all.failed, all.warmup, all.output_tokens}),
              ElementsAre(5, 4, 1, 1, 13));
  EXPECT_THAT(numbers(a.slo), ElementsAre(2, 1, 0, 1));
  EXPECT_THAT(numbers(b.slo), ElementsAre(2, 0, 2, 0));
  EXPECT_THAT(numbers(all.slo), ElementsAre(4, 1, 2, 1));
  EXPECT_DOUBLE_EQ(all.attainment(), 0.25);
  EXPECT_EQ(a.metric("ttft").count, 2);  // not that of the warm-up
  EXPECT_NEAR(a.metric("ttft").mean, 200, 1e-9);
  EXPECT_NEAR(b.metric("delay").max, 100, 1e-9);
  EXPECT_DOUBLE_EQ(*a.arrivals_tokens_per_s, 7.0 / 4);
  EXPECT_DOUBLE_EQ(*b.arrivals_tokens_per_s, 4.0 / 4);
  EXPECT_DOUBLE_EQ(*all.arrivals_tokens_per_s, 11.0 / 4);
  EXPECT_EQ(a.peak_in_flight, 1);
  EXPECT_EQ(b.peak_in_flight, 2);

  const json told = mixed_json(report);
  EXPECT_EQ(told.at("slo").at("attained"), 1);
  EXPECT_EQ(told.at("models").at("b").at("slo").at("first_late"), 2);
  EXPECT_EQ(told.at("models").at("a").at("warmup_requests"), 1);
  const std::string table = mixed_table(report, {"ttft", "delay"});
  EXPECT_THAT(table, HasSubstr("== a\nRequests done                                     3 of 3\n"));
  EXPECT_THAT(table, HasSubstr("== all models\n"));
  EXPECT_THAT(table, HasSubstr("\nall models        5        4       1     25.00       200       984"));
}

TEST(RequestLine, SaysWhatBecameOfARequest) {
  const LoadResult result = two_models();
  const RequestLogTerms terms{
      .load = "x.toml", .seed = 7, .models = {"a", "b"}, .slos = {kSlos[0], kSlos[1]}, .warmup_s = 0.5};
  const auto line = [&](size_t i) {
    const std::string text =
        request_line(terms, i, {.arrival_s = 0, .input_tokens = 12, .output_tokens = 9}, result.records[i]);
    EXPECT_THAT(text, Not(HasSubstr("\n")));
    return json::parse(text);
  };
  EXPECT_EQ(line(1), json::parse(R"({"index":1,"model":"a","status":"done","load":"x.toml","seed":7,"arrival_s":1.0,
      "sent_s":1.1,"first_s":1.2,"last_s":1.4,"end_s":1.4,"input_tokens":12,"output_tokens":9,"prompt_tokens":10,
      "completion_tokens":3,"events":3,"attained":true,"first_late":false,"pace_missed":false})"));
  EXPECT_FALSE(line(0).contains("attained")) << "the warm-up is not judged";
  EXPECT_EQ(line(3).at("pace_missed"), true);
  const json bad = line(4);
  EXPECT_EQ(bad.at("status"), "failed");
  EXPECT_EQ(bad.at("attained"), false);
  EXPECT_THAT(bad.at("error"), HasSubstr("no time"));
  EXPECT_FALSE(bad.contains("first_s"));
  EXPECT_EQ(json::parse(request_line(terms, 9, {}, RequestRecord())).at("status"), "not_sent");
}

TEST(RequestLog, TellsWhatCannotBeWritten) {
  EXPECT_THAT(RequestLog::create("/nowhere/x.jsonl").error().message, HasSubstr("cannot open /nowhere/x.jsonl"));
  const auto full = RequestLog::create("/dev/full");
  ASSERT_TRUE(full) << full.error().message;
  (*full)->write("{}");
  EXPECT_THAT((*full)->status().error().message, HasSubstr("cannot write to /dev/full"));
}

// Heights are those of the panel: a value of v of `most` lies at 190 - 150 v / most in the first, 195 lower in each next.
TEST(RunPicture, ShowsWhatWasInFlightAndKept) {
  LoadResult result;
  result.seconds = 4;
  for (int i = 0; i < 8; ++i)
    result.records.push_back(record(0, 1, {3.0, 3.5}));  // 8 in flight from 1.1 s to 3.5 s, late
  result.records.push_back(record(1, 0, {0.2, 0.5}));
  const std::vector<std::string> names = {"a<b", "b"};
  const std::string svg = run_svg(result, names, kSlos, "a run");
  EXPECT_THAT(svg, HasSubstr("a&lt;b"));
  EXPECT_THAT(svg, Not(HasSubstr("a<b")));
  EXPECT_THAT(svg, HasSubstr("text-anchor='end'>8</text>"));  // the top of the first panel
  // The second ends at the 16 tokens of the last second, so 15 lie at 385 - 150 * 15 / 16.
  EXPECT_THAT(svg, HasSubstr("y2='244.4' stroke='#ddd'/><text x='64' y='248.4' text-anchor='end'>15</text>"));
  EXPECT_THAT(svg, HasSubstr(",40.0 "));
  // Model a: what ended in the last of four seconds was late, so its line goes from the top (1) to the bottom (0).
  const std::string kept = "430.0 232.5,430.0 232.5,430.0 395.0,430.0 395.0,430.0 557.5,430.0 557.5,";
  EXPECT_THAT(svg, HasSubstr("stroke='#4477aa' stroke-width='1.5' d='M70.0," + kept + "580.0 720.0,580.0 '"));
  EXPECT_THAT(svg, HasSubstr("stroke='#ee6677' stroke-width='1.5' d='M70.0," + kept + "430.0 720.0,430.0 '"));
  EXPECT_THAT(run_svg(result, names, {}, "x"), Not(HasSubstr("attained")));
}

}  // namespace
}  // namespace hearth
