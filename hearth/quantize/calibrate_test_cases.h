// SPDX-License-Identifier: Apache-2.0
// What is promised of ActivationStream on any op table, on fable-13m. Tests only; one thread.
#pragma once

#include <gtest/gtest.h>

#include <cmath>

#include "hearth/quantize/calibrate.h"

namespace hearth::testing {

constexpr const char* kStreamModel = "models/fable-13m";

struct StreamFixture {
  StreamFixture() : checkpoint(*Checkpoint::open(kStreamModel)), config(*parse_model_config(checkpoint.config())) {
    set.length = 33;
    for (int32_t w = 0; w < 2; ++w) {
      set.windows.emplace_back();
      for (int32_t t = 0; t < 33; ++t)
        set.windows.back().push_back(static_cast<int32_t>((w * 977 + t * t * 131 + 7) % config.vocab_size));
    }
  }
  ActivationStream stream(const OpTable& ops) {
    auto made = ActivationStream::create(checkpoint, config, set, pool, ops);
    HEARTH_CHECK(made.has_value(), "{}", made.error().message);
    return *std::move(made);
  }
  LayerTensors layer(int64_t index) { return *read_layer(checkpoint, config, index); }

  ThreadPool pool{2};
  Checkpoint checkpoint;
  ModelConfig config;
  CalibrationSet set;
};

inline const std::vector<BlockPoint>& input_points() {
  static const std::vector<BlockPoint> kPoints = {BlockPoint::kQkvInput, BlockPoint::kOInput, BlockPoint::kGateUpInput,
                                                  BlockPoint::kDownInput};
  return kPoints;
}

inline InputMoments wanted(const std::vector<BlockPoint>& points) {
  InputMoments moments;
  for (const BlockPoint point : points) moments[point] = SecondMoments();
  return moments;
}

// The largest difference of two channels' moments, by what these could be at most.
inline double moments_difference(const SecondMoments& a, const SecondMoments& b) {
  EXPECT_EQ(a.k(), b.k());
  EXPECT_EQ(a.tokens(), b.tokens());
  double most = 0;
  for (int64_t i = 0; i < a.k(); ++i)
    for (int64_t j = i; j < a.k(); ++j) {
      const auto at = static_cast<size_t>(i * a.k() + j);
      const double scale = std::sqrt(b.diagonal(i) * b.diagonal(j));
      const double difference = std::abs(a.sums()[at] - b.sums()[at]);
      if (!(difference <= 1e-30)) most = std::max(most, difference / scale);
    }
  return most;
}

// Runs in parts give the bits of runs from the start of each layer, and leave the stream where these do.
inline void expect_parts_are_the_whole(const OpTable& ops) {
  StreamFixture f;
  ActivationStream whole = f.stream(ops), parts = f.stream(ops);
  for (int64_t index = 0; index < 2; ++index) {
    const LayerTensors layer = f.layer(index);
    InputMoments all = wanted(input_points());
    ASSERT_TRUE(whole.run({.layer = &layer, .index = index, .moments = &all, .until = BlockPoint::kDownInput}));
    ASSERT_TRUE(whole.run({.layer = &layer, .index = index}));
    for (const BlockPoint point : input_points()) {
      SCOPED_TRACE(::testing::Message() << "layer " << index << ", " << block_point_name(point));
      InputMoments one = wanted({point});
      ASSERT_TRUE(parts.run({.layer = &layer,
                             .index = index,
                             .moments = &one,
                             .until = point,
                             .keep = index == 0 || point != BlockPoint::kOInput}));
      EXPECT_EQ(moments_difference(one[point], all[point]), 0);
      EXPECT_EQ(one[point].max_abs(3), all[point].max_abs(3));
      EXPECT_EQ(one[point].mean_abs(3), all[point].mean_abs(3));
    }
    ASSERT_TRUE(parts.run({.layer = &layer, .index = index}));
  }
  const std::vector<float> norm(static_cast<size_t>(f.config.hidden_size), 1.0f);
  auto a = whole.final_norm(norm), b = parts.final_norm(norm);
  ASSERT_TRUE(a && b);
  EXPECT_EQ(moments_difference(*a, *b), 0);
}

// f32 activations after three layers differ by a few of their roundings: 1e-4 is the bound that logits have.
inline void expect_near(const OpTable& ops, const OpTable& reference) {
  StreamFixture f;
  ActivationStream found = f.stream(ops), exact = f.stream(reference);
  for (int64_t index = 0; index < 3; ++index) {
    const LayerTensors layer = f.layer(index);
    std::vector<float> seen;
    const auto look = [&](int64_t, ConstTensorView values) -> Status {
      const auto* const data = static_cast<const float*>(values.data);
      seen.insert(seen.end(), data, data + values.shape.count());
      return {};
    };
    const WindowObserver observer(look);
    InputMoments a = wanted(input_points()), b = a;
    ASSERT_TRUE(
        found.run({.layer = &layer, .index = index, .moments = &a, .qkv = &observer, .until = BlockPoint::kDownInput}));
    const std::vector<float> first = std::move(seen);
    seen.clear();
    ASSERT_TRUE(
        exact.run({.layer = &layer, .index = index, .moments = &b, .qkv = &observer, .until = BlockPoint::kDownInput}));
    for (const BlockPoint point : input_points()) EXPECT_LT(moments_difference(a[point], b[point]), 1e-4);
    ASSERT_EQ(first.size(), seen.size());
    double most = 0, largest = 0;
    for (size_t i = 0; i < seen.size(); ++i) {
      most = std::max(most, std::abs(double{first[i]} - double{seen[i]}));
      largest = std::max(largest, std::abs(double{seen[i]}));
    }
    EXPECT_LT(most, 1e-4 * largest);
    ASSERT_TRUE(found.run({.layer = &layer, .index = index}));
    ASSERT_TRUE(exact.run({.layer = &layer, .index = index}));
  }
}

inline void expect_names_what_is_no_number(const OpTable& ops) {
  StreamFixture f;
  const auto message = [&](const LayerTensors& layer) {
    ActivationStream stream = f.stream(ops);
    const Status status = stream.run({.layer = &layer, .index = 1});
    return status ? std::string() : status.error().message;
  };
  LayerTensors layer = f.layer(1);
  EXPECT_EQ(message(layer), "");
  layer.down.w[static_cast<size_t>(5 * layer.down.k)] = INFINITY;  // what it is multiplied with has a sign
  EXPECT_NE(message(layer).find("inf at token 0 of calibration window 0, channel 5; wanted finite numbers"),
            std::string::npos)
      << message(layer);
  EXPECT_EQ(message(layer).find("layer 1: output is "), 0U);
  layer.post_attention_norm[7] = NAN;
  EXPECT_EQ(
      message(layer),
      "layer 1: input of gate_proj and up_proj is nan at token 0 of calibration window 0, channel 7; wanted finite "
      "numbers");
}

}  // namespace hearth::testing
