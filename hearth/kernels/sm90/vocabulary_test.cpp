// SPDX-License-Identifier: Apache-2.0
// The PTX wrappers of kernels/sm90 on a GPU, against integers and doubles. Products of the small integers that these
// operands hold are exact in every order, so that results are compared bit by bit. Label gpu.
#include "hearth/kernels/sm90/vocabulary_test.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/kernels/sm90/device_for_test.h"
#include "hearth/tensor/dtype.h"

namespace hearth::sm90 {
namespace {

constexpr uint64_t kSeed = 90001;

// Small integers, and how an operand type stores them.
std::vector<int> small_integers(Random& random, int64_t count) {
  std::vector<int> x(static_cast<size_t>(count));
  for (int& v : x) v = static_cast<int>(random.below(15)) - 7;
  return x;
}
std::vector<uint8_t> stored(const std::vector<int>& from, Operands type) {
  std::vector<uint8_t> bytes;
  for (int v : from) {
    if (type == Operands::kBf16) {
      const uint16_t bits = bf16::from_float(static_cast<float>(v)).bits;
      bytes.push_back(static_cast<uint8_t>(bits)), bytes.push_back(static_cast<uint8_t>(bits >> 8));
    } else if (type == Operands::kE4m3) {
      bytes.push_back(e4m3::from_float(static_cast<float>(v)).bits);
    } else {
      bytes.push_back(static_cast<uint8_t>(static_cast<int8_t>(v)));
    }
  }
  return bytes;
}

TEST(Vocabulary, WarpgroupProductsAreExact) {
  Device device;
  ASSERT_TRUE(device.stream.handle());
  Random random(kSeed);
  int ran = 0;
  for (Operands type : {Operands::kBf16, Operands::kE4m3, Operands::kS8})
    for (int n : {8, 16, 32, 64, 128, 256})
      for (bool registers_a : {false, true})
        for (bool along_n : {false, true})
          for (Route route : {Route::kStores, Route::kTensorMap}) {
            if (along_n && (type != Operands::kBf16 || n % 64 != 0)) continue;
            const ProductCase c{type, n, registers_a, along_n, route};
            const int k = type == Operands::kBf16 ? 128 : 256;
            SCOPED_TRACE(::testing::Message()
                         << "seed " << kSeed << ", type " << static_cast<int>(type) << " (bf16, e4m3, s8), n " << n
                         << ", a from " << (registers_a ? "registers" : "shared memory") << ", b along "
                         << (along_n ? "n" : "k") << ", by " << (route == Route::kStores ? "stores" : "tensor map"));
            const std::vector<int> a = small_integers(random, 64 * k), b = small_integers(random, k * n);
            const DeviceBuffer from_a = device.put(stored(a, type)), from_b = device.put(stored(b, type));
            const DeviceBuffer to = device.put(std::vector<uint32_t>(static_cast<size_t>(64 * n), 0xFFFFFFFF));
            const Status status = run_product(c, from_a.data(), from_b.data(), to.data(), device.stream.handle());
            ASSERT_TRUE(status) << status.error().message;
            const std::vector<uint32_t> d = device.get<uint32_t>(to);
            int wrong = 0;
            for (int row = 0; row < 64; ++row)
              for (int column = 0; column < n; ++column) {
                int wanted = 0;
                for (int i = 0; i < k; ++i)
                  wanted += a[row * k + i] * (along_n ? b[i * n + column] : b[column * k + i]);
                const uint32_t bits = d[row * n + column];
                const double found = type == Operands::kS8 ? static_cast<int32_t>(bits) : std::bit_cast<float>(bits);
                if (found != wanted && ++wrong == 1)
                  ADD_FAILURE() << "first at row " << row << ", column " << column << ": found " << found << ", wanted "
                                << wanted;
              }
            EXPECT_EQ(wrong, 0) << "of " << 64 * n << " elements";
            ++ran;
            if (HasFatalFailure()) return;
          }
  EXPECT_EQ(ran, 3 * 6 * 4 + 3 * 4);
}

TEST(Vocabulary, WarpProductsAreExact) {
  Device device;
  ASSERT_TRUE(device.stream.handle());
  Random random(kSeed + 1);
  for (bool along_n : {false, true})
    for (bool upper : {false, true}) {
      SCOPED_TRACE(::testing::Message() << "seed " << kSeed + 1 << ", along n " << along_n << ", upper " << upper);
      const std::vector<int> a = small_integers(random, 256), b = small_integers(random, 128);
      const DeviceBuffer from_a = device.put(stored(a, Operands::kBf16)),
                         from_b = device.put(stored(b, Operands::kBf16));
      const DeviceBuffer to = device.put(std::vector<float>(128, -1e9f));
      const Status status =
          run_small_product(from_a.data(), from_b.data(), to.data(), along_n, upper, device.stream.handle());
      ASSERT_TRUE(status) << status.error().message;
      const std::vector<float> d = device.get<float>(to);
      for (int row = 0; row < 16; ++row)
        for (int column = 0; column < 8; ++column) {
          int wanted = 0;
          for (int i = 0; i < 16; ++i) wanted += a[row * 16 + i] * (along_n ? b[i * 8 + column] : b[column * 16 + i]);
          ASSERT_EQ(d[row * 8 + column], upper && row >= 8 ? -1e9f : static_cast<float>(wanted))
              << "row " << row << ", column " << column;
        }
    }
}

// One map reaches boxes at any multiple of 64 bytes, and rows behind the tensor's arrive as zeros.
TEST(Vocabulary, TensorMapsReachAddresses) {
  Device device;
  ASSERT_TRUE(device.stream.handle());
  Random random(kSeed + 2);
  std::vector<uint8_t> pool(1 << 20);
  for (uint8_t& x : pool) x = static_cast<uint8_t>(random.next_u32());
  const DeviceBuffer from = device.put(pool);
  for (const auto& [pitch, rows, tensor_rows, first_row] :
       {std::array{256, 16, 16, 0}, {256, 16, 20, 8}, {128, 64, 64, 0}, {1024, 8, 8, 0}, {2048, 32, 64, 32}}) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed + 2 << ", pitch " << pitch << ", " << rows << " rows of "
                                      << tensor_rows << " from " << first_row);
    constexpr int kCount = 9;
    std::vector<int> unit(kCount);
    for (int& u : unit) u = static_cast<int>(random.below((1 << 20) / 64 - tensor_rows * pitch / 64));
    const DeviceBuffer units = device.put(unit);
    const DeviceBuffer to = device.put(std::vector<uint8_t>(static_cast<size_t>(kCount * rows * 128), 0xEE));
    const Status status = run_addressed_copies(from.data(), pitch, tensor_rows, first_row, units.data(), kCount, rows,
                                               to.data(), device.stream.handle());
    ASSERT_TRUE(status) << status.error().message;
    const std::vector<uint8_t> found = device.get<uint8_t>(to);
    for (int i = 0; i < kCount; ++i)
      for (int row = 0; row < rows; ++row)
        for (int e = 0; e < 128; ++e) {
          const bool inside = first_row + row < tensor_rows;
          const int wanted = inside ? pool[unit[i] * 64 + (first_row + row) * pitch + e] : 0;
          ASSERT_EQ(found[(i * rows + row) * 128 + e], wanted) << "copy " << i << ", row " << row << ", byte " << e;
        }
  }
}

