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
#include <future>
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
  release.set_value();
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
