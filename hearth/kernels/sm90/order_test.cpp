// SPDX-License-Identifier: Apache-2.0
// What the kernels' vocabulary says about order, on a GPU: programmatic dependent launch (pdl.cuh), flags between
// blocks (flags.cuh), and waits that end (patience.cuh). Results are integers, compared with the same loops on the CPU;
// that kernels really overlap is seen by the device's clock. Label gpu.
#include "hearth/kernels/sm90/order_test.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "hearth/kernels/sm90/device_for_test.h"

namespace hearth::sm90 {
namespace {

constexpr int kSteps = 12, kBlocks = 8, kCount = kBlocks * kOrderThreads;

const char* name(NextStarts next) {
  switch (next) {
    case NextStarts::kAtOurEnd: return "next starts at our end";
    case NextStarts::kAtOurBegin: return "next starts at our begin";
    case NextStarts::kBehindOurWait: return "next starts behind our wait";
  }
  return "?";
}

struct Chain {
  NextStarts next;
  bool pdl, graph;
};
std::ostream& operator<<(std::ostream& out, const Chain& chain) {
  return out << (chain.graph ? "graph" : "eager") << (chain.pdl ? ", " : ", without the attribute, ")
             << name(chain.next);
}

std::vector<Chain> chains() {
  std::vector<Chain> all;
  for (const bool graph : {false, true}) {
    all.push_back({NextStarts::kAtOurBegin, false, graph});
    for (const NextStarts next : {NextStarts::kAtOurEnd, NextStarts::kAtOurBegin, NextStarts::kBehindOurWait})
      all.push_back({next, true, graph});
  }
  return all;
}

// kSteps kernels between two buffers.
class ChainRun {
 public:
  explicit ChainRun(const Chain& chain) : chain_(chain) {
    if (chain.graph) {
      auto graph = Graph::capture(device_.stream, [this] { return start(); });
      EXPECT_TRUE(graph) << graph.error().message;
      if (graph) graph_ = *std::move(graph);
    }
  }
  // The last kernel's numbers.
  std::vector<uint32_t> run(const std::vector<uint32_t>& from) {
    EXPECT_TRUE(buffer_[0].copy_from_host(std::as_bytes(std::span(from))));
    const Status status = chain_.graph ? graph_.launch(device_.stream) : start();
    EXPECT_TRUE(status) << status.error().message;
    return device_.get<uint32_t>(buffer_[kSteps % 2]);
  }
  struct Times {
    uint64_t first_began, first_waited, last_waited, last_ended;
  };
  std::vector<Times> times() {
    const std::vector<OrderTimes> all = device_.get<OrderTimes>(times_);
    std::vector<Times> steps;
    for (int i = 0; i < kSteps; ++i) {
      Times t{UINT64_MAX, UINT64_MAX, 0, 0};
      for (const OrderTimes& one : std::span(all).subspan(i * kBlocks, kBlocks)) {
        t.first_began = std::min(t.first_began, one.began);
        t.first_waited = std::min(t.first_waited, one.waited);
        t.last_waited = std::max(t.last_waited, one.waited);
        t.last_ended = std::max(t.last_ended, one.ended);
      }
      steps.push_back(t);
    }
    return steps;
  }

 private:
  Status start() {
    for (int i = 0; i < kSteps; ++i)
      HEARTH_TRY(start_chain_step({.in = buffer_[i % 2].data(),
                                   .out = buffer_[1 - i % 2].data(),
                                   .times = times_.data() + i * kBlocks * sizeof(OrderTimes),
                                   .blocks = kBlocks,
                                   .index = i,
                                   .late_ns = 200'000,
                                   .next = chain_.next,
                                   .pdl = chain_.pdl},
                                  device_.stream.handle()));
    return {};
  }

  Device device_;
  const Chain chain_;
  const std::vector<uint32_t> nothing_ = std::vector<uint32_t>(kCount, 0xDEADBEEF);
  DeviceBuffer buffer_[2] = {device_.put(nothing_), device_.put(nothing_)};
  DeviceBuffer times_ = device_.put(std::vector<OrderTimes>(kSteps * kBlocks));
  Graph graph_;
};

std::vector<uint32_t> numbers(uint32_t begin) {
  std::vector<uint32_t> all(kCount);
  for (int i = 0; i < kCount; ++i) all[i] = begin + 7919u * static_cast<uint32_t>(i);
  return all;
}
std::vector<uint32_t> one_after_the_other(std::vector<uint32_t> in) {
  for (int index = 0; index < kSteps; ++index) {
    std::vector<uint32_t> out(kCount);
    for (int i = 0; i < kCount; ++i) out[i] = in[(i + kOrderThreads) % kCount] * 5 + in[i] + index;
    in = std::move(out);
  }
  return in;
}

class Order : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto stream = Stream::create();
    ASSERT_TRUE(stream) << stream.error().message;
  }
};

