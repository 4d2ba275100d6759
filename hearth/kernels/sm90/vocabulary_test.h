// SPDX-License-Identifier: Apache-2.0
// The kernels of vocabulary_test, seen from its host part: each runs one block over device memory. Tests only.
#pragma once

#include <cstdint>

#include "hearth/base/result.h"

namespace hearth::sm90 {

// How operands reach shared memory.
enum class Route { kStores, kTensorMap };
enum class Operands { kBf16, kF16, kE4m3, kS8, kU8AndS8 };
// Where A lies, and along which dimension B's rows go.
struct ProductCase {
  Operands type;     // u8 and s8: of small products alone
  int n;             // one of the wrappers'
  bool registers_a;  // else shared memory
  bool b_along_n;    // 16 bits: B is [K, N], else [N, K]
  Route route;
};
// d [64, n] = a [64, k] b, 32-bit; k is two rows of 128 bytes. b_along_n: b [k, n], n a multiple of 64.
Status run_product(const ProductCase& c, const void* a, const void* b, void* d, void* stream);

// By mma.sync, fragments by ldmatrix; b_along_n as above, of 16-bit types alone. `upper`: bf16 by mma_bf16_upper, into
// the first 8 rows; the others are not written.
struct SmallProductCase {
  Operands type;
  bool b_along_n;
  bool upper;
};
// d [16, 8] f32 += a [16, k] b [k, 8]; k is 32 bytes. Integers go in and out of d as f32, which must hold them.
Status run_small_product(const SmallProductCase& c, const void* a, const void* b, void* d, void* stream);

// Copies `count` boxes of `rows` rows of 128 bytes of bf16 through one three-dimensional tensor map whose third
// dimension are addresses in units of 64 bytes, from unit unit[i] (int) and row first_row of a tensor of `tensor_rows`
// rows at `pitch` bytes, to to + i * rows * 128, unswizzled.
Status run_addressed_copies(const void* from, int pitch, int tensor_rows, int first_row, const void* unit, int count,
                            int rows, void* to, void* stream);

// A tensor of bytes of 2 or 3 dimensions, innermost first, as TensorMapShape (tensor_map.cuh) wants it.
struct BoxCase {
  int rank;
  int64_t size[3], stride[3];
  int box[3];
  bool swizzle;
  bool once;  // by copy_tensor_once, else by copy_tensor
};
// Copies the boxes at `count` coordinates, three ints each, into shared memory filled with 0xEE, and from there as they
// lie to to + i * (bytes of a box), a multiple of 16.
Status run_boxes(const BoxCase& c, const void* from, const void* coordinates, int count, void* to, void* stream);

// `bytes` by one bulk copy into shared memory and back; a ring of two barriers, `rounds` times.
Status run_bulk_copies(const void* from, void* to, int bytes, int rounds, void* stream);

// `rounds` times 64 pieces of 16 bytes by copies of single threads through shared memory, handed over at barriers on
// which one side arrives and the other waits; piece i of round r arrives as zeros where i + r is a multiple of 3.
Status run_small_copies(const void* from, void* to, int rounds, void* stream);

// Of 32-bit words, to[4 i]: permute_bytes(low[i], high[i], selector[i]); and_or() of the same; low[i] widened from E4M3,
// two words.
Status run_permutations(const void* low, const void* high, const void* selector, void* to, int count, void* stream);

// to[0, 64) = 2^from, to[64, 96) = sums of quads of from[0, 32), to[96, 128) their largest, to[128, 192) = 1 / from;
// all f32.
Status run_reductions(const void* from, void* to, void* stream);

}  // namespace hearth::sm90
