// SPDX-License-Identifier: Apache-2.0
// embedding_sm90 on a GPU. Label gpu: without a device every test here fails.
#include <gtest/gtest.h>

#include "hearth/kernels/embedding/embedding.h"
#include "hearth/kernels/gpu_test.h"

namespace hearth {
namespace {

TEST(EmbeddingSm90, CopiesRowsAsTheReferenceDoes) {
  constexpr uint64_t kSeed = 20282;
  Random random(kSeed);
  for (DType table_dtype : {DType::kF32, DType::kF16, DType::kBf16})
    for (DType out_dtype : {DType::kF32, DType::kBf16})
      for (int64_t hidden : {1, 5, 127, 128, 129, 384, 4096})
        for (int64_t tokens : {0, 1, 3, 200}) {
          SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", table " << dtype_name(table_dtype) << ", out "
                                            << dtype_name(out_dtype) << " [" << tokens << ", " << hidden << "]");
          constexpr int64_t kVocab = 11;
          TestTensor table(table_dtype, kVocab, hidden, 3), out(out_dtype, tokens, hidden, 2), wanted = out;
          table.fill(random);
          std::vector<int32_t> ids(static_cast<size_t>(tokens));
          for (int32_t& id : ids) id = static_cast<int32_t>(random.below(kVocab));
          if (tokens > 1) ids[0] = 0, ids[1] = kVocab - 1;
          ExecContext host;
          ASSERT_TRUE(embedding_ref({ids, table.view(), wanted.view()}, host));
          GpuExec gpu({.tokens = ids});
          OnDevice device_table(table), device_out(out);
          const Status status =
              embedding_sm90({gpu.batch().tokens, device_table.view(), device_out.view()}, gpu.exec());
          ASSERT_TRUE(status) << status.error().message;
          ASSERT_TRUE(gpu.synchronize());
          device_out.copy_back();
          EXPECT_TRUE(out.same_bits(wanted));
        }
}

TEST(EmbeddingSm90, TokensMustBeStaged) {
  TestTensor table(DType::kF32, 10, 4), out(DType::kF32, 2, 4);
  const std::vector<int32_t> ids{1, 2};
  GpuExec gpu({.tokens = ids});
  const Status status = embedding_sm90({ids, table.view(), out.view()}, gpu.exec());
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().message, "embedding: tokens is not on the device, wanted an array of a staged step");
}

}  // namespace
}  // namespace hearth
