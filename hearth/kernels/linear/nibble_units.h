// SPDX-License-Identifier: Apache-2.0
// How 4-bit weights with scales for groups of K lie on a GPU: units of 16 rows and 128 columns, a strip of 16 rows one
// behind the other along K, strip behind strip. A unit is what a copy brings and a warp multiplies without moving
// anything between lanes:
//   codes   [vector 0..1][lane 0..31][word 0..3] 32 bits. Lane 4 r + q has rows r and r + 8. Word w of vector v belongs
//           to step s = 2 v + w / 2, 32 columns of the unit, and to row r + 8 (w % 2): the operand that the tensor cores
//           take from that lane (mma.cuh, wgmma.cuh). Its 8 codes' columns: unit_column(); their bits: pack_word().
//   scales  [16] in unit_scale_dtype(): rows 0, 8, 1, 9, ... 7, 15
//   zeros   [16] u8, as the scales, with stored zero points alone; then nothing up to a multiple of 16 bytes
// Groups of more than 128 columns: each of their units has the scale. Rows that do not exist have scale 0.
// x keeps the order of its columns, but in kOffsets as f16 (linear_units_sm90.cuh).
#pragma once

#include <cstdint>
#include <span>

#include "hearth/kernels/sm90/host_device.h"
#include "hearth/tensor/weight_format.h"

namespace hearth {

inline constexpr int kUnitRows = 16, kUnitColumns = 128, kUnitCodeBytes = kUnitRows * kUnitColumns / 2;
inline constexpr int kUnitWords = kUnitCodeBytes / 4;

// The order of the bits in a word.
enum class UnitOrder : uint8_t {
  kSigns,        // sign and magnitude: E4M3 by 3 operations a word, f16 by 7
  kLevels,       // kC4: sign and index of a level
  kOffsets,      // unsigned, with activations of E4M3
  kOffsetsBf16,  // unsigned, with activations of bf16
};

// Column of code i of a word of lane q, step s.
HEARTH_HOST_DEVICE constexpr int unit_column(UnitOrder order, int step, int q, int i) {
  if (order == UnitOrder::kOffsetsBf16) return 32 * step + 8 * (i % 4) + 2 * q + i / 4;
  return 32 * step + 16 * (i / 4) + 4 * q + i % 4;
}

// The word of codes 0 to 7, of 4 bits each as WeightCode stores them.
HEARTH_HOST_DEVICE constexpr uint32_t pack_word(UnitOrder order, const uint32_t (&codes)[8]) {
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t first = codes[i], last = codes[i + 4];
    switch (order) {
      // Byte i: magnitude i, sign 4 + (i + 3) % 4, magnitude 4 + i, sign i. Turned right by 4 the last ones lie as the
      // first do.
      case UnitOrder::kSigns:
        word |= (first & 7) << 8 * i | first >> 3 << (8 * i + 7) | (last & 7) << (8 * i + 4) |
                last >> 3 << ((8 * i + 8) % 32 + 3);
        break;
      // Nibbles of indices in turn, but the signs of the first four in bit 7 of byte i, of the last in bit 3.
      case UnitOrder::kLevels:
        word |=
            (first & 7) << 4 * i | (last & 7) << (4 * i + 16) | first >> 3 << (8 * i + 7) | last >> 3 << (8 * i + 3);
        break;
      default: word |= first << 4 * i | last << (4 * i + 16);
    }
  }
  return word;
}

// Whether a weight of this format with k columns has units, for activations of bf16.
bool has_units(const WeightFormat& format, int64_t k);
// REQUIRES: has_units().
UnitOrder unit_order(const WeightFormat& format);
// E4M3 scales become f16, which holds them.
DType unit_scale_dtype(const WeightFormat& format);
int unit_bytes(const WeightFormat& format);
// Bytes of all units of an [n, k] weight.
int64_t units_bytes(const WeightFormat& format, int64_t n, int64_t k);

// Packs a weight in canonical form, both in host memory: what the GPU's kernel is tested against. `units` holds
// units_bytes().
void pack_units_ref(const LinearWeight& weight, std::span<uint8_t> units);

}  // namespace hearth
