// SPDX-License-Identifier: Apache-2.0
// Traces against what was counted by hand, and as arrivals of a load.
#include "hearth/simulate/trace_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "hearth/simulate/load_file.h"

namespace hearth {
namespace {

using ::testing::HasSubstr;

// In the columns of the Azure LLM Inference Dataset. Python, with t the sorted datetime.fromisoformat(text[:26]):
//   [(x - t[0]) // timedelta(microseconds=1) for x in t]  ->  [0, 1500000, 90019410, 86401000000]
constexpr const char* kAzure =
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2024-02-28 23:58:30.9805907,374,44\r\n"
    "2024-02-29 00:00:01.0000000,879,55\r\n"
    "2024-02-28 23:58:32.4805909,396,109\r\n"
    "2024-02-29 23:58:31.980590,7,1";

std::filesystem::path folder() {
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "hearth_trace_file_test";
  std::filesystem::create_directories(path);
  return path;
}

std::filesystem::path write(const char* name, const std::string& text) {
  std::ofstream(folder() / name) << text;
  return folder() / name;
}

std::vector<int64_t> arrivals(const std::vector<TraceRequest>& trace) {
  std::vector<int64_t> all;
  for (const TraceRequest& r : trace) all.push_back(r.arrival_us);
  return all;
}

TEST(TraceFile, DatesCountFromTheFirstArrival) {
  const auto trace = read_trace(write("azure.csv", kAzure));
  ASSERT_TRUE(trace) << trace.error().message;
  EXPECT_EQ(arrivals(*trace), (std::vector<int64_t>{0, 1'500'000, 90'019'410, 86'401'000'000}));
  EXPECT_EQ((*trace)[1].input_tokens, 396);
  EXPECT_EQ((*trace)[1].output_tokens, 109);
  EXPECT_EQ((*trace)[3].output_tokens, 1);
}

constexpr const char* kRun =
    "# a run\n"
    "model,arrival_s,ttft_s,input_tokens,output_tokens\n"
    "a,0.25,0.1,10,1\n"
    "b,0.5,0.1,20,2\n"
    "a,2.25,0.1,30,3\n"
    "a,4.25,0.1,40,4\n";

TEST(TraceFile, ACutIsOfOneModel) {
  const auto trace = read_trace(write("run.csv", kRun));
  ASSERT_TRUE(trace) << trace.error().message;
  EXPECT_EQ(trace->size(), 4u);
  const auto cut = cut_trace(*trace, {.model = "a", .offset_s = 1.25, .speed = 2});
  ASSERT_TRUE(cut) << cut.error().message;
  EXPECT_EQ(arrivals(*cut), (std::vector<int64_t>{500'000, 1'500'000}));
  EXPECT_EQ((*cut)[0].input_tokens, 30);
  const auto first = cut_trace(*trace, {.model = "a", .limit = 1});
  ASSERT_TRUE(first) << first.error().message;
  EXPECT_EQ(arrivals(*first), (std::vector<int64_t>{250'000}));
  EXPECT_THAT(cut_trace(*trace, {.model = "c"}).error().message, HasSubstr("no request of model 'c'"));
  EXPECT_THAT(cut_trace(*trace, {.model = "b", .offset_s = 1}).error().message, HasSubstr("the last one comes at 0.5"));
}

// Lines that hearth bench serve --save-requests wrote, in the order in which requests ended.
TEST(TraceFile, ARunIsATrace) {
  const auto trace = read_trace(write(
      "run.jsonl",
      R"({"index":1,"model":"b","status":"done","arrival_s":0.5,"sent_s":0.6,"input_tokens":20,"output_tokens":2})"
      "\n"
      R"({"index":0,"model":"a","status":"failed","arrival_s":0.25,"input_tokens":10,"output_tokens":1,"error":"no"})"
      "\n"));
  ASSERT_TRUE(trace) << trace.error().message;
  EXPECT_EQ(arrivals(*trace), (std::vector<int64_t>{250'000, 500'000}));
  EXPECT_EQ((*trace)[0].model, "a");
  EXPECT_EQ((*trace)[1].input_tokens, 20);
  EXPECT_EQ((*trace)[1].output_tokens, 2);
}

TEST(TraceFile, SaysWhichLineIsWrong) {
  const auto expect = [](const std::string& text, const char* message) {
    const auto found = read_trace(write("wrong.csv", text));
    ASSERT_FALSE(found) << text;
    EXPECT_THAT(found.error().message, HasSubstr(message)) << text;
  };
  const std::string head = "arrival_s,input_tokens,output_tokens\n";
  expect("", "no request in it");
  expect(head, "no request in it");
  expect("arrival_s,input_tokens\n", "wrong.csv:1: 'arrival_s,input_tokens'; wanted a column GeneratedTokens");
  expect("arrival_s,output_tokens\n", "wanted a column ContextTokens");
  expect("input_tokens,output_tokens\n", "wanted one column of TIMESTAMP and arrival_s");
  expect("TIMESTAMP," + head, "wanted one column of TIMESTAMP and arrival_s");
  expect(head + "1,2,3\n\n1,2\n", "wrong.csv:4: '1,2' has 2 fields; wanted 3");
  expect(head + "-1,2,3\n", ":2: arrival_s '-1'; wanted seconds from 0");
  expect(head + "nan,2,3\n", ":2: arrival_s 'nan'; wanted seconds from 0");
  expect(head + "1,0,3\n", ":2: '0' input tokens; wanted a number from 1 to");
  expect(head + "1,2,3x\n", ":2: '3x' output tokens; wanted a number from 1 to");
  for (const char* time : {"2023-02-29 00:00:00.0", "2023-11-16 24:00:00", "2023-11-16 18:15:46.", "2023-11-16",
                           "2023-11-16 18:15:46.x", "2023-11-16T18:15:46+02:00", "1.5", ""})
    expect(std::string("TIMESTAMP,ContextTokens,GeneratedTokens\n") + time + ",1,1\n",
           fmt::format(":2: '{}' is no time", time).c_str());
  expect("{\"model\":\n", ":1: no object of JSON");
  expect("{\"model\":\"a\",\"input_tokens\":1,\"output_tokens\":1}\n", ":1: arrival_s 'null'; wanted seconds");
  expect("{\"arrival_s\":1,\"input_tokens\":1.5,\"output_tokens\":1}\n", ":1: '1.5' input tokens; wanted a number");
  EXPECT_THAT(read_trace("/nowhere/trace.csv").error().message, HasSubstr("cannot be read"));
}

constexpr const char* kLoad =
    "seconds = 10\npool_mib = 64\n"
    "[[model]]\nname = \"a\"\nlayers = 1\nkv_token_bytes = 64\nstep_us = 1\nprefill_token_us = 1\n";

TEST(TraceFile, ALoadTakesItsArrivals) {
  write("run.csv", kRun);
  auto load = read_load(write("load.toml", std::string(kLoad) + "trace = \"run.csv\"\n"));
  ASSERT_TRUE(load) << load.error().message;
  ASSERT_EQ(load->models[0].trace.size(), 3u);
  load->rate_scale = 0.5;  // 0.5 s, 4.5 s and 8.5 s
  ASSERT_EQ(draw_requests(*load).size(), 3u);
  EXPECT_EQ(draw_requests(*load)[2].arrival_us, 8'500'000);
  EXPECT_EQ(draw_requests(*load)[2].output_tokens, 4);
  load->seconds = 8.5;
  EXPECT_EQ(draw_requests(*load).size(), 2u);
}

// Models that are drawn are drawn as if they were alone.
TEST(TraceFile, StandsBesideDrawnModels) {
  write("run.csv", kRun);
  const std::string other =
      "[[model]]\nname = \"d\"\nlayers = 1\nkv_token_bytes = 64\nstep_us = 1\n"
      "prefill_token_us = 1\nlengths = \"lengths.csv\"\n";
  write("lengths.csv", "probability,input_tokens,output_tokens\n0,1,1\n1,9,9\n");
  auto load = read_load(write(
      "load.toml", "rate = 100\nshift_seconds = 1\n" + std::string(kLoad) + "trace = \"run.csv\"\n" + other + other));
  ASSERT_TRUE(load) << load.error().message;
  for (const auto& rates : draw_rates(*load)) {
    EXPECT_EQ(rates[0], 0);
    EXPECT_NEAR(rates[1] + rates[2], 100, 1e-9);
    EXPECT_NEAR(std::max(rates[1], rates[2]), 100 * 2.0 / 3, 1e-9);
  }
  int64_t recorded = 0, drawn = 0;
  for (const LoadRequest& r : draw_requests(*load)) ++(r.model == 0 ? recorded : drawn);
  EXPECT_EQ(recorded, 3);
  EXPECT_NEAR(static_cast<double>(drawn), 1000, 150) << "seed " << load->seed;
}

TEST(TraceFile, ALoadThatNamesItWronglyIsRefused) {
  write("run.csv", kRun);
  write("lengths.csv", "probability,input_tokens,output_tokens\n0,1,1\n1,9,9\n");
  const auto expect = [](const std::string& more, const char* message) {
    const auto load = read_load(write("load.toml", kLoad + more));
    ASSERT_FALSE(load) << more;
    EXPECT_THAT(load.error().message, HasSubstr(message)) << more;
  };
  expect("", "wanted one of 'lengths' and 'trace'");
  expect("trace = \"run.csv\"\nlengths = \"lengths.csv\"\n", "wanted one of 'lengths' and 'trace'");
  expect("trace = \"none.csv\"\n", "none.csv: cannot be read");
  expect("trace = 1\n", "load.toml:9: 'trace' is no text");
  expect("trace = \"run.csv\"\ncv = 1.3\n", "load.toml:10: 'cv' is of a model without 'trace'");
  expect("lengths = \"lengths.csv\"\ntrace_limit = 3\n", "load.toml:10: 'trace_limit' is of a model with a 'trace'");
  expect("lengths = \"lengths.csv\"\n", "'rate' is missing");
  expect("trace = \"run.csv\"\ntrace_model = \"c\"\n", "'run.csv': no request of model 'c'");
  expect("trace = \"run.csv\"\ntrace_speed = 0\n", "'trace_speed' is not a number from");
}

}  // namespace
}  // namespace hearth
