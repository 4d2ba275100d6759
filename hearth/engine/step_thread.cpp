// SPDX-License-Identifier: Apache-2.0
// The only thread of the engine that computes.
#include "hearth/engine/step_thread.h"

#include <algorithm>
#include <new>

namespace hearth {

void Step::clear() {
  model.reset();
  sequences.clear();
  for (auto* list : {&tokens, &positions, &query_start, &context_len, &logit_rows}) list->clear();
  block_table.clear();
  block_table_stride = 0;
  from_place.clear();
  new_places.clear();
  owners.clear();
  rows.clear();
  results.clear();
  top.clear();
  features = {};
  predicted_us = 0;
  status = {};
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
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stopping_ || !launched_.empty(); });
    if (launched_.empty()) return;
    std::unique_ptr<Step> step = std::move(launched_.front());
    launched_.pop_front();
    lock.unlock();
    const int64_t begin_ns = clock_.now_ns();
    step->status = compute(*step);
    keep_ids(*step);
    step->measured_ns = clock_.now_ns() - begin_ns;
    lock.lock();
    finished_.push_back(std::move(step));
    lock.unlock();
    on_finished_();
    lock.lock();
  }
}

Status StepThread::compute(Step& step) {
  ModelState& model = *step.model;
  for (Step::NewPlace& place : step.new_places) {
    model.sampled[static_cast<size_t>(place.place)] = std::move(place.outputs);
    ++model.tenants[static_cast<size_t>(place.place)];
  }
  for (const Step::FromPlace& from : step.from_place) {
    step.tokens[static_cast<size_t>(from.token)] = model.sampled[static_cast<size_t>(from.place)].back();
  }
  const StepBatch batch{.tokens = step.tokens,
                        .positions = step.positions,
                        .query_start = step.query_start,
                        .context_len = step.context_len,
                        .block_table = step.block_table,
                        .block_table_stride = step.block_table_stride,
                        .logit_rows = step.logit_rows};
  try {
    for (size_t r = 0; r < step.rows.size(); ++r) {
      if (step.owners[r].prompt_index > 0) continue;
      const auto place = static_cast<size_t>(step.owners[r].place);
      step.rows[r].output_tokens = model.sampled[place];
      step.rows[r].slot = step.owners[r].place;
      step.rows[r].sequence = model.tenants[place];
    }
    Status sampled =
        forward_and_sample(*model.served->model, batch, model.kv, model.comm, model.buffers, step.rows, step.results);
    // Where rows failed, each of them says so itself; an error without such a row is one of the whole call.
    const auto failed = [](const SampleResult& result) { return result.outcome != SampleOutcome::kOk; };
    if (!sampled && std::ranges::none_of(step.results, failed)) return sampled;
    return {};
  } catch (const std::bad_alloc&) {
    return resource_exhausted("out of memory in a step");
  }
}

// A row that failed has no id. Its sequence may already be in the next step, where any id does: that row is dropped.
void StepThread::keep_ids(Step& step) {
  for (size_t r = 0; r < step.rows.size(); ++r)
    if (step.owners[r].prompt_index == 0)
      step.model->sampled[static_cast<size_t>(step.owners[r].place)].push_back(std::max(step.results[r].token, 0));
}

}  // namespace hearth
