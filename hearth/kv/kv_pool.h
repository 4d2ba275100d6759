// SPDX-License-Identifier: Apache-2.0
// KvPool: one memory for the KV blocks of many models, whose blocks differ in size. Only numbers: a block is a handle,
// its place a byte offset from the base of a memory that somebody else owns. The engine and the simulator speak to
// this interface; SlabPool is hearth's own, FineServePool the published rule to compare with.
//
//   life of a block: allocate() -> [retain() / release()]* -> last release(): free, or cached where it was published
//   life of a sequence: match() its prompt, allocate() the rest, allocate() as it grows, publish() what is full,
//                       release() all of it. A fork is retain() of the blocks it shares.
// docs/design/kv-slab.md says how and why. One owning thread.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/kv/prefix_key.h"

namespace hearth {

using KvModelId = int32_t;  // given by add_model(); used again after remove_model()
using KvBlock = int32_t;    // a handle: stays the same while compaction moves the block

// In blocks of the model. What others' live blocks may not take, and what it may not exceed.
struct KvLimits {
  // It can have so many by taking back what was lent: victim_for() names who has to give.
  int64_t guarantee = 0;
  // Of these, so many are lent to nobody's live blocks (caches may use them): it can have them at once.
  int64_t kept = 0;
  // Of these, so many for good, the rest for a while: what others can ever have (most()) is less by them alone.
  int64_t reserved = 0;
  int64_t cap = std::numeric_limits<int64_t>::max();
};

struct KvModelSpec {
  std::string name;
  int64_t block_tokens = 0;
  int64_t block_bytes = 0;  // of all layers; a multiple of 64. Models of equal block_bytes share slabs
  KvLimits limits;
};

// Blocks of a prefix that match() would give now.
struct KvHit {
  int64_t blocks = 0;
  int64_t revived = 0;  // of these, held by no sequence now: each counts against available() as a new one does
};

// A copy that the caller carries out, in this order, behind all work on the GPU that was launched before and ahead of
// all that is launched afterwards. The blocks' handles stay.
struct KvMove {
  int64_t from_bytes = 0, to_bytes = 0;  // offsets
  int64_t size_bytes = 0;
};

struct KvFormatStats {
  int64_t block_bytes = 0;
  int64_t columns_per_slab = 0;
  int64_t slabs = 0;
  int64_t live = 0, cached = 0, free = 0;  // columns of those slabs
  int64_t tail_bytes = 0;                  // of those slabs, behind their last column
};

struct KvModelStats {
  KvModelId model = 0;
  int64_t live = 0, cached = 0;  // blocks
  int64_t borrowed = 0;          // live blocks above its guarantee
  int64_t unused = 0;            // blocks of its guarantee that it does not use: lent where others borrow
  int64_t asked_blocks = 0, hit_blocks = 0, evicted_blocks = 0;  // since it was added
  double tokens_per_byte = 0;                                    // marginal memory efficiency, see efficiency.h
};

struct KvPoolStats {
  int64_t pool_bytes = 0;
  int64_t slabs = 0, empty_slabs = 0, idle_slabs = 0;  // idle: only cached blocks
  int64_t live_bytes = 0, cached_bytes = 0;            // columns times their size
  int64_t free_bytes = 0;  // of free columns in slabs that have a format: of use to that format alone
  int64_t tail_bytes = 0;
  int64_t touched_slabs = 0;  // looked at or changed since the start, for tests of cost
  int64_t moved_blocks = 0;
  std::vector<KvFormatStats> formats;
  std::vector<KvModelStats> models;
};

class KvPool {
 public:
  virtual ~KvPool() = default;

  // ---- models
  // InvalidArgument: sizes or limits that make no sense. ResourceExhausted, with the arithmetic: a block larger than a
  // slab, or guarantees that all slabs together could not give.
  virtual Result<KvModelId> add_model(const KvModelSpec& spec) = 0;
  // What the cache has of it is evicted. REQUIRES: no block of it is live.
  virtual void remove_model(KvModelId model) = 0;
  // Takes effect at the next allocation; a model above its new cap only shrinks. Errors as add_model().
  virtual Status set_limits(KvModelId model, const KvLimits& limits) = 0;

