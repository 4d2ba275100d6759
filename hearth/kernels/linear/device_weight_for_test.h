// SPDX-License-Identifier: Apache-2.0
// Test support: a quantized weight in the memory of a GPU. One thread.
#pragma once

#include <optional>

#include "hearth/kernels/gpu_test.h"
#include "hearth/kernels/linear/quantized_for_test.h"

namespace hearth::testing {

// The weight on the device, its views moved. The host's bias moves with it where there is one.
class DeviceWeight {
 public:
  explicit DeviceWeight(PlacedWeight& placed, TestTensor* bias = nullptr)
      : placed_(placed), copy_(placed.bytes()), weight(placed.weight) {
    for (ConstTensorView* view : {&weight.codes, &weight.scales, &weight.zeros, &weight.lines, &weight.line_scales,
                                  &weight.line_index, &weight.k_order, &weight.act_scale})
      if (*view) view->data = copy_.data() + (static_cast<const std::byte*>(view->data) - placed_.bytes().data());
    if (bias != nullptr) weight.bias = bias_.emplace(*bias).vector();
  }

 private:
  PlacedWeight& placed_;
  DeviceCopy copy_;
  std::optional<OnDevice> bias_;

 public:
  LinearWeight weight;
};

}  // namespace hearth::testing
