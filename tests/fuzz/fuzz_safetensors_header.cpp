// SPDX-License-Identifier: Apache-2.0
// Fuzz target of the parsers that read a downloaded model's headers. Each input is used three ways: as a
// safetensors header behind four bytes that say how much data the file has, as a whole safetensors file,
// and as a JSON configuration. Whatever a parser accepts must hold its invariants.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string_view>

#include "hearth/base/check.h"
#include "hearth/checkpoint/json.h"
#include "hearth/checkpoint/safetensors.h"

namespace hearth {
namespace {

void check_header(std::span<const char> json, int64_t data_bytes) {
  const auto parsed = parse_safetensors_header(json, data_bytes);
  if (!parsed) {
    HEARTH_CHECK(!parsed.error().message.empty(), "an error without a message");
    HEARTH_CHECK(parsed.error().code == ErrorCode::kCorrupt || parsed.error().code == ErrorCode::kUnsupported,
                 "code of: {}", parsed.error().message);
    return;
  }
  int64_t end = kSafetensorsPrefixBytes + std::ssize(json);
  std::set<std::string_view> names;
  for (const TensorEntry& entry : parsed->tensors) {
    HEARTH_CHECK(entry.offset_bytes == end, "tensor {} at {}, expected {}", entry.name, entry.offset_bytes, end);
    HEARTH_CHECK(entry.size_bytes == dtype_bytes(entry.dtype, entry.shape.count()), "size of {}", entry.name);
    HEARTH_CHECK(names.insert(entry.name).second, "{} twice", entry.name);
    end += entry.size_bytes;
  }
  HEARTH_CHECK(end == kSafetensorsPrefixBytes + std::ssize(json) + data_bytes, "the data ends at {}", end);
}

void check_file(std::span<const std::byte> file) {
  if (file.size() < 8) return;
  const auto header_bytes = safetensors_header_bytes(file.first<8>(), std::ssize(file));
  if (!header_bytes) return;
  const auto json = file.subspan(8, static_cast<size_t>(*header_bytes));
  check_header({reinterpret_cast<const char*>(json.data()), json.size()}, std::ssize(file) - 8 - *header_bytes);
}

void check_config(std::string_view text) {
  const auto parsed = parse_json(text);
  if (!parsed) {
    HEARTH_CHECK(!parsed.error().message.empty(), "an error without a message");
    return;
  }
  // Deep enough to overflow a stack would show in these.
  const nlohmann::json copy = *parsed;
  HEARTH_CHECK(!copy.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).empty(), "an empty dump");
}

}  // namespace
}  // namespace hearth

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  hearth::check_file(std::as_bytes(std::span(data, size)));
  uint32_t data_bytes = 0;
  if (size < sizeof(data_bytes)) return 0;
  std::memcpy(&data_bytes, data, sizeof(data_bytes));
  const std::string_view text(reinterpret_cast<const char*>(data) + sizeof(data_bytes), size - sizeof(data_bytes));
  hearth::check_header(text, data_bytes);
  hearth::check_config(text);
  return 0;
}
