// SPDX-License-Identifier: Apache-2.0
// What a coroutine of the server awaits from other threads: a task on a WorkerPool, and a mailbox that any
// thread fills. Both resume it on its own executor, which must be a strand or run on one thread.
//   I1. The other thread never touches the coroutine: if the coroutine or its io_context is destroyed meanwhile,
//       what arrives later is kept or dropped without it.
//   I2. Nothing here blocks; the mutex is held for a few instructions.
//   I3. No want of memory leaves a coroutine asleep for ever, or is thrown at who pushes.
#pragma once

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/base/worker_pool.h"

namespace hearth {

template <class T = void>
using Async = boost::asio::awaitable<T>;

// Items from any thread for one coroutine. Whoever pushes bounds how many there are. Hold it by shared_ptr where
// a thread may push after the coroutine has ended.
template <class T>
class Mailbox {
 public:
  Mailbox() = default;
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  // Room for so many items in all: until the first take(), pushing them allocates nothing.
  void reserve(size_t items) {
    const std::lock_guard lock(mutex_);
    items_.reserve(items);
  }
  // Any thread. After close() the item is dropped. Where there is no memory for it, the mailbox is closed and
  // failed(): what was pushed before can be taken, and nothing follows the gap.
  void push(T item) noexcept {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    try {
      items_.push_back(std::move(item));
    } catch (...) {
      closed_ = failed_ = true;
    }
    wake();
  }
  // Any thread. What is there can still be taken.
  void close() noexcept {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    wake();
  }
  // Any thread. An item was lost for want of memory.
  bool failed() const {
    const std::lock_guard lock(mutex_);
    return failed_;
  }

  // All that is there, in the order of pushing; waits where nothing is. Empty: closed, failed, or the coroutine
  // was cancelled. REQUIRES: no other coroutine is in take().
  Async<std::vector<T>> take() {
    if (auto now = take_now()) co_return std::move(*now);
    const auto timer = std::make_shared<boost::asio::steady_timer>(co_await boost::asio::this_coro::executor);
    const Waiting waiting(*this, timer);
    for (;;) {
      if (auto now = take_now_or_wait()) co_return std::move(*now);
      timer->expires_after(kLookAgain);
      co_await timer->async_wait(boost::asio::as_tuple(boost::asio::use_awaitable));
      const auto state = co_await boost::asio::this_coro::cancellation_state;
      if (state.cancelled() != boost::asio::cancellation_type::none) co_return std::vector<T>();
    }
  }

 private:
  // A wake-up is lost where there is no memory to post it.
  static constexpr std::chrono::seconds kLookAgain{1};

  // A coroutine in take(). Cancelling its timer resumes it.
  class Waiting {
   public:
    Waiting(Mailbox& box, const std::shared_ptr<boost::asio::steady_timer>& timer) : box_(box) {
      const std::lock_guard lock(box_.mutex_);
      HEARTH_CHECK(!box_.waiter_, "mailbox: two coroutines wait for it");
      box_.waiter_ = timer;
    }
    ~Waiting() {
      const std::lock_guard lock(box_.mutex_);
      box_.waiter_.reset();
    }
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;

   private:
    Mailbox& box_;
  };

  std::optional<std::vector<T>> take_now() {
    const std::lock_guard lock(mutex_);
    if (items_.empty() && !closed_) return std::nullopt;
    return std::exchange(items_, {});
  }
  std::optional<std::vector<T>> take_now_or_wait() {
    const std::lock_guard lock(mutex_);
    if (items_.empty() && !closed_) {
      asleep_ = true;
      return std::nullopt;
    }
    asleep_ = false;
    return std::exchange(items_, {});
  }
  // REQUIRES: mutex_ is held; so the coroutine, and with it its executor, is still there.
  void wake() noexcept {
    if (!waiter_ || !asleep_) return;
    try {
      boost::asio::post(waiter_->get_executor(), [weak = std::weak_ptr(waiter_)] {
        if (const auto timer = weak.lock()) timer->cancel();
      });
      asleep_ = false;
    } catch (...) {
      // take() looks again by itself, and the next push() or close() tries again.
    }
  }

  mutable std::mutex mutex_;
  std::vector<T> items_;                               // guarded by mutex_
  bool closed_ = false;                                // guarded by mutex_
  bool failed_ = false;                                // guarded by mutex_
  bool asleep_ = false;                                // guarded by mutex_: waits, and nobody has woken it yet
  std::shared_ptr<boost::asio::steady_timer> waiter_;  // guarded by mutex_
};

namespace internal {

template <class R>
struct AsResult {
  using type = Result<R>;
};
template <class R>
struct AsResult<Result<R>> {
  using type = Result<R>;
};

// What `work` throws is an Error; nothing is thrown.
template <class R, class F>
R call_caught(F& work) noexcept {
  try {
    try {
      if constexpr (std::is_void_v<std::invoke_result_t<F&>>) {
        work();
        return R();
      } else {
        return R(work());
      }
    } catch (const std::bad_alloc&) {
      throw;
    } catch (const std::exception& e) {
      return internal_error("a task threw: {}", e.what());
    } catch (...) {
      return internal_error("a task threw something that is no std::exception");
    }
  } catch (...) {
    // Short enough to need no memory.
    return resource_exhausted("out of memory");
  }
}

// For a pool: calls `work`, destroys it, and pushes what it returned, for which there is room already.
template <class R, class F>
auto make_task(const std::shared_ptr<Mailbox<R>>& done, F work) {
  done->reserve(1);
  // std::function asks for a copyable task.
  return [done, held = std::make_shared<std::optional<F>>(std::move(work))] {
    R result = call_caught<R>(**held);
    held->reset();
    done->push(std::move(result));
  };
}

template <class R>
Async<R> result_of_task(std::shared_ptr<Mailbox<R>> done) {
  std::vector<R> results = co_await done->take();
  if (results.empty() && done->failed()) co_return resource_exhausted("out of memory");
  if (results.empty()) co_return cancelled("cancelled while a task ran");
  co_return std::move(results.front());
}

}  // namespace internal

// Result<R> for work that returns R; the same Result for work that returns one.
template <class F>
using TaskResult = typename internal::AsResult<std::invoke_result_t<F&>>::type;

// Runs `work` on the pool and resumes with what it returned. ResourceExhausted: the pool is full (nothing ran),
// or `work` threw bad_alloc; Internal: it threw something else; Cancelled: the coroutine was cancelled.
// `work` owns what it uses: it is run, and destroyed, on the pool even if the coroutine is gone by then.
template <class F>
Async<TaskResult<F>> run_on(WorkerPool& pool, F work) {
  const auto done = std::make_shared<Mailbox<TaskResult<F>>>();
  const bool posted = pool.try_post(internal::make_task(done, std::move(work)));
  if (!posted) co_return resource_exhausted("all workers are busy and {} tasks wait", pool.waiting());
  co_return co_await internal::result_of_task(done);
}

// run_on() for work of a request that has been taken: never refused.
template <class F>
Async<TaskResult<F>> run_owed(WorkerPool& pool, F work) {
  const auto done = std::make_shared<Mailbox<TaskResult<F>>>();
  pool.post(internal::make_task(done, std::move(work)));
  co_return co_await internal::result_of_task(done);
}

}  // namespace hearth
