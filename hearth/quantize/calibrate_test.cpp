// SPDX-License-Identifier: Apache-2.0
#include "hearth/quantize/calibrate_test_cases.h"

namespace hearth {
namespace {

TEST(ActivationStream, PartsGiveTheBitsOfTheWhole) { testing::expect_parts_are_the_whole(cpu_ops()); }

// What the first windows give is not touched by the others, and the stream stays where it was.
TEST(ActivationStream, LooksAtTheFirstWindowsAlone) {
  testing::StreamFixture f;
  ActivationStream all = f.stream(cpu_ops());
  f.set.windows.pop_back();
  ActivationStream first = f.stream(cpu_ops());
  const LayerTensors layer = f.layer(0);
  for (int round = 0; round < 2; ++round) {
    InputMoments some = testing::wanted(testing::input_points()), wanted = some;
    ASSERT_TRUE(all.run({.layer = &layer, .moments = &some, .until = BlockPoint::kDownInput, .windows = 1}));
    ASSERT_TRUE(first.run({.layer = &layer, .moments = &wanted, .until = BlockPoint::kDownInput}));
    for (const BlockPoint point : testing::input_points()) {
      EXPECT_EQ(some[point].tokens(), f.set.length);
      EXPECT_EQ(testing::moments_difference(some[point], wanted[point]), 0);
    }
  }
}

TEST(ActivationStream, NearTheReference) { testing::expect_near(cpu_ops(), ref_ops()); }

TEST(ActivationStream, NamesWhatIsNoNumber) { testing::expect_names_what_is_no_number(cpu_ops()); }

}  // namespace
}  // namespace hearth
