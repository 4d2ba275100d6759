// SPDX-License-Identifier: Apache-2.0
// ModuleTensors: the tensors of one quantized linear, checked before they are read. Sizes come from the model's
// own dimensions and must be those of the file, so that nothing is allocated on a configuration's word. Private to
// the readers of quantized forms. One thread.
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/checkpoint/checkpoint.h"
#include "hearth/tensor/quantized_matrix.h"

namespace hearth {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

class ModuleTensors {
 public:
  // REQUIRES: both outlive this.
  ModuleTensors(const Checkpoint& checkpoint, std::string_view module) : checkpoint_(checkpoint), module_(module) {}

  std::string name(std::string_view suffix) const { return fmt::format("{}.{}", module_, suffix); }
  // Null where there is none.
  const TensorEntry* find(std::string_view suffix) const { return checkpoint_.find(name(suffix)); }
  bool has(std::string_view suffix) const { return find(suffix) != nullptr; }
  // Those of `suffixes` that are there, by their whole names.
  std::vector<std::string> present(std::initializer_list<std::string_view> suffixes) const;

  // The tensor, of one of the dtypes and one of the shapes. NotFound, InvalidArgument.
  Result<const TensorEntry*> want(std::string_view suffix, std::span<const DType> dtypes,
                                  std::span<const Shape> shapes) const;
  Result<const TensorEntry*> want(std::string_view suffix, std::initializer_list<DType> dtypes,
                                  std::initializer_list<Shape> shapes) const {
    return want(suffix, std::span(dtypes.begin(), dtypes.size()), std::span(shapes.begin(), shapes.size()));
  }

  // All elements, as they lie there. REQUIRES: sizeof(T) is the element's size.
  template <class T>
  Result<std::vector<T>> read(const TensorEntry& entry) const {
    HEARTH_CHECK(dtype_bytes(entry.dtype, 1) == static_cast<int64_t>(sizeof(T)), "{} read as {} bytes",
                 dtype_name(entry.dtype), sizeof(T));
    std::vector<T> values(static_cast<size_t>(entry.size_bytes) / sizeof(T));
    HEARTH_TRY(checkpoint_.read(entry, std::as_writable_bytes(std::span(values))));
    return values;
  }
  // f32, f16, bf16 or e4m3 as f32. Corrupt where one is not finite.
  Result<std::vector<float>> read_floats(const TensorEntry& entry) const;
  // E4M3 codes. Corrupt where one is no number.
  Result<std::vector<uint8_t>> read_e4m3(const TensorEntry& entry) const;

 private:
  const Checkpoint& checkpoint_;
  std::string_view module_;
};

// [rows, columns] to [columns, rows].
template <class T>
std::vector<T> transposed(std::span<const T> values, int64_t rows, int64_t columns) {
  std::vector<T> out(values.size());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c)
      out[static_cast<size_t>(c * rows + r)] = values[static_cast<size_t>(r * columns + c)];
  }
  return out;
}

// Makes matrix.k_order from `groups` [k], the group of each input column, and moves the codes (4 bits, rows in the
// order of the input) to where it says: group by group, columns of one group in the order of the input. No order is
// made where the columns lie so already. Corrupt where a group is out of range or has not its number of columns.
Status order_columns(std::span<const int32_t> groups, int64_t group_k, QuantizedMatrix& matrix);

// Columns per scale from a configuration's group_size: -1 is a whole row, which gives 0. InvalidArgument otherwise
// below 1 or above 2^30.
Result<int64_t> checked_group(int64_t group_size);

// Sets scale_layout and group_k for scales per row (group 0) or per group of a row.
void set_grouping(int64_t group, WeightFormat& format);

}  // namespace hearth
