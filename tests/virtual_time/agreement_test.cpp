// SPDX-License-Identifier: Apache-2.0
// The simulator and the real engine say the same of the same load: one is a model of the other.
#include <gtest/gtest.h>

#include "hearth/simulate/load_file.h"
#include "tests/virtual_time/play.h"

namespace hearth::virtual_time {
namespace {

struct Setting {
  const char* name;
  SimulatorOptions simulated;
  PlayOptions played;
};

const Setting kOurs{.name = "ours", .simulated = {.policy = "slo", .memory = "slab"}, .played = {.schedule = "slo"}};
const Setting kStatic{.name = "static parts, first come first served",
                      .simulated = {.policy = "fcfs", .memory = "static"},
                      .played = {.schedule = "fcfs", .static_parts = true}};

// Where they differ by design: the engine keeps a part of the pool for each model and takes it back from who borrows, and
// the noise of steps is drawn in another order. So they are two samples of one load, near saturation: points of
// attainment, in the mean over seeds less than for one.
void expect_agreement(const Setting& setting, double rate, double points, double mean_points, double tokens_part) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr uint64_t kSeeds = 1;
#else
  constexpr uint64_t kSeeds = 3;
#endif
  auto load = read_load("bench/loads/four-models.toml");
  ASSERT_TRUE(load) << load.error().message;
  load->seconds = 30;
  load->warmup_seconds = 0;
  load->rate = rate;
  double sum = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    SCOPED_TRACE(testing::Message() << setting.name << ", seed " << seed);
    load->seed = seed;
    const auto requests = draw_requests(*load);
    const auto simulated = simulate(*load, requests, setting.simulated);
    const auto played = play(*load, requests, setting.played);
    ASSERT_TRUE(simulated && played);
    const double apart = 100 * (played->told.attainment() - simulated->attainment());
    EXPECT_NEAR(apart, 0, points);
    EXPECT_NEAR(played->told.tokens_per_second(*load) / simulated->tokens_per_second(*load), 1, tokens_part);
    sum += apart;
  }
  EXPECT_NEAR(sum / kSeeds, 0, kSeeds > 1 ? mean_points : points) << setting.name;
}

TEST(Agreement, OursNearSaturation) { expect_agreement(kOurs, 23.6, 4, 2, 0.03); }
TEST(Agreement, StaticPartsNearSaturation) { expect_agreement(kStatic, 23.6, 1.5, 0.75, 0.03); }
TEST(Agreement, OursFarBelowSaturation) { expect_agreement(kOurs, 8, 0, 0, 0.01); }

}  // namespace
}  // namespace hearth::virtual_time
