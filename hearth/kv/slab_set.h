// SPDX-License-Identifier: Apache-2.0
// SlabSet: slabs of one size, each cut into columns of one format while any of its columns is in use, and the lists by
// which the right slab is found without a search. It knows states of columns, not whose they are or who may have them.
//   I1. A slab is empty (no format, in use by nobody), idle (cached columns, no live one) or live (a live column).
//   I2. free + cached + live of a slab = the columns of its format.
//   I3. Sums of a format are those over its slabs; a slab is in exactly the lists that its counts say, and the lists of
//       idle and mixed slabs are in the order of used_at.
// One owning thread.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "hearth/kv/slab_lists.h"

namespace hearth {

struct SlabColumn {
  int32_t slab = kNoSlab;
  int32_t column = 0;
};

class SlabSet {
 public:
  static constexpr int32_t kNoBlock = -1;

  struct Slab {
    int32_t format = -1;
    int32_t live = 0, cached = 0;
    std::vector<int32_t> free;      // columns; the last is taken next
    std::vector<int32_t> block_in;  // by column: who is in it, or kNoBlock
    int64_t used_at = 0;            // when a column of it was last cached or revived, or its last live one left
    bool draining = false;          // in no list: nothing new goes into it
    bool idle() const { return live == 0 && cached > 0; }
  };

  struct Format {
    int64_t block_bytes = 0;
    int64_t columns = 0;  // of a slab
    int64_t users = 0;    // models; 0: the entry is free
    // Sums over its slabs that are not draining.
    int64_t slabs = 0, idle_slabs = 0;
    int64_t live = 0, cached = 0, free = 0;
    int64_t room = 0;        // cached and free columns of live slabs: what it can have without one slab more
    SlabBuckets by_free{0};  // live slabs with free columns
    SlabBuckets by_live{0};  // live slabs
    SlabList idle;           // idle slabs by used_at
    SlabList mixed;          // live slabs with cached columns by used_at
  };

  SlabSet(int64_t slab_bytes, int64_t slabs);

  int64_t slab_bytes() const { return slab_bytes_; }
  int64_t size() const { return size_; }
  int64_t empty() const { return empty_; }
  int64_t idle() const { return idle_; }
  int64_t touched() const { return touched_; }  // changes of a slab, those of one slab in a row counted once
  const Slab& slab(int32_t s) const { return slabs_[static_cast<size_t>(s)]; }
  const Format& format(int32_t f) const { return formats_[static_cast<size_t>(f)]; }
  int32_t formats() const { return static_cast<int32_t>(formats_.size()); }
  int64_t offset_bytes(SlabColumn at) const {
    return at.slab * slab_bytes_ + at.column * format(slab(at.slab).format).block_bytes;
  }

  // The format of blocks of this size, made where there is none; one user more, one user less.
  int32_t use_format(int64_t block_bytes);
  void leave_format(int32_t f);

  // Live slab whose free columns are the fewest that hold `columns`, else the one with the most; kNoSlab: none is free.
  int32_t best_fit(int32_t f, int64_t columns);
  // The fullest live slab with a free column; kNoSlab: none.
  int32_t fullest(int32_t f) { return format(f).by_free.at_least(1); }
  // Cuts the empty slab that is nearest to the base. REQUIRES: one is empty. It counts as live from its first column.
  int32_t cut(int32_t f);

  // A free column of the slab becomes live. REQUIRES: of an idle one, that no mixed slab was unused for longer.
  int32_t fill(int32_t s, int32_t block);
  void free_live(SlabColumn at, int64_t now);
  void free_cached(SlabColumn at);
  void cache(SlabColumn at, int64_t now);   // live -> cached
  void revive(SlabColumn at, int64_t now);  // cached -> live

  // Takes a slab that is not empty out of all lists and sums, so that it only empties; then it is empty as any other.
  void drain(int32_t s);
  // The set ends after `slabs`. REQUIRES: what lies behind is empty or draining.
  void resize(int64_t slabs);

 private:
  template <class Change>
  void change(int32_t s, bool newest, Change&& change);
  void count(int32_t s, int64_t sign);
  void touch(int32_t s) { touched_ += std::exchange(last_touched_, s) != s; }
  void set_empty(int32_t s, bool empty);

  int64_t slab_bytes_, size_, empty_ = 0, idle_ = 0, touched_ = 0;
  int32_t last_touched_ = kNoSlab;
  std::vector<Slab> slabs_;
  std::vector<Format> formats_;
  std::vector<uint64_t> empty_bits_;
  SlabLinks free_links_, live_links_, age_links_;
};

}  // namespace hearth
