// SPDX-License-Identifier: Apache-2.0
// The data of HTTP: limits, a request's head, an answer, and how an answer's head is written. No sockets and no
// coroutines. Free functions; any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace hearth {

struct HttpLimits {
  int64_t header_bytes = 16 << 10;  // request line and headers; also one chunk's header, and the trailers
  int64_t body_bytes = 32 << 20;
  // Of all requests together, while they are read and until they are answered; more get 503 with Retry-After.
  int64_t bodies_bytes = 1 << 30;
  int64_t connections = 1024;
  int64_t header_timeout_ms = 10'000;  // from the first byte of a request to the end of its header
  int64_t body_timeout_ms = 60'000;    // of the whole body
  int64_t idle_timeout_ms = 75'000;    // before the first byte of a connection, and between two requests of it
  int64_t write_timeout_ms = 30'000;   // without the client taking a byte
};

struct HttpHead {
  std::string method;      // "GET"
  std::string path;        // "/v1/models", without the query, percent-decoded
  std::string query;       // after '?', as sent
  std::string request_id;  // the client's x-request-id where it is 1 to 128 visible ASCII characters, else a new one
  std::string remote;      // "127.0.0.1:51234"
  std::vector<std::pair<std::string, std::string>> headers;  // names in lower case

  // The first header of that (lower case) name; empty where there is none.
  std::string_view header(std::string_view name) const;
};

struct HttpReply {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  // Beside content-type, content-length, x-request-id. Names are tokens and none of content-length,
  // transfer-encoding, connection; a control character in a value is sent as a space.
  std::vector<std::pair<std::string, std::string>> headers;
};

// "req-" and 32 hex digits from the system's random source.
std::string new_request_id();
// 1 to 128 visible ASCII characters.
bool is_request_id(std::string_view id);

// How an answer's body ends, and what becomes of the connection.
struct HttpFraming {
  std::optional<int64_t> content_length;  // none: no such header
  bool chunked = false;
  bool close = false;
  bool keep_alive = false;  // said aloud, for HTTP/1.0
};

// Status line and headers up to the empty line; not the body.
std::string write_reply_head(const HttpReply& reply, std::string_view request_id, const HttpFraming& framing);
// One chunk: size, bytes, line end. REQUIRES: bytes is not empty, since that would end the answer.
std::string write_chunk(std::string_view bytes);
// False for 1xx, 204 and 304, whose answers end with their header.
bool status_has_body(int status);

}  // namespace hearth
