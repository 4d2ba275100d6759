// SPDX-License-Identifier: Apache-2.0
// hearth bench ops: what a case declares, that every op runs on the CPU and on a device that records, and that times
// are those of a call.
#include "hearth/cli/bench_ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "hearth/cli/bench_common.h"
#include "hearth/memory/fake_device_for_test.h"

namespace hearth {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kCache = int64_t{1} << 18;
const OpSizes kSmall{"small", 64, 4, 2, 16, 96, 300};

// The CPU's ops as those of a device.
OpTable fake_ops() {
  OpTable ops = cpu_ops();
  ops.memory = []() -> const Memory& { return testing::fake_device(); };
  return ops;
}

class Cases : public ::testing::TestWithParam<bool> {
 protected:
  Cases() : ops_(GetParam() ? fake_ops() : cpu_ops()), rig_(*OpRig::create(ops_, pool_, clock_, DType::kF32, kCache)) {}

  OpTimes time(const MaybeCase& made) {
    EXPECT_TRUE(made) << made.error().message;
    if (!made || !*made) return {};
    const auto times = rig_.time(**made, 3);
    EXPECT_TRUE(times) << (**made).bench << ": " << times.error().message;
    return times ? *times : OpTimes{};
  }

  ThreadPool pool_{2};
  const SteadyClock clock_;
  const OpTable ops_;
  const OpRig rig_;
};

TEST_P(Cases, EveryOpRuns) {
  for (const int64_t tokens : {1, 5}) {
    for (const auto make : {embedding_case, rope_table_case}) EXPECT_GT(time(make(rig_, kSmall, tokens)).us, 0);
    for (const auto make : {rmsnorm_case, silu_mul_case}) {
      EXPECT_GT(time(make(rig_, kSmall, tokens, false)).us, 0);
      const MaybeCase rounded = make(rig_, kSmall, tokens, true);
      ASSERT_TRUE(rounded);
      EXPECT_EQ(*rounded != nullptr, ops_.rounds_outputs);
    }
  }
  for (const bool greedy : {true, false}) EXPECT_GT(time(sample_case(rig_, kSmall, 3, greedy)).us, 0);
  for (const KvFormatId kv : {KvFormatId::kF32, KvFormatId::kBf16, KvFormatId::kFp8, KvFormatId::kInt4}) {
    for (const int64_t tokens : {int64_t{3}, kMostRows + 1})
      EXPECT_GT(time(rope_kv_write_case(rig_, kSmall, kv, tokens)).us, 0);
    // A context of several blocks whose last is not full.
    for (const bool decode : {true, false})
      EXPECT_GT(time(attention_case(rig_, kSmall, kv, {.decode = decode, .batch = 2, .length = 37})).us, 0);
  }
}

TEST_P(Cases, LinearsOfEveryFormat) {
  const OpSizes sizes{"middle", 256, 4, 2, 64, 128, 300};
  for (const char* format : {"f32", "f16", "bf16", "fp8", "fp8-block", "int4", "int4-zero", "fireq", "sbvr"}) {
    const auto bench = LinearBench::create(rig_, sizes, linear_shapes(sizes).front(), format);
    ASSERT_TRUE(bench) << format << ": " << bench.error().message;
    ASSERT_TRUE(*bench) << format;
    EXPECT_GT(time((*bench)->make(2)).us, 0) << format;
  }
}

TEST_P(Cases, FfnsOfEveryFormat) {
  const OpSizes sizes{"middle", 256, 4, 2, 64, 128, 300};
  for (const char* format : {"f32", "fp8", "fireq"}) {
    const auto bench = FfnBench::create(rig_, sizes, format);
    ASSERT_TRUE(bench) << format << ": " << bench.error().message;
    ASSERT_TRUE(*bench) << format;
    const MaybeCase one = (*bench)->make(3);
    EXPECT_GT(time(one).us, 0) << format;
    EXPECT_EQ((*one)->flops, 2.0 * 3 * (256 * 256 + 128 * 256)) << format;
  }
}

INSTANTIATE_TEST_SUITE_P(Memories, Cases, ::testing::Values(false, true),
                         [](const auto& one) { return one.param ? "device" : "host"; });

// The reference backend rounds for the linears behind.
TEST(BenchOps, RoundedAsInAModel) {
  ThreadPool pool(1);
  const SteadyClock clock;
  const auto rig = OpRig::create(ref_ops(), pool, clock, DType::kF32, kCache);
  ASSERT_TRUE(rig) << rig.error().message;
  const OpSizes sizes{"middle", 64, 4, 2, 16, 64, 40};
  for (const auto make : {rmsnorm_case, silu_mul_case}) {
    const MaybeCase one = make(*rig, sizes, 3, true);
    ASSERT_TRUE(one && *one);
    EXPECT_EQ((**one).fields["out"], "e4m3");
    const auto times = rig->time(**one, 1);
    EXPECT_TRUE(times) << times.error().message;
  }
  for (const LinearShape& shape : linear_shapes(sizes)) {
    const auto bench = LinearBench::create(*rig, sizes, shape, "fp8");
    ASSERT_TRUE(bench && *bench) << shape.layer;
    const MaybeCase one = (*bench)->make(2);
    ASSERT_TRUE(one && *one) << shape.layer;
    EXPECT_EQ((**one).fields["x"], shape.behind_rounding ? "e4m3" : "f32") << shape.layer;
    const auto times = rig->time(**one, 1);
    EXPECT_TRUE(times) << shape.layer << ": " << times.error().message;
  }
}

TEST(BenchOps, BytesAndFlopsOfPublishedShapes) {
  const OpSizes llama = usual_op_sizes().front();
  const std::vector<LinearShape> shapes = linear_shapes(llama);
  const std::pair<int64_t, int64_t> wanted[] = {
      {6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}, {128256, 4096}};
  for (size_t i = 0; i < std::size(wanted); ++i) EXPECT_EQ(std::pair(shapes[i].n, shapes[i].k), wanted[i]);

  ThreadPool pool(2);
  const SteadyClock clock;
  const auto rig = OpRig::create(cpu_ops(), pool, clock, DType::kF32, kCache);
  ASSERT_TRUE(rig) << rig.error().message;
  // O of kSmall: 64 x 64 in bf16, x, the residual and out of 3 tokens in f32.
  const auto linear = LinearBench::create(*rig, kSmall, linear_shapes(kSmall)[1], "bf16");
  ASSERT_TRUE(linear && *linear);
  const auto product = (*linear)->make(3);
  ASSERT_TRUE(product) << product.error().message;
  EXPECT_EQ((*product)->bytes, 64 * 64 * 2 + 3 * 3 * 64 * 4);
  EXPECT_EQ((*product)->flops, 2.0 * 3 * 64 * 64);
  EXPECT_EQ((*product)->sets, 3 * kCache / (64 * 64 * 2));
  // 2 contexts of 32 tokens, 2 heads of 16 for K and V in f32; queries and results of 2 tokens, 4 heads.
  const auto decode = attention_case(*rig, kSmall, KvFormatId::kF32, {.decode = true, .batch = 2, .length = 32});
  ASSERT_TRUE(decode && *decode) << decode.error().message;
  EXPECT_EQ((*decode)->bytes, 2 * 32 * 2 * 2 * 16 * 4 + 2 * 2 * 64 * 4);
  EXPECT_EQ((*decode)->flops, 4.0 * 2 * 64 * 32);
}

// Time moves by a millisecond a look.
class CountingClock final : public Clock {
 public:
  int64_t now_ns() const override { return now_ += 1'000'000; }

