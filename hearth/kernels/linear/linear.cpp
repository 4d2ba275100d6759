// SPDX-License-Identifier: Apache-2.0
#include "hearth/kernels/linear/linear.h"

#include <limits>

#include "hearth/kernels/validate.h"

namespace hearth {
namespace {

bool is_float_16_or_32(DType dtype) { return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBf16; }

// The rows of a matrix do not overlap, and its memory is there.
Status validate_matrix(std::string_view name, const ConstTensorView& view, int64_t rows, int64_t cols) {
  if (view.shape.rank() != 2 || view.shape[0] != rows || view.shape[1] != cols)
    return invalid_argument("linear: {} has shape {}, wanted [{}, {}]", name, to_string(view.shape), rows, cols);
  if (rows > 1 && view.row_stride < cols)
    return invalid_argument("linear: {} has row stride {}, wanted at least {}", name, view.row_stride, cols);
  if (rows > 0 && cols > 0 && view.data == nullptr) return invalid_argument("linear: {} has no data", name);
  return {};
}

// A part of a quantized weight: of this type, with `rows` rows of `cols` (one row: a vector, too).
Status validate_part(std::string_view name, const ConstTensorView& view, DType dtype, int64_t rows, int64_t cols) {
  if (view.data == nullptr) return invalid_argument("linear: the weight has no {}", name);
  if (view.dtype != dtype)
    return invalid_argument("linear: {} is {}, wanted {}", name, dtype_name(view.dtype), dtype_name(dtype));
  if (rows > 1 || view.shape.rank() != 1) return validate_matrix(name, view, rows, cols);
  if (view.shape[0] == cols) return {};
  return invalid_argument("linear: {} has shape {}, wanted [{}]", name, to_string(view.shape), cols);
}

Status validate_quantized(const LinearWeight& weight) {
  const WeightFormat& format = weight.format;
  HEARTH_TRY(format.validate(weight.n, weight.k));
  if (weight.units) return {};
  const bool bitvectors = format.code == WeightCode::kBitvectors;
  const DType codes = format.code == WeightCode::kE4m3      ? DType::kE4m3
                      : bitvectors && format.bitvectors > 4 ? DType::kU8
                                                            : DType::kU4;
  if (weight.codes.dtype != codes)
    return invalid_argument("linear: weight of format {} stored as {}, wanted {}", to_string(format),
                            dtype_name(weight.codes.dtype), dtype_name(codes));
  if (codes == DType::kU4 && weight.n > 1 && weight.codes.row_stride % 2 != 0)
    return invalid_argument("linear: weight of format {} has row stride {}, wanted whole bytes", to_string(format),
                            weight.codes.row_stride);
  const int64_t groups = format.group_k > 0 ? (weight.k + format.group_k - 1) / format.group_k : 1;
  const bool in_groups = format.scale_layout == ScaleLayout::kGroup || format.scale_layout == ScaleLayout::kBlock;
  int64_t rows = 1, cols = 1;
  if (format.scale_layout == ScaleLayout::kRow) cols = weight.n;
  if (in_groups) cols = groups;
  if (format.scale_layout == ScaleLayout::kGroup) rows = weight.n;
  if (format.scale_layout == ScaleLayout::kBlock) rows = (weight.n + format.block_n - 1) / format.block_n;
  if (format.scale_layout != ScaleLayout::kNone) {
    HEARTH_TRY(validate_part("scales", weight.scales, format.scale_dtype, rows, cols));
  }
  if (format.has_zero_point) {
    HEARTH_TRY(validate_part("zeros", weight.zeros, DType::kU8, rows, cols));
  }
  if (bitvectors) {
    HEARTH_TRY(validate_part("lines", weight.lines, format.integer_lines ? DType::kI8 : DType::kF16, format.lines,
                             format.bitvectors));
    if (format.integer_lines) {
      HEARTH_TRY(validate_part("line_scales", weight.line_scales, DType::kF16, 1, format.lines));
    }
    HEARTH_TRY(validate_part("line_index", weight.line_index, DType::kU16, weight.n, groups));
  }
  if (weight.k_order) {
    HEARTH_TRY(validate_part("k_order", weight.k_order, DType::kI32, 1, weight.k));
  }
  if (format.act == ActFormat::kE4m3Static) {
    HEARTH_TRY(validate_part("act_scale", weight.act_scale, DType::kF32, 1, 1));
  }
  return {};
}

}  // namespace

bool supports_linear_quantized(const WeightFormat& format) {
  if (format.code == WeightCode::kF32 || format.code == WeightCode::kF16 || format.code == WeightCode::kBf16)
    return false;
  return format.act != ActFormat::kI8PerGroup || format.group_k % 8 == 0;
}

Status validate(const LinearArgs& args, RoundedX rounded) {
  HEARTH_TRY(validate_on_device(args, rounded));
  if (args.weight->format.act != ActFormat::kE4m3Static) return {};
  const float scale = *static_cast<const float*>(args.weight->act_scale.data);
  if (scale > 0 && scale <= std::numeric_limits<float>::max()) return {};
  return invalid_argument("linear: act_scale is {}, wanted a positive number", scale);
}

Status validate_on_device(const LinearArgs& args, RoundedX rounded) {
  if (args.weight == nullptr) return invalid_argument("linear: no weight");
  const LinearWeight& weight = *args.weight;
  if (weight.n < 0 || weight.k < 0)
    return invalid_argument("linear: weight [{}, {}], wanted no negative size", weight.n, weight.k);
  if (supports_linear_quantized(weight.format)) {
    HEARTH_TRY(validate_quantized(weight));
  } else {
    if (!weight.format.is_plain() || !is_float_16_or_32(weight.codes.dtype) ||
        weight.format.code != WeightFormat::plain(weight.codes.dtype).code)
      return invalid_argument("linear: weight of format {} stored as {}, wanted plain f32, f16 or bf16",
                              to_string(weight.format), dtype_name(weight.codes.dtype));
    if (weight.k_order) return invalid_argument("linear: a plain weight has a k_order, wanted none");
  }
  if (!weight.units) {
    HEARTH_TRY(validate_matrix("weight", weight.codes, weight.n, weight.k));
  }

  const bool is_rounded = args.x.dtype == DType::kE4m3;
  if (is_rounded && rounded == RoundedX::kRefused)
    return unsupported("linear: x is e4m3, this op has f32 or bf16 for weights of format {}", to_string(weight.format));
  if (!is_rounded && args.x.dtype != DType::kF32 && args.x.dtype != DType::kBf16)
    return invalid_argument("linear: x is {}, wanted f32 or bf16", dtype_name(args.x.dtype));
  const int64_t m = args.x.shape.rank() == 2 ? args.x.shape[0] : 0;
  HEARTH_TRY(validate_matrix("x", args.x, m, weight.k));
  if (is_rounded != static_cast<bool>(args.x_scale) && m > 0)
    return invalid_argument("linear: x is {} {} x_scale, wanted one with e4m3 alone", dtype_name(args.x.dtype),
                            is_rounded ? "without" : "with");
  if (is_rounded) {
    HEARTH_TRY(check_vector("linear", "x_scale", args.x_scale, m));
    if (args.x_scale.dtype != DType::kF32)
      return invalid_argument("linear: x_scale is {}, wanted f32", dtype_name(args.x_scale.dtype));
  }
  if (args.out.dtype != DType::kF32 && args.out.dtype != (is_rounded ? DType::kBf16 : args.x.dtype))
    return invalid_argument("linear: out is {} and x is {}, wanted the same or f32", dtype_name(args.out.dtype),
                            dtype_name(args.x.dtype));
  HEARTH_TRY(validate_matrix("out", args.out, m, weight.n));
  if (args.residual) {
    if (args.residual.dtype != args.out.dtype)
      return invalid_argument("linear: residual is {} and out is {}, wanted the same", dtype_name(args.residual.dtype),
                              dtype_name(args.out.dtype));
    HEARTH_TRY(validate_matrix("residual", args.residual, m, weight.n));
  }
  if (weight.bias) {
    if (!is_float_16_or_32(weight.bias.dtype))
      return invalid_argument("linear: bias is {}, wanted f32, f16 or bf16", dtype_name(weight.bias.dtype));
    if (weight.bias.shape.rank() != 1 || weight.bias.shape[0] != weight.n)
      return invalid_argument("linear: bias has shape {}, wanted [{}]", to_string(weight.bias.shape), weight.n);
  }
  return {};
}

}  // namespace hearth
