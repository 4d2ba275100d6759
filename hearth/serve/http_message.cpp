// SPDX-License-Identifier: Apache-2.0
// Heads of answers and request ids. Nothing that comes from outside can add a header: values lose their control
// characters, names are our own and checked. Any thread.
#include "hearth/serve/http_message.h"

#include <fmt/format.h>
#include <sys/random.h>

#include <algorithm>
#include <array>
#include <boost/beast/http/status.hpp>
#include <ctime>
#include <iterator>
#include <random>

#include "hearth/base/check.h"

namespace hearth {
namespace {

bool is_token_char(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
         std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
}

// RFC 9110 5.6.7: "Sun, 06 Nov 1994 08:49:37 GMT". The names are fixed, whatever the locale.
std::string http_date(std::time_t now) {
  constexpr std::array<const char*, 7> kDays = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
  constexpr std::array<const char*, 12> kMonths = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                                   "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  std::tm utc{};
  gmtime_r(&now, &utc);
  return fmt::format("{}, {:02} {} {} {:02}:{:02}:{:02} GMT", kDays[static_cast<size_t>(utc.tm_wday)], utc.tm_mday,
                     kMonths[static_cast<size_t>(utc.tm_mon)], utc.tm_year + 1900, utc.tm_hour, utc.tm_min, utc.tm_sec);
}

void append_header(std::string& out, std::string_view name, std::string_view value) {
  out.append(name).append(": ");
  for (const char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    out.push_back((byte < 0x20 && c != '\t') || byte == 0x7f ? ' ' : c);
  }
  out.append("\r\n");
}

}  // namespace

std::string_view HttpHead::header(std::string_view name) const {
  for (const auto& [key, value] : headers)
    if (key == name) return value;
  return {};
}

bool is_request_id(std::string_view id) {
  return !id.empty() && id.size() <= 128 &&
         std::all_of(id.begin(), id.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

std::string new_request_id() {
  std::array<unsigned char, 16> bytes{};
  if (getentropy(bytes.data(), bytes.size()) != 0) {
    // Kernels without the call; the id has to be unlike others, not secret.
    std::random_device device;
    for (auto& byte : bytes) byte = static_cast<unsigned char>(device());
  }
  std::string id = "req-";
  for (const unsigned byte : bytes) fmt::format_to(std::back_inserter(id), "{:02x}", byte);
  return id;
}

bool status_has_body(int status) { return status >= 200 && status != 204 && status != 304; }

std::string write_reply_head(const HttpReply& reply, std::string_view request_id, const HttpFraming& framing) {
  HEARTH_CHECK(reply.status >= 200 && reply.status <= 599, "http: {} is no final status", reply.status);
  const std::string_view reason =
      boost::beast::http::obsolete_reason(boost::beast::http::int_to_status(static_cast<unsigned>(reply.status)));
  std::string out = fmt::format("HTTP/1.1 {} {}\r\n", reply.status, reason);
  append_header(out, "date", http_date(std::time(nullptr)));
  if (status_has_body(reply.status) && !reply.content_type.empty())
    append_header(out, "content-type", reply.content_type);
  if (framing.content_length) append_header(out, "content-length", std::to_string(*framing.content_length));
  if (framing.chunked) append_header(out, "transfer-encoding", "chunked");
  if (framing.close) append_header(out, "connection", "close");
  if (framing.keep_alive) append_header(out, "connection", "keep-alive");
  append_header(out, "x-request-id", request_id);
  for (const auto& [name, value] : reply.headers) {
    HEARTH_CHECK(!name.empty() && std::all_of(name.begin(), name.end(), is_token_char), "http: a header named '{}'",
                 name);
    HEARTH_CHECK(name != "content-length" && name != "transfer-encoding" && name != "connection",
                 "http: {} is not for handlers", name);
    append_header(out, name, value);
  }
  out.append("\r\n");
  return out;
}

std::string write_chunk(std::string_view bytes) {
  HEARTH_CHECK(!bytes.empty(), "http: an empty chunk ends the answer");
  std::string out = fmt::format("{:x}\r\n", bytes.size());
  out.reserve(out.size() + bytes.size() + 2);
  out.append(bytes).append("\r\n");
  return out;
}

}  // namespace hearth
