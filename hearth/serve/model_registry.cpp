// SPDX-License-Identifier: Apache-2.0
// A vector under a mutex. What has drained is swept out at the next look.
#include "hearth/serve/model_registry.h"

#include <algorithm>
#include <set>

namespace hearth {
namespace {

// A token never stands for more bytes than the longest one; never less than this, for what normalizers shorten.
constexpr int64_t kMinLongestToken = 64;
constexpr int kLoadingRetryS = 5;

int64_t longest_token_bytes(const Tokenizer& tokenizer) {
  int64_t longest = kMinLongestToken;
  for (TokenId id = 0; id < tokenizer.vocab_size(); ++id)
    longest = std::max(longest, std::ssize(tokenizer.token_bytes(id)));
  return longest;
}

bool has_name(const ModelView& view, std::string_view name) {
  return std::ranges::find(view.source.names, name) != view.source.names.end();
}

ApiError conflict(std::string message) {
  return {.status = 409, .type = "invalid_request_error", .message = std::move(message), .param = "model"};
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

std::string_view name_of(ModelStage stage) {
  switch (stage) {
    case ModelStage::kLoading: return "loading";
    case ModelStage::kReady: return "ready";
    case ModelStage::kFallingAsleep: return "falling asleep";
    case ModelStage::kAsleep: return "asleep";
    case ModelStage::kWaking: return "waking";
    case ModelStage::kDraining: return "draining";
    case ModelStage::kFailed: break;
  }
  return "failed";
}

Status ModelRegistry::check(const std::vector<ModelSource>& sources) {
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

ModelRegistry::ModelRegistry(std::vector<ModelSource> sources) {
  for (ModelSource& source : sources) {
    Entry& entry = entries_.emplace_back();
    entry.view.source = std::move(source);
    entry.initial = true;
  }
}

void ModelRegistry::sweep() const {
  std::erase_if(entries_, [](const Entry& entry) {
    return entry.view.stage == ModelStage::kDraining && !entry.being_loaded && entry.held.expired();
  });
}

const ModelRegistry::Entry* ModelRegistry::find_entry(std::string_view name) const {
  const auto found = std::ranges::find_if(entries_, [&](const Entry& e) { return has_name(e.view, name); });
  return found == entries_.end() ? nullptr : &*found;
}

ModelRegistry::Entry* ModelRegistry::find_first(std::string_view name) {
  const auto found = std::ranges::find_if(entries_, [&](const Entry& e) { return e.view.name() == name; });
  return found == entries_.end() ? nullptr : &*found;
}

ApiError ModelRegistry::nobody(std::string_view name) const {
  std::string known;
  for (const Entry& other : entries_) {
    if (other.view.stage == ModelStage::kDraining || other.view.stage == ModelStage::kFailed) continue;
    for (const std::string& one : other.view.source.names) known += (known.empty() ? "" : ", ") + one;
  }
  if (known.empty()) return no_such_model("no model is loaded");
  return no_such_model(fmt::format("there is no model {}; there is {}", name, known));
}

ApiError ModelRegistry::no_such(std::string_view name) const {
  const std::lock_guard lock(mutex_);
  return nobody(name);
}

ApiResult<std::shared_ptr<const ApiModel>> ModelRegistry::find(std::string_view name, bool asleep_too) const {
  const std::lock_guard lock(mutex_);
  sweep();
  if (name.empty() && entries_.size() > 1) return bad_request("model", "model: absent, and there are several models");
  const Entry* const entry = !name.empty() ? find_entry(name) : entries_.empty() ? nullptr : &entries_.front();
  if (entry != nullptr) {
    const ModelView& view = entry->view;
    switch (view.stage) {
      case ModelStage::kReady: return view.model;
      case ModelStage::kLoading:
        return not_now("loading", fmt::format("the model {} is loading", view.name()), kLoadingRetryS);
      case ModelStage::kFallingAsleep:
      case ModelStage::kAsleep:
      case ModelStage::kWaking:
        if (asleep_too) return view.model;
        return not_now(std::string(kAsleepCode), fmt::format("the model {} is {}", view.name(), name_of(view.stage)),
                       kLoadingRetryS);
      case ModelStage::kDraining: return no_such_model(fmt::format("the model {} is being unloaded", view.name()));
      case ModelStage::kFailed: return no_such_model(fmt::format("the model {} could not be loaded", view.name()));
    }
  }
  return nobody(name);
}

std::vector<ModelRegistry::Loaded> ModelRegistry::loaded() const {
  const std::lock_guard lock(mutex_);
  std::vector<Loaded> models;
  for (const Entry& entry : entries_)
    if (entry.view.model != nullptr) models.push_back({entry.view.model, entry.view.stage});
  return models;
}

std::optional<SleepView> ModelRegistry::sleep_of(std::string_view name) const {
  const std::lock_guard lock(mutex_);
  const Entry* const entry = !name.empty() ? find_entry(name) : entries_.size() == 1 ? &entries_.front() : nullptr;
  if (entry == nullptr || entry->view.model == nullptr || entry->view.stage == ModelStage::kReady) return std::nullopt;
  const ModelView& view = entry->view;
  return SleepView{view.name(), view.stage, view.wakes_on_request, view.moves, view.error};
}

bool ModelRegistry::ready() const {
  const std::lock_guard lock(mutex_);
  return std::ranges::none_of(entries_,
                              [](const Entry& e) { return e.initial && e.view.stage == ModelStage::kLoading; });
}

ApiStatus ModelRegistry::add(ModelSource source) {
  if (const Status checked = check({source}); !checked) return checked.error();
  const std::lock_guard lock(mutex_);
  sweep();
  const Entry* const old = find_first(source.names.front());
  const bool replaces = old != nullptr && old->view.stage == ModelStage::kFailed;
  for (const std::string& name : source.names) {
    const Entry* const other = find_entry(name);
    if (other == nullptr || (replaces && other == old)) continue;
    return conflict(fmt::format("there is a model called {}; it is {}", name, name_of(other->view.stage)));
  }
  if (replaces) entries_.erase(entries_.begin() + (old - entries_.data()));
  entries_.emplace_back().view.source = std::move(source);
  return {};
}

void ModelRegistry::progress(std::string_view name, int64_t loaded_bytes, int64_t total_bytes) {
  const std::lock_guard lock(mutex_);
  Entry* const entry = find_first(name);
  if (entry == nullptr) return;
  entry->view.loaded_bytes = loaded_bytes;
  entry->view.total_bytes = total_bytes;
}

void ModelRegistry::set_ready(std::string_view name, std::shared_ptr<const ServedModel> served) {
  std::vector<std::string> names;
  {
    const std::lock_guard lock(mutex_);
    const Entry* const entry = find_first(name);
    if (entry == nullptr) return;
    names = entry->view.source.names;
  }
  // Looks at every token of the vocabulary: not under the mutex.
  auto model = std::make_shared<const ApiModel>(make_api_model(std::move(names), std::move(served)));
  const std::lock_guard lock(mutex_);
  Entry* const entry = find_first(name);
  if (entry == nullptr || entry->view.stage != ModelStage::kLoading) return;
  entry->view.model = std::move(model);
  entry->view.stage = ModelStage::kReady;
  entry->being_loaded = false;
}

void ModelRegistry::set_failed(std::string_view name, Error error) {
  const std::lock_guard lock(mutex_);
  Entry* const entry = find_first(name);
  if (entry == nullptr) return;
  entry->view.stage = ModelStage::kFailed;
  entry->view.error = std::move(error);
}

ApiResult<bool> ModelRegistry::begin_move(std::string_view name_or_alias, bool to_sleep, bool wakes_on_request) {
  const std::lock_guard lock(mutex_);
  sweep();
  const Entry* const found = find_entry(name_or_alias);
  if (found == nullptr) return nobody(name_or_alias);
  ModelView& view = find_first(found->view.name())->view;
  if (view.stage != ModelStage::kFailed) view.error.reset();
  if (view.stage == (to_sleep ? ModelStage::kAsleep : ModelStage::kReady)) return false;
  const ModelStage from = to_sleep ? ModelStage::kReady : ModelStage::kAsleep;
  if (view.stage != from)
    return conflict(
        fmt::format("the model {} is {}; wanted one that is {}", view.name(), name_of(view.stage), name_of(from)));
  view.stage = to_sleep ? ModelStage::kFallingAsleep : ModelStage::kWaking;
  if (to_sleep) view.wakes_on_request = wakes_on_request;
  view.slept_for_it.clear();
  ++view.moves;
  return true;
}

void ModelRegistry::end_move(std::string_view name, bool to_sleep, Status status) {
  const std::lock_guard lock(mutex_);
  Entry* const entry = find_first(name);
  if (entry == nullptr) return;
  ModelView& view = entry->view;
  // Unloaded meanwhile, it stays so.
  if (view.stage != (to_sleep ? ModelStage::kFallingAsleep : ModelStage::kWaking)) return;
  view.stage = static_cast<bool>(status) == to_sleep ? ModelStage::kAsleep : ModelStage::kReady;
  if (!status) view.error = std::move(status).error();
}

void ModelRegistry::add_slept(std::string_view name, std::string sleeper) {
  const std::lock_guard lock(mutex_);
  if (Entry* const entry = find_first(name)) entry->view.slept_for_it.push_back(std::move(sleeper));
}

ApiResult<ModelView> ModelRegistry::retire(std::string_view name_or_alias) {
  const std::lock_guard lock(mutex_);
  sweep();
  const Entry* const found = find_entry(name_or_alias);
  if (found == nullptr) return nobody(name_or_alias);
  if (found->view.stage == ModelStage::kDraining)
    return conflict(fmt::format("the model {} is being unloaded already", found->view.name()));
  ModelView before = found->view;
  if (before.stage == ModelStage::kFailed) {
    entries_.erase(entries_.begin() + (found - entries_.data()));
    return before;
  }
  Entry& entry = entries_[static_cast<size_t>(found - entries_.data())];
  if (before.model != nullptr) entry.held = before.model->served;
  entry.view.model.reset();
  entry.view.stage = ModelStage::kDraining;
  return before;
}

void ModelRegistry::forget(std::string_view name) {
  const std::lock_guard lock(mutex_);
  std::erase_if(entries_, [&](const Entry& entry) { return entry.view.name() == name; });
}

std::optional<ModelView> ModelRegistry::view(std::string_view name_or_alias) const {
  const std::lock_guard lock(mutex_);
  sweep();
  const Entry* const entry = find_entry(name_or_alias);
  return entry == nullptr ? std::nullopt : std::optional(entry->view);
}

std::vector<ModelView> ModelRegistry::views() const {
  const std::lock_guard lock(mutex_);
  sweep();
  std::vector<ModelView> views;
  for (const Entry& entry : entries_) views.push_back(entry.view);
  return views;
}

}  // namespace hearth
