// SPDX-License-Identifier: Apache-2.0
// How a user names the models and texts of a report: [NAME=]PATH[@kv=FORMAT] and [NAME=]FILE. Stateless.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "hearth/base/result.h"
#include "hearth/tensor/kv_layout.h"

namespace hearth {

struct ModelSpec {
  std::string name;  // empty: the model's own
  std::string path;  // a folder, or org/name[@revision]
  std::optional<KvFormatId> kv;
};

struct FileSpec {
  std::string name;  // without NAME=: the file's name without its ending
  std::string path;
};

// NAME is what stands before the first '=', unless that has a '/': then it is part of a path. InvalidArgument for an
// empty name or path, or a KV format that does not exist: the message lists them.
Result<ModelSpec> parse_model_spec(std::string_view text);
Result<FileSpec> parse_file_spec(std::string_view text);

}  // namespace hearth
