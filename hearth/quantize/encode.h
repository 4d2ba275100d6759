// SPDX-License-Identifier: Apache-2.0
// encode: one weight matrix in, one QuantizedMatrix out. A code (uniform, C4, E4M3, SBVR's lines) says which values an
// element can take; a method (nearest, clip search, GPTQ) says how parameters and codes are chosen, for any code.
//   I1. The same arguments give the same bytes, for any number of threads.
// Any thread; the work runs on the threads of `compute`.
#pragma once

#include <cstdint>
#include <span>

#include "hearth/base/result.h"
#include "hearth/quantize/compute.h"
#include "hearth/quantize/moments.h"
#include "hearth/tensor/quantized_matrix.h"

namespace hearth {

enum class EncodeMethod : uint8_t {
  kNearest,  // scales by the widest value, round to nearest: absmax / 7.5 for u4, / 7 for sign-magnitude, / 3 for C4,
             // (max - min) / 15 with zero points, / 448 for E4M3. SBVR: the lines of least squared error
  kClip,     // scales by search: least squared error, weighted with the input's second moments where there are some
  kGptq,     // clip search per group on the updated weights, rounding column by column with error feedback
  kAuthors,  // SBVR with f16 lines only: the published encoder, sbvr_authors.h; looks at the weights alone
};

enum class ColumnOrder : uint8_t {
  kStored,  // columns as they lie
  kGroups,  // GPTQ: groups by descending mean second moment, and columns so within a group. Stored order stays.
};

struct EncodeOptions {
  // What to make. kGroup with group_k for the 4-bit codes, kRow for E4M3. SBVR: bitvectors 2..4, group_k,
  // integer_lines; lines is the number of lines, 0: as many as max_bits allows, at most 4096.
  WeightFormat format;
  EncodeMethod method = EncodeMethod::kClip;
  double max_bits = 4.2;  // SBVR with lines = 0: stored bits per weight, tables included

  // Added to the diagonal of the second moments, relative to its mean.
  double damping = 0.01;
  ColumnOrder order = ColumnOrder::kGroups;
  // Sweeps of coordinate descent over codes and scales after kClip (with moments) and kGptq.
  int sweeps = 8;
  // u4 without zero points: a group's scale may be negative, so that its largest value can be the code -8.
  bool signed_scales = true;
  uint64_t seed = 0;  // SBVR: the start of the line search
};

struct EncodeReport {
  double squared_error = 0;  // sum (w - q)^2
  double squared_norm = 0;   // sum w^2
  double proxy_loss = 0;     // tr(E H E^T) / tokens, the mean squared error of the outputs; 0 without moments
  double proxy_norm = 0;     // tr(W H W^T) / tokens
};

// w [n][k] row-major. `moments` of the input, null where there are none (kGptq needs them).
// InvalidArgument: a value of w that is NaN or Inf (names row and column), sizes that do not fit, a format that hearth
// does not make.
Result<QuantizedMatrix> encode(std::span<const float> w, int64_t n, int64_t k, const SecondMoments* moments,
                               const EncodeOptions& options, Compute& compute, EncodeReport* report = nullptr);

// The errors of `matrix` against w.
Result<EncodeReport> measure(std::span<const float> w, const QuantizedMatrix& matrix, const SecondMoments* moments,
                             Compute& compute);

}  // namespace hearth
