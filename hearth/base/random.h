// SPDX-License-Identifier: Apache-2.0
// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011). A value is a pure function of (key, counter), so that it depends on neither
// order nor batch nor thread. The same arithmetic runs on a GPU.
#pragma once

#include <array>
#include <cstdint>

namespace hearth {

// The Philox4x32-10 block function: 128 random bits from a 128-bit counter and a 64-bit key.
constexpr std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  constexpr uint64_t kMul0 = 0xD2511F53, kMul1 = 0xCD9E8D57;
  constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = kMul0 * counter[0], p1 = kMul1 * counter[2];
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(p0)};
    key = {key[0] + kWeyl0, key[1] + kWeyl1};
  }
  return counter;
}

// A sequential generator over philox4x32, for tests and synthetic weights. One owner.
class Random {
 public:
  explicit constexpr Random(uint64_t seed, uint64_t stream = 0) : seed_(seed), stream_(stream) {}

  constexpr uint32_t next_u32() {
    if (used_ == 4) {
      block_ = philox4x32({static_cast<uint32_t>(position_), static_cast<uint32_t>(position_ >> 32),
                           static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32)},
                          {static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32)});
      ++position_;
      used_ = 0;
    }
    return block_[used_++];
  }
  constexpr uint64_t next_u64() {
    const uint64_t high = next_u32();
    return high << 32 | next_u32();
  }
  // Uniform in [0, 1): 24 bits.
  constexpr float uniform() { return static_cast<float>(next_u32() >> 8) * 0x1p-24f; }
  constexpr float uniform(float low, float high) { return low + (high - low) * uniform(); }
  // Uniform in [0, n); the bias of the multiply-shift method is below n / 2^64. REQUIRES: n > 0.
  constexpr int64_t below(int64_t n) {
    __extension__ using Wide = unsigned __int128;
    return static_cast<int64_t>(static_cast<Wide>(next_u64()) * static_cast<uint64_t>(n) >> 64);
  }
  // Standard normal by Box-Muller.
  float normal();

 private:
  uint64_t seed_, stream_;
  uint64_t position_ = 0;
  std::array<uint32_t, 4> block_{};
  int used_ = 4;
};

// Gamma with mean `shape` and scale 1 (Marsaglia and Tsang, "A simple method for generating gamma variables", 2000).
// Shape 1 is the exponential distribution. REQUIRES: shape > 0.
double gamma(double shape, Random& random);

}  // namespace hearth
