// SPDX-License-Identifier: Apache-2.0
// One coroutine sends by the clock, one for each request reads its answer. The thread that runs the io_context.
#include "hearth/client/load.h"

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <cmath>
#include <optional>
#include <utility>

#include "hearth/client/openai.h"
#include "hearth/client/sse.h"

namespace hearth {
namespace {

namespace asio = boost::asio;
using SteadyTime = std::chrono::steady_clock::time_point;

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);
constexpr std::chrono::milliseconds kStopPoll{50};
constexpr size_t kErrorBytes = 64 << 10;

// Reads one answer into its record.
class AnswerTimer {
 public:
  explicit AnswerTimer(RequestRecord& record) : record_(record) {}

  Status take(const HttpAnswer& head, std::string_view bytes, double now_s) {
    status_ = head.status;
    if (head.status != 200 || !head.content_type.starts_with("text/event-stream")) {
      other_ += bytes.substr(0, kErrorBytes - std::min(kErrorBytes, other_.size()));
      return {};
    }
    return sse_.feed(bytes, [&](const SseEvent& event) { return take_event(event, now_s); });
  }

  void finish(const Result<HttpAnswer>& answer, double now_s) {
    if (end_s_ == 0) end_s_ = now_s;
    record_.end_s = end_s_;
    if (maybe_token_s_ && (!usage_ || record_.events < usage_->completion)) note_token(*maybe_token_s_);
    record_.server_counted = usage_.has_value();
    record_.output_tokens = usage_ ? usage_->completion : record_.events;
    if (usage_ && usage_->prompt > 0) record_.prompt_tokens = usage_->prompt;
    record_.outcome = RequestRecord::Outcome::kFailed;
    if (!answer && answer.error().code == ErrorCode::kCancelled) {
      record_.outcome = RequestRecord::Outcome::kCancelled;
    } else if (!answer) {
      // What a connection says is the same for many requests; what a broken answer says is not.
      const Error& error = answer.error();
      const bool broken = error.code == ErrorCode::kCorrupt || error.code == ErrorCode::kResourceExhausted;
      fail(broken ? "broken answer" : error.message, error.message);
    } else if (answer->status != 200) {
      fail(fmt::format("HTTP {}", answer->status), status_error(answer->status, other_).message);
    } else if (!error_.empty()) {
      fail("error in the stream", "the stream ended with an error: " + error_);
    } else if (!other_.empty() || !answer->content_type.starts_with("text/event-stream")) {
      fail("no stream", fmt::format("the answer is {}, wanted text/event-stream", answer->content_type));
    } else if (!done_) {
      fail("cut stream", "the stream ended without [DONE]");
    } else {
      record_.outcome = RequestRecord::Outcome::kDone;
    }
  }

 private:
  Status take_event(const SseEvent& event, double now_s) {
    if (done_) return {};
    HEARTH_TRY_ASSIGN(const StreamEvent said, parse_stream_event(event.data));
    if (!said.error.empty() && error_.empty()) error_ = said.error;
    if (said.usage) usage_ = said.usage;
    if (said.kind == StreamEvent::Kind::kToken) note_token(now_s);
    if (said.kind == StreamEvent::Kind::kMaybeToken) maybe_token_s_ = now_s;
    if (said.done) {
      done_ = true;
      end_s_ = now_s;
    }
    return {};
  }

  void note_token(double now_s) {
    if (record_.events++ == 0) {
      record_.first_s = now_s;
    } else {
      record_.gaps_s.push_back(static_cast<float>(now_s - record_.last_s));
    }
    record_.last_s = now_s;
  }

  void fail(std::string kind, std::string message) {
    record_.error_kind = std::move(kind);
    record_.error = std::move(message);
  }

  RequestRecord& record_;
  SseParser sse_;
  int status_ = 0;
  std::string other_;  // the body of an answer that is no stream
  std::string error_;  // that the stream told
  std::optional<TokenCounts> usage_;
  std::optional<double> maybe_token_s_;
  bool done_ = false;
  double end_s_ = 0;
};

class LoadRun {
 public:
  LoadRun(HttpClient& client, std::span<const PlannedRequest> plan, const LoadSettings& settings,
          const std::atomic<bool>& stop, asio::io_context& context)
      : client_(client), plan_(plan), settings_(settings), stop_(stop), context_(context), wake_(context) {
    result_.records.resize(plan.size());
    for (size_t i = 0; i < plan.size(); ++i) {
      result_.records[i].model = plan[i].model;
      result_.records[i].due_s = plan[i].arrival_s;
      result_.records[i].prompt_tokens = plan[i].input_tokens;
    }
  }

