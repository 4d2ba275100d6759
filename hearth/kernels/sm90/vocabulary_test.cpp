// SPDX-License-Identifier: Apache-2.0
// The PTX wrappers of kernels/sm90 on a GPU, against integers and doubles. Products of the small integers that these
// operands hold are exact in every order, so that results are compared bit by bit. Label gpu.
#include "hearth/kernels/sm90/vocabulary_test.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <ios>
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
    } else if (type == Operands::kF16) {
      const uint16_t bits = f16::from_float(static_cast<float>(v)).bits;
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
  for (Operands type : {Operands::kBf16, Operands::kF16, Operands::kE4m3, Operands::kS8})
    for (int n : {8, 16, 32, 64, 128, 256})
      for (bool registers_a : {false, true})
        for (bool along_n : {false, true})
          for (Route route : {Route::kStores, Route::kTensorMap}) {
            const bool wide = type == Operands::kBf16 || type == Operands::kF16;
            if (along_n && (!wide || n % 64 != 0)) continue;
            const ProductCase c{type, n, registers_a, along_n, route};
            const int k = wide ? 128 : 256;
            SCOPED_TRACE(::testing::Message()
                         << "seed " << kSeed << ", type " << static_cast<int>(type) << " (bf16, f16, e4m3, s8), n " << n
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
  EXPECT_EQ(ran, 4 * 6 * 4 + 2 * 3 * 4);
}

TEST(Vocabulary, WarpProductsAreExact) {
  Device device;
  ASSERT_TRUE(device.stream.handle());
  Random random(kSeed + 1);
  for (const SmallProductCase& c : {SmallProductCase{Operands::kBf16, false, false},
                                    {Operands::kBf16, false, true},
                                    {Operands::kBf16, true, false},
                                    {Operands::kBf16, true, true},
                                    {Operands::kF16, false, false},
                                    {Operands::kF16, true, false},
                                    {Operands::kE4m3, false, false},
                                    {Operands::kS8, false, false},
                                    {Operands::kU8AndS8, false, false}}) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed + 1 << ", type " << static_cast<int>(c.type)
                                      << " (bf16, f16, e4m3, s8, u8 and s8), along n " << c.b_along_n << ", upper "
                                      << c.upper);
    const bool is_integer = c.type == Operands::kS8 || c.type == Operands::kU8AndS8;
    const int k = c.type == Operands::kE4m3 || is_integer ? 32 : 16;
    std::vector<int> a = small_integers(random, 16 * k), b = small_integers(random, k * 8);
    if (is_integer) {  // all that the types hold
      for (int& v : a) v = static_cast<int>(random.below(256)) - (c.type == Operands::kS8 ? 128 : 0);
      for (int& v : b) v = static_cast<int>(random.below(256)) - 128;
    }
    std::vector<float> before(128);
    for (float& v : before) v = static_cast<float>(static_cast<int>(random.below(401)) - 200);
    const DeviceBuffer from_a = device.put(stored(a, c.type)), from_b = device.put(stored(b, c.type));
    const DeviceBuffer to = device.put(before);
    const Status status = run_small_product(c, from_a.data(), from_b.data(), to.data(), device.stream.handle());
    ASSERT_TRUE(status) << status.error().message;
    const std::vector<float> d = device.get<float>(to);
    for (int row = 0; row < 16; ++row)
      for (int column = 0; column < 8; ++column) {
        int wanted = static_cast<int>(before[row * 8 + column]);
        for (int i = 0; i < k && !(c.upper && row >= 8); ++i)
          wanted += a[row * k + i] * (c.b_along_n ? b[i * 8 + column] : b[column * k + i]);
        ASSERT_EQ(d[row * 8 + column], static_cast<float>(wanted)) << "row " << row << ", column " << column;
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

// Where byte x of a row lies in a box, rows counted through all slices. With the swizzle rows have 128 bytes, and the
// pieces of 16 bytes in a row change places by its number.
int64_t place_in_box(const BoxCase& c, int x, int row) {
  return int64_t{row} * c.box[0] + (c.swizzle ? x ^ (row % 8 * 16) : x);
}

// Boxes land as their maps say, and what lies outside of the tensor in any dimension arrives as zeros, though its
// addresses hold other bytes.
TEST(Vocabulary, BoxesOfTensorMaps) {
  Device device;
  ASSERT_TRUE(device.stream.handle());
  Random random(kSeed + 6);
  std::vector<uint8_t> pool(1 << 16);
  for (uint8_t& x : pool) x = static_cast<uint8_t>(1 + random.below(255));  // no zeros
  const DeviceBuffer from = device.put(pool);
  constexpr int64_t kBase = 16384;  // of the tensor in the pool
  struct Boxes {
    const char* name;
    BoxCase map;
    std::vector<int> at;
  };
  const std::vector<Boxes> all = {
      {"rows",
       {2, {320, 50, 1}, {1, 336, 0}, {64, 16, 1}, false, false},
       {0, 0, 0, 64, 16, 0, 0, 40, 0, 304, 8, 0, -16, -5, 0, 0, 50, 0}},
      {"rows, swizzled",
       {2, {320, 50, 1}, {1, 336, 0}, {128, 32, 1}, true, false},
       {0, 0, 0, 128, 18, 0, 0, 41, 0, 256, 3, 0, -32, -9, 0, 320, 0, 0}},
      {"slices",
       {3, {48, 7, 9}, {1, 64, 512}, {48, 5, 3}, false, false},
       {0, 0, 0, 0, 2, 4, 0, 4, 8, 32, 0, 7, -16, -3, -1, 0, 0, 9}},
      {"pieces of rows",
       {3, {64, 50, 5}, {1, 320, 64}, {64, 16, 4}, false, false},
       {0, 0, 0, 0, 16, 1, 0, 48, 0, 0, 16, 3, 0, 40, 4, 16, 7, 1, 0, -8, -2, 0, 0, 5}},
      {"pieces of rows, swizzled",
       {3, {128, 50, 5}, {1, 640, 128}, {128, 16, 4}, true, false},
       {0, 0, 0, 0, 16, 1, 0, 48, 0, 0, 16, 3, 0, 40, 4, 16, 7, 1, 0, -8, -2, 0, 0, 5}},
  };
  for (const Boxes& boxes : all)
    for (bool once : {false, true}) {
      BoxCase c = boxes.map;
      c.once = once;
      SCOPED_TRACE(::testing::Message() << "seed " << kSeed + 6 << ", " << boxes.name << ", once " << once);
      const int count = static_cast<int>(boxes.at.size() / 3), bytes = c.box[0] * c.box[1] * c.box[2];
      std::vector<uint8_t> wanted(static_cast<size_t>(count * bytes), 0);
      for (int i = 0; i < count; ++i)
        for (int z = 0; z < c.box[2]; ++z)
          for (int y = 0; y < c.box[1]; ++y)
            for (int x = 0; x < c.box[0]; ++x) {
              const int64_t at[3] = {boxes.at[i * 3] + x, boxes.at[i * 3 + 1] + y, boxes.at[i * 3 + 2] + z};
              bool inside = true;
              for (int n = 0; n < 3; ++n) inside = inside && at[n] >= 0 && at[n] < c.size[n];
              if (inside)
                wanted[i * bytes + place_in_box(c, x, z * c.box[1] + y)] =
                    pool[kBase + at[0] + at[1] * c.stride[1] + at[2] * c.stride[2]];
            }
      const DeviceBuffer coordinates = device.put(boxes.at);
      const DeviceBuffer to = device.put(std::vector<uint8_t>(wanted.size(), 0xDD));
      const Status status = run_boxes(c, static_cast<const std::byte*>(from.data()) + kBase, coordinates.data(), count,
                                      to.data(), device.stream.handle());
      ASSERT_TRUE(status) << status.error().message;
      const std::vector<uint8_t> found = device.get<uint8_t>(to);
      int wrong = 0;
      for (int i = 0; i < count * bytes; ++i)
        if (found[i] != wanted[i] && ++wrong == 1)
          ADD_FAILURE() << "first in box " << i / bytes << ", byte " << i % bytes << ": found " << int{found[i]}
                        << ", wanted " << int{wanted[i]};
      EXPECT_EQ(wrong, 0) << "of " << count * bytes << " bytes";
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

// Bytes permuted (PTX ISA 9.0, section "prmt": the lower three bits of a nibble name a byte, the fourth takes its sign
// for all eight bits; the upper half of the selector is not read), bits put together, E4M3 widened.
TEST(Vocabulary, Words) {
  Device device;
  ASSERT_TRUE(device.stream.handle());
  Random random(kSeed + 7);
  std::vector<uint32_t> low(512), high(512), selector(512), wanted(512, 0);
  for (size_t i = 0; i < wanted.size(); ++i) {
    low[i] = random.next_u32(), high[i] = random.next_u32(), selector[i] = random.next_u32();
    if (i < 16) low[i] = 0x838281F0, high[i] = 0x07860504, selector[i] = static_cast<uint32_t>(i * 0x1111);
    const uint64_t both = uint64_t{high[i]} << 32 | low[i];
    for (int byte = 0; byte < 4; ++byte) {
      const uint32_t nibble = selector[i] >> 4 * byte & 15;
      const uint32_t named = static_cast<uint32_t>(both >> 8 * (nibble & 7)) & 255;
      wanted[i] |= (nibble < 8 ? named : named >= 128 ? 255u : 0u) << 8 * byte;
    }
  }
  // By hand: bytes 3, 1, 6 and the sign of byte 0, from the highest on.
  low.push_back(0x838281F0), high.push_back(0x07860504), selector.push_back(0x3168), wanted.push_back(0x838186FF);
  const DeviceBuffer from_low = device.put(low), from_high = device.put(high), by = device.put(selector);
  const DeviceBuffer to = device.put(std::vector<uint32_t>(4 * wanted.size(), 0xDDDDDDDD));
  const Status status = run_permutations(from_low.data(), from_high.data(), by.data(), to.data(),
                                         static_cast<int>(wanted.size()), device.stream.handle());
  ASSERT_TRUE(status) << status.error().message;
  const std::vector<uint32_t> found = device.get<uint32_t>(to);
  for (size_t i = 0; i < wanted.size(); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed + 7 << std::hex << ", words " << low[i] << ", " << high[i]
                                      << ", " << selector[i]);
    ASSERT_EQ(found[4 * i], wanted[i]);
    ASSERT_EQ(found[4 * i + 1], (low[i] & high[i]) | selector[i]);
    for (int byte = 0; byte < 4; ++byte) {
      const float value = e4m3{static_cast<uint8_t>(low[i] >> 8 * byte)}.to_float();
      const auto bits = static_cast<uint16_t>(found[4 * i + 2 + static_cast<size_t>(byte) / 2] >> byte % 2 * 16);
      if (std::isnan(value)) {
        ASSERT_GT(bits & 0x7FFF, 0x7C00) << "byte " << byte;
      } else {
        ASSERT_EQ(bits, f16::from_float(value).bits) << "byte " << byte;
      }
    }
  }
}

TEST(Vocabulary, ReductionsAndPowers) {
  Device device;
  ASSERT_TRUE(device.stream.handle());
  Random random(kSeed + 4);
  std::vector<float> x(64);
  for (float& v : x) v = random.uniform(-20, 20);
  x[40] = 0, x[41] = -INFINITY, x[42] = -1, x[43] = 8;
  const DeviceBuffer from = device.put(x), to = device.put(std::vector<float>(192, NAN));
  const Status status = run_reductions(from.data(), to.data(), device.stream.handle());
  ASSERT_TRUE(status) << status.error().message;
  const std::vector<float> found = device.get<float>(to);
  for (int i = 0; i < 64; ++i) {
    const double wanted = std::exp2(static_cast<double>(x[i]));
    // PTX ISA, "ex2": 2 units of the last place.
    EXPECT_NEAR(found[i], wanted, wanted * 0x1p-22) << "2^" << x[i] << ", seed " << kSeed + 4;
    const double reciprocal = 1 / static_cast<double>(x[i]);  // "rcp": 1 unit
    if (x[i] == 0) continue;
    EXPECT_NEAR(found[128 + i], reciprocal, std::abs(reciprocal) * 0x1p-23) << x[i] << ", seed " << kSeed + 4;
  }
  for (int i = 0; i < 32; ++i) {
    const float* quad = &x[i / 4 * 4];
    EXPECT_EQ(found[64 + i], (quad[0] + quad[1]) + (quad[2] + quad[3])) << i;
    EXPECT_EQ(found[96 + i], std::max(std::max(quad[0], quad[1]), std::max(quad[2], quad[3]))) << i;
  }
}

}  // namespace
}  // namespace hearth::sm90
