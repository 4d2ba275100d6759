// SPDX-License-Identifier: Apache-2.0
// Percentiles against another implementation; sums and tables of a small result.
#include "hearth/client/load_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace hearth {
namespace {

using testing::HasSubstr;
using Outcome = RequestRecord::Outcome;

// statistics.quantiles(values, n=1000, method='inclusive') of Python 3.11.
TEST(Report, PercentilesAreThoseOfStatisticsPackages) {
  const std::vector<double> sorted = {0.5, 2.0, 3.25, 5.5, 7.0, 9.75, 12.5, 41.5, 66.0, 100.0};
  EXPECT_DOUBLE_EQ(percentile(sorted, 1), 0.635);
  EXPECT_DOUBLE_EQ(percentile(sorted, 10), 1.85);
  EXPECT_DOUBLE_EQ(percentile(sorted, 25), 3.8125);
  EXPECT_DOUBLE_EQ(percentile(sorted, 50), 8.375);
  EXPECT_DOUBLE_EQ(percentile(sorted, 90), 69.4);
  EXPECT_DOUBLE_EQ(percentile(sorted, 99), 96.94);
  EXPECT_NEAR(percentile(sorted, 99.9), 99.694, 1e-9);
  EXPECT_EQ(percentile(std::vector<double>{3}, 99), 3);
  EXPECT_EQ(percentile({}, 50), 0);
}

RequestRecord record(double due, double sent, std::vector<double> tokens, double end) {
  RequestRecord r;
  r.outcome = Outcome::kDone;
  r.due_s = due;
  r.sent_s = sent;
  r.events = r.output_tokens = std::ssize(tokens);
  r.first_s = tokens.front();
  r.last_s = tokens.back();
  for (size_t i = 1; i < tokens.size(); ++i) r.gaps_s.push_back(static_cast<float>(tokens[i] - tokens[i - 1]));
  r.end_s = end;
  r.prompt_tokens = 10;
  r.server_counted = true;
  return r;
}

TEST(Report, SumsUp) {
  LoadResult result;
  result.records = {record(0, 0, {0.25, 0.5, 1.0}, 1.0), record(1, 1.5, {2.0}, 2.0), RequestRecord()};
  result.seconds = 2;
  RequestRecord failed;
  failed.outcome = Outcome::kFailed;
  failed.error_kind = "HTTP 500";
  failed.error = "HTTP 500: why";
  result.records.push_back(failed);
  const Goals goals = parse_goals({"ttft:300", "tpot:400"}).value();
  const LoadSummary s = summarize(result, {50, 99}, goals);
  EXPECT_EQ(s.done, 2);
  EXPECT_EQ(s.failed, 1);
  EXPECT_EQ(s.not_sent, 1);
  EXPECT_DOUBLE_EQ(s.requests_per_s, 1);
  EXPECT_DOUBLE_EQ(s.output_tokens_per_s, 2);
  EXPECT_DOUBLE_EQ(s.total_tokens_per_s, 12);
  EXPECT_DOUBLE_EQ(s.metric("ttft").mean, 625);
  EXPECT_DOUBLE_EQ(s.metric("ttft_sent").mean, 375);
  EXPECT_DOUBLE_EQ(s.metric("tpot").mean, 375);
  EXPECT_EQ(s.metric("tpot").count, 1);
  EXPECT_DOUBLE_EQ(s.metric("itl").max, 500);
  EXPECT_DOUBLE_EQ(s.metric("e2el").median, 1000);
  EXPECT_EQ(s.good, 1);
  EXPECT_DOUBLE_EQ(*s.goodput_per_s, 0.5);
  const nlohmann::json json = report_json(s);
  EXPECT_DOUBLE_EQ(json.at("mean_ttft_ms"), 625);
  EXPECT_DOUBLE_EQ(json.at("p50_e2el_ms"), 1000);
  EXPECT_EQ(json.at("errors").at("HTTP 500").at("count"), 1);
  const std::string table = report_table(s, {"ttft", "itl"});
  EXPECT_THAT(table, HasSubstr("2 of 4"));
  EXPECT_THAT(table, HasSubstr("625.00"));
  EXPECT_THAT(table, HasSubstr("1 x HTTP 500: why"));
}

TEST(Report, ACancelledRequestCountsAsFarAsItGot) {
  LoadResult result;
  result.records = {record(0, 0, {0.25, 0.5, 1.0}, 1.0)};
  result.records[0].outcome = Outcome::kCancelled;
  result.seconds = 2;
  result.interrupted = true;
  const LoadSummary s = summarize(result, {99}, {});
  EXPECT_EQ(s.done, 0);
  EXPECT_EQ(s.cancelled, 1);
  EXPECT_DOUBLE_EQ(s.metric("ttft").mean, 250);
  EXPECT_EQ(s.metric("itl").count, 2);
  EXPECT_EQ(s.metric("e2el").count, 0);
  EXPECT_DOUBLE_EQ(s.output_tokens_per_s, 1.5);
  EXPECT_FALSE(report_json(s).contains("mean_e2el_ms"));
  EXPECT_THAT(report_table(s, {"e2el"}), HasSubstr(" -"));
}

TEST(Report, FlagsSayWhatIsWrong) {
  EXPECT_THAT(parse_goals({"ttft"}).error().message, HasSubstr("'ttft' is no goal"));
  EXPECT_THAT(parse_goals({"ttft:-1"}).error().message, HasSubstr("wanted ttft:MS"));
  EXPECT_THAT(parse_goals({"itl:5"}).error().message, HasSubstr("'itl:5'"));
  EXPECT_EQ(*parse_percentiles("99.9,50"), (std::vector<double>{50, 99.9}));
  for (const char* bad : {"", "100", "0", "50,", "x"}) EXPECT_FALSE(parse_percentiles(bad)) << bad;
  EXPECT_EQ(*parse_metrics("ttft,itl"), (std::vector<std::string>{"ttft", "itl"}));
  EXPECT_THAT(parse_metrics("ttft,latency").error().message, HasSubstr("'latency' is no metric"));
}

}  // namespace
}  // namespace hearth
