// SPDX-License-Identifier: Apache-2.0
// One walk over the parts says where they lie; the size and the copy both use it.
#include "hearth/tensor/quantized_weight.h"

#include <cstring>
#include <span>

#include "hearth/base/check.h"

namespace hearth {
namespace {

constexpr int64_t kAlignment = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The parts of a weight: type and shape. Those that the format has not are empty.
struct Part {
  DType dtype = DType::kU8;
  Shape shape{0};
  int64_t row_stride = 0;

  int64_t bytes() const { return shape.rank() == 2 ? shape[0] * dtype_bytes(dtype, row_stride) : flat_bytes(); }
  int64_t placed_bytes() const { return ceil_div(bytes(), kAlignment) * kAlignment; }

 private:
  int64_t flat_bytes() const { return dtype_bytes(dtype, shape.count()); }
};
struct Parts {
  Part codes, scales, zeros, lines, line_scales, line_index, k_order, act_scale;

  int64_t bytes() const {
    int64_t sum = 0;
    for (const Part* part : {&codes, &scales, &zeros, &lines, &line_scales, &line_index, &k_order, &act_scale})
      sum += part->placed_bytes();
    return sum;
  }
};

Part part_of(DType dtype, Shape shape) { return {dtype, shape, shape.back()}; }

Part codes_of(const WeightFormat& format, int64_t n, int64_t k) {
  switch (format.code) {
    case WeightCode::kF32: return part_of(DType::kF32, {n, k});
    case WeightCode::kF16: return part_of(DType::kF16, {n, k});
    case WeightCode::kBf16: return part_of(DType::kBf16, {n, k});
    case WeightCode::kE4m3: return part_of(DType::kE4m3, {n, k});
    case WeightCode::kBitvectors:
      if (format.bitvectors > 4) return part_of(DType::kU8, {n, k});
      [[fallthrough]];
    case WeightCode::kU4:
    case WeightCode::kI4SignMagnitude:
    case WeightCode::kC4: return {DType::kU4, Shape{n, k}, k + k % 2};
  }
  return {};
}

Parts parts_of(const WeightFormat& format, int64_t n, int64_t k, bool has_k_order) {
  const int64_t groups = format.group_k > 0 ? ceil_div(k, format.group_k) : 1;
  Parts parts{.codes = codes_of(format, n, k)};
  switch (format.scale_layout) {
    case ScaleLayout::kNone: break;
    case ScaleLayout::kTensor: parts.scales = part_of(format.scale_dtype, {1}); break;
    case ScaleLayout::kRow: parts.scales = part_of(format.scale_dtype, {n}); break;
    case ScaleLayout::kGroup: parts.scales = part_of(format.scale_dtype, {n, groups}); break;
    case ScaleLayout::kBlock: parts.scales = part_of(format.scale_dtype, {ceil_div(n, format.block_n), groups}); break;
  }
  if (format.has_zero_point) parts.zeros = part_of(DType::kU8, parts.scales.shape);
  if (format.code == WeightCode::kBitvectors) {
    parts.lines = part_of(format.integer_lines ? DType::kI8 : DType::kF16, {format.lines, format.bitvectors});
    if (format.integer_lines) parts.line_scales = part_of(DType::kF16, {format.lines});
    parts.line_index = part_of(DType::kU16, {n, groups});
  }
  if (has_k_order) parts.k_order = part_of(DType::kI32, {k});
  if (format.act == ActFormat::kE4m3Static) parts.act_scale = part_of(DType::kF32, {1});
  return parts;
}

// Fills part after part.
class Placer {
 public:
  explicit Placer(std::byte* memory) : at_(memory) {}

  // `copy` fills the part's bytes.
  template <class Copy>
  ConstTensorView place(const Part& part, const Copy& copy) {
    if (part.bytes() == 0) return {};
    std::byte* begin = at_;
    copy(begin);
    std::memset(begin + part.bytes(), 0, static_cast<size_t>(part.placed_bytes() - part.bytes()));
    at_ += part.placed_bytes();
    return {begin, part.dtype, part.shape, part.row_stride};
  }
  // The bytes of `from` as they are.
  template <class T>
  ConstTensorView place_copy(const Part& part, std::span<const T> from) {
    return place(part, [&](std::byte* to) {
      HEARTH_CHECK(static_cast<int64_t>(from.size_bytes()) == part.bytes(), "{} bytes of a part of {}",
                   from.size_bytes(), part.bytes());
      std::memcpy(to, from.data(), from.size_bytes());
    });
  }
  // f32 values in the part's type.
  ConstTensorView place_floats(const Part& part, std::span<const float> from) {
    return place(part, [&](std::byte* to) {
      HEARTH_CHECK(static_cast<int64_t>(from.size()) == part.shape.count(), "{} values for a part of {}", from.size(),
                   part.shape.count());
      switch (part.dtype) {
        case DType::kF32: return put<float>(to, from);
        case DType::kF16: return put<f16>(to, from);
        case DType::kBf16: return put<bf16>(to, from);
        case DType::kE4m3: return put<e4m3>(to, from);
        case DType::kI8:
          for (size_t i = 0; i < from.size(); ++i) to[i] = static_cast<std::byte>(static_cast<int8_t>(from[i]));
          return;
        default: HEARTH_CHECK(false, "a part of type {}", dtype_name(part.dtype));
      }
    });
  }

 private:
  template <class T>
  static void put(std::byte* to, std::span<const float> from) {
    auto* values = static_cast<T*>(static_cast<void*>(to));
    for (size_t i = 0; i < from.size(); ++i) values[i] = from_float<T>(from[i]);
  }

  std::byte* at_;
};

}  // namespace

int64_t quantized_weight_bytes(const WeightFormat& format, int64_t n, int64_t k, bool has_k_order) {
  return parts_of(format, n, k, has_k_order).bytes();
}

int64_t quantized_codes_bytes(const WeightFormat& format, int64_t n, int64_t k) {
  return codes_of(format, n, k).placed_bytes();
}

LinearWeight place_quantized(const QuantizedMatrix& matrix, std::byte* memory) {
  const Part codes = codes_of(matrix.format, matrix.n, matrix.k);
  LinearWeight weight = place_quantized_parts(matrix, memory, memory + codes.placed_bytes());
  Placer(memory).place_copy(codes, std::span(matrix.codes));
  return weight;
}

LinearWeight place_quantized_parts(const QuantizedMatrix& matrix, std::byte* codes, std::byte* memory) {
  const Parts parts = parts_of(matrix.format, matrix.n, matrix.k, !matrix.k_order.empty());
  Placer placer(memory);
  LinearWeight weight;
  weight.format = matrix.format;
  weight.n = matrix.n, weight.k = matrix.k;
  weight.codes = {codes, parts.codes.dtype, parts.codes.shape, parts.codes.row_stride};
  weight.scales = placer.place_floats(parts.scales, matrix.scales);
  weight.zeros = placer.place_copy(parts.zeros, std::span(matrix.zeros));
  weight.lines = placer.place_floats(parts.lines, matrix.lines);
  weight.line_scales = placer.place_floats(parts.line_scales, matrix.line_scales);
  weight.line_index = placer.place_copy(parts.line_index, std::span(matrix.line_index));
  weight.k_order = placer.place_copy(parts.k_order, std::span(matrix.k_order));
  weight.act_scale = placer.place_floats(parts.act_scale, std::span(&matrix.act_scale, 1));
  return weight;
}

}  // namespace hearth
