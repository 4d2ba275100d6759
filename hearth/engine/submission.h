// SPDX-License-Identifier: Apache-2.0
// Submission: a request inside the engine, as its text sees it. The planner pushes what the steps bring; workers
// turn it into text, advance grammars, look for stop strings and call the reader. Where a text ends is decided
// here, because only here is it known.
//   I1. process() runs on one worker at a time; events of a choice are handled in the order of their pushing.
//   I2. After a choice's end every further event of it is dropped: tokens behind a stop are neither seen nor
//       counted.
//   I3. Every choice ends, also where memory does: the reader's call may fail, the planner is told all the same.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "hearth/base/worker_pool.h"
#include "hearth/engine/engine.h"
#include "hearth/engine/inbox.h"
#include "hearth/text/detokenizer.h"

namespace hearth {

// What a step brings to a choice.
struct TokenEvent {
  int32_t choice = 0;
  enum class Kind : uint8_t { kStart, kToken, kPrompt, kEnd } kind = Kind::kToken;
  OutputToken token{};                          // kToken: without its text
  PromptLogprob prompt{};                       // kPrompt
  bool stop_token = false;                      // kToken: it is one of the ids that end the text
  FinishReason reason = FinishReason::kLength;  // kEnd
  std::optional<Error> error{};                 // kEnd
};

class Submission : public std::enable_shared_from_this<Submission> {
 public:
  // InvalidArgument for stop strings that the detokenizer refuses.
  static Result<std::shared_ptr<Submission>> create(Request request, OnOutput on_output, WorkerPool& workers,
                                                    std::shared_ptr<Inbox> inbox, int64_t submitted_ns);

  const Request& request() const { return request_; }
  int64_t submitted_ns() const { return submitted_ns_; }

  // ---- by the planner
  void push(TokenEvent event);
  // Schedules a worker for what was pushed. Once per step and submission.
  void flush();
  // Tokens that were pushed and not yet consumed by the reader.
  int64_t unread(int32_t choice) const;
  // consumed() wakes the planner from now on, once.
  void wait_for_reader(int32_t choice);
  bool cancelled() const { return cancelled_.load(); }
  // With a grammar: whether the mask of the next token has come since the last call. It is stable until that token is
  // pushed.
  bool take_mask_ready(int32_t choice) { return at(choice).mask_ready.exchange(false); }
  std::span<const uint32_t> mask(int32_t choice) const { return at(choice).mask; }
  // The choice's text has ended and the reader knows it, or cannot be told.
  bool done(int32_t choice) const { return at(choice).done.load(); }
  // After done(): the end as the text saw it.
  FinishReason reason(int32_t choice) const { return at(choice).reason; }
  int64_t generated_tokens(int32_t choice) const { return at(choice).tokens; }
  int64_t shared_prompt_tokens(int32_t choice) const { return at(choice).told_shared; }
  // Whether any choice was ever admitted.
  bool begun() const { return begun_; }
  void set_begun() { begun_ = true; }
  // To be told with the choice's end.
  void set_shared_prompt_tokens(int32_t choice, int64_t tokens) { at(choice).shared_prompt_tokens = tokens; }

  // ---- by the reader's side, any thread
  void cancel() noexcept;
  void consumed(int32_t choice, int64_t tokens) noexcept;

 private:
  struct Choice {
    explicit Choice(Detokenizer d) : detokenizer(std::move(d)) {}
    Detokenizer detokenizer;
    std::optional<GrammarState> grammar;
    std::vector<uint32_t> mask;
    bool ended = false;  // nothing more is taken from the steps
    FinishReason reason = FinishReason::kLength;
    int64_t tokens = 0;
    int64_t told_shared = 0;
    std::atomic<int64_t> shared_prompt_tokens = 0;
    std::atomic<int64_t> pushed = 0, read = 0;
    std::atomic<bool> reader_awaited = false;
    std::atomic<bool> mask_ready = false;
    std::atomic<bool> done = false;
  };

  Submission(Request request, OnOutput on_output, WorkerPool& workers, std::shared_ptr<Inbox> inbox,
             int64_t submitted_ns);
  Choice& at(int32_t choice) { return *choices_[static_cast<size_t>(choice)]; }
  const Choice& at(int32_t choice) const { return *choices_[static_cast<size_t>(choice)]; }

  void process();
  void process(std::vector<TokenEvent>& events);
  void handle(TokenEvent& event, Output& output);
  // Text of one token, and whether it ends the choice.
  Status take_token(TokenEvent& event, Output& output);
  Status next_mask(Choice& choice);
  void end(Output& output, FinishReason reason, std::optional<Error> error);
  void fail_all() noexcept;
  void emit(Output&& output);
  void close(int32_t choice) noexcept;

  Request request_;
  OnOutput on_output_;  // emptied after the last output
  WorkerPool& workers_;
  std::shared_ptr<Inbox> inbox_;
  const int64_t submitted_ns_;
  std::vector<std::unique_ptr<Choice>> choices_;
  int32_t open_choices_ = 0;  // of process()
  std::atomic<bool> cancelled_ = false;
  bool begun_ = false;  // the planner's

  std::mutex mutex_;
  std::vector<TokenEvent> events_;  // guarded by mutex_
  bool scheduled_ = false;          // guarded by mutex_: a worker will, or does, run process()
};

}  // namespace hearth
