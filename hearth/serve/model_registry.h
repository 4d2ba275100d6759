// SPDX-License-Identifier: Apache-2.0
// ModelRegistry: the models of a server by the names that requests use, from the order to load one until its memory is
// back. Models come and go while requests run.
//   I1. No two models share a name or an alias, whatever state they are in.
//   I2. Who found a model holds it: it stays whole to the last byte of the answer.
//   I3. A model that drains keeps its names until its last holder has let go, so that a name never means two models.
//
//   life of a model: loading -> ready -> falling asleep -> asleep -> waking -> ready, each of them -> draining -> gone
//                    loading -> failed (kept, to be read) -> gone or loading again
// Any thread may call any method.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
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
  // Of this model alone; unset: the server's.
  std::optional<int64_t> max_context = {};
  std::optional<KvFormatId> kv_format = {};
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

enum class ModelStage : uint8_t { kLoading, kReady, kFallingAsleep, kAsleep, kWaking, kDraining, kFailed };
std::string_view name_of(ModelStage stage);

// The code of the 503 that says so.
inline constexpr std::string_view kAsleepCode = "asleep";

// A model as it was at one moment.
struct ModelView {
  ModelSource source;
  ModelStage stage = ModelStage::kLoading;
  int64_t loaded_bytes = 0, total_bytes = 0;  // kLoading; 0 of 0: it waits for its turn
  std::optional<Error> error;                 // kFailed; else why it did not fall asleep, or wake, the last time
  std::shared_ptr<const ApiModel> model;      // from kReady to kWaking
  bool wakes_on_request = false;              // from kFallingAsleep to kWaking: the next request wakes it
  int64_t moves = 0;                          // to sleep and from it, that were begun
  std::vector<std::string> slept_for_it;      // idle models that sleep so that it could be loaded, or woken

  const std::string& name() const { return source.names.front(); }
};

// How a model stands that sleeps, or is on its way.
struct SleepView {
  std::string name;  // its first one
  ModelStage stage = ModelStage::kAsleep;
  bool wakes_on_request = false;
  int64_t moves = 0;
  std::optional<Error> error;
};

class ModelRegistry {
 public:
  // InvalidArgument: a model without a name, or two of one name.
  static Status check(const std::vector<ModelSource>& sources);

  // All of them are loading. REQUIRES: check(sources).
  explicit ModelRegistry(std::vector<ModelSource> sources);

  // ---- for requests
  // The model that a request names. An empty name means the only one there is. 404, with the names there are; 503 with
  // Retry-After while it loads or sleeps.
  ApiResult<std::shared_ptr<const ApiModel>> find(std::string_view name) const { return find(name, false); }
  // What it says of a name that nobody has.
  ApiError no_such(std::string_view name) const;
  // For what needs no weights: models that sleep are found too.
  ApiResult<std::shared_ptr<const ApiModel>> find_asleep_too(std::string_view name) const { return find(name, true); }
  // Nullopt: it neither sleeps nor moves. By any of its names.
  std::optional<SleepView> sleep_of(std::string_view name) const;
  // Those that are loaded, asleep or not, in the order in which they came.
  struct Loaded {
    std::shared_ptr<const ApiModel> model;
    ModelStage stage = ModelStage::kReady;
  };
  std::vector<Loaded> loaded() const;
  // Whether the models that the server was started with are there. Those that come later do not count.
  bool ready() const;

  // ---- for who brings and takes models; each is named by its first name
  // A new one that loads. 409: a name is taken. One that failed gives up its first name, and with it its entry.
  ApiStatus add(ModelSource source);
  void progress(std::string_view name, int64_t loaded_bytes, int64_t total_bytes);
  void set_ready(std::string_view name, std::shared_ptr<const ServedModel> served);
  void set_failed(std::string_view name, Error error);
  // From kReady to kFallingAsleep, or from kAsleep to kWaking. False: it is where this leads to, nothing is to be done.
  // 404; 409: it is elsewhere.
  ApiResult<bool> begin_move(std::string_view name_or_alias, bool to_sleep, bool wakes_on_request = false);
  // The end of that: kAsleep or kReady, or where it was before, with the error.
  void end_move(std::string_view name, bool to_sleep, Status status);
  void add_slept(std::string_view name, std::string sleeper);
  // No request finds it from now on. Returns it as it was: a loading one is whoever loads it to end and forget().
  // 404; 409 where it drains already.
  ApiResult<ModelView> retire(std::string_view name_or_alias);
  void forget(std::string_view name);

  // By any of its names; nullopt: there is none.
  std::optional<ModelView> view(std::string_view name_or_alias) const;
  std::vector<ModelView> views() const;

 private:
  struct Entry {
    ModelView view;
    bool initial = false;                   // of the server's start
    bool being_loaded = true;               // until it is ready, or whoever loads it says forget()
    std::weak_ptr<const ServedModel> held;  // kDraining: expires with the last holder
  };

  ApiResult<std::shared_ptr<const ApiModel>> find(std::string_view name, bool asleep_too) const;
  ApiError nobody(std::string_view name) const;          // holding mutex_, as all of these
  const Entry* find_entry(std::string_view name) const;  // by any name
  Entry* find_first(std::string_view name);
  void sweep() const;  // pointers to entries end here

  mutable std::mutex mutex_;
  mutable std::vector<Entry> entries_;  // guarded by mutex_
};

}  // namespace hearth
