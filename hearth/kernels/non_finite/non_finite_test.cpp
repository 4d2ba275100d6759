// SPDX-License-Identifier: Apache-2.0
#include "hearth/kernels/non_finite/non_finite.h"

#include <gtest/gtest.h>

#include "hearth/kernels/op_test.h"

namespace hearth {
namespace {

using Op = Status (*)(const NonFiniteArgs&, ExecContext&);
constexpr Op kOps[] = {non_finite_ref, non_finite_cpu};

TEST(NonFinite, FindsTheFirstAndSaysWhatItIs) {
  ThreadPool pool(3);
  ExecContext exec{.pool = &pool};
  const float inf = INFINITY, nan = NAN;
  for (const Op op : kOps)
    for (const float value : {inf, -inf, nan, -nan})
      for (int64_t row : {0, 1, 499}) {
        TestTensor x(DType::kF32, 500, 77, 2);  // what lies between the rows is NaN
        for (int64_t r = 0; r < 500; ++r)
          for (int64_t c = 0; c < 77; ++c) x.set(r, c, (r + c) % 2 == 0 ? 3e38f : -0.0f);
        uint64_t first = NonFinite::kNone;
        ASSERT_TRUE(op({x.view(), &first}, exec));
        EXPECT_EQ(first, NonFinite::kNone);
        x.set(row, 76, value);
        x.set(499, 76, value);
        ASSERT_TRUE(op({x.view(), &first}, exec));
        EXPECT_EQ(NonFinite::index(first), row * 77 + 76);
        const float found = NonFinite::value(first);
        EXPECT_EQ(std::isnan(found), std::isnan(value));
        EXPECT_EQ(std::signbit(found), std::signbit(value));
        // One that was found earlier stays.
        uint64_t earlier = NonFinite::encode(3, 0x7F800000);
        ASSERT_TRUE(op({x.view(), &earlier}, exec));
        EXPECT_EQ(NonFinite::index(earlier), 3);
      }
}

TEST(NonFinite, NamesWhatIsWrong) {
  TestTensor brain(DType::kBf16, 4, 6);
  ExecContext exec;
  uint64_t first = NonFinite::kNone;
  EXPECT_EQ(non_finite_cpu({brain.view(), &first}, exec).error().message, "non_finite: x is bf16, wanted f32");
}

}  // namespace
}  // namespace hearth
