// SPDX-License-Identifier: Apache-2.0
// Builds without CUDA have no table for it.
#include "hearth/kernels/op_table.h"

namespace hearth {

const OpTable* cuda_ops() { return nullptr; }

}  // namespace hearth
