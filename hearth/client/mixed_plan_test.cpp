// SPDX-License-Identifier: Apache-2.0
// The plan of a load file against what hearth simulate plays of it, and its bodies as a server reads them.
#include "hearth/client/mixed_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "hearth/simulate/load_file.h"

namespace hearth {
namespace {

using nlohmann::json;
using testing::HasSubstr;

// Ids 1000 m to 1000 m + 49 are model m's.
MixedPlanSettings settings_for(const Load& load) {
  MixedPlanSettings settings;
  for (size_t m = 0; m < load.models.size(); ++m) {
    MixedModel& model = settings.models.emplace_back();
    for (int32_t i = 0; i < 50; ++i) model.token_ids.push_back(1000 * static_cast<int32_t>(m) + i);
  }
  return settings;
}

Load small_load() {
  Load load;
  load.seed = 5;
  load.seconds = 30;
  load.rate = 4;
  LoadModel model;
  model.lengths = {.probability = {0, 1}, .input_tokens = {1, 90}, .output_tokens = {1, 40}};
  model.name = "a";
  model.slo = {.ttft_us = 1'500'000, .tpot_us = 50'400};
  load.models.push_back(model);
  model.name = "b";
  model.slo = {.ttft_us = 0, .tpot_us = 10};
  load.models.push_back(model);
  return load;
}

TEST(MixedPlan, HasTheRequestsThatTheSimulatorPlays) {
  for (const char* file : {"bench/loads/four-models.toml", "bench/loads/five-formats.toml"}) {
    auto load = read_load(file);
    ASSERT_TRUE(load) << load.error().message;
    load->seconds = load->warmup_seconds + 60;
    const auto plan = make_mixed_plan(*load, settings_for(*load));
    ASSERT_TRUE(plan) << plan.error().message;
    const std::vector<LoadRequest> played = draw_requests(*load);
    ASSERT_EQ(plan->requests.size(), played.size());
    ASSERT_GT(played.size(), 100u);
    for (size_t i = 0; i < played.size(); ++i) {
      const PlannedRequest& r = plan->requests[i];
      ASSERT_EQ(std::llround(r.arrival_s * 1e6), played[i].arrival_us) << file << " " << i;
      ASSERT_EQ(r.model, played[i].model);
      ASSERT_EQ(r.input_tokens, played[i].input_tokens);
      ASSERT_EQ(r.output_tokens, played[i].output_tokens);
    }
  }
}

TEST(MixedPlan, BodiesSayModelLengthsAndTargets) {
  const Load load = small_load();
  MixedPlanSettings settings = settings_for(load);
  settings.temperature = 0.5;
  settings.extra_body = R"({"priority": 3})";
  const auto plan = make_mixed_plan(load, settings);
  ASSERT_TRUE(plan) << plan.error().message;
  int64_t of_a = 0;
  for (size_t i = 0; i < plan->requests.size(); ++i) {
    const PlannedRequest& r = plan->requests[i];
    const json body = json::parse(plan->make_body(i));
    of_a += r.model == 0;
    ASSERT_EQ(body.at("model"), r.model == 0 ? "a" : "b");
    ASSERT_EQ(std::ssize(body.at("prompt")), r.input_tokens);
    for (const json& id : body.at("prompt")) ASSERT_EQ(id.get<int64_t>() / 1000, r.model);
    ASSERT_EQ(body.at("max_tokens"), r.output_tokens);
    ASSERT_EQ(body.at("ignore_eos"), true);
    ASSERT_EQ(body.at("stream"), true);
    ASSERT_EQ(body.at("temperature"), 0.5);
    ASSERT_EQ(body.at("priority"), 3);
    // Whole milliseconds, at least one; what is no target is not sent.
    ASSERT_EQ(body.value("ttft_slo_ms", 0), r.model == 0 ? 1500 : 0);
    ASSERT_EQ(body.value("tpot_slo_ms", 0), r.model == 0 ? 50 : 1);
  }
  EXPECT_GT(of_a, 0);
  EXPECT_LT(of_a, std::ssize(plan->requests));
  EXPECT_EQ(plan->make_body(3), plan->make_body(3));
  settings.send_targets = false;
  EXPECT_FALSE(json::parse(make_mixed_plan(load, settings)->make_body(0)).contains("ttft_slo_ms"));
}

TEST(MixedPlan, WhatCannotBePlayedIsAnError) {
  Load load = small_load();
  MixedPlanSettings settings = settings_for(load);
  settings.models[1].max_context = 60;
  EXPECT_THAT(make_mixed_plan(load, settings).error().message,
              testing::AllOf(HasSubstr("longer than the context of 60 tokens of 'b'"), HasSubstr("max_input_tokens")));
  load.models[1].max_input_tokens = 40;
  load.models[1].max_output_tokens = 20;
  const auto cut = make_mixed_plan(load, settings);
  ASSERT_TRUE(cut) << cut.error().message;
  for (const PlannedRequest& r : cut->requests) EXPECT_LE(r.input_tokens + r.output_tokens, r.model == 1 ? 60 : 130);
  settings.extra_body = "[1]";
  EXPECT_THAT(make_mixed_plan(load, settings).error().message, HasSubstr("--extra-body: not a JSON object"));
  settings.extra_body.clear();
  load.models[1].name = "a";
  EXPECT_THAT(make_mixed_plan(load, settings).error().message, HasSubstr("a second model 'a'"));
  load.models[1].name = "b";
  load.rate = 1e-6;
  EXPECT_THAT(make_mixed_plan(load, settings).error().message, HasSubstr("no request comes within 30 s"));
}

}  // namespace
}  // namespace hearth
