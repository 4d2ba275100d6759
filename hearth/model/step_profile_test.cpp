// SPDX-License-Identifier: Apache-2.0
// A step taken apart: every call belongs to one part, a part runs its own calls alone, and the step is none the wiser.
#include "hearth/model/step_profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "hearth/memory/fake_device_for_test.h"
#include "hearth/model/golden_for_test.h"

namespace hearth {
namespace {

// What the CPU's ops were called, by all tests of this file, one after the other.
struct Calls {
  int64_t norm = 0, attention = 0, linear = 0, sample = 0;
};
Calls calls;

Status counted_linear(const LinearArgs& args, ExecContext& exec) {
  ++calls.linear;
  return linear_cpu(args, exec);
}
const LinearOp* counted_plain(const WeightFormat& format, DType) {
  static constexpr LinearOp kOp{"counted", linear_cpu_workspace_bytes, counted_linear};
  return format.is_plain() ? &kOp : nullptr;
}

OpTable counted_ops() {
  OpTable ops = cpu_ops();
  ops.rmsnorm = [](const RmsNormArgs& args, ExecContext& exec) { return ++calls.norm, cpu_ops().rmsnorm(args, exec); };
  ops.attention = [](const AttentionArgs& args, ExecContext& exec) {
    return ++calls.attention, cpu_ops().attention(args, exec);
  };
  ops.sample = [](const SampleArgs& args, ExecContext& exec) { return ++calls.sample, cpu_ops().sample(args, exec); };
  ops.find_linear = counted_plain;
  return ops;
}
const OpTable& host_ops() {
  static const OpTable ops = counted_ops();
  return ops;
}
const OpTable& device_ops() {
  static const OpTable ops = [] {
    OpTable made = counted_ops();
    made.memory = testing::fake_device;
    return made;
  }();
  return ops;
}
// The same that samples where the logits lie.
const OpTable& sampling_device_ops() {
  static const OpTable ops = [] {
    OpTable made = device_ops();
    made.sample_packed = sample_packed_ref;
    return made;
  }();
  return ops;
}

constexpr int64_t kRounds = 3, kWarmRounds = 2;

class Profiles : public ::testing::TestWithParam<const OpTable* (*)()> {
 protected:
  Runner runner(const OpTable& ops) {
    const RunnerOptions options{.max_sequences = 4, .max_context = 40, .decode_batches = {4}, .samples = true};
    return testing::make_runner(testing::load_model("tests/fixtures/llama2", pool_, {}, ops), pool_, options);
  }

  ThreadPool pool_{2};
  const SteadyClock clock_{};
};

TEST_P(Profiles, PartsAreTheStepsCalls) {
  const OpTable& ops = *GetParam()();
  Runner plain = runner(cpu_ops()), profiled = runner(ops);
  const int64_t layers = profiled.model().config().layers;
  const std::vector<int32_t> ids{5, 9, 2, 7, 3};
  for (int64_t slot = 0; slot < 3; ++slot)
    for (Runner* one : {&plain, &profiled}) ASSERT_TRUE(one->feed(slot, std::span(ids).first(3)));
  const std::vector<SampleRow> rows(3, {.params = {.temperature = 0}, .position = 4, .top_logprobs = kNoLogprobs});
  // A decode step, and one with a prompt in it.
  for (const size_t tokens : {1, 2}) {
    std::vector<SlotTokens> feeds;
    for (int64_t slot = 0; slot < 3; ++slot)
      feeds.push_back({.slot = slot, .tokens = std::span(ids).subspan(3, slot == 0 ? tokens : 1)});
    calls = {};
    const auto profile = profiled.profile(feeds, rows, kRounds, clock_);
    ASSERT_TRUE(profile) << profile.error().message;

    const std::vector<int64_t> wanted{2, 1, 2 * layers + 1, layers, layers, layers, layers, layers, layers, layers, 1};
    ASSERT_EQ(std::ssize(profile->parts), kStepParts);
    for (int part = 0; part < kStepParts; ++part) {
      const StepPartTime& found = profile->parts[static_cast<size_t>(part)];
      EXPECT_EQ(found.part, static_cast<StepPart>(part));
      EXPECT_EQ(found.calls, wanted[static_cast<size_t>(part)]) << step_part_name(found.part);
      EXPECT_EQ(std::ssize(found.us), kRounds);
    }
    EXPECT_EQ(std::ssize(profile->step_us), kRounds);
    EXPECT_EQ(std::ssize(profile->sample_us), kRounds);
    const bool on_device = !ops.memory().is_host();
    EXPECT_EQ(profile->recorded, on_device);
    EXPECT_EQ(profile->samples_on_device, ops.sample_packed != nullptr);
    // The step once and timed, its part's calls once and timed: all others never run with them.
    const int64_t runs = 2 * (1 + kWarmRounds + kRounds);
    EXPECT_EQ(calls.norm, runs * (2 * layers + 1));
    EXPECT_EQ(calls.attention, runs * layers);
    EXPECT_EQ(calls.linear, runs * (4 * layers + 1));
    EXPECT_EQ(calls.sample, ops.sample_packed ? 0 : kWarmRounds + kRounds);

    // The slots are where they were, and the same step gives what it gives elsewhere.
    for (int64_t slot = 0; slot < 3; ++slot) EXPECT_EQ(profiled.context(slot), 3);
    const auto logits = plain.step(feeds);
    ASSERT_TRUE(logits) << logits.error().message;
    const testing::Rows wanted_rows = testing::copy_rows(*logits);
    const auto again = profiled.step(feeds);
    ASSERT_TRUE(again) << again.error().message;
    EXPECT_EQ(testing::copy_rows(*again), wanted_rows);
    for (int64_t slot = 0; slot < 3; ++slot)
      for (Runner* one : {&plain, &profiled}) one->cut(slot, 3);
  }
}

TEST_P(Profiles, ABadStepIsRefused) {
  Runner profiled = runner(*GetParam()());
  const int32_t beyond = 1 << 30;
  const SlotTokens feed{.slot = 0, .tokens = {&beyond, 1}};
  EXPECT_FALSE(profiled.profile({&feed, 1}, {}, kRounds, clock_));
}

INSTANTIATE_TEST_SUITE_P(Memories, Profiles,
                         ::testing::Values([] { return &host_ops(); }, [] { return &device_ops(); },
                                           [] { return &sampling_device_ops(); }));

}  // namespace
}  // namespace hearth
