// SPDX-License-Identifier: Apache-2.0
// Planner: the loop plan / launch / collect. Owns all sequences, places and KV blocks; plans step k + 1 while the
// step thread computes step k, so that a device never waits for the host, and learns one step late what was
// sampled.
//   P1. At most two steps are with the step thread: one computing, one waiting.
//   P2. Blocks and the place of a sequence are given back only when it is in no step in flight.
// One thread runs run(); others speak through the inbox and the flags of submissions.
#pragma once

#include <algorithm>
#include <atomic>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "hearth/base/clock.h"
#include "hearth/engine/engine.h"
#include "hearth/engine/inbox.h"
#include "hearth/engine/step.h"
#include "hearth/engine/step_thread.h"
#include "hearth/schedule/local_policy.h"
#include "hearth/schedule/step_queue.h"

namespace hearth {

// Numbers that other threads read while the planner writes them.
struct SharedStats {
  mutable std::mutex mutex;
  std::vector<ModelStats> models;       // guarded by mutex
  std::vector<KvPoolStats> kv_pools;    // guarded by mutex
  std::optional<Error> lost;            // guarded by mutex; the device computes nothing any more
  std::atomic<int64_t> waiting = 0;     // choices submitted and not admitted
  std::atomic<int64_t> unfinished = 0;  // choices submitted and not done
};

class Planner {
 public:
  Planner(std::shared_ptr<Inbox> inbox, StepThread& steps, EngineObserver* observer, const Clock& clock,
          std::unique_ptr<LocalPolicy> policy, int64_t max_unread, bool reject_hopeless, SharedStats& stats)
      : inbox_(std::move(inbox)),
        steps_(steps),
        observer_(observer),
        clock_(clock),
        max_unread_(max_unread),
        reject_hopeless_(reject_hopeless),
        stats_(stats),
        policy_(std::move(policy)) {}

  // Returns after stop(), when every choice has ended.
  void run();
  // Any thread: cancel all, then return.
  void stop();

  // In a call that the inbox brings (Message::ask). Errors as Engine::set_limits().
  Status set_limits(ModelState& model, const MemoryLimits& limits, bool pinned);
  // As when it is removed: `left` is kept once its last sequence has gone and it has no blocks any more.
  // InvalidArgument: it is pinned. NotFound: it has left.
  Status retire(ModelState& model, std::promise<void> left);
  // Takes retire() back, unless the model has left already: then false.
  bool stay(ModelState& model);
  // The least slabs that leave each model what it is guaranteed by its limits, and each its least context beside what
  // pinned ones keep.
  struct KvFloor {
    int64_t guaranteed_slabs = 0;
    int64_t context_slabs = 0;
    int64_t slabs() const { return std::max(guaranteed_slabs, context_slabs); }
  };
  // With `newcomer`, which is not in the pool.
  KvFloor kv_floor(const KvStore& store, const ModelNeeds& newcomer) const;
  // The pool goes to `slabs`, between steps, a bite at a time: it ends there once no live block and no request's need is
  // in the way. Replaces what was wanted before.
  void resize_pool(const std::shared_ptr<KvStore>& store, int64_t slabs);

 private:
  void handle(Message& message);
  void submit(const std::shared_ptr<Submission>& submission);
  void cancel(Sequence& sequence);
  void choice_done(ModelState& model, Sequence& sequence);
  void count_attainment(ModelState& model, const Sequence& sequence);
  ModelState* state_of(const Request& request);
  void look_at_flags();

