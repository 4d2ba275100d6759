// SPDX-License-Identifier: Apache-2.0
// Reading safetensors files (docs/formats/safetensors.md). Nothing of a file is believed: whatever its
// bytes are, the result is a list of tensors or an Error.
//   I1. Every entry's [offset_bytes, offset_bytes + size_bytes) lies in the file; entries neither overlap
//       nor leave holes, and together with the header they are the whole file.
//   I2. size_bytes = dtype_bytes(dtype, shape.count()), and no prefix product of the shape overflows.
//   I3. Names are unique, and UTF-8.
// Offsets need not be aligned. An open file may be read by any number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/checkpoint/file.h"
#include "hearth/tensor/dtype.h"
#include "hearth/tensor/shape.h"

namespace hearth {

struct TensorEntry {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  int64_t offset_bytes = 0;  // from the beginning of the file
  int64_t size_bytes = 0;
  int file = 0;  // which of the checkpoint's files holds it
};

struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;             // by offset
  std::map<std::string, std::string> metadata;  // "__metadata__"
};

// The format's own limit, 100 MB.
inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;
inline constexpr int64_t kSafetensorsPrefixBytes = 8;

// The header's length from a file's first eight bytes. Corrupt where it is below 2, above the limit or
// beyond the file of `file_bytes`.
Result<int64_t> safetensors_header_bytes(std::span<const std::byte, 8> prefix, int64_t file_bytes);

// Parses the JSON header of a file whose tensor data is `data_bytes` long. Corrupt where a rule of the
// format is broken, Unsupported for a dtype, a rank or a field that hearth does not know.
// REQUIRES: 0 <= data_bytes, and 8 + header_json.size() + data_bytes, the file's size, fits into int64_t.
Result<SafetensorsHeader> parse_safetensors_header(std::span<const char> header_json, int64_t data_bytes);

// "BF16", "F8_E4M3", ... and back. Nothing for kU4, which the format does not have.
std::optional<std::string_view> safetensors_dtype_name(DType dtype);
std::optional<DType> safetensors_dtype_from_name(std::string_view name);

// An open file. Keeps the descriptor, so that a file replaced under its name is not mixed with this one.
class SafetensorsFile {
 public:
  // Reads and checks the header. Entries carry `file_index` as their file.
  static Result<SafetensorsFile> open(const std::filesystem::path& path, int file_index = 0);

  const std::filesystem::path& path() const { return file_.path(); }
  std::span<const TensorEntry> tensors() const { return header_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }

  // Reads the tensor's bytes. Corrupt where the file has become shorter since it was opened. Thread-safe.
  // REQUIRES: entry is one of tensors(), dst.size() == entry.size_bytes.
  Status read(const TensorEntry& entry, std::span<std::byte> dst) const;
  // Bytes [begin, begin + dst.size()) of the tensor. REQUIRES: they lie within it.
  Status read_part(const TensorEntry& entry, int64_t begin, std::span<std::byte> dst) const;

 private:
  SafetensorsFile(File file, SafetensorsHeader header) : file_(std::move(file)), header_(std::move(header)) {}

  File file_;
  SafetensorsHeader header_;
};

}  // namespace hearth
