// SPDX-License-Identifier: Apache-2.0
// The main thread.
#include "hearth/cli/remote_chat.h"

#include "hearth/client/chat_stream.h"
#include "hearth/client/openai.h"

namespace hearth {
namespace {

using Json = nlohmann::json;

// The fields of a request that the sampling settings name. What is not given is the server's to choose.
Result<Json> sampling_fields(const SamplingSettings& s) {
  Json fields = Json::object();
  const auto set = [&](const char* name, const auto& value) {
    if (value) fields[name] = *value;
  };
  set("temperature", s.temperature);
  set("top_k", s.top_k);
  set("top_p", s.top_p);
  set("min_p", s.min_p);
  set("repetition_penalty", s.repetition_penalty);
  set("max_tokens", s.max_tokens);
  set("seed", s.seed);
  if (s.presence_penalty != 0) fields["presence_penalty"] = s.presence_penalty;
  if (s.frequency_penalty != 0) fields["frequency_penalty"] = s.frequency_penalty;
  if (s.min_tokens > 0) fields["min_tokens"] = s.min_tokens;
  if (!s.stop.empty()) fields["stop"] = s.stop;
  if (s.include_stop) fields["include_stop_str_in_output"] = true;
  if (s.ignore_eos) fields["ignore_eos"] = true;
  for (const std::string& text : s.stop_token_ids) {
    HEARTH_TRY_ASSIGN(const int32_t id, parse_token_id("--stop-token-ids", text));
    fields["stop_token_ids"].push_back(id);
  }
  for (const std::string& text : s.logit_bias) {
    HEARTH_TRY_ASSIGN(const LogitBias bias, parse_logit_bias(text));
    fields["logit_bias"][fmt::format("{}", bias.token)] = bias.bias;
  }
  return fields;
}

class RemotePartner final : public ChatPartner {
 public:
  RemotePartner(Json fields, bool quiet) : fields_(std::move(fields)), quiet_(quiet) {}

  Status connect(const RemoteChatSettings& s) {
    HEARTH_TRY_ASSIGN(const HttpUrl url, parse_http_url(s.base_url).with_context("--base-url"));
    const HttpClientOptions options = {.headers = authorization(s.api_key)};
    HEARTH_TRY_ASSIGN(client_, HttpClient::create(context_, url, options));
    const InterruptGuard interrupt;
    HEARTH_TRY_ASSIGN(const auto models, list_models(context_, *client_, interrupt.flag()));
    HEARTH_TRY_ASSIGN(const ModelCard card, choose_model(models, s.model));
    fields_["model"] = model_ = card.id;
    fields_["stream"] = true;
    fields_["stream_options"] = {{"include_usage", true}};
    return {};
  }

  std::string name() const override { return fmt::format("{} at {}", model_, client_->url().authority()); }

  Result<ChatTurn> answer(const Json& messages, const std::atomic<bool>& stop) override {
    Json body = fields_;
    body["messages"] = messages;
    bool wrote = false;
    const OnChatText on_text = [&](std::string_view piece) {
      wrote = true;
      return write_stdout(piece);
    };
    HEARTH_TRY_ASSIGN(
        const ChatReply reply,
        stream_chat(context_, *client_, body.dump(-1, ' ', false, Json::error_handler_t::replace), on_text, stop));
    if (wrote || !reply.failure) HEARTH_TRY(write_stdout("\n"));
    ChatTurn turn;
    turn.text = reply.text;
    if (reply.failure) {
      // A message that the server does not take (too long, say) is no reason to leave.
      const bool refused = reply.failure->code == ErrorCode::kInvalidArgument;
      if (refused) turn.refusal = reply.failure->message;
      if (!refused) turn.failure = reply.failure;
      return turn;
    }
    if (reply.cancelled) turn.notices.push_back("ended by Ctrl-C");
    if (reply.finish_reason == "length") turn.notices.push_back("ended at --max-tokens, or the context is full");
    if (!quiet_ && !reply.cancelled) turn.notices.push_back(describe_speed(reply));
    return turn;
  }

 private:
  boost::asio::io_context context_{1};
  std::unique_ptr<HttpClient> client_;
  Json fields_;
  std::string model_;
  const bool quiet_;
};

}  // namespace

Result<std::unique_ptr<ChatPartner>> connect_chat(const RemoteChatSettings& settings, const SamplingSettings& sampling,
                                                  bool quiet) {
  HEARTH_TRY_ASSIGN(Json fields, sampling_fields(sampling));
  auto partner = std::make_unique<RemotePartner>(std::move(fields), quiet);
  HEARTH_TRY(partner->connect(settings));
  return std::unique_ptr<ChatPartner>(std::move(partner));
}

}  // namespace hearth
