// SPDX-License-Identifier: Apache-2.0
// Counters and comparisons without branches on secrets. Any thread.
#include "hearth/serve/access.h"

#include <algorithm>
#include <cctype>

namespace hearth {
namespace {

// Reads every byte of `key`, whatever `given` is.
bool equal_in_constant_time(std::string_view key, std::string_view given) {
  volatile uint8_t difference = key.size() == given.size() ? 0 : 1;
  const std::string_view other = given.empty() ? std::string_view("\0", 1) : given;
  for (size_t i = 0; i < key.size(); ++i)
    difference = static_cast<uint8_t>(difference |
                                      (static_cast<uint8_t>(key[i]) ^ static_cast<uint8_t>(other[i % other.size()])));
  return difference == 0;
}

bool is_bearer(std::string_view scheme) {
  constexpr std::string_view kBearer = "bearer";
  return scheme.size() == kBearer.size() &&
         std::equal(scheme.begin(), scheme.end(), kBearer.begin(),
                    [](char a, char b) { return std::tolower(static_cast<unsigned char>(a)) == b; });
}

}  // namespace

Access::Access(std::vector<std::string> keys, const ApiLimits& limits)
    : keys_(std::move(keys)),
      max_requests_(limits.requests),
      max_per_key_(limits.requests_per_key),
      per_key_(std::make_unique<std::atomic<int64_t>[]>(keys_.size())) {}

ApiResult<int> Access::authorize(std::string_view authorization) const {
  if (keys_.empty()) return -1;
  if (authorization.empty()) return wrong_key("no API key; send it as \"Authorization: Bearer <key>\"");
  const size_t space = authorization.find(' ');
  if (space == std::string_view::npos || !is_bearer(authorization.substr(0, space)))
    return wrong_key("the Authorization header is not \"Bearer <key>\"");
  std::string_view given = authorization.substr(space + 1);
  while (given.starts_with(' ')) given.remove_prefix(1);
  while (given.ends_with(' ')) given.remove_suffix(1);
  int found = -1;
  // No early end: the time must not say which key came close.
  for (size_t i = 0; i < keys_.size(); ++i)
    if (equal_in_constant_time(keys_[i], given)) found = static_cast<int>(i);
  if (found < 0) return wrong_key("the API key is not one of this server");
  return found;
}

ApiError Access::full() const {
  return not_now("overloaded", fmt::format("{} requests are in flight, which is all this server takes", max_requests_));
}

ApiError Access::key_full() const {
  return too_many(fmt::format("{} requests of this API key are in flight, which is all it may have", max_per_key_));
}

ApiStatus Access::room(int key) const {
  if (in_flight_.load() >= max_requests_) return full();
  if (key >= 0 && max_per_key_ > 0 && per_key_[static_cast<size_t>(key)].load() >= max_per_key_) return key_full();
  return {};
}

ApiResult<Access::Ticket> Access::enter(int key) {
  if (in_flight_.fetch_add(1) >= max_requests_) {
    in_flight_.fetch_sub(1);
    return full();
  }
  if (key >= 0) {
    const int64_t before = per_key_[static_cast<size_t>(key)].fetch_add(1);
    if (max_per_key_ > 0 && before >= max_per_key_) {
      leave(key);
      return key_full();
    }
  }
  return Ticket(this, key);
}

void Access::leave(int key) {
  if (key >= 0) per_key_[static_cast<size_t>(key)].fetch_sub(1);
  in_flight_.fetch_sub(1);
}

}  // namespace hearth
