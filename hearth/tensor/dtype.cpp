// SPDX-License-Identifier: Apache-2.0
// The one table of element types.
#include "hearth/tensor/dtype.h"

namespace hearth {
namespace {

struct DTypeInfo {
  DType dtype;
  std::string_view name;
  int64_t bits;
};

constexpr DTypeInfo kInfos[] = {
    {DType::kF64, "f64", 64},  {DType::kF32, "f32", 32},  {DType::kF16, "f16", 16},  {DType::kBf16, "bf16", 16},
    {DType::kE4m3, "e4m3", 8}, {DType::kE5m2, "e5m2", 8}, {DType::kI64, "i64", 64},  {DType::kI32, "i32", 32},
    {DType::kI16, "i16", 16},  {DType::kI8, "i8", 8},     {DType::kU64, "u64", 64},  {DType::kU32, "u32", 32},
    {DType::kU16, "u16", 16},  {DType::kU8, "u8", 8},     {DType::kBool, "bool", 8}, {DType::kU4, "u4", 4},
};

constexpr bool in_enum_order() {
  int64_t index = 0;
  for (const DTypeInfo& info : kInfos)
    if (static_cast<int64_t>(info.dtype) != index++) return false;
  return true;
}
static_assert(in_enum_order());

}  // namespace

int64_t dtype_bits(DType dtype) { return kInfos[static_cast<int>(dtype)].bits; }
int64_t dtype_bytes(DType dtype, int64_t count) { return (count * dtype_bits(dtype) + 7) / 8; }
std::string_view dtype_name(DType dtype) { return kInfos[static_cast<int>(dtype)].name; }

std::optional<DType> dtype_from_name(std::string_view name) {
  for (const DTypeInfo& info : kInfos)
    if (info.name == name) return info.dtype;
  return std::nullopt;
}

}  // namespace hearth
