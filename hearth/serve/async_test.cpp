// SPDX-License-Identifier: Apache-2.0
// Mailbox and run_on: order, wake-ups from other threads, full pools, exceptions, coroutines that are destroyed
// while they wait.
#include "hearth/serve/async.h"

#include <gtest/gtest.h>

#include <atomic>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/strand.hpp>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <future>
#include <new>
#include <stdexcept>
#include <thread>

namespace hearth {
namespace {

namespace asio = boost::asio;

// Runs a coroutine to its end on this thread and returns what it returned.
template <class T>
T run(Async<T> coroutine) {
  asio::io_context context;
  std::optional<T> result;
  const auto keep = [](Async<T> from, std::optional<T>& to) -> Async<> { to.emplace(co_await std::move(from)); };
  asio::co_spawn(context, keep(std::move(coroutine), result), [](const std::exception_ptr& error) {
    if (error) std::rethrow_exception(error);
  });
  context.run();
  return std::move(result).value();
}

TEST(Mailbox, GivesAllItemsOfManyThreadsInTheOrderOfEach) {
  constexpr int kThreads = 4, kItems = 5000;
  Mailbox<std::pair<int, int>> box;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&box, t] {
      for (int i = 0; i < kItems; ++i) box.push({t, i});
    });
  std::thread closer([&] {
    for (auto& thread : threads) thread.join();
    box.close();
  });
  const auto collect = [](Mailbox<std::pair<int, int>>& from) -> Async<std::vector<int>> {
    std::vector<int> next(kThreads, 0);
    for (;;) {
      const auto items = co_await from.take();
      if (items.empty()) co_return next;
      for (const auto& [thread, i] : items) {
        EXPECT_EQ(i, next[static_cast<size_t>(thread)]);
        ++next[static_cast<size_t>(thread)];
      }
    }
  };
  const std::vector<int> counts = run(collect(box));
  closer.join();
  EXPECT_EQ(counts, std::vector<int>(kThreads, kItems));
}

TEST(Mailbox, ResumesOnTheExecutorOfTheCoroutine) {
  Mailbox<int> box;
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    box.push(7);
  });
  const auto wait = [](Mailbox<int>& from) -> Async<std::pair<int, bool>> {
    const auto before = std::this_thread::get_id();
    const auto items = co_await from.take();
    co_return std::pair(items.at(0), before == std::this_thread::get_id());
  };
  EXPECT_EQ(run(wait(box)), std::pair(7, true));
  other.join();
}

TEST(Mailbox, DropsWhatIsPushedAfterClose) {
  Mailbox<int> box;
  box.push(1);
  box.close();
  box.push(2);
  const auto twice = [](Mailbox<int>& from) -> Async<std::pair<size_t, size_t>> {
    const auto first = co_await from.take();
    const auto second = co_await from.take();
    co_return std::pair(first.size(), second.size());
  };
  EXPECT_EQ(run(twice(box)), (std::pair<size_t, size_t>(1, 0)));
}

// An executor without memory, as long as `broken`.
struct BrokenExecutor {
  asio::io_context* context;
  std::atomic<bool>* broken;
  asio::io_context& query(asio::execution::context_t) const noexcept { return *context; }
  static constexpr asio::execution::blocking_t query(asio::execution::blocking_t) noexcept {
    return asio::execution::blocking.never;
  }
  BrokenExecutor require(asio::execution::blocking_t::never_t) const noexcept { return *this; }
  template <class F>
  void execute(F&& task) const {
    if (*broken) throw std::bad_alloc();
    asio::require(context->get_executor(), asio::execution::blocking.never).execute(std::forward<F>(task));
  }
  bool operator==(const BrokenExecutor&) const noexcept = default;
};

// I3
TEST(Mailbox, FindsWhatNoWakeUpCouldBePostedFor) {
  std::atomic<bool> broken = false;
  asio::io_context context;
  const asio::any_io_executor executor(BrokenExecutor{&context, &broken});
  Mailbox<int> box;
  std::vector<int> got;
  const auto take = [](Mailbox<int>& from, std::vector<int>& to) -> Async<> {
    for (;;) {
      const auto items = co_await from.take();
      if (items.empty()) break;
      to.insert(to.end(), items.begin(), items.end());
    }
  };
  asio::co_spawn(executor, take(box, got), asio::detached);
  // Until it sleeps.
  context.run_for(std::chrono::milliseconds(50));
  broken = true;
  box.push(1);
  broken = false;
  for (int i = 0; i < 10 && got.empty(); ++i) context.run_one_for(std::chrono::seconds(1));
  EXPECT_EQ(got, std::vector<int>{1});
  // A later push wakes it for both.
  broken = true;
  box.push(2);
  broken = false;
  box.push(3);
  box.close();
  context.restart();
  context.run_for(std::chrono::milliseconds(500));
  EXPECT_EQ(got, (std::vector<int>{1, 2, 3}));
  EXPECT_TRUE(context.stopped());
}

