// SPDX-License-Identifier: Apache-2.0
// The encoder of SBVR's authors, as a reference to compare ours with: an exhaustive search of about 262,000 candidate
// lines per group with reuse of the lines found so far (Bang et al., arXiv 2509.18172, and their published encoder).
// Plain squared error, f16 coefficients, up to 65,536 lines. Some 50 ms per group that is searched: for small matrices.
#pragma once

#include <cstdint>
#include <span>

#include "hearth/base/result.h"
#include "hearth/base/thread_pool.h"
#include "hearth/tensor/quantized_matrix.h"

namespace hearth {

struct AuthorsReport {
  int64_t searched = 0;  // groups that were searched in full
};

// w [n][k]; groups are visited in order, and lines depend on that order. The threads of `pool` share the search of a
// group; the result does not depend on their number. InvalidArgument: NaN or Inf, sizes that do not fit.
Result<QuantizedMatrix> encode_sbvr_authors(std::span<const float> w, int64_t n, int64_t k, ThreadPool& pool,
                                            AuthorsReport* report = nullptr);

}  // namespace hearth
