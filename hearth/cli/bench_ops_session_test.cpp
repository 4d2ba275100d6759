// SPDX-License-Identifier: Apache-2.0
// hearth bench ops --interactive: what a request may be, that cases of every op are made, replayed and dropped on the
// CPU and on a device that records, and that a request that fails changes nothing.
#include "hearth/cli/bench_ops_session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "hearth/memory/fake_device_for_test.h"

namespace hearth {
namespace {

using ::testing::HasSubstr;

OpTable fake_ops() {
  OpTable ops = cpu_ops();
  ops.memory = []() -> const Memory& { return testing::fake_device(); };
  return ops;
}

class Session : public ::testing::TestWithParam<bool> {
 protected:
  Session()
      : ops_(GetParam() ? fake_ops() : cpu_ops()),
        rig_(*OpRig::create(ops_, pool_, clock_, DType::kF32, int64_t{1} << 16)),
        session_(rig_, "a device", "the command", 1e9) {}

  nlohmann::json answer(std::string_view request) {
    Result<nlohmann::json> got = session_.answer(request);
    EXPECT_TRUE(got) << request << ": " << got.error().message;
    return got ? *got : nlohmann::json();
  }
  std::string error(std::string_view request) {
    const Result<nlohmann::json> got = session_.answer(request);
    EXPECT_FALSE(got) << request;
    return got ? std::string() : got.error().message;
  }

