// SPDX-License-Identifier: Apache-2.0
// Tensor maps for the copy engine, encoded on the host. The encoder is the driver's, looked up at run time: hearth
// starts without a driver. Any thread.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "hearth/base/result.h"

namespace hearth::sm90 {

// A tensor of up to three dimensions, innermost first. Strides are free: dimensions may overlap, so that one of them
// can be an address.
struct TensorMapShape {
  int rank = 2;
  uint64_t size[3] = {1, 1, 1};   // elements
  uint64_t stride_bytes[3] = {};  // [0] is the element's size; the others are multiples of 16
  uint32_t box[3] = {1, 1, 1};    // elements of a copy, 256 at most; the innermost with the swizzle 128 bytes at most
  bool swizzle = true;            // boxes land with the 128-byte swizzle; else row behind row
};

// Of elements of `element_bytes` (1, 2 or 8) at `base`, a multiple of 16. wgmma and swizzled_offset() (wgmma.cuh) find
// what lies with the swizzle. Unavailable without a driver, Internal where it
// refuses.
Result<CUtensorMap> encode_tensor_map(const void* base, int element_bytes, const TensorMapShape& shape);

}  // namespace hearth::sm90
