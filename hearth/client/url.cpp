// SPDX-License-Identifier: Apache-2.0
// Pure functions.
#include "hearth/client/url.h"

#include <charconv>

namespace hearth {
namespace {

bool visible(std::string_view text) {
  for (const char c : text)
    if (c <= ' ' || c == 0x7f) return false;
  return true;
}

}  // namespace

std::string HttpUrl::authority() const {
  const bool ipv6 = host.find(':') != std::string::npos;
  return fmt::format("{}{}{}:{}", ipv6 ? "[" : "", host, ipv6 ? "]" : "", port);
}

std::string HttpUrl::target(std::string_view route) const {
  constexpr std::string_view kVersion = "/v1";
  std::string_view prefix = path;
  if (prefix.ends_with(kVersion) && route.starts_with("/v1/")) prefix.remove_suffix(kVersion.size());
  return std::string(prefix) + std::string(route);
}

Result<HttpUrl> parse_http_url(std::string_view text) {
  constexpr const char* kWanted = "wanted http://HOST:PORT";
  constexpr std::string_view kHttp = "http://";
  if (text.starts_with("https://"))
    return unsupported("'{}': TLS is not offered; {}, with a proxy or a tunnel in front of a server that has TLS", text,
                       kWanted);
  if (!text.starts_with(kHttp)) return invalid_argument("'{}' does not begin with http://; {}", text, kWanted);
  std::string_view rest = text.substr(kHttp.size());
  if (!visible(rest)) return invalid_argument("'{}' has a space or a control character; {}", text, kWanted);
  if (rest.find_first_of("?#@") != std::string_view::npos)
    return invalid_argument("'{}' has a user, a query or a fragment; {}", text, kWanted);

  HttpUrl url;
  const size_t slash = rest.find('/');
  if (slash != std::string_view::npos) {
    std::string_view path = rest.substr(slash);
    while (path.ends_with('/')) path.remove_suffix(1);
    url.path = path;
    rest = rest.substr(0, slash);
  }
  std::string_view port;
  if (rest.starts_with('[')) {
    const size_t close = rest.find(']');
    if (close == std::string_view::npos) return invalid_argument("'{}' has no ']' for its '['; {}", text, kWanted);
    url.host = rest.substr(1, close - 1);
    port = rest.substr(close + 1);
  } else {
    const size_t colon = rest.find(':');
    url.host = rest.substr(0, colon);
    if (colon != std::string_view::npos) port = rest.substr(colon);
  }
  if (url.host.empty()) return invalid_argument("'{}' names no host; {}", text, kWanted);
  if (port.empty()) return url;
  const char* const end = port.data() + port.size();
  const auto [stop, error] = std::from_chars(port.data() + 1, end, url.port);
  if (port[0] != ':' || error != std::errc() || stop != end || url.port == 0)
    return invalid_argument("'{}': '{}' is no port; {}", text, port.substr(port[0] == ':' ? 1 : 0), kWanted);
  return url;
}

}  // namespace hearth
