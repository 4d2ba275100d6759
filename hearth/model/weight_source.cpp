// SPDX-License-Identifier: Apache-2.0
#include "hearth/model/weight_source.h"

#include <vector>

#include "hearth/checkpoint/convert.h"
#include "hearth/checkpoint/quote.h"
#include "hearth/model/dummy_values.h"

namespace hearth {
namespace {

std::optional<DummyKind> kind_of(DType dtype) {
  switch (dtype) {
    case DType::kF32: return DummyKind::kF32;
    case DType::kF16: return DummyKind::kF16;
    case DType::kBf16: return DummyKind::kBf16;
    default: return std::nullopt;
  }
}

Status fill_ones(DType dtype, std::span<std::byte> dst) {
  const std::vector<float> ones(dst.size() / static_cast<size_t>(dtype_bytes(dtype, 1)), 1.0f);
  return convert_floats(DType::kF32, std::as_bytes(std::span(ones)), dtype, dst);
}

}  // namespace

Result<std::optional<WeightFormat>> CheckpointSource::quantized_format(const std::string& module, int64_t n,
                                                                       int64_t k) {
  HEARTH_TRY_ASSIGN(const std::optional<WeightFormat> format, quantization_.format(checkpoint_, module, n, k));
  if (format) {
    for (std::string& tensor : quantization_.tensors(checkpoint_, module)) asked_.insert(std::move(tensor));
  }
  return format;
}

Status CheckpointSource::check_all_used() const {
  for (const TensorEntry& entry : checkpoint_.tensors()) {
    if (asked_.contains(entry.name) || entry.name.ends_with("rotary_emb.inv_freq")) continue;
    return unsupported(
        "tensor {} {} is in the checkpoint, but the model that config.json describes has no place for it",
        quote_name(entry.name), to_string(entry.shape));
  }
  return {};
}

const TensorEntry* DummySource::find(const std::string& name, const Shape& wanted) {
  if (tied_ && name == "lm_head.weight") return nullptr;
  TensorEntry entry;
  entry.name = name;
  entry.dtype = dtype_;
  entry.shape = wanted;
  entry.size_bytes = dtype_bytes(dtype_, wanted.count());
  return &entries_.try_emplace(name, std::move(entry)).first->second;
}

Result<std::optional<WeightFormat>> DummySource::quantized_format(const std::string& module, int64_t n, int64_t k) {
  if (quantization_ == nullptr) return std::optional<WeightFormat>();
  HEARTH_TRY_ASSIGN(const std::optional<WeightFormat> format, quantization_->described_format(module, n, k));
  if (format) codes_[module] = {*format, k % 2 != 0 && format->code_bits() <= 4};
  return format;
}

std::optional<TensorEntry> DummySource::canonical_codes(const std::string& module, int64_t n, int64_t k) const {
  const WeightFormat& format = codes_.at(module).format;
  TensorEntry entry;
  entry.name = module;
  entry.dtype = format.code == WeightCode::kE4m3 ? DType::kE4m3 : DType::kU8;
  entry.shape = {n, QuantizedMatrix{.format = format, .n = n, .k = k}.row_bytes()};
  entry.size_bytes = entry.shape.count();
  return entry;
}

Result<QuantizedMatrix> DummySource::read_quantized(const std::string& module, int64_t n, int64_t k) const {
  return dummy_parts(seed_, module, codes_.at(module).format, n, k);
}

Status DummySource::read_part(const TensorEntry& entry, int64_t begin, std::span<std::byte> dst) const {
  const int64_t size = dtype_bytes(entry.dtype, 1);
  HEARTH_CHECK(begin % size == 0 && static_cast<int64_t>(dst.size()) % size == 0, "part of an element");
  if (const auto codes = codes_.find(entry.name); codes != codes_.end()) {
    dummy_codes(seed_, entry.name, codes->second.format).fill(begin, dst);
    const int64_t row_bytes = entry.shape.back();
    for (int64_t at = row_bytes - 1 - begin % row_bytes; codes->second.odd && at < std::ssize(dst); at += row_bytes)
      dst[static_cast<size_t>(at)] &= std::byte{15};
    return {};
  }
  if (entry.name.ends_with("norm.weight")) return fill_ones(entry.dtype, dst);
  const std::optional<DummyKind> kind = kind_of(entry.dtype);
  if (!kind) return unsupported("dummy weights of type {}; hearth makes f32, f16 and bf16", dtype_name(entry.dtype));
  DummyStream::make(seed_, entry.name, *kind).fill(begin, dst);
  return {};
}

}  // namespace hearth
