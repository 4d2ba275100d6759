// SPDX-License-Identifier: Apache-2.0
// Engine: continuous batching of many requests over one or more models. The only place where threads meet.
// docs/design/engine.md says how; in short: the planner thread plans step k + 1 while the step thread computes
// step k, and workers turn ids into text.
//   I1. Every choice of a submitted request gets exactly one Output with `finish`, its last, whatever happens.
//   I2. What a choice's stream says depends on its request alone, bit for bit: not on other requests, on how
//       its steps were cut, on preemption or on timing.
//   I3. KV blocks of a request are back in the pool once all of its choices have finished.
//   I4. A reader that does not read delays nobody: its sequence pauses.
//   I5. After a step that ended with DeviceLost none is begun: all requests end with that error, now and later.
// Any thread may call any method, none while the engine is destroyed.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/clock.h"
#include "hearth/base/result.h"
#include "hearth/engine/observer.h"
#include "hearth/engine/request.h"
#include "hearth/engine/service_terms.h"
#include "hearth/kv/kv_pool.h"
#include "hearth/schedule/attainment.h"

namespace hearth {

struct EngineOptions {
  int threads = 0;             // of the step's team; 0: one for each CPU but one, which HTTP and text need
  int text_workers = 2;        // threads for text, and as many for grammars
  int64_t max_sequences = 64;  // of one model in a step
  int64_t step_tokens = 512;   // of a step; prompts longer than that take several
  int64_t block_tokens = 16;   // of a KV block
  // Of the KV pool that all models of a device share, made with the first of them; 0: a quarter of the free memory,
  // on the CPU no more than what max_sequences whole contexts of that model need, or 1 GiB.
  int64_t kv_bytes = 0;
  // > 0: what weights, step buffers and the KV pool of a device may have together; the pool then has all that models
  // leave, or kv_bytes of it. 0: what the device has, and the pool never becomes larger than it was made.
  int64_t memory_bytes = 0;
  // Host memory for the KV of preempted sequences, where copying it takes less time than computing it again; 0: none.
  int64_t kv_swap_bytes = 0;
  // > 0: the pool is divided in so many equal parts, each one model's alone: the baseline to which sharing is compared.
  int64_t kv_parts = 0;
  std::string schedule = "slo";  // who gets the next step: make_local_policy()'s names
  Slo slo;                       // of requests that name none, of models that name none
  // A request whose first token would miss its target ends with ResourceExhausted, unless a choice of it was admitted.
  bool reject_hopeless = false;
  bool prefix_cache = true;    // KV of prompts and texts stays for requests that begin alike, while there is room
  bool decode_graphs = true;   // on a GPU: decode steps are recorded when a model is added, and replayed
  int64_t max_waiting = 1024;  // choices that wait to be admitted
  int64_t max_unread = 256;    // tokens of a choice that its reader has not consumed before it pauses
};

// Called by an engine thread, one call at a time for each request. Must not block or throw. The last call has
// the last choice's `finish`; none follows it.
using OnOutput = std::function<void(Output&&)>;

class Submission;  // internal to the engine

// The caller's end of a request. Destroying it before the request has finished cancels it.
class RequestHandle {
 public:
  RequestHandle() = default;
  explicit RequestHandle(std::shared_ptr<Submission> submission);
  RequestHandle(RequestHandle&&) noexcept = default;
  RequestHandle& operator=(RequestHandle&& other) noexcept;
  ~RequestHandle();

  // All choices end with kCancelled as soon as the step they are in has ended.
  void cancel() noexcept;
  // The reader has taken this many tokens of the choice (OutputToken and PromptLogprob alike): room for as many more.
  void consumed(int32_t choice, int64_t tokens);

 private:
  std::shared_ptr<Submission> submission_;
};

// What a model may have of the KV pool of its device, in bytes, rounded down to whole blocks.
struct MemoryLimits {
  int64_t guarantee_bytes = 0;  // it can take back from those who borrow; 0: an equal part of what others' leave
  int64_t cap_bytes = 0;        // 0: whatever the pool has
};

// Where a model is in its life: docs/design/engine.md.
enum class ModelPhase : uint8_t {
  kServing,
  kFallingAsleep,  // its requests run to their ends, new ones are refused
  kAsleep,
  kWaking,
};
std::string_view phase_name(ModelPhase phase);

// What a model will take of its device's memory, before anything of it is loaded: needs_of() (model_needs.h).
struct ModelNeeds {
  std::string name;
  int64_t weight_bytes = 0;
  int64_t buffer_bytes = 0;    // of its steps
  int64_t least_kv_bytes = 0;  // without which it could not serve
  int64_t guaranteed_kv_bytes = 0;
};

// How long a call that waits for requests or for memory does so.
struct Patience {
  static constexpr int64_t kForeverUs = int64_t{1} << 52;
  int64_t wait_us = 30'000'000;
  int64_t waited_us = 0;                    // of that, gone already
  const std::atomic<bool>* stop = nullptr;  // once true, it ends with Cancelled; may be null
};

// Memory that was made free for a model that is being loaded, and is nobody else's until this goes. May outlive the
// engine.
class MemoryRoom {
 public:
  MemoryRoom() = default;

