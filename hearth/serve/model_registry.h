// SPDX-License-Identifier: Apache-2.0
// ModelRegistry: the models that a server was told to serve, by the names that requests use. A model is found once it
// has been loaded; who found it holds it. Any thread may call any method.
#pragma once

#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/engine/engine.h"
#include "hearth/engine/served_model.h"
#include "hearth/engine/service_terms.h"
#include "hearth/serve/api_error.h"

namespace hearth {

struct ModelSource {
  std::vector<std::string> names;  // what requests call it; the first is the one in answers
  std::filesystem::path dir;
  ServiceTerms terms{};
  MemoryLimits limits{};  // of the KV pool
};

// A loaded model, with what the API works out once.
struct ApiModel {
  std::vector<std::string> names;
  std::shared_ptr<const ServedModel> served;
  // No text with more bytes fits into the context. Tokenizing costs many times the text's memory, so such a text is
  // refused before.
  int64_t max_prompt_bytes = 0;
  // The template knows the role "developer"; else such messages are shown to it as "system".
  bool knows_developer = false;
};

ApiModel make_api_model(std::vector<std::string> names, std::shared_ptr<const ServedModel> served);

class ModelRegistry {
 public:
  // InvalidArgument: no model, one without a name, or two of one name.
  static Status check(const std::vector<ModelSource>& sources);

  explicit ModelRegistry(std::vector<ModelSource> sources);

  // sources[index] is loaded.
  void add(size_t index, std::shared_ptr<const ServedModel> served);

  // The model that a request names. An empty name means the only one there is. 404, with the names there are; 503
  // while it loads.
  ApiResult<std::shared_ptr<const ApiModel>> find(std::string_view name) const;
  // Those that are loaded, in the order of the sources.
  std::vector<std::shared_ptr<const ApiModel>> loaded() const;
  bool ready() const;

 private:
  const std::vector<ModelSource> sources_;
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<const ApiModel>> models_;  // guarded by mutex_; null while it loads
};

}  // namespace hearth
