// SPDX-License-Identifier: Apache-2.0
// The thread that runs the io_context.
#include "hearth/client/chat_stream.h"

#include <algorithm>
#include <chrono>

#include "hearth/client/sse.h"

namespace hearth {
namespace {

constexpr const char* kRoute = "/v1/chat/completions";
constexpr size_t kErrorBytes = 64 << 10;

// Reads the answer into a ChatReply.
class Reader {
 public:
  explicit Reader(const OnChatText& on_text) : on_text_(on_text) {}

  Status take(const HttpAnswer& head, std::string_view bytes) {
    if (head.status != 200 || !head.content_type.starts_with("text/event-stream")) {
      other_ += bytes.substr(0, kErrorBytes - std::min(kErrorBytes, other_.size()));
      return {};
    }
    return sse_.feed(bytes, [&](const SseEvent& event) { return take_event(event); });
  }

  Result<ChatReply> finish(const Result<HttpAnswer>& answer) {
    if (text_error_) return *text_error_;
    reply_.seconds = seconds();
    if (!answer) {
      reply_.cancelled = answer.error().code == ErrorCode::kCancelled;
      if (!reply_.cancelled) reply_.failure = answer.error();
    } else if (answer->status != 200) {
      reply_.failure = status_error(answer->status, other_);
    } else if (!answer->content_type.starts_with("text/event-stream")) {
      reply_.failure = corrupt("the answer is {}, wanted text/event-stream", answer->content_type);
    } else if (!reply_.failure && !done_) {
      reply_.failure = corrupt("the answer ended without [DONE]");
    }
    return std::move(reply_);
  }

 private:
  Status take_event(const SseEvent& event) {
    if (done_ || reply_.failure) return {};
    HEARTH_TRY_ASSIGN(StreamEvent said, parse_stream_event(event.data));
    done_ = said.done;
    if (!said.error.empty()) reply_.failure = unavailable("the answer ended with an error: {}", said.error);
    if (said.usage) reply_.usage = said.usage;
    if (!said.finish_reason.empty()) reply_.finish_reason = said.finish_reason;
    if (said.kind == StreamEvent::Kind::kToken && reply_.events++ == 0) reply_.first_s = seconds();
    if (said.text.empty()) return {};
    reply_.text += said.text;
    const Status told = on_text_(said.text);
    if (!told) text_error_ = told.error();
    return told;
  }

  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(); }

  const OnChatText& on_text_;
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  SseParser sse_;
  ChatReply reply_;
  std::string other_;  // the body of an answer that is no stream
  std::optional<Error> text_error_;
  bool done_ = false;
};

}  // namespace

Result<ChatReply> stream_chat(boost::asio::io_context& context, HttpClient& client, std::string body,
                              const OnChatText& on_text, const std::atomic<bool>& stop) {
  Reader reader(on_text);
  Result<HttpAnswer> answer = internal_error("the call did not run");
  HttpCall call;
  call.method = "POST";
  call.target = client.url().target(kRoute);
  call.body = std::move(body);
  OnBody on_body = [&](const HttpAnswer& head, std::string_view bytes) { return reader.take(head, bytes); };
  const auto work = [&]() -> boost::asio::awaitable<void> {
    answer = co_await client.send(std::move(call), std::move(on_body));
  };
  run_client(context, client, work(), stop);
  return reader.finish(answer);
}

std::string describe_speed(const ChatReply& reply) {
  const int64_t tokens = reply.usage ? reply.usage->completion : reply.events;
  std::string text;
  if (reply.usage) text = fmt::format("{} prompt tokens, ", reply.usage->prompt);
  if (reply.events > 0) text += fmt::format("first token after {:.3f} s, ", reply.first_s);
  text += fmt::format("{} tokens in {:.3f} s", tokens, reply.seconds);
  const double decoding = reply.seconds - reply.first_s;
  if (tokens > 1 && decoding > 0) text += fmt::format(" ({:.1f} tokens/s)", static_cast<double>(tokens - 1) / decoding);
  return text;
}

}  // namespace hearth
