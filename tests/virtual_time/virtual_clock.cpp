// SPDX-License-Identifier: Apache-2.0
#include "tests/virtual_time/virtual_clock.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "hearth/base/check.h"

namespace hearth::virtual_time {
namespace {

constexpr std::chrono::seconds kPatience{120};

}  // namespace

void VirtualClock::wait(std::condition_variable& changed, std::unique_lock<std::mutex>& lock,
                        const std::function<bool()>& ready) const {
  while (!ready()) {
    Waiting self{.mutex = lock.mutex(), .changed = &changed, .ready = &ready};
    std::unique_lock guard(mutex_);
    waiting_.push_back(&self);
    HEARTH_CHECK(waiting_.size() <= threads_, "{} threads wait by a clock of {}", waiting_.size(), threads_);
    if (!conducted_) {
      guard.unlock();
      owner_.notify_one();
      changed.wait(lock);
      guard.lock();
      std::erase(waiting_, &self);
      continue;
    }
    lock.unlock();
    hand_on();
    self.turn.wait(guard, [&] { return self.called; });
    guard.unlock();
    lock.lock();
  }
}

void VirtualClock::sleep(int64_t ns) const {
  std::unique_lock lock(sleep_mutex_);
  const auto wake = wakes_.insert(now_ns_ + ns);
  wait(slept_, lock, [this, &wake] { return let_go_ || now_ns_ >= *wake; });
  wakes_.erase(wake);
}

// One whose mutex is held is on its way in or out.
bool VirtualClock::can_go_on(const Waiting& waiting) {
  const std::unique_lock lock(*waiting.mutex, std::try_to_lock);
  return !lock || (*waiting.ready)();
}

void VirtualClock::hand_on() const {
  if (waiting_.size() < threads_) return;
  const auto next = std::ranges::find_if(waiting_, [](const Waiting* w) { return can_go_on(*w); });
  if (next == waiting_.end()) {
    settled_ = true;
    owner_.notify_one();
    return;
  }
  Waiting* const called = *next;
  waiting_.erase(next);
  called->called = true;
  called->turn.notify_one();
}

void VirtualClock::conduct() {
  std::unique_lock lock(mutex_);
  while (true) {
    const bool all = owner_.wait_for(lock, kPatience, [this] { return waiting_.size() == threads_; });
    HEARTH_CHECK(all, "{} of {} threads wait, the others have not come back", waiting_.size(), threads_);
    if (std::ranges::none_of(waiting_, [](const Waiting* w) { return can_go_on(*w); })) break;
    lock.unlock();
    std::this_thread::yield();
    lock.lock();
  }
  conducted_ = true;
  for (const Waiting* const w : waiting_) w->changed->notify_all();  // to wait for their turn
}

void VirtualClock::settle() {
  std::unique_lock lock(mutex_);
  settled_ = false;
  hand_on();
  const bool all = owner_.wait_for(lock, kPatience, [this] { return settled_; });
  HEARTH_CHECK(all, "{} of {} threads wait, the others have not come back", waiting_.size(), threads_);
}

std::optional<int64_t> VirtualClock::next_wake_ns() const {
  const std::lock_guard lock(sleep_mutex_);
  if (wakes_.empty()) return std::nullopt;
  return *wakes_.begin();
}

void VirtualClock::advance_to(int64_t ns) {
  const std::lock_guard lock(sleep_mutex_);
  HEARTH_CHECK(ns >= now_ns_, "{} ns after {}", ns, now_ns_.load());
  now_ns_ = ns;
}

void VirtualClock::let_go() {
  {
    const std::lock_guard lock(sleep_mutex_);
    let_go_ = true;
  }
  slept_.notify_all();
  const std::lock_guard lock(mutex_);
  conducted_ = false;
  for (Waiting* const w : std::exchange(waiting_, {})) {
    w->called = true;
    w->turn.notify_one();
  }
}

}  // namespace hearth::virtual_time
