// SPDX-License-Identifier: Apache-2.0
// HttpRequestReader over Beast's basic_parser, which knows the grammar; limits, targets and hosts are checked
// here. Beast's own header limit is not used: it is per piece, ours is for the whole header. One owner.
#include "hearth/serve/http_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/beast/core/string.hpp>
#include <boost/beast/http/basic_parser.hpp>
#include <new>
#include <utility>

#include "hearth/base/check.h"

namespace hearth {
namespace {

namespace http = boost::beast::http;

std::string lower_case(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// False for an escape that is none and for control characters.
bool percent_decode(std::string_view text, std::string& out) {
  out.clear();
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == '%') {
      if (i + 2 >= text.size()) return false;
      const int high = hex_digit(text[i + 1]), low = hex_digit(text[i + 2]);
      if (high < 0 || low < 0) return false;
      c = static_cast<char>(high * 16 + low);
      i += 2;
    }
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) return false;
    out.push_back(c);
  }
  return true;
}

// Origin form, absolute form (what is said to a proxy; a server has to take it) and `*`.
bool parse_target(std::string_view target, HttpHead& head) {
  if (target == "*") {
    head.path = "*";
    return head.method == "OPTIONS";
  }
  const std::string scheme = lower_case(target.substr(0, 8));
  if (scheme.starts_with("http://") || scheme.starts_with("https://")) {
    const size_t authority = target.find("//") + 2;
    const size_t path = target.find_first_of("/?", authority);
    target = path == std::string_view::npos ? "/" : target.substr(path);
    if (target.front() == '?') {
      head.path = "/";
      head.query = target.substr(1);
      return true;
    }
  }
  if (!target.starts_with('/')) return false;
  const size_t question = target.find('?');
  if (question != std::string_view::npos) head.query = target.substr(question + 1);
  return percent_decode(target.substr(0, question), head.path);
}

}  // namespace

class HttpRequestReader::Parser final : public http::basic_parser<true> {
 public:
  using Error = boost::beast::error_code;
  using Text = boost::beast::string_view;

  explicit Parser(int64_t header_bytes) {
    eager(false);
    header_limit(static_cast<uint32_t>(std::min<int64_t>(header_bytes + 1, UINT32_MAX)));
    body_limit(boost::none);
  }

  HttpHead head;
  std::string target, body;
  bool http_1_0 = false, trailers = false, body_too_long = false;
  int64_t body_limit_bytes = 0;

 private:
  void on_request_impl(http::verb, Text method, Text to, int version, Error&) override {
    head.method = std::string(method);
    target = std::string(to);
    http_1_0 = version == 10;
  }
  void on_response_impl(int, Text, int, Error&) override {
    HEARTH_CHECK(false, "http: a request parser saw an answer");
  }
  void on_field_impl(http::field, Text name, Text value, Error&) override {
    // Trailers are read and dropped: nothing is to be decided by what follows a body.
    if (!trailers)
      head.headers.emplace_back(lower_case(std::string_view(name.data(), name.size())), std::string(value));
  }
  void on_header_impl(Error&) override { trailers = true; }
  void on_body_init_impl(const boost::optional<uint64_t>&, Error&) override {}
  size_t on_body_impl(Text bytes, Error& error) override { return append(bytes, error); }
  void on_chunk_header_impl(uint64_t, Text, Error&) override {}
  size_t on_chunk_body_impl(uint64_t, Text bytes, Error& error) override { return append(bytes, error); }
  void on_finish_impl(Error&) override {}

  size_t append(Text bytes, Error& error) {
    if (static_cast<int64_t>(bytes.size()) > body_limit_bytes - static_cast<int64_t>(body.size())) {
      body_too_long = true;
      error = http::error::body_limit;
      return 0;
    }
    body.append(bytes.data(), bytes.size());
    return bytes.size();
  }
};

HttpRequestReader::HttpRequestReader(int64_t header_bytes)
    : header_bytes_(header_bytes), parser_(std::make_unique<Parser>(header_bytes_)) {}

HttpRequestReader::~HttpRequestReader() = default;

bool HttpRequestReader::started() const { return parser_->got_some(); }
HttpHead& HttpRequestReader::head() { return parser_->head; }
bool HttpRequestReader::has_body() const { return !parser_->is_done(); }
bool HttpRequestReader::keep_alive() const { return parser_->keep_alive(); }
bool HttpRequestReader::is_http_1_0() const { return parser_->http_1_0; }
std::string& HttpRequestReader::body() { return parser_->body; }