  // One step of the next model that has work. False: nothing can be fed now.
  bool plan_and_launch();
  void look_at_models(std::span<const int64_t> skipped);
  Turn next_turn(std::span<const int64_t> skipped);
  bool refuse(const Hopeless& hopeless);
  PolicyLimits limits(const ModelState& model) const;
  int64_t due_us(const Sequence& sequence) const;
  // When the steps under way will have ended, as far as is known.
  int64_t free_us() const { return under_way_.free_us(clock_.now_ns() / 1000); }
  StepChoice choose(const ModelState& model, const Turn& turn);
  std::unique_ptr<Step> plan(const std::shared_ptr<ModelState>& model, const Turn& turn);
  PolicySequence view(const ModelState& model, Sequence& sequence);
  bool reader_keeps_up(Sequence& sequence) const;
  int64_t own_blocks(const ModelState& model, const Sequence& sequence) const;
  void allocate(ModelState& model, const StepChoice& choice);
  void admit(ModelState& model, Sequence& sequence);
  void preempt(ModelState& model, Sequence& sequence);
  void give_back(ModelState& model, Sequence& sequence);
  // Preemption to host memory: planner_swap.cpp.
  void swap_out(ModelState& model, Sequence& sequence);
  void swap_in(ModelState& model, Sequence& sequence);
  void drop_swapped(ModelState& model, Sequence& sequence);
  void lose_blocks(const KvStore& store, const Error& why);
  // The KV pool that models share: planner_limits.cpp and planner_kv.cpp.
  Result<int64_t> add_to_store(ModelState& model);
  void leave_store(ModelState& model);
  struct Lifted {
    KvModelId model = 0;
    int64_t blocks = 0;
  };
  void share_store(KvStore& store, std::optional<Lifted> lifted);
  int64_t needed_blocks(const ModelState& model, const Sequence& sequence) const;
  Sequence* lifted_for(const ModelState& model) const;
  Sequence* first_in_need(const ModelState& model) const;
  bool lift(ModelState& model, Sequence& sequence, bool goes_on);
  int64_t blocks_to_keep(ModelState& model);
  bool launch_bite();
  std::unique_ptr<Step> plan_bite(const std::shared_ptr<KvStore>& store);
  void collect_bite(std::unique_ptr<Step> step);
  std::unique_ptr<Step> spare_step();
  int64_t least_kept(const ModelState& model) const;
  Status check_guarantees(const KvStore& store) const;
  Status check_requests(const KvStore& store) const;
  void look_up(const ModelState& model, Sequence& sequence);
  void match(ModelState& model, Sequence& sequence);
  void know_keys(const ModelState& model, Sequence& sequence, int64_t blocks);
  void publish(ModelState& model, Sequence& sequence, int64_t computed);
  void make_room(ModelState& model, const StepChoice& choice);
  void give_way(ModelState& model);
  std::vector<KvStore*> stores() const;
  void look_at_clock();
  bool drop_shares(ModelState& model);
  void leave_share(ModelState& model, Sequence& sequence);
  void keep_share(ModelState& model, Sequence& sequence);
  void add_to_step(Step& step, Sequence& sequence, int64_t tokens);
  void add_row(Step& step, Sequence& sequence, int64_t token_index, int64_t prompt_index);
  void finish_arrays(Step& step);

  void collect(std::unique_ptr<Step> step);
  void collect_row(Step& step, size_t row, std::vector<float>& ttft_s, std::vector<float>& inter_token_s,
                   int64_t& generated);
  void end(Sequence& sequence, FinishReason reason, std::optional<Error> error);
  void lose_device(const Step& step);
  void sweep(ModelState& model);
  void tell(const ModelState& model, ModelStats& stats) const;
  void publish();

  std::shared_ptr<Inbox> inbox_;
  StepThread& steps_;
  EngineObserver* const observer_;
  const Clock& clock_;
  const int64_t max_unread_;
  const bool reject_hopeless_;
  SharedStats& stats_;
  std::atomic<bool> stopping_ = false;
  std::optional<Error> lost_;  // of the first step that ended with DeviceLost

  std::vector<std::shared_ptr<ModelState>> models_;
  const std::unique_ptr<LocalPolicy> policy_;
  int64_t turns_ = 0;
  StepQueue under_way_;
  int in_flight_ = 0;
  int64_t step_count_ = 0;
  int64_t arrivals_ = 0;
  std::vector<std::unique_ptr<Step>> spare_steps_;
  std::vector<std::shared_ptr<KvStore>> resizing_;  // that are not as large as is wanted
  bool bitten_ = false;                             // what was launched last was a bite
  std::vector<std::vector<PolicySequence>> views_;  // by model, of this plan
  std::vector<LocalModel> locals_;
  std::vector<PolicySequence> ordered_;
  int64_t lookups_ = 0;  // of waiting sequences in the prefix cache, at this plan
  int64_t window_begin_ns_ = 0, kv_told_ns_ = 0;
};

}  // namespace hearth
