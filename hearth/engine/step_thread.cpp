// SPDX-License-Identifier: Apache-2.0
// The only thread of the engine that computes.
#include "hearth/engine/step_thread.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <new>

#include "hearth/base/caught.h"

namespace hearth {

void Step::clear() {
  model.reset();
  sequences.clear();
  for (auto* list : {&tokens, &positions, &query_start, &context_len, &logit_rows}) list->clear();
  block_table.clear();
  block_table_stride = 0;
  moves.clear();
  store.reset();
  memory_bytes = 0;
  moved = false;
  moving_ns = 0;
  from_place.clear();
  new_places.clear();
  owners.clear();
  rows.clear();
  results.clear();
  top.clear();
  features = {};
  predicted_us = 0;
  status = {};
  started = false;
  measured_ns = 0;
}

StepThread::StepThread(int threads, const Clock& clock, std::function<void()> on_finished)
    : pool_(threads), clock_(clock), on_finished_(std::move(on_finished)), thread_([this] { work(); }) {}

StepThread::~StepThread() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void StepThread::launch(std::unique_ptr<Step> step) {
  {
    const std::lock_guard lock(mutex_);
    launched_.push_back(std::move(step));
  }
  wake_.notify_one();
}

std::unique_ptr<Step> StepThread::finished() {
  const std::lock_guard lock(mutex_);
  if (finished_.empty()) return nullptr;
  std::unique_ptr<Step> step = std::move(finished_.front());
  finished_.pop_front();
  return step;
}

void StepThread::work() {
  // How often a step that runs alone is asked whether it has ended, in case the next one is launched before.
  constexpr std::chrono::microseconds kLook{50};
  std::unique_lock lock(mutex_);
  while (true) {
    if (under_way_.empty()) clock_.wait(wake_, lock, [this] { return stopping_ || !launched_.empty(); });
    if (under_way_.empty() && launched_.empty()) return;
    if (!launched_.empty() && can_start(*launched_.front())) {
      std::unique_ptr<Step> step = std::move(launched_.front());
      launched_.pop_front();
      lock.unlock();
      start(std::move(step));
      lock.lock();
      continue;
    }
    // A step that could follow may come while this one runs.
    if (launched_.empty() && std::ssize(under_way_) < ForwardBuffers::kMostUnderWay && under_way_.front()->started) {
      const Result<bool> done = under_way_.front()->model->buffers.is_done();
      if (done && !*done) {
        wake_.wait_for(lock, kLook);
        continue;
      }
    }
    lock.unlock();
    std::unique_ptr<Step> step = finish_oldest();
    lock.lock();
    finished_.push_back(std::move(step));
    lock.unlock();
    on_finished_();
    lock.lock();
  }
}

bool StepThread::can_start(const Step& next) const {
  if (under_way_.empty()) return true;
  const Step& last = *under_way_.back();
  // Blocks move only while no step reads them.
  return std::ssize(under_way_) < ForwardBuffers::kMostUnderWay && last.started && next.model == last.model &&
         next.moves.empty() && next.model->buffers.can_follow(next.rows);
}

void StepThread::start(std::unique_ptr<Step> step) {
  if (under_way_.empty()) last_ns_ = clock_.now_ns();
  if (step->store) {
    step->status = caught([&] { return resize(*step); });
  } else {
    step->status = compute(*step);
    step->started = static_cast<bool>(step->status);
  }
  under_way_.push_back(std::move(step));
}

std::unique_ptr<Step> StepThread::finish_oldest() {
  std::unique_ptr<Step> step = std::move(under_way_.front());
  under_way_.pop_front();
  if (step->started) {
    Status sampled = caught([&] { return step->model->buffers.finish(); });
    // Where rows failed, each of them says so itself; an error without such a row is one of the whole call.
    const auto failed = [](const SampleResult& result) { return result.outcome != SampleOutcome::kOk; };
    if (!sampled && std::ranges::none_of(step->results, failed)) step->status = std::move(sampled);
  }
  if (Status kept = caught([&]() -> Status { return keep_ids(*step), Status(); }); !kept)
    step->status = std::move(kept);
  step->measured_ns = clock_.now_ns() - last_ns_;
  last_ns_ += step->measured_ns;
  return step;
}

Status StepThread::resize(Step& step) {
  HEARTH_TRY(step.store->carry_out(step.moves));
  step.moved = true;
  return step.store->resize_memory(step.memory_bytes);
}

// Puts it into its way; on the host that is all of it.
Status StepThread::compute(Step& step) {
  ModelState& model = *step.model;
  for (Step::NewPlace& place : step.new_places) {
    model.sampled[static_cast<size_t>(place.place)] = std::move(place.outputs);
    ++model.tenants[static_cast<size_t>(place.place)];
  }
  for (const Step::FromPlace& from : step.from_place) {
    const auto place = static_cast<size_t>(from.place);
    const int32_t row = under_way_.empty() ? -1 : model.newest_row[place];
    step.tokens[static_cast<size_t>(from.token)] = row >= 0 ? -1 - row : model.sampled[place].back();
  }
  const StepBatch batch{.tokens = step.tokens,
                        .positions = step.positions,
                        .query_start = step.query_start,
                        .context_len = step.context_len,
                        .block_table = step.block_table,
                        .block_table_stride = step.block_table_stride,
                        .logit_rows = step.logit_rows};
  std::ranges::fill(model.newest_row, -1);
  for (size_t r = 0; r < step.rows.size(); ++r) {
    if (step.owners[r].prompt_index > 0) continue;
    const auto place = static_cast<size_t>(step.owners[r].place);
    step.rows[r].output_tokens = model.sampled[place];
    step.rows[r].slot = step.owners[r].place;
    step.rows[r].sequence = model.tenants[place];
    model.newest_row[place] = static_cast<int32_t>(r);
  }
  try {
    if (!step.moves.empty()) {
      const int64_t begin_ns = clock_.now_ns();
      HEARTH_TRY(model.store->carry_out(step.moves));
      step.moving_ns = clock_.now_ns() - begin_ns;
    }
    step.moved = true;
    return model.buffers.start(*model.served->model, batch, model.kv, model.comm, step.rows, step.results);
  } catch (const std::bad_alloc&) {
    return resource_exhausted("out of memory in a step");
  } catch (const std::exception& error) {
    return internal_error("a step threw: {}", error.what());
  }
}

// A row that failed has no id. Its sequence may already be in the next step, where any id does: that row is dropped.
void StepThread::keep_ids(Step& step) {
  for (size_t r = 0; r < step.rows.size(); ++r)
    if (step.owners[r].prompt_index == 0)
      step.model->sampled[static_cast<size_t>(step.owners[r].place)].push_back(std::max(step.results[r].token, 0));
}

}  // namespace hearth
