// SPDX-License-Identifier: Apache-2.0
// Access: who may ask, and how much at once. Keys are compared in a time that does not depend on where they differ.
// Any thread may call any method; outlives its tickets.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/serve/api_error.h"
#include "hearth/serve/limits.h"

namespace hearth {

class Access {
 public:
  // No keys: everyone may ask.
  Access(std::vector<std::string> keys, const ApiLimits& limits);

  // The index of the key in an Authorization header ("Bearer <key>"); -1 where none is asked for. 401 otherwise.
  ApiResult<int> authorize(std::string_view authorization) const;

  // One request in flight, until it is released or destroyed.
  class Ticket {
   public:
    Ticket(Ticket&& other) noexcept : access_(std::exchange(other.access_, nullptr)), key_(other.key_) {}
    Ticket& operator=(Ticket&&) = delete;
    ~Ticket() { release(); }
    // Before the last bytes of the answer are written: who has them may ask again at once.
    void release() {
      if (Access* const access = std::exchange(access_, nullptr)) access->leave(key_);
    }

   private:
    friend class Access;
    Ticket(Access* access, int key) : access_(access), key_(key) {}
    Access* access_;
    int key_;
  };
  // 503 where limits.requests are in flight, 429 where limits.requests_per_key of this key are.
  ApiResult<Ticket> enter(int key);
  // The error that enter() would give now, without entering: to refuse before a body is read.
  ApiStatus room(int key) const;
  int64_t in_flight() const { return in_flight_.load(std::memory_order_relaxed); }

 private:
  void leave(int key);
  ApiError full() const;
  ApiError key_full() const;

  const std::vector<std::string> keys_;
  const int64_t max_requests_, max_per_key_;
  std::atomic<int64_t> in_flight_{0};
  std::unique_ptr<std::atomic<int64_t>[]> per_key_;
};

}  // namespace hearth