TEST_F(Order, ChainsOfDependentKernelsHaveTheSequentialResult) {
  for (const Chain& chain : chains()) {
    SCOPED_TRACE(::testing::Message() << chain);
    ChainRun run(chain);
    for (uint32_t round = 0; round < 5; ++round)
      ASSERT_EQ(run.run(numbers(round)), one_after_the_other(numbers(round))) << "round " << round;
  }
}

// Two kernels overlap where pdl_launch_next() was called, and as far as its place says; a pdl_wait() ends behind the
// last kernel's last store in any case. From the host one by one, some of the 11 pairs may come too late to overlap.
TEST_F(Order, AKernelBeginsBeforeTheOneBeforeItHasEnded) {
  for (const Chain& chain : chains()) {
    SCOPED_TRACE(::testing::Message() << chain);
    ChainRun run(chain);
    run.run(numbers(1));  // loads the kernel
    run.run(numbers(2));
    const std::vector<ChainRun::Times> times = run.times();
    int overlapping = 0;
    double least_us = 1e9, most_us = -1e9;
    for (int i = 1; i < kSteps; ++i) {
      const ChainRun::Times &before = times[i - 1], &now = times[i];
      EXPECT_GE(now.first_waited, before.last_ended) << "step " << i << " did not wait";
      EXPECT_LT(before.last_waited, before.last_ended);
      const double early_us = static_cast<double>(static_cast<int64_t>(before.last_ended - now.first_began)) * 1e-3;
      least_us = std::min(least_us, early_us), most_us = std::max(most_us, early_us);
      overlapping += now.first_began < before.last_ended;
      if (chain.next == NextStarts::kBehindOurWait && chain.pdl) {
        EXPECT_GE(now.first_began, before.last_waited) << "step " << i;
      }
    }
    std::ostringstream what;
    what << chain;
    std::printf("%s: %d of %d kernels began before the one before them ended, by %.1f to %.1f us\n", what.str().c_str(),
                overlapping, kSteps - 1, least_us, most_us);
    if (!chain.pdl || chain.next == NextStarts::kAtOurEnd) {
      EXPECT_EQ(overlapping, 0);
    } else {
      EXPECT_GE(overlapping, chain.graph ? kSteps - 1 : kSteps / 2);
    }
  }
}

TEST_F(Order, BlocksHandDataToTheNextByFlags) {
  const auto info = current_cuda_device();
  ASSERT_TRUE(info) << info.error().message;
  constexpr int kRounds = 300;
  for (const int blocks : {1, 2, 37, (*info)->multiprocessors}) {
    SCOPED_TRACE(::testing::Message() << blocks << " blocks");
    const auto words = static_cast<size_t>(blocks * kOrderThreads);
    std::vector<uint32_t> data(words), seen(words);
    for (int round = 0; round < kRounds; ++round)
      for (int block = 0; block < blocks; ++block)
        for (int thread = 0; thread < kOrderThreads; ++thread) {
          const int i = block * kOrderThreads + thread;
          const uint32_t before = block > 0 ? data[i - kOrderThreads] : 0;
          data[i] = before * 3 + (1000 * round + block) * 256 + thread;
          seen[i] ^= data[i];
        }
    Device device;
    const DeviceBuffer to_data = device.put(std::vector<uint32_t>(words, 0xDEADBEEF)),
                       to_seen = device.put(std::vector<uint32_t>(words, 0xDEADBEEF)),
                       flags = device.put(std::vector<uint32_t>(2 * static_cast<size_t>(blocks)));
    const Status status =
        run_handovers(to_data.data(), to_seen.data(), flags.data(), blocks, kRounds, device.stream.handle());
    ASSERT_TRUE(status) << status.error().message;
    EXPECT_EQ(device.get<uint32_t>(to_data), data);
    EXPECT_EQ(device.get<uint32_t>(to_seen), seen);
  }
}

// In a process of its own: the device is lost to it.
TEST(OrderDeathTest, AWaitWithoutEndLosesTheDevice) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (const EndlessWait what : {EndlessWait::kFlag, EndlessWait::kBarrier}) {
    SCOPED_TRACE(what == EndlessWait::kFlag ? "flag" : "barrier");
    EXPECT_EXIT(
        {
          Device device;
          const DeviceBuffer zero = device.put(std::vector<uint32_t>(1));
          Status status = run_endless_wait(what, zero.data(), device.stream.handle());
          if (status) status = device.stream.synchronize();
          std::fprintf(stderr, "%s\n", status ? "no error" : status.error().message.c_str());
          std::_Exit(!status && status.error().code == ErrorCode::kDeviceLost ? 0 : 1);
        },
        ::testing::ExitedWithCode(0), "cudaErrorIllegalAddress");
  }
}

}  // namespace
}  // namespace hearth::sm90
