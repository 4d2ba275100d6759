// SPDX-License-Identifier: Apache-2.0
#include "hearth/quantize/calibrate_test_cases.h"

namespace hearth {
namespace {

TEST(ActivationStream, PartsGiveTheBitsOfTheWhole) { testing::expect_parts_are_the_whole(cpu_ops()); }

TEST(ActivationStream, NearTheReference) { testing::expect_near(cpu_ops(), ref_ops()); }

TEST(ActivationStream, NamesWhatIsNoNumber) { testing::expect_names_what_is_no_number(cpu_ops()); }

}  // namespace
}  // namespace hearth
