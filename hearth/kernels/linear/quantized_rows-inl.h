// SPDX-License-Identifier: Apache-2.0
// How rows of quantized weights become vectors. A Row type has
//   kPer          columns of a lane in a unit
//   kVectors      vectors of a unit: vector j holds columns first_column(j) + i kColumnStride in lane i (IntegerRow:
//   two)
//   kGrouped      false: vectors are f32(scale * value); true: they are the values, and Unit::scale() their scales
//   kUnitVectors  vectors of a unit of packed x or of a panel: kVectors and, where kGrouped, the scales
//   Shared        what all rows of a weight have in common
//   Unit          made from a row and the unit's number; next() gives its vectors in order
//   Products      how the vectors are multiplied with x: FloatProducts or IntegerProducts
//   kIsRare       no tiles of several tokens are made for it
// Row(shared, row, scratch) keeps what it needs in row_scratch_floats() of scratch. No read beyond the last code of W.
// Included once per instruction set, from files that foreach_target.h includes again; after <hwy/highway.h>.
#if defined(HEARTH_KERNELS_LINEAR_QUANTIZED_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEARTH_KERNELS_LINEAR_QUANTIZED_ROWS_INL_H_
#undef HEARTH_KERNELS_LINEAR_QUANTIZED_ROWS_INL_H_
#else
#define HEARTH_KERNELS_LINEAR_QUANTIZED_ROWS_INL_H_
#endif

#include "hearth/kernels/linear/any_row-inl.h"
#include "hearth/kernels/linear/e4m3_row-inl.h"
#include "hearth/kernels/linear/nibble_rows-inl.h"

#endif  // toggle
