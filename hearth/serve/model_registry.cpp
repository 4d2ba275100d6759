// SPDX-License-Identifier: Apache-2.0
// A vector under a mutex. Any thread.
#include "hearth/serve/model_registry.h"

#include <algorithm>
#include <set>

namespace hearth {
namespace {

// A token never stands for more bytes than the longest one; never less than this, for what normalizers shorten.
constexpr int64_t kMinLongestToken = 64;

int64_t longest_token_bytes(const Tokenizer& tokenizer) {
  int64_t longest = kMinLongestToken;
  for (TokenId id = 0; id < tokenizer.vocab_size(); ++id)
    longest = std::max(longest, std::ssize(tokenizer.token_bytes(id)));
  return longest;
}

}  // namespace

ApiModel make_api_model(std::vector<std::string> names, std::shared_ptr<const ServedModel> served) {
  const auto& templates = served->tokenizer.chat_templates();
  const auto usual = templates.find("default");
  const bool developer = usual != templates.end() && usual->second.find("developer") != std::string::npos;
  const int64_t max_bytes = (served->max_context + 1) * longest_token_bytes(served->tokenizer);
  return {.names = std::move(names),
          .served = std::move(served),
          .max_prompt_bytes = max_bytes,
          .knows_developer = developer};
}

Status ModelRegistry::check(const std::vector<ModelSource>& sources) {
  if (sources.empty()) return invalid_argument("no model to serve");
  std::set<std::string_view> seen;
  for (const ModelSource& source : sources) {
    if (source.names.empty()) return invalid_argument("the model in {} has no name", source.dir.string());
    for (const std::string& name : source.names) {
      if (name.empty()) return invalid_argument("the model in {} has an empty name", source.dir.string());
      if (!seen.insert(name).second) return invalid_argument("two models are called {}", name);
    }
  }
  return {};
}

ModelRegistry::ModelRegistry(std::vector<ModelSource> sources)
    : sources_(std::move(sources)), models_(sources_.size()) {}

void ModelRegistry::add(size_t index, std::shared_ptr<const ServedModel> served) {
  auto model = std::make_shared<const ApiModel>(make_api_model(sources_[index].names, std::move(served)));
  const std::lock_guard lock(mutex_);
  models_[index] = std::move(model);
}

ApiResult<std::shared_ptr<const ApiModel>> ModelRegistry::find(std::string_view name) const {
  if (name.empty() && sources_.size() != 1) return bad_request("model", "model: absent, and there are several models");
  for (size_t i = 0; i < sources_.size(); ++i) {
    const auto& names = sources_[i].names;
    if (!name.empty() && std::find(names.begin(), names.end(), name) == names.end()) continue;
    const std::lock_guard lock(mutex_);
    if (models_[i] == nullptr) return not_now("loading", fmt::format("the model {} is loading", names.front()), 5);
    return models_[i];
  }
  std::string known;
  for (const ModelSource& source : sources_)
    for (const std::string& other : source.names) known += (known.empty() ? "" : ", ") + other;
  return no_such_model(fmt::format("there is no model {}; there is {}", name, known));
}

std::vector<std::shared_ptr<const ApiModel>> ModelRegistry::loaded() const {
  const std::lock_guard lock(mutex_);
  auto models = models_;
  std::erase(models, nullptr);
  return models;
}

bool ModelRegistry::ready() const {
  const std::lock_guard lock(mutex_);
  return std::find(models_.begin(), models_.end(), nullptr) == models_.end();
}

}  // namespace hearth
