// SPDX-License-Identifier: Apache-2.0
#include "hearth/schedule/fair_share.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/schedule/local_policy.h"

namespace hearth {
namespace {

// Models of one decode each, without targets, whose turns `policy` gives out.
class Device {
 public:
  explicit Device(std::vector<double> weights) : weights_(std::move(weights)), shares_(weights_.size()) {
    for (const FairShare& share : shares_) all_.push_back(&share);
    used_us.resize(weights_.size());
    step_us.assign(weights_.size(), 1000);
    busy.assign(weights_.size(), true);
  }

  void step() {
    std::vector<LocalModel> models;
    for (size_t m = 0; m < shares_.size(); ++m) shares_[m].look(busy[m], all_);
    for (size_t m = 0; m < shares_.size(); ++m)
      models.push_back({.sequences = busy[m] ? std::span<const PolicySequence>(decode_) : decode_.first(0),
                        .limits = {.tokens = 100, .rows = 100, .sequences = 10, .free_blocks = 100},
                        .service = shares_[m].service});
    const Turn turn = policy_->next(models, 0);
    ASSERT_GE(turn.model, 0);
    const auto m = static_cast<size_t>(turn.model);
    used_us[m] += step_us[m];
    shares_[m].charge(step_us[m], weights_[m]);
  }

  std::vector<double> used_us, step_us;
  std::vector<bool> busy;

 private:
  static constexpr std::array<PolicySequence, 1> kDecode{
      PolicySequence{.running = true, .ready = true, .fed = 10, .pending = 1, .first_out = true}};
  const std::span<const PolicySequence> decode_{kDecode};
  const std::unique_ptr<LocalPolicy> policy_ = make_local_policy("slo").value();
  const std::vector<double> weights_;
  std::vector<FairShare> shares_;
  std::vector<const FairShare*> all_;
};

TEST(FairShare, TimeIsSharedByWeightWhateverAStepTakes) {
  constexpr uint64_t kSeed = 3;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  Device device({3, 1, 2});
  for (int i = 0; i < 3000; ++i) {
    for (double& us : device.step_us) us = 100 + static_cast<double>(random.below(5000));
    device.step();
    // A step of each, by weight: at most 5,100 us at weight 1.
    EXPECT_NEAR(device.used_us[0] / 3, device.used_us[1], 5100 + 1700);
    EXPECT_NEAR(device.used_us[2] / 2, device.used_us[1], 5100 + 2550);
  }
  EXPECT_GT(device.used_us[1], 300'000);
}

TEST(FairShare, IdlenessSavesNothingUp) {
  Device device({1, 1});
  device.busy[1] = false;
  for (int i = 0; i < 1000; ++i) device.step();
  EXPECT_EQ(device.used_us[1], 0);
  device.busy[1] = true;
  for (int i = 0; i < 100; ++i) device.step();
  EXPECT_NEAR(device.used_us[1], 50'000, 1000);
}

// The first worked alone, then the second: neither owes the other anything when they meet.
TEST(FairShare, NobodyOwesForWhatNobodyElseWanted) {
  Device device({1, 1});
  device.busy[1] = false;
  for (int i = 0; i < 1000; ++i) device.step();
  device.busy = {false, true};
  for (int i = 0; i < 10; ++i) device.step();
  device.busy = {true, true};
  const std::vector<double> before = device.used_us;
  for (int i = 0; i < 100; ++i) device.step();
  EXPECT_NEAR(device.used_us[0] - before[0], 50'000, 11'000);
  EXPECT_NEAR(device.used_us[1] - before[1], 50'000, 11'000);
}

}  // namespace
}  // namespace hearth
