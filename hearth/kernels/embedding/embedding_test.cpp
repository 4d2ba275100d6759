// SPDX-License-Identifier: Apache-2.0
#include "hearth/kernels/embedding/embedding.h"

#include <gtest/gtest.h>

#include "hearth/kernels/cpu/test_targets.h"
#include "hearth/kernels/op_test.h"

namespace hearth {
namespace {

TEST(Embedding, CopiesRowsExactly) {
  constexpr uint64_t kSeed = 20280;
  Random random(kSeed);
  ThreadPool pool(4);
  for_each_cpu_target([&] {
    for (DType table_dtype : {DType::kF32, DType::kF16, DType::kBf16})
      for (DType out_dtype : {DType::kF32, DType::kBf16})
        for (int64_t hidden : {1, 5, 16, 37, 384})
          for (int64_t tokens : {0, 1, 3, 200}) {
            SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", table " << dtype_name(table_dtype) << ", out "
                                              << dtype_name(out_dtype) << " [" << tokens << ", " << hidden << "]");
            const int64_t vocab = 11;
            TestTensor table(table_dtype, vocab, hidden, 2), ref(out_dtype, tokens, hidden), cpu = ref;
            table.fill(random);
            std::vector<int32_t> ids(tokens);
            for (int32_t& id : ids) id = static_cast<int32_t>(random.below(vocab));
            if (tokens > 1) ids[0] = 0, ids[1] = vocab - 1;
            ExecContext exec{.pool = &pool};
            ASSERT_TRUE(embedding_ref({ids, table.view(), ref.view()}, exec));
            ASSERT_TRUE(embedding_cpu({ids, table.view(), cpu.view()}, exec));
            EXPECT_TRUE(ref.same_bits(cpu));
            for (int64_t t = 0; t < tokens; ++t)
              for (int64_t i = 0; i < hidden; ++i) {
                const float wanted = table.at(ids[t], i);
                ASSERT_EQ(cpu.at(t, i), out_dtype == DType::kF32 ? wanted : bf16::from_float(wanted).to_float());
              }
          }
  });
}

// Infinities, NaN, subnormals and the halfway cases of rounding to bf16.
TEST(Embedding, ConvertsEveryF16AndTheCornersOfF32) {
  for_each_cpu_target([] {
    ExecContext exec;
    const std::vector<int32_t> ids{0};
    TestTensor table(DType::kF16, 1, 65536), out(DType::kF32, 1, 65536);
    for (int64_t i = 0; i < 65536; ++i) {
      const auto bits = static_cast<uint16_t>(i);
      std::memcpy(table.data() + 2 * i, &bits, 2);
    }
    ASSERT_TRUE(embedding_cpu({ids, table.view(), out.view()}, exec));
    for (int64_t i = 0; i < 65536; ++i) {
      const float wanted = f16{static_cast<uint16_t>(i)}.to_float();
      if (std::isnan(wanted))
        ASSERT_TRUE(std::isnan(out.at(0, i)));
      else
        ASSERT_EQ(out.at(0, i), wanted) << i;
    }
    constexpr uint64_t kSeed = 20281;
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
    Random random(kSeed);
    TestTensor wide(DType::kF32, 1, 4096), brain(DType::kBf16, 1, 4096);
    for (int64_t i = 0; i < 4096; ++i) {
      uint32_t bits = random.next_u32();
      if (i % 4 == 0) bits = (bits & 0xFFFF0000) | 0x8000;                        // a tie
      if (i % 64 == 1) bits = 0x7F800000 | (bits & 0x807FFFFF) * (i % 128 == 1);  // infinity, NaN
      if (i % 64 == 2) bits &= 0x807FFFFF;                                        // subnormal
      std::memcpy(wide.data() + 4 * i, &bits, 4);
    }
    ASSERT_TRUE(embedding_cpu({ids, wide.view(), brain.view()}, exec));
    for (int64_t i = 0; i < 4096; ++i) {
      bf16 got;
      std::memcpy(&got, brain.data() + 2 * i, 2);
      ASSERT_EQ(got.bits, bf16::from_float(wide.at(0, i)).bits) << wide.at(0, i);
    }
  });
}

TEST(Embedding, NamesTheTokenThatIsOutside) {
  TestTensor table(DType::kF32, 10, 4), out(DType::kF32, 2, 4), three(DType::kF32, 3, 4);
  ExecContext exec;
  const std::vector<int32_t> big{3, 10}, negative{-1, 0}, good{0, 9};
  EXPECT_EQ(embedding_cpu({big, table.view(), out.view()}, exec).error().message,
            "embedding: token 1 has id 10, wanted 0 to 9");
  EXPECT_EQ(embedding_ref({negative, table.view(), out.view()}, exec).error().message,
            "embedding: token 0 has id -1, wanted 0 to 9");
  EXPECT_EQ(embedding_cpu({good, table.view(), three.view()}, exec).error().message,
            "embedding: out is [3, 4], wanted [2, 4]");
  EXPECT_TRUE(embedding_cpu({good, table.view(), out.view()}, exec));
}

}  // namespace
}  // namespace hearth
