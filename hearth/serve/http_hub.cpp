// SPDX-License-Identifier: Apache-2.0
// HttpHub: which connections there are, and what the layer says by itself. Any thread.
#include <fmt/format.h>

#include <chrono>
#include <utility>
#include <vector>

#include "hearth/serve/http_connection.h"

namespace hearth {

bool HttpHub::add(const std::shared_ptr<HttpDrainable>& connection, bool refused) {
  const std::lock_guard lock(mutex_);
  all_.emplace(connection.get(), connection);
  if (refused) ++refused_;
  return !draining_;
}

void HttpHub::remove(HttpDrainable* connection, bool refused) {
  const std::lock_guard lock(mutex_);
  // add() may have thrown.
  if (all_.erase(connection) != 0 && refused) --refused_;
  if (all_.empty()) empty_.notify_all();
}

void HttpHub::drain(bool abort) {
  // Let go of them without the lock: the last owner's destructor takes it.
  std::vector<std::shared_ptr<HttpDrainable>> connections;
  {
    const std::lock_guard lock(mutex_);
    draining_ = true;
    for (const auto& [pointer, weak] : all_)
      if (auto connection = weak.lock()) connections.push_back(std::move(connection));
  }
  for (const auto& connection : connections) connection->drain(abort);
}

bool HttpHub::draining() const {
  const std::lock_guard lock(mutex_);
  return draining_;
}

int64_t HttpHub::served() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int64_t>(all_.size()) - refused_;
}

int64_t HttpHub::refused() const {
  const std::lock_guard lock(mutex_);
  return refused_;
}

bool HttpHub::wait_empty(int64_t timeout_ms) {
  std::unique_lock lock(mutex_);
  return empty_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [&] { return all_.empty(); });
}

bool HttpHub::charge_bodies(int64_t bytes) {
  if (bodies_bytes_.fetch_add(bytes) + bytes <= options.limits.bodies_bytes) return true;
  bodies_bytes_.fetch_sub(bytes);
  return false;
}

void HttpHub::release_bodies(int64_t bytes) { bodies_bytes_.fetch_sub(bytes); }

HttpReply HttpHub::error_reply(int status, std::string_view message) const {
  HttpReply reply;
  reply.status = status;
  if (options.error_body) {
    reply.body = options.error_body(status, message);
  } else {
    reply.content_type = "text/plain; charset=utf-8";
    reply.body = fmt::format("{}\n", message);
  }
  if (status == 503) reply.headers.emplace_back("retry-after", "1");
  return reply;
}

}  // namespace hearth
