// SPDX-License-Identifier: Apache-2.0
// AWQ's scale search (Lin et al., arXiv 2306.00978, section 3): scales s [k] for the input of one or more linears, so
// that W diag(s) loses less when it is quantized while the input is divided by s. Folding s into what makes the input
// is the caller's work; AWQ's clip search is EncodeMethod::kClip with moments.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/quantize/encode.h"

namespace hearth {

// A weight [n][k] that reads the input.
struct AwqMatrix {
  std::span<const float> w;
  int64_t n = 0;
};

struct AwqOptions {
  EncodeOptions encode{.method = EncodeMethod::kNearest};  // how a candidate is judged
  int grid = 20;                                           // exponents 0, 1 / grid, ... of the mean |x|
  bool duo_scaling = true;  // also candidates divided by the weights' mean share of their group's maximum
  int64_t max_rows = 512;   // of each matrix, evenly spaced, that judge a candidate
};

struct AwqScales {
  std::vector<float> scales;  // [k], positive; geometric mean of the largest and the smallest is 1
  double exponent = 0;
  bool duo = false;
  double loss = 0;        // sum over the matrices of tr(E H E^T) / tokens, of the rows that judged
  double plain_loss = 0;  // the same without scales
};

// InvalidArgument where there are no moments or a matrix is as encode() refuses it. Scales of 1 where nothing is better.
Result<AwqScales> search_awq_scales(std::span<const AwqMatrix> matrices, const SecondMoments& moments,
                                    const AwqOptions& options, Compute& compute);

}  // namespace hearth
