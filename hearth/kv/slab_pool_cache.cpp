// SPDX-License-Identifier: Apache-2.0
// The prefix cache: blocks by their keys, and which go first.
//
// A block that is evicted leaves those behind it in their columns, though no match() can reach them: they come back
// into reach when the same prefix is computed again, and else grow old.
#include <algorithm>
#include <utility>

#include "hearth/base/check.h"
#include "hearth/kv/slab_pool.h"

namespace hearth {

PrefixChain SlabPool::root(KvModelId model, std::string_view salt) const { return {secret_, at(model).serial, salt}; }

KvHit SlabPool::hit(KvModelId id, std::span<const PrefixKey> keys) const {
  KvHit hit;
  const int64_t available = this->available(id);
  for (const PrefixKey& key : keys) {
    const auto found = index_.find(key);
    if (found == index_.end()) break;
    const bool revived = blocks_[static_cast<size_t>(found->second)].references == 0;
    if (revived && hit.revived == available) break;
    ++hit.blocks;
    hit.revived += revived;
  }
  return hit;
}

int64_t SlabPool::match(KvModelId id, std::span<const PrefixKey> keys, int64_t at_most, std::vector<KvBlock>& blocks) {
  Model& model = at(id);
  int64_t matched = 0;
  for (const PrefixKey& key : keys) {
    const auto found = matched < at_most ? index_.find(key) : index_.end();
    if (found == index_.end()) break;
    Block& block = blocks_[static_cast<size_t>(found->second)];
    if (block.references == 0) {
      // In an idle slab it takes that slab as well.
      const bool needs_slab = slabs_.slab(block.at.slab).live == 0;
      if (available(id) < 1 || (needs_slab && supply(model).slabs < 1)) break;
      slabs_.revive(block.at, ++now_);
      --model.cached;
      set_live(model, model.live + 1);
    }
    ++block.references;
    blocks.push_back(found->second);
    ++matched;
  }
  if (prefix_cache_) {
    model.hit_blocks += matched;
    model.asked_blocks += std::ssize(keys);
    uses_[static_cast<size_t>(model.format)].hit_tokens += matched * model.spec.block_tokens;
  }
  see_level();
  return matched;
}

void SlabPool::publish(KvBlock b, const PrefixKey& key) {
  live_block(b);
  Block& block = blocks_[static_cast<size_t>(b)];
  HEARTH_CHECK(!block.published, "KV block {} is published twice", b);
  if (!prefix_cache_ || !index_.try_emplace(key, b).second) return;
  block.published = true;
  block.key = key;
}

void SlabPool::forget_all() {
  for (int64_t s = 0; s < slabs_.size(); ++s) evict_cached(static_cast<int32_t>(s));
  for (Block& block : blocks_) block.published = false;
  index_.clear();
}

// ---- eviction

void SlabPool::evict(KvBlock b) {
  Block& block = blocks_[static_cast<size_t>(b)];
  HEARTH_CHECK(block.published && block.references == 0, "KV block {} is evicted and not cached", b);
  Model& model = models_[static_cast<size_t>(block.model)];
  --model.cached;
  ++model.evicted_blocks;
  index_.erase(block.key);
  block.published = false;
  slabs_.free_cached(block.at);
  unused_.push_back(b);
}

void SlabPool::evict_oldest(int32_t s) {
  KvBlock oldest = SlabSet::kNoBlock;
  for (const KvBlock b : slabs_.slab(s).block_in) {
    if (b == SlabSet::kNoBlock || blocks_[static_cast<size_t>(b)].references > 0) continue;
    if (oldest == SlabSet::kNoBlock ||
        blocks_[static_cast<size_t>(b)].used_at < blocks_[static_cast<size_t>(oldest)].used_at)
      oldest = b;
  }
  evict(oldest);
}

void SlabPool::evict_cached(int32_t s) {
  const auto columns = std::ssize(slabs_.slab(s).block_in);
  for (int64_t column = 0; column < columns && slabs_.slab(s).cached > 0; ++column) {
    const KvBlock b = slabs_.slab(s).block_in[static_cast<size_t>(column)];
    if (b != SlabSet::kNoBlock && blocks_[static_cast<size_t>(b)].references == 0) evict(b);
  }
}

// Of each format the idle slab that was not used for longest; of these the one with the greatest age, a format whose
// cache brings few tokens per byte being taken for older. Formats within their guarantees come last.
int32_t SlabPool::least_useful_idle() const {
  constexpr double kLeastWeight = 1.0 / 8;  // and so at most so many times as old
  double most_per_byte = 0;
  for (const FormatUse& use : uses_) most_per_byte = std::max(most_per_byte, use.tokens_per_byte);
  int32_t least = kNoSlab;
  bool least_within = false;
  double least_age = 0;
  for (int32_t f = 0; f < slabs_.formats(); ++f) {
    const SlabSet::Format& format = slabs_.format(f);
    const int32_t s = format.idle.first;
    if (s == kNoSlab) continue;
    const FormatUse& use = uses_[static_cast<size_t>(f)];
    const double weight = most_per_byte > 0 ? std::max(kLeastWeight, use.tokens_per_byte / most_per_byte) : 1;
    const double age = static_cast<double>(now_ - slabs_.slab(s).used_at + 1) / weight;
    const bool within = format.live + format.cached <= use.guaranteed;
    if (least != kNoSlab && (within != least_within ? within : age <= least_age)) continue;
    least = s, least_within = within, least_age = age;
  }
  return least;
}

int64_t SlabPool::trim() {
  int64_t slabs = 0;
  if (slabs_.empty() >= watermark_.low()) return 0;
  for (; slabs_.empty() < watermark_.high() && slabs_.idle() > 0; ++slabs) evict_cached(least_useful_idle());
  return slabs;
}

void SlabPool::end_window() {
  constexpr double kLast = 0.2;  // weight of the last window in the mean
  for (Model& model : models_)
    if (model.there) model.efficiency.end_window();
  for (int32_t f = 0; f < slabs_.formats(); ++f) {
    FormatUse& use = uses_[static_cast<size_t>(f)];
    const auto cached = static_cast<double>(slabs_.format(f).cached * slabs_.format(f).block_bytes);
    const double now = cached > 0 ? static_cast<double>(use.hit_tokens) / cached : 0;
    use.tokens_per_byte += kLast * (now - use.tokens_per_byte);
    use.hit_tokens = 0;
  }
}

}  // namespace hearth
