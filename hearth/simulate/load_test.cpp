// SPDX-License-Identifier: Apache-2.0
// Drawn loads against the moments that they were asked for.
#include "hearth/simulate/load.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "hearth/simulate/load_file.h"

namespace hearth {
namespace {

Load two_models() {
  Load load;
  load.seed = 7;
  load.seconds = 20000;
  load.rate = 10;
  load.alpha = 1;
  LoadModel model;
  model.lengths = {.probability = {0, 1}, .input_tokens = {1, 101}, .output_tokens = {1, 11}};
  for (const double cv : {1.3, 1.9}) {
    model.cv = cv;
    load.models.push_back(model);
  }
  return load;
}

// Gaps of Gamma have mean 1 / rate and deviation cv / rate; 130,000 of them, so 2 % and 3 % are many deviations.
TEST(Load, GapsHaveTheirMeanAndVariation) {
  const Load load = two_models();
  SCOPED_TRACE(load.seed);
  const std::vector<LoadRequest> requests = draw_requests(load);
  for (int64_t m = 0; m < 2; ++m) {
    std::vector<double> at_s;
    for (const LoadRequest& r : requests)
      if (r.model == m) at_s.push_back(static_cast<double>(r.arrival_us) * 1e-6);
    const double rate = m == 0 ? 10 * 2.0 / 3 : 10 * 1.0 / 3;  // 1 : 1/2
    double sum = 0, squares = 0;
    for (size_t i = 1; i < at_s.size(); ++i) {
      sum += at_s[i] - at_s[i - 1];
      squares += (at_s[i] - at_s[i - 1]) * (at_s[i] - at_s[i - 1]);
    }
    const auto count = static_cast<double>(at_s.size() - 1);
    const double mean = sum / count;
    EXPECT_NEAR(mean * rate, 1, 0.02);
    EXPECT_NEAR(std::sqrt(squares / count - mean * mean) / mean, load.models[static_cast<size_t>(m)].cv, 0.06);
  }
  EXPECT_TRUE(std::ranges::is_sorted(requests, {}, &LoadRequest::arrival_us));
}

TEST(Load, PopularityShiftsAndItsSumStays) {
  Load load = two_models();
  load.shift_seconds = 100;
  const auto rates = draw_rates(load);
  ASSERT_EQ(std::ssize(rates), 200);
  int64_t dealt_anew = 0;
  for (const auto& period : rates) {
    EXPECT_NEAR(period[0] + period[1], 10, 1e-9);
    dealt_anew += period[0] < period[1];
  }
  EXPECT_GT(dealt_anew, 60);
  EXPECT_LT(dealt_anew, 140);
}

TEST(Load, TheSeedDecides) {
  Load load = two_models();
  load.seconds = 100;
  const auto a = draw_requests(load), b = draw_requests(load);
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].arrival_us, b[i].arrival_us);
    EXPECT_EQ(a[i].input_tokens, b[i].input_tokens);
  }
  load.seed = 8;
  EXPECT_NE(draw_requests(load)[0].arrival_us, a[0].arrival_us);
}

TEST(Load, LongRequestsAreCutAndTheRestStays) {
  Load load = two_models();
  load.seconds = 100;
  const auto whole = draw_requests(load);
  load.models[1].max_input_tokens = 30;
  load.models[1].max_output_tokens = 4;
  const auto cut = draw_requests(load);
  ASSERT_EQ(cut.size(), whole.size());
  int64_t shorter = 0;
  for (size_t i = 0; i < cut.size(); ++i) {
    const bool limited = whole[i].model == 1;
    EXPECT_EQ(cut[i].arrival_us, whole[i].arrival_us);
    EXPECT_EQ(cut[i].input_tokens, limited ? std::min<int64_t>(30, whole[i].input_tokens) : whole[i].input_tokens);
    EXPECT_EQ(cut[i].output_tokens, limited ? std::min<int64_t>(4, whole[i].output_tokens) : whole[i].output_tokens);
    shorter += cut[i].input_tokens < whole[i].input_tokens;
  }
  EXPECT_GT(shorter, 0);
}

// The traces' own means: 1,154.7 and 211.1 tokens of conversations, 2,047.8 and 27.9 of code.
TEST(Load, LengthTablesKeepTheMeansOfTheirTraces) {
  struct Case {
    const char* file;
    double input, output;
  };
  for (const Case& c : {Case{"bench/loads/azure-conversation-2023.csv", 1154.7, 211.1},
                        Case{"bench/loads/azure-code-2023.csv", 2047.8, 27.9}}) {
    const auto table = read_lengths(c.file);
    ASSERT_TRUE(table) << table.error().message;
    double input = 0, output = 0;
    constexpr int kPoints = 100000;
    for (int i = 0; i < kPoints; ++i) {
      const double p = (i + 0.5) / kPoints;
      input += LengthTable::at(table->probability, table->input_tokens, p) / kPoints;
      output += LengthTable::at(table->probability, table->output_tokens, p) / kPoints;
    }
    EXPECT_NEAR(input / c.input, 1, 0.005) << c.file;
    EXPECT_NEAR(output / c.output, 1, 0.005) << c.file;
  }
}

}  // namespace
}  // namespace hearth