 private:
  friend class Engine;
  std::shared_ptr<void> held_;
};

// The memory of a device as the engine sees it.
struct DeviceMemoryStats {
  std::string device;
  int64_t total_bytes = 0;  // of all the following, and what is free
  int64_t model_bytes = 0;  // weights and step buffers, also of models that were removed and are still held
  int64_t room_bytes = 0;   // made for models that are being loaded
  int64_t pool_bytes = 0;   // of KV
};

// A model's numbers at one moment.
struct ModelStats {
  std::string model;
  ModelPhase phase = ModelPhase::kServing;
  bool pinned = false;
  MemoryLimits limits;       // as set_limits() was told
  int64_t weight_bytes = 0;  // in the memory of its device; 0 while it is asleep, but on the host
  int64_t running = 0;       // choices admitted
  int64_t waiting = 0;       // choices not yet admitted, or preempted
  int64_t kv_blocks = 0;
  int64_t kv_blocks_used = 0;
  int64_t block_tokens = 0;
  int64_t max_sequences = 0;
  KvModelStats kv;  // in the pool that it shares
  Slo slo;          // of requests that name none
  SloCounts attainment;
  double weight = 1;
  double device_s = 0;      // that its steps took, since it was added
  int64_t swapped_out = 0;  // preemptions that kept their KV in host memory
  int64_t swap_bytes = 0;   // of host memory in use, by all models of the device
  int64_t used_us = 0;      // when a request of it came or ended last, by the engine's clock; 0: none has
};

class Engine {
 public:
  // `observer` may be null; it outlives the engine. Starts the threads.
  static Result<std::unique_ptr<Engine>> create(const EngineOptions& options, EngineObserver* observer,
                                                const Clock& clock);
  // Cancels what is left and joins.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Sets the model's buffers aside, and the KV pool with the first. InvalidArgument: a model of that name is there;
  // ResourceExhausted: no memory, with what was wanted.
  // `room`: from make_room(), where its weights were loaded into it; without one, what its buffers lack is taken from
  // the pool now.
  Status add_model(std::shared_ptr<const ServedModel> model, const ServiceTerms& terms = {}, MemoryRoom room = {});

  // Makes room for a model that will be loaded to `memory`: the KV pool gives what is missing, caches first; running
  // requests go on, and new ones wait where they are in the way. Hold the room while the model is loaded, and hand it
  // to add_model(). ResourceExhausted, with the arithmetic, at once: it can never fit, or not beside the models that are
  // there. DeadlineExceeded and Cancelled, with what was waited for: `patience` ended, and nothing has changed.
  Result<MemoryRoom> make_room(const Memory& memory, const ModelNeeds& needs, const Patience& patience = {});
  // Bytes that make_room() would lack now, were it to wait for all requests; 0: none. Those that others would give back
  // by falling asleep. Errors as make_room(), but that it refuses nothing.
  Result<int64_t> lacking_bytes(const Memory& memory, const ModelNeeds& needs, const Patience& patience = {});
  // What a model that sleeps will take when it wakes. NotFound.
  Result<ModelNeeds> needs_to_wake(const std::string& name) const;

  // Its requests run to their ends, new ones are refused (Unavailable); then its KV goes back to the pool and, on a
  // device, its weights to pinned host memory and their pages to whoever wants them. Returns when that is so, at once
  // where it is already. On the host weights stay: it is the same memory. The step buffers stay in any case. NotFound;
  // InvalidArgument: it is pinned; Unavailable: it is on its way to or from sleep; DeadlineExceeded and Cancelled:
  // `patience` ended before its requests did, and it serves on.
  Status sleep_model(const std::string& name, const Patience& patience = {.wait_us = Patience::kForeverUs});
  // The other way, bit for bit; at once where it serves. Errors as make_room() and Unavailable; it sleeps on then.
  Status wake_model(const std::string& name, const Patience& patience = {});

  // New requests for it are refused; those that run finish, then its memory is given back: weights with the last
  // handle. What nobody wants goes to the KV pool. NotFound.
  Status remove_model(const std::string& name);

  // From now on, for what is allocated next: nobody's blocks are taken at once. A pinned model is not put to sleep, and
  // what it is guaranteed by set_limits() is lent to nobody. Each waits for the planner, some milliseconds. NotFound;
  // InvalidArgument: a cap below one block or the guarantee; ResourceExhausted, with the arithmetic, and nothing is
  // changed: guarantees together are more than the pool, or a request under way needs more than would be left for it;
  // Unavailable while the model is not serving; Unsupported with kv_parts.
  Status set_limits(const std::string& name, const MemoryLimits& limits);
  Status pin(const std::string& name, bool pinned);

  // Tokens of this model that the KV pool holds: no request may need more. 0: the model was not added.
  int64_t kv_tokens(const ServedModel& model) const;

  // Takes a request, checked against its model, or says why not: InvalidArgument; NotFound for a model that was not
  // added; ResourceExhausted where max_waiting choices wait; Unavailable while draining; device()'s error.
  Result<RequestHandle> submit(Request request, OnOutput on_output);

  // From now on submit() refuses. Returns whether nothing runs any more.
  bool drain();

  // DeviceLost, with what the device said first, once a step has ended so. For good: nothing in this process can use
  // the device any more, and who runs the engine ends the process.
  Status device() const;

  std::vector<ModelStats> stats() const;
  // The KV pools, one for each device that models lie on, a tenth of a second old at most.
  std::vector<KvPoolStats> kv_stats() const;
  std::vector<DeviceMemoryStats> memory_stats() const;

 private:
  struct Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The checks of submit() that need no engine: InvalidArgument naming the field, what was found and wanted.
Status validate(const Request& request);

}  // namespace hearth
