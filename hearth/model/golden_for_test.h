// SPDX-License-Identifier: Apache-2.0
// Test support: the golden values of a model folder (tests/fixtures/README.md), and running a model
// against them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "hearth/checkpoint/checkpoint.h"
#include "hearth/checkpoint/json.h"
#include "hearth/model/runner.h"

namespace hearth::testing {

// One prompt of golden.json. Fable's files give the 20 largest logits of the last position, the tiny
// fixtures all logits of several positions.
struct GoldenPrompt {
  std::vector<int32_t> ids;
  std::vector<double> token_logprobs;  // [ids]; the first is unused
  std::vector<int32_t> greedy_ids;
  std::map<int64_t, std::vector<float>> logits;  // by position
  std::vector<int32_t> top_ids;                  // of the last position
  std::vector<float> top_logits;
};

inline std::vector<GoldenPrompt> read_golden(const std::filesystem::path& dir) {
  auto file = read_json_object(dir / "golden.json");
  HEARTH_CHECK(file.has_value(), "{}", file.error().message);
  std::vector<GoldenPrompt> prompts;
  for (const auto& entry : (*file)["prompts"]) {
    GoldenPrompt prompt;
    prompt.ids = entry["ids"].get<std::vector<int32_t>>();
    for (const auto& value : entry["token_logprobs"])
      prompt.token_logprobs.push_back(value.is_null() ? 0 : value.get<double>());
    prompt.greedy_ids = entry.value("greedy_ids", entry.value("greedy48_ids", std::vector<int32_t>()));
    if (entry.contains("logits_last"))
      prompt.logits[static_cast<int64_t>(prompt.ids.size()) - 1] = entry["logits_last"].get<std::vector<float>>();
    if (entry.contains("logits_rows"))
      for (const auto& [row, values] : entry["logits_rows"].items())
        prompt.logits[std::stoll(row)] = values.get<std::vector<float>>();
    prompt.top_ids = entry.value("last_top20_ids", std::vector<int32_t>());
    prompt.top_logits = entry.value("last_top20_logits", std::vector<float>());
    prompts.push_back(std::move(prompt));
  }
  HEARTH_CHECK(!prompts.empty(), "{} has no prompts", dir.string());
  return prompts;
}

inline std::shared_ptr<const Model> load_model(const std::filesystem::path& dir, ThreadPool& pool,
                                               const ModelOptions& options = {}, const OpTable& ops = cpu_ops()) {
  auto checkpoint = Checkpoint::open(dir);
  HEARTH_CHECK(checkpoint.has_value(), "{}", checkpoint.error().message);
  auto model = Model::load(*checkpoint, ops, options, pool);
  HEARTH_CHECK(model.has_value(), "{}", model.error().message);
  return *std::move(model);
}

inline Runner make_runner(std::shared_ptr<const Model> model, ThreadPool& pool, const RunnerOptions& options) {
  auto runner = Runner::create(std::move(model), options, pool);
  HEARTH_CHECK(runner.has_value(), "{}", runner.error().message);
  return *std::move(runner);
}

// Copies of logits, one vector per row.
using Rows = std::vector<std::vector<float>>;

// Magnitudes of differences.
struct Differences {
  double sum = 0, largest = 0;
  int64_t count = 0;
  void add(double difference) {
    sum += std::abs(difference), largest = std::max(largest, std::abs(difference)), ++count;
  }
  double mean() const { return sum / static_cast<double>(count); }
};

inline Rows copy_rows(const ConstTensorView& logits) {
  Rows rows;
  for (int64_t r = 0; r < logits.shape[0]; ++r)
    rows.emplace_back(logits.row<float>(r), logits.row<float>(r) + logits.cols());
  return rows;
}

// Logits of every position of `ids`, fed to `slot` in steps of `chunk` tokens.
inline Rows all_logits(Runner& runner, int64_t slot, std::span<const int32_t> ids, size_t chunk) {
  Rows rows;
  for (size_t at = 0; at < ids.size(); at += chunk) {
    const SlotTokens feed{slot, ids.subspan(at, std::min(chunk, ids.size() - at)), true};
    auto logits = runner.step({&feed, 1});
    HEARTH_CHECK(logits.has_value(), "{}", logits.error().message);
    for (auto& row : copy_rows(*logits)) rows.push_back(std::move(row));
  }
  return rows;
}

inline double log_softmax(std::span<const float> logits, int32_t id) {
  const double largest = *std::ranges::max_element(logits);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  return static_cast<double>(logits[static_cast<size_t>(id)]) - largest - std::log(sum);
}

// How far two rows of logits are apart that should say the same.
struct Agreement {
  double sum = 0, largest = 0;  // differences of log probabilities
  int64_t tokens = 0;           // of those whose probability is at least e^-10 in `a`
  bool same_greedy = false;
  float margin = 0;  // in `a`, between its largest logit and its next
};

inline Agreement compare_rows(std::span<const float> a, std::span<const float> b) {
  const auto log_sum = [](std::span<const float> row, double largest) {
    double sum = 0;
    for (const float logit : row) sum += std::exp(static_cast<double>(logit) - largest);
    return largest + std::log(sum);
  };
  Agreement out;
  const auto best_a = std::ranges::max_element(a), best_b = std::ranges::max_element(b);
  out.same_greedy = best_a - a.begin() == best_b - b.begin();
  out.margin = INFINITY;
  for (auto at = a.begin(); at != a.end(); ++at)
    if (at != best_a) out.margin = std::min(out.margin, *best_a - *at);
  const double log_a = log_sum(a, *best_a), log_b = log_sum(b, *best_b);
  for (size_t i = 0; i < a.size(); ++i) {
    const double wanted = a[i] - log_a;
    if (wanted < -10) continue;
    const double difference = std::abs(b[i] - log_b - wanted);
    out.sum += difference, out.largest = std::max(out.largest, difference), ++out.tokens;
  }
  return out;
}

// Checks ids, log probabilities, logits and the greedy continuation of every golden prompt.
inline void expect_golden(Runner& runner, const std::vector<GoldenPrompt>& prompts, double tolerance, size_t chunk) {
  for (size_t p = 0; p < prompts.size(); ++p) {
    SCOPED_TRACE(fmt::format("prompt {}, chunks of {}", p, chunk));
    const GoldenPrompt& golden = prompts[p];
    runner.cut(0, 0);
    const Rows rows = all_logits(runner, 0, golden.ids, chunk);
    ASSERT_EQ(rows.size(), golden.ids.size());
    for (size_t i = 1; i < golden.ids.size(); ++i)
      EXPECT_NEAR(log_softmax(rows[i - 1], golden.ids[i]), golden.token_logprobs[i], tolerance)
          << "log probability " << i;
    for (const auto& [position, wanted] : golden.logits) {
      ASSERT_EQ(rows[static_cast<size_t>(position)].size(), wanted.size());
      for (size_t v = 0; v < wanted.size(); ++v)
        EXPECT_NEAR(rows[static_cast<size_t>(position)][v], wanted[v], tolerance)
            << "logit " << v << " at " << position;
    }
    for (size_t i = 0; i < golden.top_ids.size(); ++i)
      EXPECT_NEAR(rows.back()[static_cast<size_t>(golden.top_ids[i])], golden.top_logits[i], tolerance) << "top " << i;

    ASSERT_FALSE(golden.greedy_ids.empty());
    std::vector<int32_t> greedy;
    std::vector<float> last = rows.back();
    while (true) {
      greedy.push_back(static_cast<int32_t>(std::ranges::max_element(last) - last.begin()));
      if (greedy.size() == golden.greedy_ids.size()) break;
      auto logits = runner.feed(0, {&greedy.back(), 1});
      ASSERT_TRUE(logits) << logits.error().message;
      last = copy_rows(*logits).front();
    }
    EXPECT_EQ(greedy, golden.greedy_ids);
  }
}

}  // namespace hearth::testing
