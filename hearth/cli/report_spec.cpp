// SPDX-License-Identifier: Apache-2.0
#include "hearth/cli/report_spec.h"

#include <filesystem>

namespace hearth {
namespace {

constexpr std::string_view kKvMark = "@kv=";

struct NamedPath {
  std::string_view name, path;
};

Result<NamedPath> split_name(std::string_view text) {
  const size_t equals = text.find('=');
  NamedPath result{.name = {}, .path = text};
  if (equals != std::string_view::npos && text.substr(0, equals).find('/') == std::string_view::npos) {
    result = {.name = text.substr(0, equals), .path = text.substr(equals + 1)};
    if (result.name.empty()) return invalid_argument("'{}' has no name before '='", text);
  }
  if (result.path.empty()) return invalid_argument("'{}' has no path", text);
  return result;
}

}  // namespace

Result<ModelSpec> parse_model_spec(std::string_view text) {
  ModelSpec spec;
  std::string_view model = text;
  if (const size_t mark = text.rfind(kKvMark); mark != std::string_view::npos) {
    const std::string_view format = text.substr(mark + kKvMark.size());
    spec.kv = kv_format_from_name(format);
    if (!spec.kv)
      return invalid_argument("'{}': KV format '{}' is unknown; wanted f32, bf16, fp8, int4, int4-fireq or int4-saw",
                              text, format);
    model = text.substr(0, mark);
  }
  HEARTH_TRY_ASSIGN(const NamedPath named, split_name(model));
  spec.name = named.name;
  spec.path = named.path;
  return spec;
}

Result<FileSpec> parse_file_spec(std::string_view text) {
  HEARTH_TRY_ASSIGN(const NamedPath named, split_name(text));
  FileSpec spec{.name = std::string(named.name), .path = std::string(named.path)};
  if (spec.name.empty()) spec.name = std::filesystem::path(spec.path).stem().string();
  return spec;
}

}  // namespace hearth