  // ---- blocks
  // The most it can ever have, all others idle. A request that needs more never fits.
  virtual int64_t most(KvModelId model) const = 0;
  // Blocks that sequences hold.
  virtual int64_t live(KvModelId model) const = 0;
  // allocate() succeeds for every count up to this one, and for no larger one.
  virtual int64_t available(KvModelId model) const = 0;
  // Appends `count` blocks with one reference each; false: none taken. Evicts caches, never live blocks.
  [[nodiscard]] virtual bool allocate(KvModelId model, int64_t count, std::vector<KvBlock>& blocks) = 0;
  // One reference more for each, by another sequence. REQUIRES: each has one.
  virtual void retain(std::span<const KvBlock> blocks) = 0;
  // One reference less for each, a sequence's blocks in their order (the cache forgets ends before beginnings).
  virtual void release(std::span<const KvBlock> blocks) = 0;
  // Whether more than one reference is held. REQUIRES: one is.
  virtual bool shared(KvBlock block) const = 0;
  virtual int64_t offset_bytes(KvBlock block) const = 0;

  // ---- prefix cache; keys from a PrefixChain of root(), one for each whole block
  virtual PrefixChain root(KvModelId model, std::string_view salt) const = 0;
  virtual KvHit hit(KvModelId model, std::span<const PrefixKey> keys) const = 0;
  // Appends the blocks of the longest prefix that is there and that the quota lets it have, but no more than `at_most`,
  // retained. Returns how many.
  virtual int64_t match(KvModelId model, std::span<const PrefixKey> keys, int64_t at_most,
                        std::vector<KvBlock>& blocks) = 0;
  // From the next step on the block holds these tokens behind this prefix. A key that is there already stays with the
  // block that has it. REQUIRES: the block is live and not published.
  virtual void publish(KvBlock block, const PrefixKey& key) = 0;
  // Nobody can say what any block holds: nothing that was published is found any more.
  virtual void forget_all() = 0;

  // ---- pressure
  // Whether a new sequence should be let in: false from the moment that slabs without live blocks fall below the low
  // watermark until they are above the high one. Running sequences grow all the same.
  virtual bool admits() const = 0;
  // Below the low watermark of empty slabs: evicts idle ones up to the high one, the least useful first. Returns the
  // number of slabs. Called now and then, so that steps find empty slabs.
  virtual int64_t trim() = 0;
  // Whose live blocks should go (preemption) so that `needy` gets more: of the models that borrow, the one that gains
  // the fewest tokens per byte. `needy` itself when nobody else has to give; nullopt when it has no live blocks either.
  virtual std::optional<KvModelId> victim_for(KvModelId needy) const = 0;
  // Sorts models that want more memory: first who is below its guarantee, then by tokens gained per byte.
  virtual void rank_borrowers(std::span<KvModelId> wanting) const = 0;
  // What the ranking is measured from: tokens that the model brought forth (generated, or prompt tokens fed).
  virtual void served(KvModelId model, int64_t tokens) = 0;
  // Ends a window of measurement, for instance every second.
  virtual void end_window() = 0;

  // ---- slabs
  // Empties nearly empty slabs into the holes of fuller ones, while fewer slabs have no live blocks than the high
  // watermark or what is kept for models asks for. At most max_bytes are moved.
  virtual std::vector<KvMove> compact(int64_t max_bytes) = 0;
  // The pool ends after `slabs` from now on; what is live behind that moves. Evicts and compacts as far as needed.
  // ResourceExhausted, with the arithmetic: live blocks need more slabs, or guarantees do; nothing was changed.
  virtual Result<std::vector<KvMove>> resize(int64_t slabs) = 0;
  virtual int64_t slab_bytes() const = 0;

  virtual KvPoolStats stats() const = 0;
};

}  // namespace hearth
