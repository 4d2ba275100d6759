// SPDX-License-Identifier: Apache-2.0
// Ids to text, one worker at a time for each request; the reader is called from here and nowhere else.
#include "hearth/engine/submission.h"

#include <algorithm>
#include <new>

#include "hearth/base/log.h"

namespace hearth {
namespace {

// A grammar that reaches one of its limits does so at every try: that is the request's fault, not want of resources.
Status blame_grammar(Status status) {
  if (status || status.error().code != ErrorCode::kResourceExhausted) return status;
  return invalid_argument("{}", status.error().message);
}

}  // namespace

Submission::Submission(Request request, OnOutput on_output, WorkerPool& workers, std::shared_ptr<Inbox> inbox,
                       int64_t submitted_ns)
    : request_(std::move(request)),
      on_output_(std::move(on_output)),
      workers_(workers),
      inbox_(std::move(inbox)),
      submitted_ns_(submitted_ns) {}

Result<std::shared_ptr<Submission>> Submission::create(Request request, OnOutput on_output, WorkerPool& workers,
                                                       std::shared_ptr<Inbox> inbox, int64_t submitted_ns) {
  std::shared_ptr<Submission> submission(
      new Submission(std::move(request), std::move(on_output), workers, std::move(inbox), submitted_ns));
  const Request& r = submission->request_;
  for (int32_t i = 0; i < r.n; ++i) {
    HEARTH_TRY_ASSIGN(
        Detokenizer detokenizer,
        Detokenizer::create(
            r.model->tokenizer,
            {.skip_special = r.skip_special, .continues_text = true, .stop = r.stop, .include_stop = r.include_stop}));
    submission->choices_.push_back(std::make_unique<Choice>(std::move(detokenizer)));
  }
  submission->open_choices_ = r.n;
  return submission;
}

void Submission::push(TokenEvent event) {
  if (event.kind == TokenEvent::Kind::kToken || event.kind == TokenEvent::Kind::kPrompt)
    at(event.choice).pushed.fetch_add(1, std::memory_order_relaxed);
  const std::lock_guard lock(mutex_);
  events_.push_back(std::move(event));
}

void Submission::flush() {
  {
    const std::lock_guard lock(mutex_);
    if (scheduled_ || events_.empty()) return;
    scheduled_ = true;
  }
  workers_.post([self = shared_from_this()] { self->process(); });
}

int64_t Submission::unread(int32_t choice) const {
  const Choice& c = at(choice);
  return c.pushed.load(std::memory_order_relaxed) - c.read.load();
}

void Submission::wait_for_reader(int32_t choice) { at(choice).reader_awaited.store(true); }

void Submission::consumed(int32_t choice, int64_t tokens) noexcept {
  if (choice < 0 || choice >= std::ssize(choices_)) return;
  Choice& c = at(choice);
  c.read.fetch_add(tokens);
  if (c.reader_awaited.exchange(false)) inbox_->poke();
}

void Submission::cancel() noexcept {
  if (std::ranges::all_of(choices_, [](const auto& choice) { return choice->done.load(); })) return;
  cancelled_.store(true);
  inbox_->poke();
}

void Submission::process() {
  std::vector<TokenEvent> events;
  while (true) {
    {
      const std::lock_guard lock(mutex_);
      events.clear();
      events.swap(events_);
      if (events.empty()) {
        scheduled_ = false;
        return;
      }
    }
    try {
      process(events);
    } catch (const std::exception& error) {
      SPDLOG_ERROR("request {}: its text failed: {}", request_.id, error.what());
      fail_all();
    }
  }
}

// Successive events of a choice become one output.
void Submission::process(std::vector<TokenEvent>& events) {
  for (size_t at_event = 0; at_event < events.size();) {
    Output output;
    output.choice = events[at_event].choice;
    for (; at_event < events.size() && events[at_event].choice == output.choice; ++at_event)
      handle(events[at_event], output);
    emit(std::move(output));
  }
}

void Submission::handle(TokenEvent& event, Output& output) {
  Choice& choice = at(event.choice);
  if (choice.ended) return;
  Status status;
  switch (event.kind) {
    case TokenEvent::Kind::kStart: status = next_mask(choice); break;
    case TokenEvent::Kind::kPrompt: output.prompt.push_back(std::move(event.prompt)); break;
    case TokenEvent::Kind::kToken: status = take_token(event, output); break;
    case TokenEvent::Kind::kEnd: end(output, event.reason, std::move(event.error)); break;
  }
  if (!status) end(output, FinishReason::kError, std::move(status).error());
}

Status Submission::take_token(TokenEvent& event, Output& output) {
  Choice& choice = at(event.choice);
  const int32_t id = event.token.id;
  ++choice.tokens;
  output.tokens.push_back(std::move(event.token));
  if (event.stop_token) {
    output.stop_token = id;
    end(output, FinishReason::kStop, {});
    return {};
  }
  HEARTH_TRY_ASSIGN(output.tokens.back().text, choice.detokenizer.push(id));
  if (const auto hit = choice.detokenizer.stop_hit()) {
    output.stop_text = request_.stop[static_cast<size_t>(*hit)];
    end(output, FinishReason::kStop, {});
    return {};
  }
  if (!choice.grammar) return {};
  HEARTH_TRY(blame_grammar(choice.grammar->accept(id)));
  if (choice.grammar->finished()) {
    end(output, FinishReason::kStop, {});
    return {};
  }
  return next_mask(choice);
}

Status Submission::next_mask(Choice& choice) {
  if (!request_.grammar) return {};
  if (!choice.grammar) {
    choice.grammar = request_.grammar->start();
    choice.mask.resize(static_cast<size_t>((request_.model->model->config().vocab_size + 31) / 32));
  }
  HEARTH_TRY(blame_grammar(choice.grammar->fill_allowed(choice.mask)));
  choice.mask_ready.store(true);
  inbox_->poke();
  return {};
}

void Submission::end(Output& output, FinishReason reason, std::optional<Error> error) {
  Choice& choice = at(output.choice);
  choice.ended = true;
  choice.reason = reason;
  output.finish = reason;
  output.error = std::move(error);
  output.shared_prompt_tokens = choice.told_shared = choice.shared_prompt_tokens.load();
  if (reason != FinishReason::kError) {
    auto rest = choice.detokenizer.flush();
    if (rest) output.rest = std::move(rest).value();
  }
}

void Submission::emit(Output&& output) {
  const int32_t index = output.choice;
  const bool last_of_choice = output.finish.has_value();
  if (!last_of_choice && output.tokens.empty() && output.prompt.empty()) return;
  on_output_(std::move(output));
  if (last_of_choice) close(index);
}

// The reader has the choice's end, or cannot be told; the planner is told in any case.
void Submission::close(int32_t choice) noexcept {
  if (--open_choices_ == 0) on_output_ = nullptr;
  at(choice).done.store(true);
  inbox_->poke();
}

// Ends what has not ended with an error that needs no memory: there may be none.
void Submission::fail_all() noexcept {
  for (int32_t i = 0; i < std::ssize(choices_); ++i) {
    Choice& choice = at(i);
    if (choice.done.load()) continue;
    choice.ended = true;
    choice.reason = FinishReason::kError;
    try {
      Output output;
      output.choice = i;
      output.finish = FinishReason::kError;
      output.error = resource_exhausted("out of memory");
      on_output_(std::move(output));
    } catch (const std::exception& error) {
      SPDLOG_ERROR("request {}: its reader cannot be told of its end: {}", request_.id, error.what());
    }
    close(i);
  }
}

}  // namespace hearth
