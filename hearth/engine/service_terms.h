// SPDX-License-Identifier: Apache-2.0
// ServiceTerms: how a model is served beside the others: what its operator says of it.
#pragma once

#include "hearth/schedule/slo.h"

namespace hearth {

struct ServiceTerms {
  Slo slo;            // of requests that name none; where a field is 0, the engine's
  double weight = 1;  // its part of the device's time beside others that have work too; more than 0
};

// Field by field: the first that is given.
inline Slo slo_or(const Slo& first, const Slo& otherwise) {
  return {.ttft_us = first.ttft_us > 0 ? first.ttft_us : otherwise.ttft_us,
          .tpot_us = first.tpot_us > 0 ? first.tpot_us : otherwise.tpot_us};
}

}  // namespace hearth
