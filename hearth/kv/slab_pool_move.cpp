// SPDX-License-Identifier: Apache-2.0
// Blocks that move: compaction of nearly empty slabs, and the pool's end when weights take slabs from it.
#include <algorithm>
#include <utility>

#include "hearth/kv/slab_pool.h"

namespace hearth {

// Its live blocks have room in other live slabs of its format.
bool SlabPool::can_empty(int32_t s) const {
  const SlabSet::Slab& slab = slabs_.slab(s);
  return slabs_.format(slab.format).room - std::ssize(slab.free) - slab.cached >= slab.live;
}

// The slab that fewest bytes keep from being empty; kNoSlab: none, or more bytes than max_bytes.
int32_t SlabPool::cheapest_to_empty(int64_t max_bytes) const {
  int32_t cheapest = kNoSlab;
  for (int32_t f = 0; f < slabs_.formats(); ++f) {
    const int32_t s = slabs_.format(f).by_live.at_least(1);
    if (s == kNoSlab || !can_empty(s)) continue;
    const int64_t bytes = slabs_.slab(s).live * slabs_.format(f).block_bytes;
    if (bytes > max_bytes) continue;
    cheapest = s;
    max_bytes = bytes - 1;
  }
  return cheapest;
}

// What is cached there goes, and nothing new comes in.
void SlabPool::drain(int32_t s) {
  evict_cached(s);
  if (slabs_.slab(s).format >= 0) slabs_.drain(s);
}

// Of a draining slab: what is live moves to the fullest slabs of its format, or to a new one.
void SlabPool::move_out(int32_t s, std::vector<KvMove>& moves) {
  const int32_t f = slabs_.slab(s).format;
  const std::vector<KvBlock> blocks = slabs_.slab(s).block_in;
  for (const KvBlock b : blocks) {
    if (b == SlabSet::kNoBlock) continue;
    int32_t to = slabs_.fullest(f);
    if (to == kNoSlab && (to = slabs_.format(f).mixed.first) != kNoSlab) evict_oldest(to);
    if (to == kNoSlab && slabs_.empty() == 0) evict_cached(least_useful_idle());
    if (to == kNoSlab) to = slabs_.cut(f);
    SlabColumn& at = blocks_[static_cast<size_t>(b)].at;
    const SlabColumn from = std::exchange(at, {.slab = to, .column = slabs_.fill(to, b)});
    moves.push_back({.from_bytes = slabs_.offset_bytes(from),
                     .to_bytes = slabs_.offset_bytes(at),
                     .size_bytes = slabs_.format(f).block_bytes});
    slabs_.free_live(from, now_);
    ++moved_blocks_;
  }
}

std::vector<KvMove> SlabPool::compact(int64_t max_bytes) {
  std::vector<KvMove> moves;
  // A pool of one format can use its free columns where they are.
  if (std::ranges::count_if(models_, &Model::there) < 2) return moves;
  while (slabs_.empty() + slabs_.idle() < std::max(watermark_.high(), needed_for_kept())) {
    const int32_t s = cheapest_to_empty(max_bytes);
    if (s == kNoSlab) break;
    max_bytes -= slabs_.slab(s).live * slabs_.format(slabs_.slab(s).format).block_bytes;
    drain(s);
    move_out(s, moves);
  }
  see_level();
  return moves;
}

// ---- the pool's end

Status SlabPool::check_fit(int64_t slabs) const {
  int64_t live = 0, guaranteed = 0;
  for (int32_t f = 0; f < slabs_.formats(); ++f) {
    if (slabs_.format(f).users == 0) continue;
    live += least_slabs(f, slabs_.format(f).live);
    guaranteed += least_slabs(f, uses_[static_cast<size_t>(f)].guaranteed);
  }
  if (std::max(live, guaranteed) > slabs)
    return resource_exhausted(
        "a KV pool of {} slabs of {} bytes: live blocks need {} of them, what models are guaranteed {}", slabs,
        slabs_.slab_bytes(), live, guaranteed);
  return {};
}

// Whether what is live behind `slabs` has room before it as things lie.
bool SlabPool::room_below(int64_t slabs) const {
  struct Behind {
    int64_t live = 0, room = 0;
  };
  std::vector<Behind> behind(uses_.size());
  int64_t takeable = slabs_.empty() + slabs_.idle();
  for (int64_t s = slabs; s < slabs_.size(); ++s) {
    const SlabSet::Slab& slab = slabs_.slab(static_cast<int32_t>(s));
    if (slab.live == 0) {
      --takeable;
      continue;
    }
    Behind& b = behind[static_cast<size_t>(slab.format)];
    b.live += slab.live;
    b.room += std::ssize(slab.free) + slab.cached;
  }
  for (int32_t f = 0; f < slabs_.formats(); ++f) {
    const Behind& b = behind[static_cast<size_t>(f)];
    const int64_t more = b.live - (slabs_.format(f).room - b.room);
    if (more > 0) takeable -= least_slabs(f, more);
  }
  return takeable >= 0;
}

Result<std::vector<KvMove>> SlabPool::resize(int64_t slabs) {
  if (slabs < 0 || slabs > std::numeric_limits<int32_t>::max()) return invalid_argument("a KV pool of {} slabs", slabs);
  std::vector<KvMove> moves;
  if (slabs < slabs_.size()) {
    HEARTH_TRY(check_fit(slabs));
    // Dense, all live blocks fit by check_fit().
    while (!room_below(slabs)) {
      const int32_t s = cheapest_to_empty(std::numeric_limits<int64_t>::max());
      HEARTH_CHECK(s != kNoSlab, "{} slabs hold all live KV blocks, and no slab can be emptied", slabs);
      drain(s);
      move_out(s, moves);
    }
  }
  std::vector<int32_t> behind;
  for (int64_t i = slabs; i < slabs_.size(); ++i) {
    const auto s = static_cast<int32_t>(i);
    if (slabs_.slab(s).format < 0) continue;
    drain(s);
    if (slabs_.slab(s).format >= 0) behind.push_back(s);
  }
  slabs_.resize(slabs);
  for (const int32_t s : behind) move_out(s, moves);
  see_level();
  return moves;
}

}  // namespace hearth
