// SPDX-License-Identifier: Apache-2.0
// The safetensors header: from bytes that anyone may have written to entries that hold the invariants.
#include "hearth/checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <unordered_set>

#include "hearth/checkpoint/quote.h"
#include "hearth/checkpoint/simd_json.h"

namespace hearth {
namespace {

namespace dom = simdjson::dom;

struct DTypeName {
  std::string_view name;
  DType dtype;
};
constexpr DTypeName kDTypeNames[] = {
    {"F64", DType::kF64},   {"F32", DType::kF32},      {"F16", DType::kF16},      {"BF16", DType::kBf16},
    {"I64", DType::kI64},   {"I32", DType::kI32},      {"I16", DType::kI16},      {"I8", DType::kI8},
    {"U64", DType::kU64},   {"U32", DType::kU32},      {"U16", DType::kU16},      {"U8", DType::kU8},
    {"BOOL", DType::kBool}, {"F8_E4M3", DType::kE4m3}, {"F8_E5M2", DType::kE5m2},
};

// A whole number from 0 on that an int64_t holds.
Result<int64_t> parse_size(dom::element value, std::string_view field) {
  int64_t number = 0;
  if (value.type() != dom::element_type::INT64 || value.get(number) != simdjson::SUCCESS || number < 0) {
    return corrupt("{} holds {}; wanted whole numbers from 0 to 2^63 - 1", field, describe(value));
  }
  return number;
}

Result<DType> parse_dtype(dom::element value) {
  std::string_view name;
  if (value.get(name) != simdjson::SUCCESS) return corrupt("dtype is {}; wanted a string", describe(value));
  if (const auto dtype = safetensors_dtype_from_name(name)) return *dtype;
  std::string known;
  for (const DTypeName& entry : kDTypeNames) known += fmt::format("{}{}", known.empty() ? "" : " ", entry.name);
  return unsupported("dtype {}; wanted one of {}", quote_name(name), known);
}

Result<Shape> parse_shape(dom::element value) {
  dom::array array;
  if (value.get(array) != simdjson::SUCCESS) return corrupt("shape is {}; wanted an array", describe(value));
  if (array.size() > Shape::kMaxRank) {
    return unsupported("shape has {} dimensions; at most {} are supported", array.size(), Shape::kMaxRank);
  }
  int64_t dims[Shape::kMaxRank];
  size_t rank = 0;
  for (const dom::element dim : array) {
    HEARTH_TRY_ASSIGN(dims[rank++], parse_size(dim, "shape"));
  }
  return Shape(std::span<const int64_t>(dims, rank));
}

struct Extent {
  int64_t begin = 0;
  int64_t end = 0;
};

Result<Extent> parse_extent(dom::element value) {
  dom::array array;
  if (value.get(array) != simdjson::SUCCESS) return corrupt("data_offsets is {}; wanted an array", describe(value));
  if (array.size() != 2) return corrupt("data_offsets has {} elements; wanted [begin, end]", array.size());
  Extent extent;
  HEARTH_TRY_ASSIGN(extent.begin, parse_size(array.at(0).value_unsafe(), "data_offsets"));
  HEARTH_TRY_ASSIGN(extent.end, parse_size(array.at(1).value_unsafe(), "data_offsets"));
  if (extent.end < extent.begin) {
    return corrupt("data_offsets [{}, {}]: the end lies before the begin", extent.begin, extent.end);
  }
  return extent;
}

// Nothing where the size does not fit into int64_t.
std::optional<int64_t> checked_size_bytes(DType dtype, const Shape& shape) {
  int64_t count = 1, bits = 0;
  for (int i = 0; i < shape.rank(); ++i) {
    if (__builtin_mul_overflow(count, shape[i], &count)) return std::nullopt;
  }
  if (__builtin_mul_overflow(count, dtype_bits(dtype), &bits)) return std::nullopt;
  return dtype_bytes(dtype, count);
}

// The entry of one tensor; offset_bytes counts from the beginning of the data.
Result<TensorEntry> parse_tensor(dom::element value) {
  dom::object object;
  if (value.get(object) != simdjson::SUCCESS) return corrupt("is {}; wanted an object", describe(value));
  std::optional<dom::element> dtype, shape, offsets;
  for (const auto field : object) {
    auto* const slot = field.key == "dtype"          ? &dtype
                       : field.key == "shape"        ? &shape
                       : field.key == "data_offsets" ? &offsets
                                                     : nullptr;
    if (slot == nullptr) {
      return unsupported("unknown field {}; wanted dtype, shape and data_offsets", quote_name(field.key));
    }
    if (slot->has_value()) return corrupt("field {} is given twice", field.key);
    *slot = field.value;
  }
  if (!dtype || !shape || !offsets) {
    return corrupt("has no {}", !dtype ? "dtype" : !shape ? "shape" : "data_offsets");
  }
  TensorEntry entry;
  HEARTH_TRY_ASSIGN(entry.dtype, parse_dtype(*dtype));
  HEARTH_TRY_ASSIGN(entry.shape, parse_shape(*shape));
  HEARTH_TRY_ASSIGN(const Extent extent, parse_extent(*offsets));
  entry.offset_bytes = extent.begin;
  entry.size_bytes = extent.end - extent.begin;
  const auto wanted = checked_size_bytes(entry.dtype, entry.shape);
  const std::string_view dtype_name = *safetensors_dtype_name(entry.dtype);
  if (!wanted) return corrupt("shape {} of {} has more bytes than 2^63", to_string(entry.shape), dtype_name);
  if (*wanted != entry.size_bytes) {
    return corrupt("data_offsets [{}, {}] hold {} bytes; shape {} of {} needs {}", extent.begin, extent.end,
                   entry.size_bytes, to_string(entry.shape), dtype_name, *wanted);
  }
  return entry;
}

Status parse_metadata(dom::element value, std::map<std::string, std::string>& metadata) {
  dom::object object;
  if (value.get(object) != simdjson::SUCCESS) return corrupt("__metadata__ is {}; wanted an object", describe(value));
  for (const auto field : object) {
    std::string_view text;
    if (field.value.get(text) != simdjson::SUCCESS) {
      return corrupt("__metadata__ {} is {}; wanted a string", quote_name(field.key), describe(field.value));
    }
    if (!metadata.emplace(field.key, text).second)
      return corrupt("__metadata__ {} is given twice", quote_name(field.key));
  }
  return {};
}

// Every byte of the data belongs to exactly one tensor. `tensors` is sorted by offset.
Status check_coverage(std::span<const TensorEntry> tensors, int64_t data_bytes) {
  for (const TensorEntry& entry : tensors) {
    if (const int64_t end = entry.offset_bytes + entry.size_bytes; end > data_bytes) {
      return corrupt("tensor {} ends at byte {} of the data, the file has {}: it is truncated", quote_name(entry.name),
                     end, data_bytes);
    }
  }
  int64_t end = 0;
  const TensorEntry* last = nullptr;
  for (const TensorEntry& entry : tensors) {
    if (entry.offset_bytes < end) {
      return corrupt("tensor {} begins at byte {} of the data, inside tensor {}, which ends at {}",
                     quote_name(entry.name), entry.offset_bytes, quote_name(last->name), end);
    }
    if (entry.offset_bytes > end) {
      return corrupt("tensor {} begins at byte {} of the data; wanted {}: the bytes between belong to no tensor",
                     quote_name(entry.name), entry.offset_bytes, end);
    }
    end += entry.size_bytes;
    last = &entry;
  }
  if (end != data_bytes) {
    return corrupt("the tensors end at byte {} of the data, the file has {}: the rest belongs to no tensor", end,
                   data_bytes);
  }
  return {};
}

}  // namespace

std::optional<std::string_view> safetensors_dtype_name(DType dtype) {
  for (const DTypeName& entry : kDTypeNames)
    if (entry.dtype == dtype) return entry.name;
  return std::nullopt;
}

std::optional<DType> safetensors_dtype_from_name(std::string_view name) {
  for (const DTypeName& entry : kDTypeNames)
    if (entry.name == name) return entry.dtype;
  return std::nullopt;
}

Result<int64_t> safetensors_header_bytes(std::span<const std::byte, 8> prefix, int64_t file_bytes) {
  if (std::memcmp(prefix.data(), "version ", 8) == 0) {
    return corrupt("is a Git LFS pointer; wanted the file that it stands for (git lfs pull)");
  }
  uint64_t size = 0;
  for (size_t i = 0; i < 8; ++i) size |= std::to_integer<uint64_t>(prefix[i]) << (8 * i);
  if (size < 2 || size > static_cast<uint64_t>(kMaxSafetensorsHeaderBytes)) {
    return corrupt("header length {}; wanted 2 to {}", size, kMaxSafetensorsHeaderBytes);
  }
  const auto header_bytes = static_cast<int64_t>(size);
  if (header_bytes > file_bytes - kSafetensorsPrefixBytes) {
    return corrupt("header length {}, the file has {} bytes: it is truncated", header_bytes, file_bytes);
  }
  return header_bytes;
}

Result<SafetensorsHeader> parse_safetensors_header(std::span<const char> header_json, int64_t data_bytes) {
  if (header_json.empty()) return corrupt("header is empty; wanted an object");
  if (header_json[0] != '{') {
    return corrupt("header begins with byte {:#04x}; wanted '{{'", static_cast<unsigned char>(header_json[0]));
  }
  dom::parser parser;
  const simdjson::padded_string padded(header_json.data(), header_json.size());
  if (padded.data() == nullptr) return resource_exhausted("no memory for a header of {} bytes", header_json.size());
  HEARTH_TRY_ASSIGN(const dom::element root, parse_large_json(parser, padded).with_context("header"));
  dom::object object;
  if (root.get(object) != simdjson::SUCCESS) return corrupt("header is {}; wanted an object", describe(root));

  SafetensorsHeader header;
  std::unordered_set<std::string_view> names;
  for (const auto field : object) {
    if (!names.insert(field.key).second) return corrupt("tensor {} is given twice", quote_name(field.key));
    if (field.key == "__metadata__") {
      HEARTH_TRY(parse_metadata(field.value, header.metadata));
      continue;
    }
    auto entry = parse_tensor(field.value);
    if (!entry) return std::move(entry).error().with_context("tensor " + quote_name(field.key));
    entry->name = field.key;
    header.tensors.push_back(std::move(*entry));
  }
  // Empty tensors come before the tensor that begins where they do.
  std::ranges::stable_sort(header.tensors, [](const TensorEntry& a, const TensorEntry& b) {
    return a.offset_bytes != b.offset_bytes ? a.offset_bytes < b.offset_bytes : a.size_bytes < b.size_bytes;
  });
  HEARTH_TRY(check_coverage(header.tensors, data_bytes));
  const int64_t data_begin = kSafetensorsPrefixBytes + static_cast<int64_t>(header_json.size());
  for (TensorEntry& entry : header.tensors) entry.offset_bytes += data_begin;
  return header;
}

Result<SafetensorsFile> SafetensorsFile::open(const std::filesystem::path& path, int file_index) {
  HEARTH_TRY_ASSIGN(File file, File::open(path));
  if (file.size_bytes() < kSafetensorsPrefixBytes) {
    return corrupt("{}: has {} bytes; wanted at least {}", path.string(), file.size_bytes(), kSafetensorsPrefixBytes);
  }
  std::byte prefix[kSafetensorsPrefixBytes];
  HEARTH_TRY(file.read_at(0, prefix));
  HEARTH_TRY_ASSIGN(const int64_t header_bytes,
                    safetensors_header_bytes(prefix, file.size_bytes()).with_context(path.string()));
  std::string text(static_cast<size_t>(header_bytes), '\0');
  HEARTH_TRY(file.read_at(kSafetensorsPrefixBytes, std::as_writable_bytes(std::span(text))));
  const int64_t data_bytes = file.size_bytes() - kSafetensorsPrefixBytes - header_bytes;
  HEARTH_TRY_ASSIGN(SafetensorsHeader header, parse_safetensors_header(text, data_bytes).with_context(path.string()));
  for (TensorEntry& entry : header.tensors) entry.file = file_index;
  return SafetensorsFile(std::move(file), std::move(header));
}

Status SafetensorsFile::read(const TensorEntry& entry, std::span<std::byte> dst) const {
  HEARTH_CHECK(static_cast<int64_t>(dst.size()) == entry.size_bytes, "tensor {} of {} bytes read into {}", entry.name,
               entry.size_bytes, dst.size());
  return read_part(entry, 0, dst);
}

Status SafetensorsFile::read_part(const TensorEntry& entry, int64_t begin, std::span<std::byte> dst) const {
  const auto size = static_cast<int64_t>(dst.size());
  HEARTH_CHECK(begin >= 0 && begin <= entry.size_bytes && size <= entry.size_bytes - begin,
               "bytes [{}, {} + {}) of tensor {} of {} bytes", begin, begin, size, entry.name, entry.size_bytes);
  auto status = file_.read_at(entry.offset_bytes + begin, dst);
  if (!status) return std::move(status).error().with_context("tensor " + quote_name(entry.name));
  return {};
}

}  // namespace hearth