struct Heavy {
  int value;
  bool no_memory = false;
  Heavy(int v, bool none) : value(v), no_memory(none) {}
  Heavy(Heavy&& o) : value(o.value), no_memory(o.no_memory) {  // NOLINT: it throws
    if (no_memory) throw std::bad_alloc();
  }
};

// I3
TEST(Mailbox, FailsWhereThereIsNoMemoryForAnItem) {
  Mailbox<Heavy> box;
  box.push(Heavy(1, false));
  EXPECT_FALSE(box.failed());
  box.push(Heavy(2, true));
  EXPECT_TRUE(box.failed());
  box.push(Heavy(3, false));
  const auto twice = [](Mailbox<Heavy>& from) -> Async<std::vector<int>> {
    std::vector<int> values;
    for (const auto& item : co_await from.take()) values.push_back(item.value);
    for (const auto& item : co_await from.take()) values.push_back(-item.value);
    co_return values;
  };
  EXPECT_EQ(run(twice(box)), std::vector<int>{1});
}

// I1
TEST(Mailbox, OutlivesACoroutineThatIsDestroyedWhileItWaits) {
  const auto box = std::make_shared<Mailbox<int>>();
  std::atomic<bool> stop = false;
  std::thread pusher([&] {
    while (!stop) box->push(1);
  });
  for (int i = 0; i < 200; ++i) {
    asio::io_context context;
    const auto forever = [](std::shared_ptr<Mailbox<int>> from) -> Async<> {
      for (;;) co_await from->take();
    };
    asio::co_spawn(asio::make_strand(context), forever(box), asio::detached);
    for (int k = 0; k < i % 7; ++k) context.poll_one();
  }
  stop = true;
  pusher.join();
}

TEST(RunOn, ReturnsWhatTheTaskReturns) {
  WorkerPool pool(2, 16);
  const auto value = run(run_on(pool, [] { return 42; }));
  ASSERT_TRUE(value);
  EXPECT_EQ(*value, 42);
  const auto moved = run(run_on(pool, [p = std::make_unique<int>(5)] { return *p; }));
  ASSERT_TRUE(moved);
  EXPECT_EQ(*moved, 5);
  EXPECT_TRUE(run(run_on(pool, [] {})));
  const auto failed = run(run_on(pool, []() -> Result<int> { return not_found("nothing here"); }));
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, ErrorCode::kNotFound);
}

TEST(RunOn, TurnsExceptionsIntoErrors) {
  WorkerPool pool(1, 16);
  const auto memory = run(run_on(pool, []() -> int { throw std::bad_alloc(); }));
  ASSERT_FALSE(memory);
  EXPECT_EQ(memory.error().code, ErrorCode::kResourceExhausted);
  const auto other = run(run_on(pool, []() -> int { throw std::runtime_error("broken"); }));
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().code, ErrorCode::kInternal);
  EXPECT_NE(other.error().message.find("broken"), std::string::npos);
  const auto odd = run(run_owed(pool, []() -> int { throw 1; }));
  ASSERT_FALSE(odd);
  EXPECT_EQ(odd.error().code, ErrorCode::kInternal);
}

TEST(RunOn, DestroysTheTaskBeforeItResumes) {
  WorkerPool pool(1, 16);
  const auto held = std::make_shared<int>(1);
  EXPECT_TRUE(run(run_on(pool, [held] { return *held; })));
  EXPECT_EQ(held.use_count(), 1);
}

TEST(RunOn, SaysThatThePoolIsFull) {
  WorkerPool pool(1, 1);
  std::promise<void> started, release;
  pool.post([&, wait = release.get_future().share()] {
    started.set_value();
    wait.wait();
  });
  started.get_future().wait();
  pool.post([] {});
  const auto refused = run(run_on(pool, [] { return 1; }));
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    release.set_value();
  });
  EXPECT_TRUE(run(run_owed(pool, [] { return 1; })));
  later.join();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kResourceExhausted);
}

// I1
TEST(RunOn, OutlivesACoroutineThatIsDestroyedWhileTheTaskRuns) {
  std::atomic<int> ran = 0;
  {
    WorkerPool pool(2, 1000);
    for (int i = 0; i < 200; ++i) {
      asio::io_context context;
      asio::co_spawn(
          asio::make_strand(context),
          [](WorkerPool& on, std::atomic<int>& count) -> Async<> { co_await run_on(on, [&count] { ++count; }); }(pool,
                                                                                                                 ran),
          asio::detached);
      while (context.poll_one() != 0) {}
    }
  }
  EXPECT_EQ(ran, 200);
}

}  // namespace
}  // namespace hearth
