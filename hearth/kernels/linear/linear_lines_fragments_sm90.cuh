// SPDX-License-Identifier: Apache-2.0
// Words of line units (line_units.h) to the registers that wgmma takes as A, in INT8 (wgmma.cuh): of an instruction's
// registers 0 and 2 come from a word of row r, 1 and 3 from one of row r + 8.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "hearth/kernels/linear/line_units.h"
#include "hearth/kernels/sm90/mma.cuh"

namespace hearth::sm90 {

// A line's sums of the lower three bits by one byte permutation for four codes, and of bit 3 by one multiplication:
//   Numbers raised by 128 are bytes from 1 to 255, and as sums of them do not leave that range, they are added and
//   multiplied in words, without carries: (sum + 128 in each byte) + top * (1 in each byte whose bit 3 is set).
//   A permutation repeats a sign: 255 in each such byte, and 255 * -0x01010101 is 1 in 32 bits.
class LineFragments {
 public:
  float scale;

  __device__ __forceinline__ explicit LineFragments(const uint4& line)  // a UnitLine
      : low_(line.x ^ kRaised), high_(line.y ^ kRaised), top_(line.z * (0u - 0x01010101u)) {
    scale = __uint_as_float(line.w) * 128;
  }

  // Of a word, registers 0 and 2, or 1 and 3.
  __device__ __forceinline__ void decode(uint32_t word, uint32_t& first, uint32_t& last) const {
    constexpr uint32_t kSigns = 0xBA98;
    const uint32_t index = word & 0x77777777;
    first = (permute_bytes(word, word, kSigns) * top_ + permute_bytes(low_, high_, index)) ^ kRaised;
    last = (permute_bytes(word << 4, word, kSigns) * top_ + permute_bytes(low_, high_, index >> 16)) ^ kRaised;
  }

 private:
  static constexpr uint32_t kRaised = 0x80808080;
  uint32_t low_, high_, top_;
};

}  // namespace hearth::sm90
