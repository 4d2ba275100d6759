// SPDX-License-Identifier: Apache-2.0
// non_finite, element by element. One thread.
#include <algorithm>
#include <cmath>

#include "hearth/kernels/non_finite/non_finite.h"

namespace hearth {

Status non_finite_ref(const NonFiniteArgs& args, ExecContext&) {
  HEARTH_TRY(validate(args));
  for (int64_t r = 0; r < args.x.rows(); ++r)
    for (int64_t c = 0; c < args.x.cols(); ++c)
      if (const float value = args.x.row<float>(r)[c]; !std::isfinite(value))
        *args.first = std::min(*args.first, NonFinite::encode(r * args.x.cols() + c, std::bit_cast<uint32_t>(value)));
  return {};
}

}  // namespace hearth
