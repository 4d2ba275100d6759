// SPDX-License-Identifier: Apache-2.0
// non_finite_sm90 on a GPU. Label gpu: without a device every test here fails.
#include <gtest/gtest.h>

#include "hearth/kernels/gpu_test.h"
#include "hearth/kernels/non_finite/non_finite.h"

namespace hearth {
namespace {

uint64_t run_sm90(TestTensor& x) {
  uint64_t first = NonFinite::kNone;
  GpuExec gpu;
  OnDevice device_x(x);
  DeviceCopy found(std::as_writable_bytes(std::span(&first, 1)));
  EXPECT_TRUE(non_finite_sm90({device_x.view(), static_cast<uint64_t*>(static_cast<void*>(found.data()))}, gpu.exec()));
  EXPECT_TRUE(gpu.synchronize());
  found.copy_back();
  return first;
}

TEST(NonFiniteSm90, AgreesWithTheReference) {
  for (int64_t cols : {1, 255, 257, 1000})
    for (int64_t rows : {1, 300, 1024}) {
      SCOPED_TRACE(::testing::Message() << "[" << rows << ", " << cols << "]");
      TestTensor x(DType::kF32, rows, cols, 3);  // what lies between the rows is NaN
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c) x.set(r, c, 3e38f);
      EXPECT_EQ(run_sm90(x), NonFinite::kNone);
      for (const float value : {INFINITY, -INFINITY, NAN}) {
        x.set(rows - 1, cols - 1, value);
        x.set(rows / 2, cols / 3, -value);
        ExecContext host;
        uint64_t wanted = NonFinite::kNone;
        ASSERT_TRUE(non_finite_ref({x.view(), &wanted}, host));
        EXPECT_EQ(run_sm90(x), wanted);
      }
    }
}

}  // namespace
}  // namespace hearth
