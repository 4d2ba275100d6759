// SPDX-License-Identifier: Apache-2.0
// Where a server is: http://HOST[:PORT][/PATH]. A value; pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "hearth/base/result.h"

namespace hearth {

struct HttpUrl {
  std::string host;  // a name or an address; IPv6 without its brackets
  uint16_t port = 80;
  std::string path;  // "" or "/prefix", without a slash at its end

  // "127.0.0.1:8000", "[::1]:8000": for messages and the Host header.
  std::string authority() const;
  // The target of a request for `route` ("/v1/models") below this URL. A base URL that ends with /v1, as clients of
  // OpenAI's API write it, means the same as one without.
  std::string target(std::string_view route) const;
};

// InvalidArgument says what is wrong; Unsupported: https.
Result<HttpUrl> parse_http_url(std::string_view text);

}  // namespace hearth
