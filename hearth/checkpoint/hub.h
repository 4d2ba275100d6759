// SPDX-License-Identifier: Apache-2.0
// Finding a model by the name a user types: a folder, or org/name in the cache that Hugging Face's tools
// fill. Only looks at the disk: nothing here opens a socket. Stateless.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "hearth/base/result.h"

namespace hearth {

// Environment variables, as a value so that tests give their own. Empty variables count as unset.
struct Environment {
  std::function<std::optional<std::string>(const char* name)> get;

  // The process's own (getenv). Not while another thread calls setenv.
  static Environment process();
};

// The cache folder: $HF_HUB_CACHE, else $HUGGINGFACE_HUB_CACHE (its old name), else $HF_HOME/hub, else
// $XDG_CACHE_HOME/huggingface/hub, else $HOME/.cache/huggingface/hub. A leading ~ stands for $HOME.
// NotFound where none of these is set. Source: huggingface_hub's environment variables.
Result<std::filesystem::path> hub_cache_dir(const Environment& env);

// The folder of a model. `name_or_path` is an existing folder, or `org/name` or `org/name@revision` in the
// cache; revision is a branch, a tag or a whole commit, main where it is not given. InvalidArgument for a
// name that cannot be one, NotFound (with what to do) where the model, the revision or one of its files is
// not there.
Result<std::filesystem::path> resolve_model(std::string_view name_or_path, const Environment& env);

// The folder and the name of what a user typed: org/name as typed, a folder by its last part. `dummy`: also a
// configuration's file (*.json). Errors of resolve_model().
struct FoundModel {
  std::filesystem::path dir;
  std::string name;
};
Result<FoundModel> find_model(std::string_view typed, const Environment& env, bool dummy);

}  // namespace hearth
