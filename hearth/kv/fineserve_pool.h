// SPDX-License-Identifier: Apache-2.0
// FineServePool: the memory manager of FineServe (arXiv 2509.06261) as its authors released it, to compare with.
//   - A slab has 2 * lcm(block bytes of one layer, K or V, over all models) bytes in every layer, K and V: every
//     format divides it. Moving between formats it is 2 * layers times as large.
//   - Models of one layer count share slabs; between layer counts the memory is split once, by rate times layers.
//   - A block goes into any slab of its format that has room, in no order, else into an empty one.
//   - No prefix cache, no quotas, no compaction; models are known from the start.
// One owning thread.
#pragma once

#include <memory>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/kv/kv_pool.h"

namespace hearth {

struct FineServeModel {
  KvModelSpec spec;  // its limits are not looked at
  int64_t layers = 0;
  double rate = 1;              // requests per second: the weight of its group
  int64_t least_tokens = 2048;  // of a step: the group has slabs for as many, whatever its weight
};

class FineServePool final : public KvPool {
 public:
  // Models get the ids 0, 1, ... in their order. ResourceExhausted: the groups' least slabs do not fit.
  static Result<std::unique_ptr<FineServePool>> create(int64_t pool_bytes, std::vector<FineServeModel> models,
                                                       uint64_t seed);

  int64_t most(KvModelId model) const override;
  int64_t live(KvModelId model) const override { return live_[static_cast<size_t>(model)]; }
  int64_t available(KvModelId model) const override;
  bool allocate(KvModelId model, int64_t count, std::vector<KvBlock>& blocks) override;
  void retain(std::span<const KvBlock> blocks) override;
  void release(std::span<const KvBlock> blocks) override;
  bool shared(KvBlock block) const override { return blocks_[static_cast<size_t>(block)].references > 1; }
  int64_t offset_bytes(KvBlock block) const override;
  KvPoolStats stats() const override;
  // A model that is short preempts its own requests.
  std::optional<KvModelId> victim_for(KvModelId needy) const override;
  int64_t slab_bytes() const override { return stripe_bytes_; }  // in one layer of K or V

  // What the released code does not have.
  Result<KvModelId> add_model(const KvModelSpec& spec) override;
  void remove_model(KvModelId) override {}
  Status set_limits(KvModelId model, const KvLimits& limits) override;
  PrefixChain root(KvModelId model, std::string_view salt) const override;
  KvHit hit(KvModelId, std::span<const PrefixKey>) const override { return {}; }
  int64_t match(KvModelId, std::span<const PrefixKey>, int64_t, std::vector<KvBlock>&) override { return 0; }
  void publish(KvBlock, const PrefixKey&) override {}
  void forget_all() override {}
  bool admits() const override { return true; }
  int64_t trim() override { return 0; }
  void rank_borrowers(std::span<KvModelId>) const override {}
  void served(KvModelId, int64_t) override {}
  void end_window() override {}
  std::vector<KvMove> compact(int64_t) override { return {}; }
  Result<std::vector<KvMove>> resize(int64_t slabs) override;

 private:
  struct Slab {
    int32_t format = -1;
    int64_t live = 0;
    std::vector<int32_t> free;  // columns
    int64_t partial_at = -1;    // in its format's list of slabs with room
  };
  struct Group {  // the models of one layer count
    int64_t layers = 0, base_bytes = 0, slab_bytes = 0;
    std::vector<Slab> slabs;
    std::vector<int32_t> empty;
  };
  struct Format {
    int32_t group = 0;
    int64_t block_bytes = 0, columns = 0;
    int64_t slabs = 0, live = 0;
    std::vector<int32_t> partial;  // slabs with room, in no order
  };
  struct Block {
    int32_t format = 0, slab = 0, column = 0, references = 0;
    KvModelId model = 0;
  };

  FineServePool(int64_t pool_bytes, std::vector<FineServeModel> models, uint64_t seed);
  Status split();
  Group& group_of(const Format& format) { return groups_[static_cast<size_t>(format.group)]; }
  const Format& format_of(KvModelId model) const {
    return formats_[static_cast<size_t>(model_format_[static_cast<size_t>(model)])];
  }
  void set_partial(Format& format, int32_t s, bool partial);

  const int64_t pool_bytes_;
  int64_t stripe_bytes_ = 0;
  std::vector<FineServeModel> models_;
  std::vector<int32_t> model_format_;  // by model
  std::vector<int64_t> live_;          // blocks, by model
  std::vector<Group> groups_;
  std::vector<Format> formats_;
  std::vector<Block> blocks_;
  std::vector<KvBlock> unused_;
  Random random_;
};

}  // namespace hearth
