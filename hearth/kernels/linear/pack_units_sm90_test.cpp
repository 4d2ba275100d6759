// SPDX-License-Identifier: Apache-2.0
// Units packed on a GPU are those of the host. Label gpu: without a device every test here fails.
#include "hearth/kernels/linear/pack_units_sm90.h"

#include <gtest/gtest.h>

#include "hearth/kernels/linear/device_weight_for_test.h"
#include "hearth/kernels/linear/nibble_units.h"

namespace hearth {
namespace {

using namespace testing;  // quantized_for_test.h

TEST(PackUnitsSm90, HasTheBitsOfTheHost) {
  constexpr uint64_t kSeed = 700;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  using enum WeightCode;
  std::vector<WeightFormat> formats = {int4_format(kI4SignMagnitude, 128), int4_format(kC4, 256),
                                       int4_format(kU4, 128, true, DType::kBf16), int4_format(kU4, 512),
                                       int4_format(kU4, 128, false, DType::kE4m3)};
  for (WeightFormat& format : formats) format.act = ActFormat::kE4m3PerToken;
  formats.push_back(int4_format(kU4, 128, true));
  formats.push_back(int4_format(kU4, 256, true, DType::kF32));
  for (const WeightFormat& format : formats)
    for (const int64_t n : {1, 15, 16, 200})
      for (const int64_t k : {128, 640}) {
        SCOPED_TRACE(fmt::format("{} n {} k {}", to_string(format), n, k));
        PlacedWeight placed(random_matrix(format, n, k, false, random));
        const DeviceWeight device(placed);
        std::vector<uint8_t> wanted(static_cast<size_t>(units_bytes(format, n, k))), units(wanted.size(), 0xAA);
        pack_units_ref(placed.weight, wanted);
        DeviceCopy copy(std::as_writable_bytes(std::span(units)));
        GpuExec gpu;
        ASSERT_TRUE(sm90::pack_units(device.weight, copy.data(), gpu.exec().stream));
        ASSERT_TRUE(gpu.synchronize());
        copy.copy_back();
        EXPECT_TRUE(units == wanted);
      }
}

}  // namespace
}  // namespace hearth
