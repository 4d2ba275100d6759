// SPDX-License-Identifier: Apache-2.0
#include "hearth/checkpoint/module_tensors.h"

#include "hearth/checkpoint/convert.h"
#include "hearth/checkpoint/quote.h"

namespace hearth {

std::vector<std::string> ModuleTensors::present(std::initializer_list<std::string_view> suffixes) const {
  std::vector<std::string> names;
  for (const std::string_view suffix : suffixes)
    if (has(suffix)) names.push_back(name(suffix));
  return names;
}

Result<const TensorEntry*> ModuleTensors::want(std::string_view suffix, std::span<const DType> dtypes,
                                               std::span<const Shape> shapes) const {
  const TensorEntry* const entry = find(suffix);
  if (entry == nullptr) return not_found("no tensor {}", quote_name(name(suffix)));
  if (std::ranges::find(dtypes, entry->dtype) == dtypes.end()) {
    std::string wanted;
    for (const DType dtype : dtypes) wanted += fmt::format("{}{}", wanted.empty() ? "" : " or ", dtype_name(dtype));
    return invalid_argument("tensor {} is {}; wanted {}", quote_name(entry->name), dtype_name(entry->dtype), wanted);
  }
  if (std::ranges::find(shapes, entry->shape) == shapes.end()) {
    std::string wanted;
    for (const Shape& shape : shapes) wanted += fmt::format("{}{}", wanted.empty() ? "" : " or ", to_string(shape));
    return invalid_argument("tensor {} has shape {}; wanted {}", quote_name(entry->name), to_string(entry->shape),
                            wanted);
  }
  return entry;
}

Result<std::vector<float>> ModuleTensors::read_floats(const TensorEntry& entry) const {
  std::vector<float> values(static_cast<size_t>(entry.shape.count()));
  if (entry.dtype == DType::kE4m3) {
    HEARTH_TRY_ASSIGN(const std::vector<uint8_t> codes, read_e4m3(entry));
    std::ranges::transform(codes, values.begin(), [](uint8_t code) { return e4m3{code}.to_float(); });
    return values;
  }
  std::vector<std::byte> bytes(static_cast<size_t>(entry.size_bytes));
  HEARTH_TRY(checkpoint_.read(entry, bytes));
  if (const auto at = find_non_finite(entry.dtype, bytes))
    return corrupt("tensor {}: element {} is infinite or not a number", quote_name(entry.name), *at);
  HEARTH_TRY(convert_floats(entry.dtype, bytes, DType::kF32, std::as_writable_bytes(std::span(values))));
  return values;
}

Result<std::vector<uint8_t>> ModuleTensors::read_e4m3(const TensorEntry& entry) const {
  HEARTH_TRY_ASSIGN(std::vector<uint8_t> codes, read<uint8_t>(entry));
  if (const auto at = find_non_finite(DType::kE4m3, std::as_bytes(std::span(codes))))
    return corrupt("tensor {}: element {} is not a number", quote_name(entry.name), *at);
  return codes;
}

Status order_columns(std::span<const int32_t> groups, int64_t group_k, QuantizedMatrix& matrix) {
  const int64_t k = matrix.k, count = ceil_div(k, group_k);
  std::vector<int64_t> taken(static_cast<size_t>(count));
  std::vector<int32_t> order(static_cast<size_t>(k));
  bool in_order = true;
  for (int64_t j = 0; j < k; ++j) {
    const int64_t group = groups[static_cast<size_t>(j)];
    if (group < 0 || group >= count) return corrupt("column {} is in group {}; wanted 0 to {}", j, group, count - 1);
    const int64_t place = group * group_k + taken[static_cast<size_t>(group)]++;
    in_order = in_order && place == j;
    order[static_cast<size_t>(j)] = static_cast<int32_t>(place);
  }
  for (int64_t g = 0; g < count; ++g) {
    const int64_t wanted = std::min(group_k, k - g * group_k);
    if (taken[static_cast<size_t>(g)] != wanted)
      return corrupt("group {} has {} columns; wanted {}", g, taken[static_cast<size_t>(g)], wanted);
  }
  if (in_order) return {};
  const auto row_bytes = static_cast<size_t>(matrix.row_bytes());
  std::vector<uint8_t> row(row_bytes);
  for (int64_t r = 0; r < matrix.n; ++r) {
    const std::span<uint8_t> stored = std::span(matrix.codes).subspan(static_cast<size_t>(r) * row_bytes, row_bytes);
    std::ranges::copy(stored, row.begin());
    std::ranges::fill(stored, uint8_t{0});
    for (int64_t j = 0; j < k; ++j) put_nibble(stored, order[static_cast<size_t>(j)], nibble_at(row, j));
  }
  matrix.k_order = std::move(order);
  return {};
}

Result<int64_t> checked_group(int64_t group_size) {
  if (group_size == -1) return 0;
  if (group_size < 1 || group_size > 1 << 30)
    return invalid_argument("group_size {}; wanted -1 or 1 to {}", group_size, 1 << 30);
  return group_size;
}

void set_grouping(int64_t group, WeightFormat& format) {
  format.scale_layout = group == 0 ? ScaleLayout::kRow : ScaleLayout::kGroup;
  format.group_k = group;
}

}  // namespace hearth
