// SPDX-License-Identifier: Apache-2.0
// What the listener and its connections share, and how a connection begins. Private to the HTTP layer.
//   I1. A connection is registered from its start to the end of its object, so that drain and the destructor
//       reach every one.
//   I2. A connection's state is touched on its strand only; HttpHub is guarded by its mutex.
#pragma once

#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "hearth/serve/http.h"

namespace hearth {

class HttpDrainable {
 public:
  virtual ~HttpDrainable() = default;
  // Any thread: end without a request in progress at once, else after it; with `abort` in its middle.
  virtual void drain(bool abort) = 0;
};

class HttpHub {
 public:
  explicit HttpHub(HttpServerOptions o) : options(std::move(o)) {}

  const HttpServerOptions options;

  // Registers; false where the server drains already.
  bool add(const std::shared_ptr<HttpDrainable>& connection, bool refused);
  void remove(HttpDrainable* connection, bool refused);
  // Drains all, and those that are added later.
  void drain(bool abort);
  bool draining() const;
  // Connections that are served, and those that are only told that there are too many.
  int64_t served() const;
  int64_t refused() const;
  bool wait_empty(int64_t timeout_ms);

  // The bodies of all requests together. False, with nothing charged: they would be more than bodies_bytes.
  bool charge_bodies(int64_t bytes);
  void release_bodies(int64_t bytes);

  HttpReply error_reply(int status, std::string_view message) const;

 private:
  mutable std::mutex mutex_;
  std::condition_variable empty_;
  std::unordered_map<HttpDrainable*, std::weak_ptr<HttpDrainable>> all_;  // guarded by mutex_
  std::atomic<int64_t> bodies_bytes_ = 0;
  int64_t refused_ = 0;    // guarded by mutex_
  bool draining_ = false;  // guarded by mutex_
};

// Serves the socket until it closes; with `refuse` answers 503 to whatever it asks, and closes it. The socket's
// executor is a strand.
void serve_http_connection(std::shared_ptr<HttpHub> hub, boost::asio::ip::tcp::socket socket, bool refuse);

}  // namespace hearth
