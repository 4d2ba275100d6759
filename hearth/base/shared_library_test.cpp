// SPDX-License-Identifier: Apache-2.0
#include "hearth/base/shared_library.h"

#include <gtest/gtest.h>

#include <cmath>

namespace hearth {
namespace {

TEST(SharedLibrary, TakesTheFirstThatIsThere) {
  const auto math = SharedLibrary::open({"libhearth-does-not-exist.so.1", "libm.so.6"}, "the test");
  ASSERT_TRUE(math) << math.error().message;
  EXPECT_EQ(math->name(), "libm.so.6");
  const auto cosine = math->function("cos");
  ASSERT_TRUE(cosine);
  EXPECT_EQ(reinterpret_cast<double (*)(double)>(*cosine)(0.5), std::cos(0.5));
}

TEST(SharedLibrary, MissingIsUnavailableAndNamed) {
  const auto none = SharedLibrary::open({"libhearth-does-not-exist.so.1", "libhearth-nor-this.so"}, "FP8 linear");
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::kUnavailable);
  EXPECT_TRUE(none.error().message.starts_with(
      "FP8 linear needs a library that cannot be opened: libhearth-does-not-exist.so.1"))
      << none.error().message;
  EXPECT_NE(none.error().message.find("libhearth-nor-this.so"), std::string::npos);

  const auto math = SharedLibrary::open({"libm.so.6"}, "the test");
  const auto symbol = math->function("hearth_no_such_function");
  ASSERT_FALSE(symbol);
  EXPECT_EQ(symbol.error().code, ErrorCode::kUnavailable);
}

}  // namespace
}  // namespace hearth
