// SPDX-License-Identifier: Apache-2.0
// HttpRequestReader: one request from bytes, by Beast's parser, without sockets; what the fuzz target drives.
//   I1. It holds at most header_bytes of header and body-limit bytes of body, which grow as bytes arrive.
//   I2. What it accepts does not depend on how the bytes were cut; how soon it sees what is wrong may.
//   I3. What could be read in two ways is refused: content-length beside transfer-encoding, other transfer
//       codings than chunked, no or two hosts.
// One owner.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "hearth/serve/http_message.h"

namespace hearth {

// An answer that the HTTP layer gives by itself.
struct HttpFailure {
  int status = 0;
  std::string message;
};

class HttpRequestReader {
 public:
  enum class Step {
    kMore,    // asks for more bytes
    kHead,    // head() is complete; begin_body() comes next
    kDone,    // body() is complete
    kFailed,  // failure() says why; the connection cannot go on
  };

  explicit HttpRequestReader(int64_t header_bytes);
  ~HttpRequestReader();
  HttpRequestReader(const HttpRequestReader&) = delete;
  HttpRequestReader& operator=(const HttpRequestReader&) = delete;

  // Parses `input` and says in `used` how many of its bytes it is done with; the rest has to be given again, with
  // more behind it. After kMore the rest is shorter than header_bytes.
  Step advance(std::string_view input, size_t& used);

  // Whether a byte of the request has been seen (empty lines before it are not part of it).
  bool started() const;

  // REQUIRES of the following: kHead was returned.
  HttpHead& head();       // may be moved away
  bool has_body() const;  // announced; false where its length is 0
  bool keep_alive() const;
  bool is_http_1_0() const;
  bool expects_continue() const;
  // Sets the limit of the body; 413 where its announced length is above it, 417 for an unknown expectation.
  std::optional<HttpFailure> begin_body(int64_t body_bytes);

  // As far as it was read; may be moved away after kDone.
  std::string& body();
  // REQUIRES: kFailed was returned.
  const HttpFailure& failure() const { return failure_; }

 private:
  class Parser;
  Step parse(std::string_view input, size_t& used);
  Step fail(int status, std::string message);
  Step finish_head();

  const int64_t header_bytes_;
  int64_t header_used_ = 0;
  bool empty_line_skipped_ = false;
  std::string expect_;  // in lower case; kept, since the caller may move the head away
  HttpFailure failure_;
  std::unique_ptr<Parser> parser_;
};

}  // namespace hearth
