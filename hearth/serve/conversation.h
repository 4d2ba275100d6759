// SPDX-License-Identifier: Apache-2.0
// Conversation: what the engine, a worker and the connection share of one request; Conversations: all that are under
// way. Any thread may call any method; nothing here waits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "hearth/engine/engine.h"
#include "hearth/serve/async.h"

namespace hearth {

struct Piece {
  size_t prompt = 0;
  Output output;
};

// What the engine, a worker and the connection share of one request.
class Conversation {
 public:
  Mailbox<Piece> pieces;

  // A worker: the model that the request names, before the first add(). Only compared.
  void set_model(const ServedModel* model) {
    const std::lock_guard lock(mutex_);
    model_ = model;
  }
  // A worker: one handle for each prompt, in their order. After leave() and cancel() its request is cancelled.
  void add(RequestHandle handle) {
    const std::lock_guard lock(mutex_);
    if (gone_) return;
    if (cancelled_) handle.cancel();
    handles_.push_back(std::move(handle));
  }
  // Nobody wants the answer any more. Called where a coroutine ends, however it does: never throws.
  void leave() noexcept {
    std::vector<RequestHandle> handles;
    {
      const std::lock_guard lock(mutex_);
      gone_ = true;
      handles.swap(handles_);
    }
    pieces.close();
  }
  bool gone() const {
    const std::lock_guard lock(mutex_);
    return gone_;
  }
  // Ends the choices; the engine's last pieces still come and say so. null: of whatever model.
  void cancel(const ServedModel* model = nullptr) {
    const std::lock_guard lock(mutex_);
    if (model != nullptr && model != model_) return;
    cancelled_ = true;
    for (RequestHandle& handle : handles_) handle.cancel();
  }
  // No request of it was taken yet.
  bool empty() const {
    const std::lock_guard lock(mutex_);
    return handles_.empty();
  }
  bool cancelled() const {
    const std::lock_guard lock(mutex_);
    return cancelled_;
  }
  void consumed(size_t prompt, int32_t choice, int64_t tokens) {
    const std::lock_guard lock(mutex_);
    if (tokens > 0 && prompt < handles_.size()) handles_[prompt].consumed(choice, tokens);
  }

 private:
  mutable std::mutex mutex_;
  std::vector<RequestHandle> handles_;  // guarded by mutex_
  const ServedModel* model_ = nullptr;  // guarded by mutex_
  bool gone_ = false;                   // guarded by mutex_
  bool cancelled_ = false;              // guarded by mutex_
};

// Knows the conversations under way, so that they can be ended when the server or their model goes.
class Conversations {
 public:
  std::shared_ptr<Conversation> open() {
    auto conversation = std::make_shared<Conversation>();
    const std::lock_guard lock(mutex_);
    // As many dead ones as there are live ones at most.
    if (known_.size() >= 2 * live_ + 16) {
      std::erase_if(known_, [](const auto& one) { return one.expired(); });
      live_ = known_.size();
    }
    known_.push_back(conversation);
    return conversation;
  }
  // Of one model; null: of all.
  void cancel_all(const ServedModel* model = nullptr) {
    const std::lock_guard lock(mutex_);
    for (const auto& one : known_)
      if (const auto conversation = one.lock()) conversation->cancel(model);
  }

 private:
  std::mutex mutex_;
  std::vector<std::weak_ptr<Conversation>> known_;  // guarded by mutex_
  size_t live_ = 0;                                 // guarded by mutex_: at the last look
};

}  // namespace hearth
