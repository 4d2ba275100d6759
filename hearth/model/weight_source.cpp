// SPDX-License-Identifier: Apache-2.0
#include "hearth/model/weight_source.h"

#include <cmath>
#include <cstring>

#include "hearth/base/random.h"
#include "hearth/checkpoint/quote.h"

namespace hearth {
namespace {

// FNV-1a.
uint64_t hash_name(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return hash;
}

template <class T>
void fill(uint64_t seed, uint64_t stream, bool is_norm, int64_t first, std::span<std::byte> dst) {
  // Uniform on (-a, a) has a standard deviation of a / sqrt(3).
  const float width = 0.02f * std::sqrt(3.0f);
  const std::array<uint32_t, 2> key = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  const int64_t count = static_cast<int64_t>(dst.size() / sizeof(T));
  std::array<uint32_t, 4> block{};
  int64_t block_index = -1;
  for (int64_t i = 0; i < count; ++i) {
    T value = from_float<T>(1.0f);
    if (!is_norm) {
      const int64_t element = first + i;
      if (element / 4 != block_index) {
        block_index = element / 4;
        block = philox4x32({static_cast<uint32_t>(block_index), static_cast<uint32_t>(block_index >> 32),
                            static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)},
                           key);
      }
      const float unit = static_cast<float>(block[static_cast<size_t>(element % 4)] >> 8) * 0x1p-23f - 1.0f;
      value = from_float<T>(unit * width);
    }
    std::memcpy(dst.data() + static_cast<size_t>(i) * sizeof(T), &value, sizeof(T));
  }
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

Status DummySource::read_part(const TensorEntry& entry, int64_t begin, std::span<std::byte> dst) const {
  const int64_t size = dtype_bytes(entry.dtype, 1);
  HEARTH_CHECK(begin % size == 0 && static_cast<int64_t>(dst.size()) % size == 0, "part of an element");
  const bool is_norm = entry.name.ends_with("norm.weight");
  const uint64_t stream = hash_name(entry.name);
  switch (entry.dtype) {
    case DType::kF32: fill<float>(seed_, stream, is_norm, begin / size, dst); break;
    case DType::kF16: fill<f16>(seed_, stream, is_norm, begin / size, dst); break;
    case DType::kBf16: fill<bf16>(seed_, stream, is_norm, begin / size, dst); break;
    default: return unsupported("dummy weights of type {}; hearth makes f32, f16 and bf16", dtype_name(entry.dtype));
  }
  return {};
}

}  // namespace hearth