TEST(Vocabulary, BulkCopiesGoRoundTheRing) {
  Device device;
  ASSERT_TRUE(device.stream.handle());
  Random random(kSeed + 3);
  for (int bytes : {16, 4096, 16384})
    for (int rounds : {1, 2, 3, 50}) {
      std::vector<uint8_t> data(static_cast<size_t>(bytes * rounds));
      for (uint8_t& x : data) x = static_cast<uint8_t>(random.next_u32());
      const DeviceBuffer from = device.put(data), to = device.put(std::vector<uint8_t>(data.size(), 0));
      const Status status = run_bulk_copies(from.data(), to.data(), bytes, rounds, device.stream.handle());
      ASSERT_TRUE(status) << status.error().message;
      EXPECT_EQ(device.get<uint8_t>(to), data) << "seed " << kSeed + 3 << ", " << bytes << " bytes, " << rounds;
    }
}

TEST(Vocabulary, SmallCopiesAreHandedOver) {
  constexpr int kRounds = 50;
  Device device;
  ASSERT_TRUE(device.stream.handle());
  Random random(kSeed + 5);
  std::vector<uint8_t> data(kRounds * 64 * 16);
  for (uint8_t& x : data) x = static_cast<uint8_t>(random.next_u32());
  const DeviceBuffer from = device.put(data), to = device.put(std::vector<uint8_t>(data.size(), 1));
  const Status status = run_small_copies(from.data(), to.data(), kRounds, device.stream.handle());
  ASSERT_TRUE(status) << status.error().message;
  for (size_t piece = 0; piece < kRounds * 64; ++piece)
    if ((piece % 64 + piece / 64) % 3 == 0) std::fill_n(data.begin() + static_cast<ptrdiff_t>(piece * 16), 16, 0);
  EXPECT_EQ(device.get<uint8_t>(to), data) << "seed " << kSeed + 5;
}

TEST(Vocabulary, ReductionsAndPowers) {
  Device device;
  ASSERT_TRUE(device.stream.handle());
  Random random(kSeed + 4);
  std::vector<float> x(64);
  for (float& v : x) v = random.uniform(-20, 20);
  x[40] = 0, x[41] = -INFINITY, x[42] = -1, x[43] = 8;
  const DeviceBuffer from = device.put(x), to = device.put(std::vector<float>(128, NAN));
  const Status status = run_reductions(from.data(), to.data(), device.stream.handle());
  ASSERT_TRUE(status) << status.error().message;
  const std::vector<float> found = device.get<float>(to);
  for (int i = 0; i < 64; ++i) {
    const double wanted = std::exp2(static_cast<double>(x[i]));
    // PTX ISA, "ex2": 2 units of the last place.
    EXPECT_NEAR(found[i], wanted, wanted * 0x1p-22) << "2^" << x[i] << ", seed " << kSeed + 4;
  }
  for (int i = 0; i < 32; ++i) {
    const float* quad = &x[i / 4 * 4];
    EXPECT_EQ(found[64 + i], (quad[0] + quad[1]) + (quad[2] + quad[3])) << i;
    EXPECT_EQ(found[96 + i], std::max(std::max(quad[0], quad[1]), std::max(quad[2], quad[3]))) << i;
  }
}

}  // namespace
}  // namespace hearth::sm90