bool HttpRequestReader::expects_continue() const { return !is_http_1_0() && has_body() && expect_ == "100-continue"; }

std::optional<HttpFailure> HttpRequestReader::begin_body(int64_t body_bytes) {
  if (!is_http_1_0() && !expect_.empty() && expect_ != "100-continue")
    return HttpFailure{417, "the only expectation that is met is 100-continue"};
  const auto length = parser_->content_length();
  if (length && *length > static_cast<uint64_t>(body_bytes))
    return HttpFailure{413, fmt::format("the body has {} bytes, at most {} are taken", *length, body_bytes)};
  parser_->body_limit_bytes = body_bytes;
  parser_->eager(true);
  return std::nullopt;
}

HttpRequestReader::Step HttpRequestReader::advance(std::string_view input, size_t& used) {
  used = 0;
  try {
    return parse(input, used);
  } catch (const std::bad_alloc&) {
    parser_->body = std::string();
    return fail(503, "out of memory while the request was read");
  }
}

HttpRequestReader::Step HttpRequestReader::parse(std::string_view input, size_t& used) {
  if (!failure_.message.empty()) return Step::kFailed;
  // RFC 9112 2.2: an empty line before the request line is to be ignored; we take one.
  if (!started() && !empty_line_skipped_ && input.starts_with('\r')) {
    if (input.size() == 1) return Step::kMore;
    if (input[1] == '\n') {
      empty_line_skipped_ = true;
      used = 2;
    }
  }
  // In slices of at most the header's limit, so that neither a header, a chunk's header nor trailers can be longer.
  for (;;) {
    const bool in_head = !parser_->is_header_done();
    if (!in_head && parser_->is_done()) return Step::kDone;
    const std::string_view rest = input.substr(used);
    const auto room = static_cast<size_t>(in_head ? header_bytes_ - header_used_ : header_bytes_);
    const std::string_view slice = rest.substr(0, room);
    if (slice.empty() && !(in_head && room == 0)) return Step::kMore;
    boost::beast::error_code error;
    const size_t taken = slice.empty() ? 0 : parser_->put({slice.data(), slice.size()}, error);
    used += taken;
    if (in_head) header_used_ += static_cast<int64_t>(taken);
    const bool full = slice.size() == room && (in_head || taken == 0);
    if (error == http::error::need_more || slice.empty()) {
      if (full && in_head) return fail(431, fmt::format("the request's header is longer than {} bytes", header_bytes_));
      if (full) return fail(400, "a chunk's header or the trailers are too long");
      if (taken == 0) return Step::kMore;
      continue;
    }
    if (parser_->body_too_long)
      return fail(413, fmt::format("the body is longer than {} bytes", parser_->body_limit_bytes));
    if (error == http::error::header_limit)
      return fail(431, fmt::format("the request's header is longer than {} bytes", header_bytes_));
    if (error) return fail(400, fmt::format("malformed request: {}", error.message()));
    if (in_head && parser_->is_header_done()) return finish_head();
  }
}

HttpRequestReader::Step HttpRequestReader::finish_head() {
  HttpHead& head = parser_->head;
  if (!parse_target(parser_->target, head)) return fail(400, "malformed request: the target is no path");
  int64_t hosts = 0;
  std::string_view id;
  for (const auto& [name, value] : head.headers) {
    if (name == "host") ++hosts;
    if (name == "x-request-id" && id.empty()) id = value;
    if (name != "transfer-encoding") continue;
    if (is_http_1_0()) return fail(400, "malformed request: HTTP/1.0 has no transfer-encoding");
    if (lower_case(value) != "chunked") return fail(501, "the only transfer coding that is read is chunked");
  }
  if (hosts > 1 || (hosts == 0 && !is_http_1_0()))
    return fail(400, fmt::format("malformed request: {} host headers, wanted one", hosts));
  expect_ = lower_case(head.header("expect"));
  head.request_id = is_request_id(id) ? std::string(id) : new_request_id();
  return Step::kHead;
}

HttpRequestReader::Step HttpRequestReader::fail(int status, std::string message) {
  failure_ = {status, std::move(message)};
  return Step::kFailed;
}

}  // namespace hearth
