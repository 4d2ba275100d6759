// SPDX-License-Identifier: Apache-2.0
// Coroutines on the connection's strand; read_and_submit() and the writing of long answers on workers. They meet in
// Conversation.
#include "hearth/serve/generation.h"

#include <chrono>
#include <ctime>
#include <optional>

#include "hearth/serve/api.h"
#include "hearth/serve/conversation.h"
#include "hearth/serve/make_request.h"
#include "hearth/serve/stream_reply.h"

namespace hearth {
namespace {

// However the coroutine ends, the engine stops writing for it.
class LeaveAtEnd {
 public:
  explicit LeaveAtEnd(std::shared_ptr<Conversation> conversation) : conversation_(std::move(conversation)) {}
  ~LeaveAtEnd() { conversation_->leave(); }
  LeaveAtEnd(const LeaveAtEnd&) = delete;
  LeaveAtEnd& operator=(const LeaveAtEnd&) = delete;

 private:
  const std::shared_ptr<Conversation> conversation_;
};

struct Asked {
  std::string body;
  bool chat = false;
  RequestOrigin origin;
  std::string model = {};  // that it names, once it was read
};

struct Accepted {
  ReplyPlan plan;
  bool stream = false;
};

Accepted accept(const GenerationCall& call, const ApiModel& model, const Asked& asked, const std::string& fingerprint,
                const std::vector<PreparedPrompt>& prepared) {
  Accepted accepted{.plan = {.id = asked.origin.id,
                             .model = model.names.front(),
                             .fingerprint = fingerprint,
                             .created_s = static_cast<int64_t>(std::time(nullptr)),
                             .tokenizer = model.served->tokenizer,
                             .chat = asked.chat,
                             .n = call.n,
                             .echo = false,
                             .logprobs = call.logprobs,
                             .prompt_logprobs = call.prompt_logprobs,
                             .include_usage = call.include_usage,
                             .continuous_usage = call.continuous_usage,
                             .return_token_ids = call.return_token_ids,
                             .tokens_as_ids = call.tokens_as_ids,
                             .skip_special = call.skip_special,
                             .stop_token_ids = call.stop_token_ids,
                             .prompts = {}},
                    .stream = call.stream};
  for (const PreparedPrompt& one : prepared) accepted.plan.prompts.push_back({one.request.prompt, one.text});
  return accepted;
}

// Nothing is to be computed where no token is to be written and the prompt not scored.
bool needs_engine(const Request& request) { return request.max_tokens > 0 || request.prompt_logprobs != kNoLogprobs; }

ApiStatus submit_all(std::vector<PreparedPrompt> prepared, Engine& engine,
                     const std::shared_ptr<Conversation>& conversation) {
  for (size_t p = 0; p < prepared.size(); ++p) {
    if (conversation->gone()) return to_api_error(cancelled("the client is gone"));
    Request& request = prepared[p].request;
    if (!needs_engine(request)) {
      conversation->add({});
      for (int32_t choice = 0; choice < request.n; ++choice) {
        Output end;
        end.choice = choice;
        end.finish = FinishReason::kLength;
        conversation->pieces.push({p, std::move(end)});
      }
      continue;
    }
    auto handle = engine.submit(std::move(request), [conversation, p](Output&& output) {
      conversation->pieces.push({p, std::move(output)});
    });
    if (!handle) {
      // Those before it are cancelled with the conversation.
      if (handle.error().code == ErrorCode::kResourceExhausted) return too_many(handle.error().message);
      return handle.error();
    }
    conversation->add(std::move(*handle));
  }
  return {};
}

RequestOrigin origin_of(const Asked& asked, const ApiModel& model, const Engine& engine,
                        const Conversation& conversation) {
  RequestOrigin origin = asked.origin;
  origin.kv_tokens = engine.kv_tokens(*model.served);
  origin.gone = [&conversation] { return conversation.gone(); };
  return origin;
}

// On a worker. `asked` is the worker's until it returns.
ApiResult<Accepted> read_and_submit(Asked& asked, const GenerationParts& parts,
                                    const std::shared_ptr<Conversation>& conversation) {
  // It may have waited for this worker for longer than its client did.
  if (conversation->gone()) return to_api_error(cancelled("the client is gone"));
  std::optional<Accepted> accepted;
  std::vector<PreparedPrompt> prepared;
  if (asked.chat) {
    HEARTH_TRY_ASSIGN(const ChatCall call, parse_chat(asked.body, parts.limits));
    asked.model = call.model;
    HEARTH_TRY_ASSIGN(const std::shared_ptr<const ApiModel> model, parts.models.find(call.model));
    conversation->set_model(model->served.get());
    HEARTH_TRY_ASSIGN(prepared,
                      prepare_chat(call, *model, parts.limits, origin_of(asked, *model, parts.engine, *conversation)));
    accepted = accept(call, *model, asked, parts.fingerprint, prepared);
  } else {
    HEARTH_TRY_ASSIGN(const CompletionCall call, parse_completion(asked.body, parts.limits));
    asked.model = call.model;
    HEARTH_TRY_ASSIGN(const std::shared_ptr<const ApiModel> model, parts.models.find(call.model));
    conversation->set_model(model->served.get());
    HEARTH_TRY_ASSIGN(prepared, prepare_completion(call, *model, parts.limits,
                                                   origin_of(asked, *model, parts.engine, *conversation)));
    accepted = accept(call, *model, asked, parts.fingerprint, prepared);
    accepted->plan.echo = call.echo;
  }
  HEARTH_TRY(submit_all(std::move(prepared), parts.engine, conversation));
  return std::move(*accepted);
}

// How often a request that waits for its model to wake looks.
constexpr std::chrono::milliseconds kWakeTick{10};
constexpr int kRetryS = 5;

// Until a model that sleeps, and wakes on request, can answer; it is woken, once for all who wait. Why it cannot: its
// wake failed, the server or the model goes. Who named it finds out what has become of a model that is not there any more.
Async<ApiStatus> wait_until_awake(HttpExchange& exchange, const GenerationParts& parts, std::string model,
                                  std::shared_ptr<Conversation> conversation) {
  boost::asio::steady_timer timer(exchange.executor());
  int64_t awaited = -1;  // the move to whose end it waits
  while (!conversation->gone()) {
    const auto sleeps = parts.models.sleep_of(model);
    if (!sleeps) co_return ApiStatus();
    if (parts.draining.load() || conversation->cancelled())
      co_return not_now("draining", "the server is going down", kRetryS);
    if (sleeps->stage == ModelStage::kAsleep && awaited >= 0 && sleeps->moves >= awaited && sleeps->error)
      co_return not_now("wake_failed",
                        fmt::format("the model {} does not wake: {}", sleeps->name, sleeps->error->message), kRetryS);
    if (sleeps->stage == ModelStage::kWaking && awaited < 0) awaited = sleeps->moves;
    if (sleeps->stage == ModelStage::kAsleep) {
      if (awaited < 0) awaited = sleeps->moves + 1;
      const auto begun = parts.manager.move(sleeps->name, false, parts.manager.usual());
      // 409: somebody was faster, or the model goes.
      if (!begun && begun.error().status != 409) co_return begun.error();
    }
    timer.expires_after(kWakeTick);
    co_await timer.async_wait(boost::asio::as_tuple(boost::asio::use_awaitable));
  }
  co_return to_api_error(cancelled("the client is gone"));
}

// The engine's pieces did not fit into memory.
ApiError lost_pieces() { return to_api_error(resource_exhausted("out of memory")); }

// What a whole answer is made of.
struct WholeReply {
  ReplyPlan plan;
  std::vector<PromptState> states;

