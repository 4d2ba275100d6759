// SPDX-License-Identifier: Apache-2.0
#include "hearth/comm/comm.h"

#include <cstring>

namespace hearth {

Status SingleRank::all_gather(ConstTensorView in, TensorView out) {
  if (in.dtype != out.dtype || in.shape.count() != out.shape.count() || !in.is_dense() || !out.is_dense())
    return invalid_argument("all_gather of {} {} into {} {} on one rank: wanted the same size, dense",
                            dtype_name(in.dtype), to_string(in.shape), dtype_name(out.dtype), to_string(out.shape));
  if (in.data != out.data) std::memcpy(out.data, in.data, static_cast<size_t>(in.size_bytes()));
  return {};
}

Status SingleRank::broadcast(TensorView, int root) {
  if (root != 0) return invalid_argument("broadcast from rank {}, but there is only rank 0", root);
  return {};
}

}  // namespace hearth