 private:
  mutable int64_t now_ = 0;
};

TEST(BenchOps, TimesAreOfACallAndSetsTakeTurns) {
  ThreadPool pool(1);
  const CountingClock clock;
  for (const bool device : {false, true}) {
    const OpTable ops = device ? fake_ops() : cpu_ops();
    const auto rig = OpRig::create(ops, pool, clock, DType::kF32, kCache);
    ASSERT_TRUE(rig) << rig.error().message;
    std::vector<int64_t> seen(3);
    OpCase one;
    one.sets = 3;
    one.run = [&](int64_t set) -> Status {
      ++seen[static_cast<size_t>(set)];
      return {};
    };
    const auto times = rig->time(one, 20);
    ASSERT_TRUE(times) << times.error().message;
    // A call takes a millisecond by this clock, so that 20 are the longest round.
    EXPECT_EQ(times->calls, 3);
    EXPECT_EQ(times->rounds, 20);
    EXPECT_NEAR(times->us, 1000.0 / 3, 0.01);
    EXPECT_EQ(times->recorded, device);
    EXPECT_LE(std::ranges::max(seen) - std::ranges::min(seen), 1);
    one.run = [](int64_t) -> Status { return internal_error("broken"); };
    const auto failed = rig->time(one, 20);
    ASSERT_FALSE(failed);
    EXPECT_THAT(failed.error().message, HasSubstr("broken"));
  }
}

TEST(BenchOps, Lists) {
  constexpr Setting<int64_t> kRange{"", "", 1, 9, "tokens", ""};
  EXPECT_EQ(parse_list("--x", "1,8,9", kRange).value(), (std::vector<int64_t>{1, 8, 9}));
  EXPECT_TRUE(parse_list("--x", "", kRange).value().empty());
  EXPECT_THAT(parse_list("--x", "1,", kRange).error().message, HasSubstr("--x: ends with a comma"));
  EXPECT_THAT(parse_list("--x", "1,,2", kRange).error().message, HasSubstr("wanted 1 to 9"));
  EXPECT_THAT(find_op_format("int5").error().message, HasSubstr("fireq"));
}

}  // namespace
}  // namespace hearth