  bool large() const { return about_bytes(plan, states) > kSmallReplyBytes; }
};

// Shared with the worker that makes an answer. Destroys it on a worker where that takes long, however the coroutine
// ends. large() may be asked while the worker is at it.
template <class T>
class OwnedAnswer {
 public:
  OwnedAnswer(std::shared_ptr<T> answer, WorkerPool& pool) : answer_(std::move(answer)), pool_(pool) {}
  ~OwnedAnswer() {
    if (!answer_->large()) return;
    try {
      pool_.post([answer = std::move(answer_)] {});
    } catch (const std::exception&) {
      // No memory for a task: destroyed here.
    }
  }
  OwnedAnswer(const OwnedAnswer&) = delete;
  OwnedAnswer& operator=(const OwnedAnswer&) = delete;
  const std::shared_ptr<T>& get() const { return answer_; }

 private:
  std::shared_ptr<T> answer_;
  WorkerPool& pool_;
};

Async<void> answer_whole(HttpExchange& exchange, WorkerPool& answerers, std::shared_ptr<Conversation> conversation,
                         ReplyPlan given, Access::Ticket& ticket) {
  const OwnedAnswer owned(std::make_shared<WholeReply>(WholeReply{.plan = std::move(given), .states = {}}), answerers);
  const std::shared_ptr<WholeReply> whole = owned.get();  // declared later, so it goes first
  const ReplyPlan& plan = whole->plan;
  std::vector<PromptState>& states = whole->states;
  states.resize(plan.prompts.size());
  for (PromptState& state : states) state.choices.resize(static_cast<size_t>(plan.n));
  for (int64_t open = plan.choices(); open > 0;) {
    std::vector<Piece> pieces = co_await conversation->pieces.take();
    if (pieces.empty()) {
      if (!conversation->pieces.failed()) co_return;
      ticket.release();
      (void)co_await exchange.reply(error_reply(lost_pieces()));
      co_return;
    }
    for (Piece& piece : pieces) {
      Output& output = piece.output;
      PromptState& state = states[piece.prompt];
      ChoiceState& choice = state.choices[static_cast<size_t>(output.choice)];
      conversation->consumed(piece.prompt, output.choice, std::ssize(output.tokens) + std::ssize(output.prompt));
      std::move(output.prompt.begin(), output.prompt.end(), std::back_inserter(state.logprobs));
      choice.take(std::move(output));
      if (!choice.finish) continue;
      --open;
      if (const auto error = failure(choice)) {
        conversation->leave();
        ticket.release();
        (void)co_await exchange.reply(error_reply(*error));
        co_return;
      }
    }
  }
  HttpReply reply;
  if (whole->large()) {
    auto task = [whole] { return whole_reply(whole->plan, whole->states); };
    auto body = co_await run_owed(answerers, std::move(task));
    if (body) {
      reply.body = std::move(*body);
    } else {
      reply = error_reply(to_api_error(body.error()));
    }
  } else {
    reply.body = whole_reply(plan, states);
  }
  ticket.release();
  (void)co_await exchange.reply(std::move(reply));
}

// The events of some pieces. On a worker where they are heavy.
std::string make_events(StreamReply& stream, std::vector<Piece> pieces) {
  std::string events;
  for (Piece& piece : pieces) stream.take(piece.prompt, std::move(piece.output), events);
  if (stream.done()) stream.end(events);
  return events;
}

Async<void> answer_stream(HttpExchange& exchange, WorkerPool& answerers, std::shared_ptr<Conversation> conversation,
                          ReplyPlan plan, Access::Ticket& ticket) {
  // Shared with the worker that makes heavy events.
  const OwnedAnswer owned(std::make_shared<StreamReply>(std::move(plan)), answerers);
  const std::shared_ptr<StreamReply> stream = owned.get();
  struct Taken {
    size_t prompt;
    int32_t choice;
    int64_t tokens;
  };
  bool begun = false;
  while (!stream->done()) {
    std::vector<Piece> pieces = co_await conversation->pieces.take();
    if (pieces.empty() && !conversation->pieces.failed()) co_return;
    const bool lost = pieces.empty();
    std::vector<Taken> taken;
    int64_t bytes = stream->about_begin_bytes();
    for (const Piece& piece : pieces) {
      // The prompt's logprobs are gathered before any of them is written.
      conversation->consumed(piece.prompt, piece.output.choice, std::ssize(piece.output.prompt));
      taken.push_back({piece.prompt, piece.output.choice, std::ssize(piece.output.tokens)});
      bytes += stream->about_bytes(piece.output);
    }
    std::string events;
    if (lost) {
      stream->fail(lost_pieces(), events);
    } else if (bytes > kSmallReplyBytes) {
      auto task = [stream, pieces = std::move(pieces)]() mutable { return make_events(*stream, std::move(pieces)); };
      auto made = co_await run_owed(answerers, std::move(task));
      if (made) {
        events = std::move(*made);
      } else if (made.error().code == ErrorCode::kCancelled) {
        co_return;  // the worker may be at it still
      } else {
        stream->fail(to_api_error(made.error()), events);
      }
    } else {
      events = make_events(*stream, std::move(pieces));
    }
    if (!begun && stream->error()) {
      // Nothing was sent yet: the status can still say it.
      ticket.release();
      (void)co_await exchange.reply(error_reply(*stream->error()));
      co_return;
    }
    if (stream->done()) ticket.release();
    if (!begun && !events.empty()) {
      begun = true;
      HttpReply head;
      head.content_type = "text/event-stream; charset=utf-8";
      // Proxies must neither keep events nor hold them back.
      head.headers = {{"cache-control", "no-cache"}, {"x-accel-buffering", "no"}};
      head.body = std::move(events);
      if (!co_await exchange.start_stream(std::move(head))) co_return;
    } else if (!events.empty()) {
      if (!co_await exchange.write(std::move(events))) co_return;
    }
    // Only now: the engine writes no further ahead than the client reads.
    for (const Taken& one : taken) conversation->consumed(one.prompt, one.choice, one.tokens);
  }
  (void)co_await exchange.finish_stream();
}

}  // namespace

Async<void> answer_generation(HttpExchange& exchange, GenerationParts parts, bool chat, int key,
                              Access::Ticket& ticket) {
  const auto conversation = parts.conversations.open();
  const LeaveAtEnd leave(conversation);
  exchange.on_disconnect([conversation] { conversation->leave(); });
  // Ids of ours begin with "req-", which the answer's own prefix takes the place of.
  std::string_view request_id = exchange.head().request_id;
  if (request_id.starts_with("req-")) request_id.remove_prefix(4);
  const auto asked =
      std::make_shared<Asked>(Asked{.body = std::move(exchange.body()),
                                    .chat = chat,
                                    .origin = {.id = fmt::format("{}-{}", chat ? "chatcmpl" : "cmpl", request_id),
                                               .tenant = key < 0 ? std::string() : fmt::format("key-{}", key)}});
  std::optional<Accepted> accepted;
  while (!accepted) {
    // Named, as are all tasks here: g++ 12 may destroy a temporary of a co_await twice.
    auto task = [parts, asked, conversation] { return read_and_submit(*asked, parts, conversation); };
    auto ran = co_await run_on(parts.workers, std::move(task));
    if (conversation->gone()) co_return;
    if (ran && *ran) {
      accepted.emplace(std::move(*ran).value());
      break;
    }
    ApiError error = ran ? ran->error() : to_api_error(ran.error());
    // The engine's refusal where the model was found awake and fell asleep at that moment.
    const bool asleep = error.code == kAsleepCode;
    const bool may_wake = asleep || (error.status == 503 && conversation->empty());
    const auto sleeps = may_wake ? parts.models.sleep_of(asked->model) : std::nullopt;
    const bool awake_by_now = asleep && !sleeps;
    if (sleeps && sleeps->wakes_on_request) {
      ApiStatus awake = co_await wait_until_awake(exchange, parts, asked->model, conversation);
      if (conversation->gone()) co_return;
      if (awake) continue;
      error = std::move(awake).error();
    } else if (awake_by_now) {
      continue;
    }
    ticket.release();
    (void)co_await exchange.reply(error_reply(error));
    co_return;
  }
  if (accepted->stream) {
    co_await answer_stream(exchange, parts.answerers, conversation, std::move(accepted->plan), ticket);
  } else {
    co_await answer_whole(exchange, parts.answerers, conversation, std::move(accepted->plan), ticket);
  }
}

}  // namespace hearth
