// SPDX-License-Identifier: Apache-2.0
// Seeded random weights of plausible scale, as fast as memory is written: what --load-format dummy fills models with.
//   I1. A value is a function of seed, tensor name and index alone: not of pieces, threads or the instruction set.
// Stateless: any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "hearth/tensor/quantized_matrix.h"

namespace hearth {

// What the random bits of a tensor are made into.
enum class DummyKind : uint8_t {
  kF32,
  kF16,
  kBf16,     // uniform, with mean 0 and a standard deviation of kDummyDeviation
  kE4m3,     // codes of values uniform on (-448, 448), never NaN
  kNibbles,  // bytes of two codes of `bits` bits each
  kBytes,    // bytes of one code of `bits` bits
};
inline constexpr float kDummyDeviation = 0.02f;

struct DummyStream {
  uint64_t key = 0;
  DummyKind kind = DummyKind::kBf16;
  int bits = 8;  // kNibbles 1 to 4, kBytes 1 to 8

  static DummyStream make(uint64_t seed, std::string_view tensor, DummyKind kind, int bits = 8);
  // Bytes [begin, begin + dst.size()) of the tensor.
  void fill(int64_t begin, std::span<std::byte> dst) const;
};

// The stream of the codes of `module`, a linear in `format`.
DummyStream dummy_codes(uint64_t seed, std::string_view module, const WeightFormat& format);

// All but the codes of linear `module`: together with dummy_codes() a matrix whose values have mean 0 and about
// kDummyDeviation. Scales differ by up to a quarter, and are what scale_dtype makes of that. REQUIRES:
// format.validate(n, k), no plain format.
QuantizedMatrix dummy_parts(uint64_t seed, std::string_view module, const WeightFormat& format, int64_t n, int64_t k);

}  // namespace hearth
