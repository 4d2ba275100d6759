// SPDX-License-Identifier: Apache-2.0
// Test support: a quantized weight in the memory of a GPU. One thread.
#pragma once

#include <optional>

#include "hearth/kernels/gpu_test.h"
#include "hearth/kernels/linear/linear_cuda.h"
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

// The same as a model's load packs it (LinearOp::packed_bytes and pack). It may stay as it was.
template <auto packed_bytes, auto pack>
class PackedBy {
 public:
  explicit PackedBy(PlacedWeight& placed, TestTensor* bias = nullptr)
      : canonical_(placed, bias), weight(canonical_.weight) {
    auto bytes = DeviceBuffer::allocate(std::max<int64_t>(64, packed_bytes(weight.format, weight.n, weight.k)));
    EXPECT_TRUE(bytes) << bytes.error().message;
    units_ = *std::move(bytes);
    GpuExec gpu;
    const Status packed = pack(weight, units_.data(), gpu.exec().stream);
    EXPECT_TRUE(packed) << packed.error().message;
    EXPECT_TRUE(gpu.synchronize());
  }
  const DeviceBuffer& units() const { return units_; }

 private:
  DeviceWeight canonical_;
  DeviceBuffer units_;

 public:
  LinearWeight weight;
};

using PackedWeight = PackedBy<linear_nibble_sm90_packed_bytes, linear_nibble_sm90_pack>;
using PackedLines = PackedBy<linear_lines_sm90_packed_bytes, linear_lines_sm90_pack>;

}  // namespace hearth::testing
