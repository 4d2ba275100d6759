// SPDX-License-Identifier: Apache-2.0
#include "hearth/kv/slab_set.h"

#include <algorithm>

#include "hearth/base/check.h"

namespace hearth {
namespace {

// The lists that a slab's counts put it into.
struct Where {
  enum class Age : uint8_t { kNone, kIdle, kMixed };
  int64_t free = 0, live = 0;  // 0: not in the buckets
  Age age = Age::kNone;
};

Where where(const SlabSet::Slab& slab) {
  if (slab.draining) return {};
  if (slab.live == 0) return {.age = slab.cached > 0 ? Where::Age::kIdle : Where::Age::kNone};
  return {.free = std::ssize(slab.free),
          .live = slab.live,
          .age = slab.cached > 0 ? Where::Age::kMixed : Where::Age::kNone};
}

void move_bucket(SlabBuckets& buckets, SlabLinks& links, int32_t s, int64_t before, int64_t after) {
  if (before == after) return;
  if (before > 0) buckets.remove(links, s, before);
  if (after > 0) buckets.add(links, s, after);
}

}  // namespace

SlabSet::SlabSet(int64_t slab_bytes, int64_t slabs) : slab_bytes_(slab_bytes), size_(0) { resize(slabs); }

int32_t SlabSet::use_format(int64_t block_bytes) {
  auto at =
      std::ranges::find_if(formats_, [&](const Format& f) { return f.users > 0 && f.block_bytes == block_bytes; });
  if (at == formats_.end()) {
    at = std::ranges::find(formats_, 0, &Format::users);
    if (at == formats_.end()) at = formats_.emplace(formats_.end());
    at->block_bytes = block_bytes;
    at->columns = slab_bytes_ / block_bytes;
    at->by_free = SlabBuckets(at->columns);
    at->by_live = SlabBuckets(at->columns);
  }
  ++at->users;
  return static_cast<int32_t>(at - formats_.begin());
}

void SlabSet::leave_format(int32_t f) {
  Format& format = formats_[static_cast<size_t>(f)];
  HEARTH_CHECK(--format.users > 0 || format.slabs == 0, "a format without models has {} slabs", format.slabs);
}

int32_t SlabSet::best_fit(int32_t f, int64_t columns) {
  const int32_t s = format(f).by_free.at_least(columns);
  return s == kNoSlab ? format(f).by_free.largest() : s;
}

int32_t SlabSet::cut(int32_t f) {
  HEARTH_CHECK(empty_ > 0, "no slab is empty");
  const auto word = std::ranges::find_if(empty_bits_, [](uint64_t bits) { return bits != 0; });
  const auto s = static_cast<int32_t>((word - empty_bits_.begin()) * 64 + std::countr_zero(*word));
  set_empty(s, false);
  touch(s);
  Slab& slab = slabs_[static_cast<size_t>(s)];
  const auto columns = static_cast<int32_t>(format(f).columns);
  slab.format = f;
  slab.block_in.assign(static_cast<size_t>(columns), kNoBlock);
  slab.free.clear();
  for (int32_t column = columns - 1; column >= 0; --column) slab.free.push_back(column);
  count(s, 1);
  return s;
}

int32_t SlabSet::fill(int32_t s, int32_t block) {
  int32_t column = 0;
  change(s, false, [&](Slab& slab) {
    HEARTH_CHECK(!slab.free.empty() && !slab.draining, "slab {} is full", s);
    column = slab.free.back();
    slab.free.pop_back();
    slab.block_in[static_cast<size_t>(column)] = block;
    ++slab.live;
  });
  return column;
}

void SlabSet::free_live(SlabColumn at, int64_t now) {
  const bool last = slab(at.slab).live == 1;
  change(at.slab, last, [&](Slab& slab) {
    --slab.live;
    if (last) slab.used_at = now;
    slab.block_in[static_cast<size_t>(at.column)] = kNoBlock;
    slab.free.push_back(at.column);
  });
}

void SlabSet::free_cached(SlabColumn at) {
  change(at.slab, false, [&](Slab& slab) {
    --slab.cached;
    slab.block_in[static_cast<size_t>(at.column)] = kNoBlock;
    slab.free.push_back(at.column);
  });
}

void SlabSet::cache(SlabColumn at, int64_t now) {
  change(at.slab, true, [&](Slab& slab) {
    --slab.live;
    ++slab.cached;
    slab.used_at = now;
  });
}

void SlabSet::revive(SlabColumn at, int64_t now) {
  change(at.slab, true, [&](Slab& slab) {
    ++slab.live;
    --slab.cached;
    slab.used_at = now;
  });
}

void SlabSet::drain(int32_t s) {
  change(s, false, [](Slab& slab) { slab.draining = true; });
}

void SlabSet::resize(int64_t slabs) {
  slabs_.resize(static_cast<size_t>(std::max(slabs, std::ssize(slabs_))));
  empty_bits_.resize(slabs_.size() / 64 + 1);
  for (SlabLinks* links : {&free_links_, &live_links_, &age_links_}) links->of.resize(slabs_.size());
  for (int64_t s = size_; s < slabs; ++s) set_empty(static_cast<int32_t>(s), true);
  for (int64_t s = slabs; s < size_; ++s) {
    const Slab& slab = slabs_[static_cast<size_t>(s)];
    HEARTH_CHECK(slab.format < 0 || slab.draining, "slab {} is in use and the set ends before it", s);
    if (slab.format < 0) set_empty(static_cast<int32_t>(s), false);
  }
  size_ = slabs;
}

// Every change of a slab that has a format goes through here: sums, lists and emptiness follow its counts.
// `newest`: it is the last used of its list from now on.
template <class Change>
void SlabSet::change(int32_t s, bool newest, Change&& change) {
  touch(s);
  Slab& slab = slabs_[static_cast<size_t>(s)];
  Format& format = formats_[static_cast<size_t>(slab.format)];
  const Where before = where(slab);
  count(s, -1);
  change(slab);
  count(s, 1);
  const Where after = where(slab);
  move_bucket(format.by_free, free_links_, s, before.free, after.free);
  move_bucket(format.by_live, live_links_, s, before.live, after.live);
  if (before.age != after.age || (newest && after.age != Where::Age::kNone)) {
    const auto list = [&](Where::Age age) -> SlabList& {
      return age == Where::Age::kIdle ? format.idle : format.mixed;
    };
    if (before.age != Where::Age::kNone) list(before.age).remove(age_links_, s);
    if (after.age != Where::Age::kNone) {
      // An idle slab that is filled was the one not used for longest, and still is.
      const bool oldest = before.age == Where::Age::kIdle && !newest;
      oldest ? list(after.age).prepend(age_links_, s) : list(after.age).append(age_links_, s);
    }
  }
  if (slab.live == 0 && slab.cached == 0) {
    count(s, -1);
    slab.format = -1;
    slab.draining = false;
    if (s < size_) set_empty(s, true);
  }
}

void SlabSet::count(int32_t s, int64_t sign) {
  const Slab& slab = slabs_[static_cast<size_t>(s)];
  if (slab.draining) return;
  Format& format = formats_[static_cast<size_t>(slab.format)];
  const int64_t free = std::ssize(slab.free);
  format.slabs += sign;
  format.live += sign * slab.live;
  format.cached += sign * slab.cached;
  format.free += sign * free;
  if (slab.live > 0) format.room += sign * (slab.cached + free);
  format.idle_slabs += sign * slab.idle();
  idle_ += sign * slab.idle();
}

void SlabSet::set_empty(int32_t s, bool empty) {
  uint64_t& bits = empty_bits_[static_cast<size_t>(s) / 64];
  const uint64_t bit = uint64_t{1} << (s % 64);
  HEARTH_CHECK(((bits & bit) != 0) != empty, "slab {} is in use", s);
  bits ^= bit;
  empty_ += empty ? 1 : -1;
}

}  // namespace hearth