  asio::awaitable<void> dispatch() {
    start_ = std::chrono::steady_clock::now();
    if (settings_.drain_s && !plan_.empty()) lost_ = at(plan_.back().arrival_s + *settings_.drain_s);
    for (next_ = 0; next_ < plan_.size() && !ending(); ++next_) {
      const SteadyTime due = at(plan_[next_].arrival_s);
      while (!ending() && std::chrono::steady_clock::now() < due) co_await wait_until(due);
      while (!ending() && settings_.max_concurrency > 0 && in_flight_ >= settings_.max_concurrency)
        co_await wait_until(lost_);
      if (ending()) break;
      ++in_flight_;
      result_.peak_in_flight = std::max(result_.peak_in_flight, in_flight_);
      asio::co_spawn(context_, one(next_), [this](std::exception_ptr thrown) {
        if (thrown && !thrown_) thrown_ = thrown;
        --in_flight_;
        wake_.cancel();
      });
    }
    while (in_flight_ > 0) {
      co_await wait_until(lost_);
      if (in_flight_ > 0 && lost()) client_.cancel();
    }
    if (thrown_) std::rethrow_exception(thrown_);
    while (lost() && !stopped() && next_ < plan_.size()) lose(next_++);
  }

  LoadResult take_result() {
    for (const RequestRecord& record : result_.records) result_.seconds = std::max(result_.seconds, record.end_s);
    result_.interrupted = stopped();
    return std::move(result_);
  }

 private:
  bool stopped() const { return stop_.load(std::memory_order_relaxed); }
  bool lost() const { return std::chrono::steady_clock::now() >= lost_; }
  bool ending() const { return stopped() || lost(); }
  SteadyTime at(double seconds) const { return start_ + std::chrono::nanoseconds(std::llround(seconds * 1e9)); }
  double now_s() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

  // Until then, or until a request ends, or a moment, since `stop` may have become true.
  asio::awaitable<void> wait_until(SteadyTime time) {
    wake_.expires_at(std::min(time, std::chrono::steady_clock::now() + kStopPoll));
    co_await wake_.async_wait(kAwait);
  }

  asio::awaitable<void> one(size_t index) {
    RequestRecord& record = result_.records[index];
    // Named, since g++ 12 destroys aggregate temporaries of a co_await expression twice.
    HttpCall call;
    call.method = "POST";
    call.target = settings_.target;
    call.body = settings_.make_body(index);
    record.sent_s = now_s();
    AnswerTimer timer(record);
    OnBody on_body = [&](const HttpAnswer& head, std::string_view bytes) { return timer.take(head, bytes, now_s()); };
    const Result<HttpAnswer> answer = co_await client_.send(std::move(call), std::move(on_body));
    timer.finish(answer, now_s());
    if (record.outcome == RequestRecord::Outcome::kCancelled && lost() && !stopped()) {
      lose(index);
    } else {
      tell_ended(index);
    }
  }

  // The server had its time.
  void lose(size_t index) {
    RequestRecord& record = result_.records[index];
    const bool sent =
        std::exchange(record.outcome, RequestRecord::Outcome::kFailed) != RequestRecord::Outcome::kNotSent;
    if (!sent) record.sent_s = record.end_s = now_s();
    record.error_kind = sent ? "not ended in time" : "not sent in time";
    record.error =
        fmt::format("{}: within {:g} s after the last request was due", record.error_kind, *settings_.drain_s);
    tell_ended(index);
  }

  void tell_ended(size_t index) {
    ++ended_;
    if (settings_.on_progress) settings_.on_progress(ended_);
    if (settings_.on_ended) settings_.on_ended(index, result_.records[index]);
  }

  HttpClient& client_;
  const std::span<const PlannedRequest> plan_;
  const LoadSettings& settings_;
  const std::atomic<bool>& stop_;
  asio::io_context& context_;
  asio::steady_timer wake_;
  SteadyTime start_;
  SteadyTime lost_ = SteadyTime::max();  // when what has not ended is lost
  LoadResult result_;
  size_t next_ = 0;  // request to send
  int64_t in_flight_ = 0;
  int64_t ended_ = 0;
  std::exception_ptr thrown_;
};

}  // namespace

LoadResult run_load(asio::io_context& context, HttpClient& client, std::span<const PlannedRequest> plan,
                    const LoadSettings& settings, const std::atomic<bool>& stop) {
  const int64_t opened = client.connections_opened();
  LoadRun run(client, plan, settings, stop, context);
  run_client(context, client, run.dispatch(), stop);
  LoadResult result = run.take_result();
  result.connections = client.connections_opened() - opened;
  return result;
}

}  // namespace hearth
