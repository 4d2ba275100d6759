// SPDX-License-Identifier: Apache-2.0
// SlabPool: KvPool over slabs, each cut into columns of one format while it is in use. A column is the place of one
// block.
//   I1. A block is live (referenced), cached (published, no reference) or gone; its column is live, cached or free.
//   I2. Live blocks of a model <= cap, unless the cap was lowered since.
//   I3. Slabs without live blocks suffice for what is kept for all models, unless a limit was raised or the pool
//       shrunk since; then nobody borrows until they do again.
//   I4. allocate(model, n) succeeds exactly if n <= available(model); it touches O(n) slabs, whatever the pool's size.
// One owning thread.
#pragma once

#include <array>
#include <memory>
#include <unordered_map>
#include <vector>

#include "hearth/kv/efficiency.h"
#include "hearth/kv/kv_pool.h"
#include "hearth/kv/slab_set.h"
#include "hearth/kv/watermark.h"

namespace hearth {

struct SlabPoolOptions {
  int64_t slab_bytes = int64_t{16} << 20;
  int64_t slabs = 0;
  int64_t low_slabs = 0, high_slabs = 0;  // watermarks; low <= high
  bool prefix_cache = true;
  std::array<uint64_t, 2> secret{};  // of the prefix keys: random in a server
};

class SlabPool final : public KvPool {
 public:
  // InvalidArgument: sizes that make no pool.
  static Result<std::unique_ptr<SlabPool>> create(const SlabPoolOptions& options);

  Result<KvModelId> add_model(const KvModelSpec& spec) override;
  void remove_model(KvModelId model) override;
  Status set_limits(KvModelId model, const KvLimits& limits) override;

  int64_t most(KvModelId model) const override { return most(model, slabs_.size()); }
  // In a pool of so many slabs.
  int64_t most(KvModelId model, int64_t slabs) const;
  int64_t slabs() const { return slabs_.size(); }
  const KvLimits& limits(KvModelId model) const { return at(model).spec.limits; }
  // Blocks of the model that a slab holds.
  int64_t columns(KvModelId model) const { return slabs_.format(at(model).format).columns; }
  int64_t live(KvModelId model) const override { return at(model).live; }
  int64_t available(KvModelId model) const override;
  bool allocate(KvModelId model, int64_t count, std::vector<KvBlock>& blocks) override;
  void retain(std::span<const KvBlock> blocks) override;
  void release(std::span<const KvBlock> blocks) override;
  bool shared(KvBlock block) const override { return live_block(block).references > 1; }
  int64_t offset_bytes(KvBlock block) const override { return slabs_.offset_bytes(live_block(block).at); }

  PrefixChain root(KvModelId model, std::string_view salt) const override;
  KvHit hit(KvModelId model, std::span<const PrefixKey> keys) const override;
  int64_t match(KvModelId model, std::span<const PrefixKey> keys, int64_t at_most,
                std::vector<KvBlock>& blocks) override;
  void publish(KvBlock block, const PrefixKey& key) override;
  void forget_all() override;

  bool admits() const override { return !watermark_.short_of(); }
  int64_t trim() override;
  std::optional<KvModelId> victim_for(KvModelId needy) const override;
  void rank_borrowers(std::span<KvModelId> wanting) const override;
  void served(KvModelId model, int64_t tokens) override;
  void end_window() override;

  std::vector<KvMove> compact(int64_t max_bytes) override;
  Result<std::vector<KvMove>> resize(int64_t slabs) override;
  int64_t slab_bytes() const override { return slabs_.slab_bytes(); }
  KvPoolStats stats() const override;
  KvModelStats stats(KvModelId model) const;

 private:
  struct Block {
    SlabColumn at;
    int32_t references = 0;
    KvModelId model = 0;
    bool published = false;
    int64_t used_at = 0;  // when it was last cached
    PrefixKey key{};
  };
  struct Model {
    KvModelSpec spec;
    bool there = false;
    uint64_t serial = 0;  // of all models that ever were: what was cached of one is never another's
    int32_t format = 0;
    int64_t live = 0, cached = 0;
    int64_t asked_blocks = 0, hit_blocks = 0, evicted_blocks = 0;
    MemoryEfficiency efficiency{0};

    int64_t owed() const { return std::max<int64_t>(0, spec.limits.kept - live); }
  };
  // What the pool knows of a format beyond its columns.
  struct FormatUse {
    int64_t owed = 0;            // blocks kept for its models that they do not have
    int64_t guaranteed = 0;      // blocks, of all its models
    int64_t hit_tokens = 0;      // in this window
    double tokens_per_byte = 0;  // hits of a window for each cached byte, the last windows' mean
  };
  // What a model can have now, but for its cap.
  struct Supply {
    int64_t slabs = 0;   // that are not cut for its format
    int64_t blocks = 0;  // in all
  };
  struct KeyHash {  // a key is a hash
    size_t operator()(const PrefixKey& key) const { return key[0]; }
  };

  explicit SlabPool(const SlabPoolOptions& options);

  // slab_pool.cpp
  Model& at(KvModelId model);
  const Model& at(KvModelId model) const;
  const Block& live_block(KvBlock block) const;
  Status check_limits(const KvModelSpec& spec, const KvLimits& limits, KvModelId old) const;
  void count_limits(const Model& model, int64_t sign);
  int64_t least_slabs(int32_t format, int64_t blocks) const;
  int64_t needed_for_kept(int32_t format) const;
  int64_t needed_for_kept() const;
  Supply supply(const Model& model) const;
  void set_live(Model& model, int64_t live);
  int32_t slab_to_fill(const Model& model, int64_t count);
  KvBlock new_block(KvModelId model);
  void see_level();

  // slab_pool_cache.cpp
  int32_t least_useful_idle() const;
  void evict(KvBlock block);
  void evict_oldest(int32_t slab);
  void evict_cached(int32_t slab);

  // slab_pool_move.cpp
  bool can_empty(int32_t slab) const;
  int32_t cheapest_to_empty(int64_t max_bytes) const;
  void drain(int32_t slab);
  void move_out(int32_t slab, std::vector<KvMove>& moves);
  Status check_fit(int64_t slabs) const;
  bool room_below(int64_t slabs) const;

  SlabSet slabs_;
  const bool prefix_cache_;
  const std::array<uint64_t, 2> secret_;
  Watermark watermark_;  // of slabs without live blocks
  std::vector<Model> models_;
  std::vector<FormatUse> uses_;  // by format
  std::vector<Block> blocks_;    // by handle
  std::vector<KvBlock> unused_;  // handles
  std::unordered_map<PrefixKey, KvBlock, KeyHash> index_;
  int64_t now_ = 0;  // counts what is cached and revived: the age of caches
  int64_t moved_blocks_ = 0;
  uint64_t serial_ = 0;
};

}  // namespace hearth
