// SPDX-License-Identifier: Apache-2.0
// Takes loaded weights from the host to the memory in which a backend's ops want them.
#pragma once

#include "hearth/base/result.h"
#include "hearth/memory/memory.h"
#include "hearth/model/weights.h"

namespace hearth {

// Copies all of `weights.memory` to `memory`, points every view there, and frees the host's copy; returns the new
// owner. Host memory: nothing moves, and the result is empty. ResourceExhausted where the weights do not fit.
Result<Buffer> move_weights(ModelWeights& weights, const Memory& memory);

}  // namespace hearth
