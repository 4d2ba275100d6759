// SPDX-License-Identifier: Apache-2.0
// The one descriptor of a stored linear layer y = x W^T + b, W [N, K]. checkpoint reads and writes it,
// quantize makes it, model binds it to an op, kernels compute with it.
//
// Every format is value = scale(n, k) * decode(code(n, k)): `code` says how elements are stored, the
// scale fields say which elements share a scale, `act` says what the op does to x first. A format that
// is described here has no op until a backend's table lists one: the model then fails to load.
#pragma once

#include <cstdint>
#include <string>

#include "hearth/base/result.h"
#include "hearth/tensor/shape.h"

namespace hearth {

// How the elements of W are stored.
enum class WeightCode : uint8_t {
  kF32,
  kF16,
  kBf16,             // plain, row-major [N, K]
  kE4m3,             // plain 8-bit float, row-major [N, K]
  kU4,               // unsigned nibbles q, value q - zero (zero = 8 where none is stored)
  kI4SignMagnitude,  // sign and 3-bit magnitude, values -7..7 (FireQ)
  kC4,               // the constant symmetric non-uniform 4-bit code (fireq-c4)
  kBitvectors,       // SBVR: S bitvectors per group; the group's line gives S coefficients
};

// Which elements share one scale.
enum class ScaleLayout : uint8_t {
  kNone,
  kTensor,  // one
  kRow,     // [N]
  kGroup,   // [N, ceil(K / group_k)]
  kBlock,   // [ceil(N / block_n), ceil(K / group_k)]
};

// What the op does to the activations before it multiplies.
enum class ActFormat : uint8_t {
  kNative,        // nothing: the model's activation type
  kE4m3PerToken,  // E4M3, one scale per token, computed at run time
  kE4m3Static,    // E4M3, one stored scale per tensor
  kI8PerGroup,    // INT8, one scale per token and group of K
};

struct WeightFormat {
  WeightCode code = WeightCode::kBf16;
  ScaleLayout scale_layout = ScaleLayout::kNone;
  DType scale_dtype = DType::kF32;  // meaningful unless kNone
  int64_t group_k = 0;              // elements along K per scale (kGroup, kBlock) and per line (kBitvectors)
  int64_t block_n = 0;              // rows per scale (kBlock)
  bool has_zero_point = false;      // kU4: stored zeros, one per scale
  int bitvectors = 0;               // kBitvectors: S, 2 to 8
  int64_t lines = 0;                // kBitvectors: coefficient lines per matrix
  bool integer_lines = false;       // kBitvectors: int8 coefficients and one F16 scale per line; else F16 coefficients
  ActFormat act = ActFormat::kNative;

  // A plain, unscaled format. REQUIRES: dtype is kF32, kF16 or kBf16.
  static WeightFormat plain(DType dtype);
  bool is_plain() const;

  // Bits of one code.
  int64_t code_bits() const;
  // Number of scales of an [n, k] matrix.
  int64_t scale_count(int64_t n, int64_t k) const;
  // Stored bytes of an [n, k] matrix: codes, scales, zeros, lines and line indices; no bias.
  int64_t stored_bytes(int64_t n, int64_t k) const;
  double bits_per_weight(int64_t n, int64_t k) const;
  // InvalidArgument where fields contradict each other or do not suit an [n, k] matrix.
  Status validate(int64_t n, int64_t k) const;

  friend bool operator==(const WeightFormat&, const WeightFormat&) = default;
};

// "bf16", "e4m3 row-scale f32 act e4m3-per-token", ...: for messages and reports.
std::string to_string(const WeightFormat& format);

// A bound linear: its format and where its parts lie. Views not used by the format are empty.
struct LinearWeight {
  WeightFormat format;
  int64_t n = 0;
  int64_t k = 0;
  ConstTensorView codes;        // per format
  ConstTensorView scales;       // by scale_layout
  ConstTensorView zeros;        // as scales, u8
  ConstTensorView lines;        // [lines, bitvectors] f16 or i8
  ConstTensorView line_scales;  // [lines] f16, integer lines only
  ConstTensorView line_index;   // [N, K / group_k] u16
  ConstTensorView k_order;      // [K] i32: position of input column k in W's stored order (GPTQ act-order)
  ConstTensorView act_scale;    // [1] f32, ActFormat::kE4m3Static only
  ConstTensorView bias;         // [N], f32 or bf16, optional
  ConstTensorView units;        // [bytes] u8: codes, scales and zeros as a backend packed them (LinearOp::pack); these
                                // are then empty
};

}  // namespace hearth