  ThreadPool pool_{2};
  const SteadyClock clock_;
  const OpTable ops_;
  const OpRig rig_;
  OpSession session_;
};

TEST_P(Session, CasesOfEveryOp) {
  for (const char* request :
       {"make linear N=64 K=128 M=3 format=fp8 config=small layer=o residual=yes",
        "make linear N=96 K=64 M=2 format=bf16 logits=yes", "make linear N=3 K=100 M=1 format=sbvr",
        "make rmsnorm rows=3 hidden=64", "make rmsnorm rows=3 hidden=64 residual=yes",
        "make attention kv=bf16 batch=2 context=37 heads=4 kv_heads=2 head_dim=16",
        "make attention kv=f32 batch=2 length=17 heads=4 kv_heads=4 head_dim=16 config=small"}) {
    const nlohmann::json made = answer(request);
    const nlohmann::json& line = made["line"];
    EXPECT_EQ(line["device"], "a device");
    EXPECT_EQ(line["command"], "the command");
    EXPECT_EQ(line["graph"], GetParam());
    EXPECT_DOUBLE_EQ(line["floor_us"].get<double>(), line["bytes"].get<double>() * 1e-3);
    EXPECT_GE(line["calls"].get<int64_t>(), 1);
    EXPECT_EQ(line["rotated_bytes"].get<int64_t>() % made["sets"].get<int64_t>(), 0);
    const auto id = made["case"].get<int64_t>();
    const nlohmann::json times = answer(fmt::format("replay {} 3", id));
    ASSERT_EQ(times["us"].size(), 3u) << request;
    for (const double us : times["us"]) EXPECT_GT(us, 0) << request;
    EXPECT_TRUE(answer(fmt::format("drop {}", id)).empty());
    EXPECT_THAT(error(fmt::format("replay {} 1", id)), HasSubstr("is not there"));
  }
}

TEST_P(Session, LinesSayWhichCaseItIs) {
  const nlohmann::json o = answer("make  linear N=64 K=128 M=3 format=fp8 config=small layer=o residual=yes")["line"];
  EXPECT_EQ(o["bench"], "op.linear");
  EXPECT_EQ(o["config"], "small");
  EXPECT_EQ(o["layer"], "o");
  EXPECT_EQ(o["N"], 64);
  EXPECT_EQ(o["K"], 128);
  EXPECT_EQ(o["M"], 3);
  EXPECT_EQ(o["x"], "f32");
  EXPECT_EQ(o["residual"], true);
  EXPECT_EQ(o["flops"], 2.0 * 3 * 64 * 128);
  const nlohmann::json norm = answer("make rmsnorm rows=3 hidden=64 residual=yes")["line"];
  EXPECT_EQ(norm["bytes"], 4.0 * 3 * 64 * 4);
  EXPECT_EQ(norm["residual"], true);
  EXPECT_FALSE(norm.contains("config"));
  EXPECT_EQ(answer("make rmsnorm rows=3 hidden=64")["line"]["bytes"], 2.0 * 3 * 64 * 4);
}

// Other numbers of tokens are the same weights, and a case keeps what it needs when others go.
TEST_P(Session, CasesLiveAlone) {
  const auto first = answer("make linear N=64 K=128 M=1 format=bf16")["case"].get<int64_t>();
  const int64_t before = testing::FakeDevice::instance().counts.allocations;
  const auto second = answer("make linear N=64 K=128 M=2 format=bf16")["case"].get<int64_t>();
  const int64_t shared = testing::FakeDevice::instance().counts.allocations - before;
  const auto third = answer("make linear N=64 K=128 M=2 format=bf16 layer=other")["case"].get<int64_t>();
  const int64_t anew = testing::FakeDevice::instance().counts.allocations - before - shared;
  EXPECT_EQ(anew - shared, GetParam() ? 1 : 0);  // the weight
  EXPECT_LT(first, second);
  answer(fmt::format("drop {}", first));
  EXPECT_EQ(answer(fmt::format("replay {} 2", second))["us"].size(), 2u);
  EXPECT_EQ(answer(fmt::format("replay {} 1", third))["us"].size(), 1u);
}

// Guards I1.
TEST_P(Session, RefusedRequests) {
  const auto kept = answer("make rmsnorm rows=3 hidden=64")["case"].get<int64_t>();
  const std::pair<const char*, const char*> wrong[] = {
      {"", "request '' is unknown; wanted make, replay or drop"},
      {"measure linear", "request 'measure' is unknown"},
      {"make", "op '' is unknown; wanted linear, attention or rmsnorm"},
      {"make gemm M=1", "op 'gemm' is unknown"},
      {"make linear N=64 K=128 M=3", "linear: format is missing; wanted format=VALUE"},
      {"make linear N=64 K=128 M= format=bf16", "'M=' is no field; wanted NAME=VALUE"},
      {"make linear N=64 K=128 M=3 M=4 format=bf16", "'M' comes twice"},
      {"make linear N=64 K=128 M=0 format=bf16", "M: 0 is out of range; wanted 1 to 1048576"},
      {"make linear N=64 K=1e3 M=1 format=bf16", "K: '1e3' is not a whole number"},
      {"make linear N=64 K=128 M=1 format=int5", "weight format 'int5' is unknown"},
      {"make linear N=64 K=128 M=1 format=bf16 speed=1", "'speed' is not a field of this op"},
      {"make linear N=64 K=128 M=1 format=bf16 residual=maybe", "residual: 'maybe' is unknown; wanted yes or no"},
      {"make linear N=1048576 K=1048576 M=1 format=bf16", "weight: 1048576 x 1048576 elements; wanted at most"},
      {"make linear N=64 K=128 M=1 format=fp8 x=e4m3", "linear: x of e4m3 for weights of fp8"},
      {"make attention kv=int5 batch=1 length=8 heads=4 kv_heads=2 head_dim=16", "kv: 'int5' is unknown"},
      {"make attention kv=f32 batch=1 heads=4 kv_heads=2 head_dim=16", "length is missing"},
      {"make attention kv=f32 batch=1 length=8 context=8 heads=4 kv_heads=2 head_dim=16", "'length' is not a field"},
      {"make attention kv=f32 batch=1 length=8 heads=4 kv_heads=3 head_dim=16", "heads 4 is not a multiple of"},
      {"make attention kv=f32 batch=1 length=8 heads=4 kv_heads=2 head_dim=17", "head_dim 17 is odd"},
      {"make attention kv=f32 batch=1048576 length=1048576 heads=4 kv_heads=2 head_dim=16", "tokens in all"},
      {"make rmsnorm rows=1", "rmsnorm: hidden is missing"},
      {"replay", "case: '' is not a whole number"},
      {"replay 99 1", "case 99 is not there; there are 1 others"},
      {"replay 1", "replays: '' is not a whole number"},
      {"replay 1 2 3", "replays: '2 3' is not a whole number"},
      {"drop x", "case: 'x' is not a whole number"},
  };
  ASSERT_EQ(kept, 1);
  for (const auto& [request, message] : wrong) EXPECT_THAT(error(request), HasSubstr(message)) << request;
  EXPECT_EQ(answer("replay 1 1")["us"].size(), 1u);
  EXPECT_EQ(answer("make rmsnorm rows=1 hidden=64")["case"], 2);
}

TEST_P(Session, Greeting) {
  const nlohmann::json said = session_.greeting();
  EXPECT_EQ(said["device"], "a device");
  EXPECT_EQ(said["dtype"], "f32");
  EXPECT_EQ(said["bytes_per_s"], 1e9);
}

INSTANTIATE_TEST_SUITE_P(Memories, Session, ::testing::Values(false, true),
                         [](const auto& one) { return one.param ? "device" : "host"; });

TEST(SessionOfATable, OpsThatItLacks) {
  OpTable ops = cpu_ops();
  ops.find_linear = [](const WeightFormat&, DType) -> const LinearOp* { return nullptr; };
  ThreadPool pool(1);
  const SteadyClock clock;
  const auto rig = OpRig::create(ops, pool, clock, DType::kF32, int64_t{1} << 16);
  ASSERT_TRUE(rig) << rig.error().message;
  OpSession session(*rig, "", "", 0);
  const auto refused = session.answer("make linear N=32 K=64 M=2 format=fp8");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(refused.error().message, HasSubstr("linear: the cpu backend has none for these fields and f32"));
}

// The reference backend takes rows that are rounded.
TEST(SessionOfReference, RoundedRows) {
  ThreadPool pool(1);
  const SteadyClock clock;
  const auto rig = OpRig::create(ref_ops(), pool, clock, DType::kF32, int64_t{1} << 16);
  ASSERT_TRUE(rig) << rig.error().message;
  OpSession session(*rig, "", "", 0);
  const auto made = session.answer("make linear N=32 K=64 M=2 format=fp8 x=e4m3");
  ASSERT_TRUE(made) << made.error().message;
  EXPECT_EQ((*made)["line"]["x"], "e4m3");
  EXPECT_FALSE((*made)["line"].contains("floor_us"));
}

}  // namespace
}  // namespace hearth
